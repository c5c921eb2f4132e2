/** How hard batches are packed: the controller by itself, and what ADR 0006 promises of the pump that ships. */
import t from 'tap'
import { EFFORT_MAX, EFFORTS, type Effort, LZ4, RAW } from '../../src/compression/effort.ts'
import { EffortController, RUNGS, type Waiting } from '../../src/transfer/effort-controller.ts'
import { type Case, CONTENTS, LINKS, MACHINES, migrationBytes, simulate } from './effort-models.ts'

t.setTimeout(590_000)

/** Tells the controller what is waited for, and a batch of so many bytes by level, raw and packed, a millisecond at a time. */
function run(
  controller: EffortController,
  fromMs: number,
  ms: number,
  waiting: (ms: number) => Waiting,
  raw: (level: number) => number = () => 1000,
  packed: (level: number) => number = () => 400,
): number {
  for (let at = 0; at < ms; at++) {
    const { level } = controller.effort(false)
    controller.sent(raw(level), raw(level), packed(level))
    controller.wait(waiting(at), fromMs + at, 0)
  }
  return fromMs + ms
}

t.test('effort follows what the encoder waits for', t => {
  const controller = new EffortController('auto')
  t.equal(controller.effort(false).level, 1, 'begins at what neither a thin nor a fast link loses much by')
  let at = run(controller, 0, 2000, () => 'wan')
  t.equal(controller.effort(false).level, EFFORT_MAX - 1, 'a link that stays full: up, but never to the last level')
  t.equal(controller.effort(true).level, 1, 'a guest waits: nothing slow')
  at = run(controller, at, 500, () => 'cpu')
  t.equal(controller.effort(false).level, EFFORT_MAX - 1, 'a busy encoder goes on where less effort brought no more')
  const byLevel = (level: number): number => (level < 0 ? 1500 : 1000 / (level + 1))
  at = run(
    controller,
    at,
    20_000,
    () => 'cpu',
    byLevel,
    level => byLevel(level) / 4,
  )
  t.ok(controller.effort(false).level <= 0, 'down as far as each step brings more')
  at = run(controller, at, 60_000, () => 'wan')
  t.equal(controller.effort(false).level, EFFORT_MAX - 1, 'up again')
  const still = new EffortController('auto')
  run(still, 0, 5000, () => 'source')
  t.equal(still.effort(false).level, 1, 'a silent source moves nothing')
  const mixed = new EffortController('auto')
  const both = (ms: number): Waiting => (ms % 4 === 0 ? 'cpu' : 'wan')
  run(mixed, 0, 5000, both)
  t.equal(mixed.effort(false).level, EFFORT_MAX - 1, 'both waited for, and the link stays full: up')
  type ByLevel = (level: number) => number
  const cases: [
    ends: number,
    why: string,
    ms: number,
    waiting: (ms: number) => Waiting,
    raw: ByLevel,
    packed: ByLevel,
  ][] = [
    [
      1,
      'both waited for, and the link runs empty: back again',
      60_000,
      both,
      l => (l > 1 ? 500 : 1000),
      l => (l > 1 ? 200 : 400),
    ],
    [
      1,
      'the far side takes no more, however few bytes: back again',
      60_000,
      () => 'wan',
      l => (l > 1 ? 960 : 1000),
      l => 1000 / (l + 1),
    ],
    [
      4,
      'as much for far fewer bytes, or for as many: up',
      20_000,
      both,
      () => 1000,
      l => ({ 0: 900, 0.5: 400, 1: 292, 2: 280, 3: 265, 4: 250 })[l]!,
    ],
    [4, 'the link runs empty, but more gets through: up', 20_000, both, l => 1000 + 200 * l, l => 1000 / (l + 1)],
  ]
  for (const [ends, why, ms, waiting, raw, packed] of cases) {
    const auto = new EffortController('auto')
    run(auto, 0, ms, waiting, raw, packed)
    t.equal(auto.effort(false).level, ends, why)
  }
  t.equal(new EffortController(5).effort(false).level, 5, 'a fixed level')
  const far = new EffortController('auto')
  far.begin(40)
  t.equal(far.effort(false).level, 2, 'between sites it begins higher')
  t.equal(far.effort(true).level, 1, 'but not for a guest that waits')
  far.begin(0)
  t.equal(far.effort(false).level, 2, 'and a later migration of the session begins where it is')
  const unknown = new EffortController('auto')
  unknown.begin(0)
  t.equal(unknown.effort(false).level, 1, 'a round trip that is not known is not far')
  for (const [rttMs, linkRate, level, why] of [
    [2, 60_000, LZ4.level, 'near by, on a link that is known to be fast, it begins lower'],
    [2, 12_500, 1, 'but not on one that is known to be slow'],
    [2, Number.POSITIVE_INFINITY, 1, 'nor on one of which nothing is known'],
    [40, 60_000, 2, 'nor between sites'],
  ] as const) {
    const near = new EffortController('auto')
    near.begin(rttMs, linkRate)
    t.equal(near.effort(false).level, level, why)
    near.begin(rttMs, 12_500)
    t.equal(near.effort(false).level, level, 'a later migration of the session begins where it is')
  }
  t.end()
})

t.test('a link that is known to take no more', t => {
  // twice as much work at LZ4, as long as nobody asks where its bytes go
  const work = (level: number): number => (level < 1 ? 40_000 : 20_000)
  const levelAt = (linkRate: number, ms = 900, rttMs = 40): number => {
    const controller = new EffortController('auto')
    controller.begin(rttMs)
    let least = 2
    for (let at = 1; at <= ms; at++) {
      const { level } = controller.effort(false)
      least = Math.min(least, level)
      controller.sent(work(level), work(level), work(level) / 8)
      controller.wait('cpu', at, 0, linkRate)
    }
    return least
  }
  t.equal(levelAt(5000), 2, 'less effort is not tried where its bytes would be more than the link takes')
  t.ok(levelAt(10_000) < 2, 'where it takes them it is')
  t.ok(levelAt(Number.POSITIVE_INFINITY) < 2, 'and where nobody knows')
  t.ok(levelAt(5000, 2000) < 2, 'what is known is not believed for ever')
  t.ok(levelAt(5000, 900, 1) < 1, 'nor near by')
  t.end()
})

/** Random memory on a machine where raw batches bring twice as much as references, and half as much is packed. */
const RANDOM_RATE = (level: number): number => (level < 0 ? 40_000 : level === 0 ? 20_000 : 10_000)

/** Levels of so many batches of random memory, while a link that takes `wan` bytes a millisecond is all there is. */
function random(controller: EffortController, fromMs: number, ms: number, wan = Number.POSITIVE_INFINITY): number[] {
  const levels: number[] = []
  let waiting = 0
  for (let at = 0; at < ms; at += 0.25) {
    const full = waiting > wan * 50
    const effort = controller.effort(false)
    const bytes = full ? 0 : RANDOM_RATE(effort.level) / 4
    if (bytes > 0) {
      levels.push(effort.level)
      controller.sent(bytes, bytes, bytes, effort)
      waiting += bytes
    }
    waiting = Math.max(0, waiting - wan / 4)
    controller.wait(full ? 'wan' : 'cpu', fromMs + at, waiting)
  }
  return levels
}

t.test('out of the way', t => {
  const fast = new EffortController('auto')
  random(fast, 0, 50)
  t.equal(fast.effort(false).level, RAW.level, 'a link that takes all of it is found out within 50 ms')
  t.equal(fast.effort(true).level, RAW.level, 'for a guest that waits, too')
  const levels = random(fast, 50, 4000)
  const looks = levels.filter(level => level === 0).length
  const raws = levels.filter(level => level < 0).length
  t.ok(looks >= raws / 40 && looks <= raws / 30, `one batch in 32 is looked at: ${looks} beside ${raws}`)
  const packed = levels.length - looks - raws
  t.ok(packed < levels.length / 20, `packing is tried now and then: ${packed} of ${levels.length}`)

  // LZ4 that saves nothing and is nearly as fast: as many bytes, and no more pages; the far side stands in the way now and then
  for (const [every, name] of [
    [Number.POSITIVE_INFINITY, 'nothing else is waited for'],
    [5, 'the other side is waited for a fifth of the time'],
  ] as const) {
    const near = new EffortController('auto')
    const vain: number[] = []
    for (let tick = 0; tick < 16_000; tick++) {
      const effort = near.effort(false)
      const bytes = (effort.level < 0 ? 10_000 : effort.level === 0 ? 8000 : 9000) / 4
      vain.push(effort.level)
      near.sent(bytes, bytes, bytes, effort)
      near.wait(tick % every === every - 1 ? 'wan' : 'cpu', tick / 4, 0)
    }
    const others = vain.slice(2000).filter(level => level > 0).length
    t.ok(others < 14_000 / 10, `packing that saves nothing is left, where ${name}: ${others} of 14,000 batches`)
  }

  const asked = new EffortController('auto')
  random(asked, 0, 50)
  const made = Array.from(
    { length: 320 },
    () => [asked.present(false), asked.effort(false), asked.present(true)][1]!.level,
  )
  t.equal(made.filter(level => level === 0).length, 10, 'whoever only asks takes no look away')

  // pages become known: as many bytes get through by references, for next to none on the WAN
  const known = (level: number): number => (level === 0 ? 39_500 : level < 0 ? 40_000 : 10_000)
  let known0 = 0
  for (let at = 0; at < 200; at += 0.25) {
    const effort = fast.effort(false)
    const bytes = known(effort.level) / 4
    fast.sent(bytes, effort.level < 0 ? bytes : 0, effort.level < 0 ? bytes : bytes / 100, effort)
    fast.wait('cpu', 4050 + at, 0)
    if (at > 100 && effort.level >= 0) known0++
  }
  t.ok(known0 > 390, `known pages are seen, and named again, within 100 ms: ${known0} of 400 batches`)

  const narrow = new EffortController('auto')
  const tried = random(narrow, 0, 3000, 10_500)
  const inVain = tried.filter(level => level < 0).length
  t.ok(inVain > 0 && inVain < 400, `a link that does not take it is found out soon, and once: ${inVain} batches`)

  const slowed = new EffortController('auto')
  t.ok(random(slowed, 0, 500).includes(RAW.level))
  random(slowed, 500, 400, 5000)
  t.ok(slowed.effort(false).level > 0, 'a link that slows down is packed for again')
  t.equal(new EffortController(0).effort(false).level, 0, 'a fixed level is that level')
  t.equal(new EffortController(LZ4.level).effort(false), LZ4, "LZ4's too, for who rehearses")
  t.end()
})

/** What the first batches may cost besides, of which nothing is learned: they weigh where a migration takes one second. */
const START_S = 0.03
/** Of a migration that is over before much can be learned: a sixteenth of the others. */
const SHORT = 16

/** Stays where it is put. */
class Fixed extends EffortController {
  private readonly always: Effort

  constructor(always: Effort) {
    super('auto')
    this.always = always
  }

  override effort(): Effort {
    return this.always
  }
}

/** Seconds of each rung, by case. */
const fixed = new Map<string, readonly number[]>()

function fixedSeconds(where: string, of: Case): readonly number[] {
  const known = fixed.get(where)
  if (known) return known
  const seconds = RUNGS.map(rung => simulate(new Fixed(rung), of))
  fixed.set(where, seconds)
  return seconds
}

/** Has the level it begins at until its first sample is over, and then at once the one that will prove best: no one can know it before. */
class Oracle extends EffortController {
  private knows = false
  private start: number | undefined
  private readonly best: number

  constructor(best: number) {
    super('auto')
    this.best = best
  }

  override effort(urgent: boolean): Effort {
    const effort = super.effort(urgent)
    this.start ??= effort.level
    if (effort.level !== this.start) this.knows = true
    return this.knows ? RUNGS[this.best]! : effort
  }
}

/** 1.1 but for one of the cases, which is at 1.109: how its samples fall on turns of new and known pages (ADR 0028). */
const ABOVE_BEST = 1.11

/** Every machine, memory and link, and the best fixed level's seconds there. */
function* longCases() {
  for (const [name, machine] of Object.entries(MACHINES)) {
    for (const [kind, content] of Object.entries(CONTENTS)) {
      for (const wan of LINKS) {
        const where = `${name}, ${kind}, ${wan} MB/s`
        const one = { machine, content, wan, bytes: migrationBytes(wan), channels: 1 }
        const best = Math.min(...fixedSeconds(where, one))
        yield { where, one, best }
      }
    }
  }
}

/** A case in which `make`'s controllers are not what ADR 0006 promises, one after the other. */
function* slowCases(make: () => EffortController): Generator<string, number> {
  let cases = 0
  for (const { where, one, best } of longCases()) {
    for (const [channels, rttMs] of [
      [1, 1],
      [1, 40],
      [2, 1],
    ] as const) {
      cases++
      const auto = simulate(make(), { ...one, channels }, rttMs)
      // what is sent in the first round trip is sent before anything is known of the link
      if (auto > best * ABOVE_BEST + START_S + rttMs / 1000)
        yield `${where}, ${channels} channels, ${rttMs} ms: ${auto.toFixed(2)} s, best ${best.toFixed(2)} s`
    }
  }
  return cases
}

/** The same of migrations that are over soon, beside an oracle that knows only the past. */
function* slowShortCases(make: () => EffortController): Generator<string, number> {
  let cases = 0
  for (const name of ['the packer weighs most', 'a quarter of a core']) {
    for (const [kind, content] of Object.entries(CONTENTS)) {
      for (const wan of [12.5, 40, 125]) {
        cases++
        const where = `${name}, ${kind}, ${wan} MB/s, short`
        const short = { machine: MACHINES[name]!, content, wan, bytes: migrationBytes(wan) / SHORT, channels: 1 }
        const seconds = fixedSeconds(where, short)
        const best = Math.min(...seconds)
        const oracle = Math.max(best, simulate(new Oracle(seconds.indexOf(best)), short, 1))
        const auto = simulate(make(), short, 1)
        if (auto > oracle * 1.12 + START_S)
          yield `${where}: ${auto.toFixed(2)} s, an oracle ${oracle.toFixed(2)} s, best ${best.toFixed(2)} s`
      }
    }
  }
  return cases
}

t.test('auto is at most 11 % above the best fixed effort, on any link', t => {
  const slow = slowCases(() => new EffortController('auto'))
  let next = slow.next()
  for (; !next.done; next = slow.next()) t.fail(next.value)
  t.equal(next.value, 5 * 12 * 7 * 3, 'cases')
  t.end()
})

t.test('what is known of a link between sites does not mislead', t => {
  let cases = 0
  for (const { where, one, best } of longCases()) {
    // what is known may be of a link that had others to carry: to find that out takes a second, of which a part is lost
    for (const [part, lost] of [
      [1, 0],
      [1 / 3, 0.4],
    ] as const) {
      cases++
      const auto = simulate(new EffortController('auto'), { ...one, known: one.wan * part }, 40)
      if (auto > best * ABOVE_BEST + START_S + 0.04 + lost)
        t.fail(`${where}, of which ${part.toFixed(2)} is known: ${auto.toFixed(2)} s, best ${best.toFixed(2)} s`)
    }
  }
  t.equal(cases, 5 * 12 * 7 * 2, 'cases')
  t.end()
})

t.test('a fresh session near by, on a link that is known to be fast, begins with little effort', t => {
  let cases = 0
  for (const { where, one, best } of longCases()) {
    if (one.wan < 40) continue
    cases++
    const auto = simulate(new EffortController('auto'), { ...one, known: one.wan }, 1)
    // on a host that is faster than the lab's this is a level too low, for one sample
    if (auto > best * ABOVE_BEST + START_S + 0.1)
      t.fail(`${where}, known: ${auto.toFixed(2)} s, best ${best.toFixed(2)} s`)
  }
  t.equal(cases, 5 * 12 * 4, 'cases')

  // migrations of some tenths of a second: PADs find out half of what a link takes, or less
  const above = { known: [] as number[], unknown: [] as number[] }
  for (const { where, one } of longCases()) {
    if (one.wan < 125) continue
    const short = { ...one, bytes: one.bytes / SHORT }
    const best = Math.min(...fixedSeconds(`${where}, short`, short))
    above.unknown.push(simulate(new EffortController('auto'), short, 1) / best)
    above.known.push(simulate(new EffortController('auto'), { ...short, known: one.wan / 2 }, 1) / best)
  }
  const mean = (all: number[]): number => all.reduce((sum, one) => sum + one, 0) / all.length
  const [known, unknown] = [mean(above.known), mean(above.unknown)]
  t.ok(known < 1.11, `short ones take ${known.toFixed(3)} times of the best fixed level's time`)
  t.ok(unknown > known + 0.1, `and ${unknown.toFixed(3)} times where nothing is known`)
  t.end()
})

t.test('a short migration is about as fast as one that knows the best effort after its first sample', t => {
  const slow = slowShortCases(() => new EffortController('auto'))
  let next = slow.next()
  for (; !next.done; next = slow.next()) t.fail(next.value)
  t.equal(next.value, 2 * 12 * 3, 'cases')
  t.end()
})

/** Controllers with a fault: the models must tell them from the one that ships. */
const PLANTS: Record<string, typeof EffortController> = {
  'it never moves': class extends EffortController {
    override wait(): void {}
  },
  'it never hears that the CPU is waited for': class extends EffortController {
    override wait(state: Waiting, nowMs: number, waitingBytes: number): void {
      super.wait(state === 'cpu' ? 'wan' : state, nowMs, waitingBytes)
    }
  },
  'it never hears that the link is': class extends EffortController {
    override wait(state: Waiting, nowMs: number, waitingBytes: number): void {
      super.wait(state === 'wan' ? 'cpu' : state, nowMs, waitingBytes)
    }
  },
  'it does not know what has not arrived': class extends EffortController {
    override wait(state: Waiting, nowMs: number): void {
      super.wait(state, nowMs, 0)
    }
  },
  'known pages count as new ones': class extends EffortController {
    override sent(rawBytes: number, _newBytes: number, packedBytes: number): void {
      super.sent(rawBytes, rawBytes, packedBytes)
    }
  },
  'it decides ten times too late': class extends EffortController {
    override wait(state: Waiting, nowMs: number, waitingBytes: number): void {
      super.wait(state, nowMs / 10, waitingBytes)
    }
  },
  'it waits for a whole sample of what is plainly worse': class extends EffortController {
    protected override isPlainlyWorse(): boolean {
      return false
    }
  },
  'a trial may cost what it likes': class extends EffortController {
    protected override holdMs(): number {
      return 0
    }
  },
  'a verdict is for all pages': class extends EffortController {
    protected override areOtherPages(): boolean {
      return false
    }
  },
  'it never gets out of the way': class extends EffortController {
    override effort(urgent: boolean): Effort {
      const effort = super.effort(urgent)
      return effort === RAW ? EFFORTS[0]! : effort
    }
  },
  'once out of the way, always': class extends EffortController {
    private isOut = false
    override effort(urgent: boolean): Effort {
      const effort = super.effort(urgent)
      this.isOut ||= effort === RAW
      return this.isOut ? RAW : effort
    }
  },
  'a rung too high': class extends EffortController {
    override effort(urgent: boolean): Effort {
      return RUNGS[Math.min(RUNGS.length - 1, RUNGS.indexOf(super.effort(urgent)) + 1)]!
    }
  },
  'a rung too low': class extends EffortController {
    override effort(urgent: boolean): Effort {
      return RUNGS[Math.max(0, RUNGS.indexOf(super.effort(urgent)) - 1)]!
    }
  },
}

t.test('a controller that is made worse is found', t => {
  for (const [name, Controller] of Object.entries(PLANTS)) {
    const make = (): EffortController => new Controller('auto')
    let found = slowCases(make).next()
    if (found.done) found = slowShortCases(make).next()
    t.notOk(found.done, `${name}: ${found.value}`)
  }
  t.end()
})
