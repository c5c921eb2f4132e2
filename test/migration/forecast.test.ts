/** What is said of a migration halfway, held against what it came to: by hand, and for the lab's guests as they went. */
import { readFileSync } from 'node:fs'
import t from 'tap'
import { BatchStats } from '../../src/codec/stats.ts'
import { PAGE_SIZE } from '../../src/codec/wire.ts'
import { type Forecast, Forecaster, type Passed } from '../../src/migration/forecast.ts'
import { BlockTable } from '../../src/qemu/block-table.ts'
import type { Curves } from '../bench/forecast-bench.ts'

function guest(pages: number): BlockTable {
  return new BlockTable(
    [
      { idstr: 'pc.ram', lengthBytes: (pages - 100) * PAGE_SIZE },
      { idstr: 'vga.vram', lengthBytes: 100 * PAGE_SIZE },
    ],
    true,
  )
}

/** A migration of 1600 pages, a millisecond and 1000 WAN bytes for each that is not zero. */
class Run {
  readonly forecaster = new Forecaster()
  readonly stats = new BatchStats()
  readonly blocks = guest(1600)
  private ms = 0

  pass(zero: number, whole: number): Forecast | undefined {
    this.ms += whole
    this.stats.zeroPages += zero
    this.stats.newPages += whole
    this.stats.rawBytes += zero * 9 + whole * 4104
    this.stats.packedBytes += whole * 1000
    return this.forecaster.update(this.blocks, this.stats, this.ms, 3)
  }
}

t.test('from what has passed to as much again for each page left', t => {
  const run = new Run()
  run.blocks.complete = false
  t.equal(run.pass(0, 0), undefined, 'the block list may still grow')
  run.blocks.complete = true
  for (const whole of [100, 50, 50, 50, 50, 50, 50]) t.equal(run.pass(100 - whole, whole), undefined, 'not yet half')
  t.same(
    run.pass(50, 50),
    {
      atSeconds: 0.45,
      effort: 3,
      seconds: [0.5, 0.9],
      bytesIn: [450 * 4104 + 350 * 9, 900 * 4104 + 700 * 9],
      bytesWan: [450_000, 900_000],
    },
    'as empty as can be, or as all that passed',
  )
  t.equal(run.pass(400, 0), undefined, 'once')
  t.equal(run.forecaster.firstPass, undefined)
  run.pass(300, 100)
  t.same(run.forecaster.firstPass, { seconds: 0.55, bytesIn: 550 * 4104 + 1050 * 9, bytesWan: 550_000 })
  run.pass(0, 500)
  t.match(run.forecaster.firstPass, { seconds: 0.55 }, 'further passes are none of it')
  t.end()
})

t.test('memory that grows fuller towards its end', t => {
  const run = new Run()
  for (let i = 0; i < 4; i++) run.pass(100, 0)
  for (let i = 0; i < 3; i++) t.equal(run.pass(0, 100), undefined)
  t.match(run.pass(0, 100), { seconds: [0.4, 1.2], bytesWan: [400_000, 1_200_000] }, 'as the last quarter')
  t.end()
})

t.test('batches of zeros: a sixth of a guest in one', t => {
  const run = new Run()
  run.pass(0, 200)
  run.pass(270, 0)
  run.pass(0, 0) // what is no page: device state
  run.pass(260, 0)
  const told = run.pass(260, 1)
  t.match(told, { bytesWan: [201_000, 201_000 + Math.round((201_000 / 991) * 609)] })
  for (const range of [told!.seconds, told!.bytesIn, told!.bytesWan])
    t.ok(
      range.every(value => Number.isFinite(value) && value > 0),
      `${range}`,
    )
  t.end()
})

t.test('pages of sets on the disk are pages that have passed', t => {
  const run = new Run()
  let told: Forecast | undefined
  for (let i = 0; i < 8; i++) {
    run.stats.coldPages += 50
    told = run.pass(0, 50) ?? told
  }
  t.ok(told, 'half of the guest')
  run.stats.coldPages += 800
  run.pass(0, 0)
  t.ok(run.forecaster.firstPass, 'all of it')
  t.end()
})

t.test('of which nothing is told', t => {
  const run = new Run()
  t.equal(run.pass(1000, 0), undefined, 'two batches')
  t.equal(run.pass(300, 0), undefined)
  t.equal(run.pass(100, 0), undefined, 'nor later')
  const whole = new Run()
  t.equal(whole.pass(1600, 0), undefined, 'all in one batch')
  t.match(whole.forecaster.firstPass, { bytesIn: 14_400 })
  const unknown = new Run()
  const none = new BlockTable([], true)
  t.equal(unknown.forecaster.update(none, unknown.stats, 1, 3), undefined, 'no RAMBlocks')
  t.end()
})

// ---- the lab's guests

/** What is said of a recorded migration, and what its first pass came to. */
function heldAgainst(curve: Curves['curves'][number]): { said: Forecast | undefined; truth: Passed } {
  const pages = 1e6
  const blocks = guest(pages)
  const forecaster = new Forecaster()
  const stats = new BatchStats()
  let said: Forecast | undefined
  for (const [share, seconds, bytesIn, bytesWan] of curve.points) {
    stats.newPages = Math.floor(share * pages)
    stats.rawBytes = bytesIn
    stats.packedBytes = bytesWan
    said = forecaster.update(blocks, stats, seconds * 1000, 0) ?? said
  }
  return { said, truth: forecaster.firstPass ?? curve }
}

t.test("the lab's guests: nine of ten end within what was said", t => {
  const { curves } = JSON.parse(
    readFileSync(new URL('../../docs/measured/forecast.json', import.meta.url), 'utf8'),
  ) as Curves
  t.ok(new Set(curves.map(({ guest }) => guest)).size >= 11, 'all of them')
  for (const what of ['seconds', 'bytesIn', 'bytesWan'] as const) {
    let held = 0
    const widths: number[] = []
    for (const curve of curves) {
      const { said, truth } = heldAgainst(curve)
      t.ok(said, `${curve.guest}, ${curve.link}: something is said`)
      const [least, most] = said![what]
      widths.push(most / least)
      if (truth[what] >= least * 0.99 && truth[what] <= most * 1.01) held++
      else
        t.comment(
          `${curve.guest}, ${curve.link}${curve.sets ? ', sets' : ''}: ${what} ${least} to ${most}, ${truth[what]}`,
        )
    }
    t.ok(held >= 0.9 * curves.length, `${what}: ${held} of ${curves.length}`)
    t.ok(Math.max(...widths) < 3, `and the most is not far above the least: ${Math.max(...widths).toFixed(1)}`)
  }
  t.end()
})
