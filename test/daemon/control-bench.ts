/**
 * What being watched costs a source proxy while a migration leaves it.
 *
 *   node test/daemon/control-bench.ts [SLICES] [HOW...]    CPU time of the proxy, watched and not, by turns within one migration
 *   node test/daemon/control-bench.ts times [ROUNDS]       seconds and CPU time of migrations, alone and scraped a thousand
 *                                                          times a minute, by turns at one pair: such that the link bounds,
 *                                                          and such that take all the CPU that there is
 *   node test/daemon/control-bench.ts memory [ROUNDS]      memory that control, metrics and history add
 *
 * HOW: `scrapes` a thousand a minute over one connection, as Prometheus does it; `connections` the same with one each;
 * `status` as `status --watch`; `statuses` a thousand of these a minute, which shows what one costs; `page` as an open page,
 * by `pageferry dashboard`, whose own figures are told, too; `all` scrapes and an open page at once.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { pipeline } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { median } from '../../scripts/harness/median.ts'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import type { SiteStatus } from '../../src/daemon/control-api.ts'
import { askProxy } from '../../src/system/control-client.ts'
import { PAGEFERRY } from '../cli/command.ts'
import { until } from '../helpers/until.ts'
import { migration } from '../template/makers.ts'
import { RunningPair } from './running.ts'

/** A thousand a minute. */
const SCRAPE_MS = 60
/** As the page and `status --watch` do it while a migration runs. */
const LOOK_MS = 1000
const SLICE_MS = 4000
const RATE_BYTES = 1_500_000
const HOWS = ['scrapes', 'connections', 'status', 'statuses', 'page', 'all'] as const
type How = (typeof HOWS)[number]

/** Milliseconds of CPU time of all threads that a process has, as the scheduler counts them. */
function cpuMs(pid: number): number {
  const times = readdirSync(`/proc/${pid}/task`).map(task =>
    Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'latin1').split(' ')[0]),
  )
  return times.reduce((sum, ns) => sum + ns / 1e6, 0)
}

/** MB that a process has alone, and its share of what others have too. */
function memory(pid: number): { readonly pss: number; readonly alone: number } {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'latin1')
  const of = (name: string): number => Number(new RegExp(`^${name}: +(\\d+) kB`, 'm').exec(text)![1]) / 1000
  return { pss: of('Pss'), alone: of('Private_Clean') + of('Private_Dirty') }
}

function get(options: http.RequestOptions): Promise<number> {
  return new Promise((done, failed) => {
    http
      .get(options, response => {
        let bytes = 0
        response.on('data', chunk => {
          bytes += chunk.length
        })
        response.on('end', () => done(bytes))
      })
      .on('error', failed)
  })
}

/** Looks at a proxy again and again, each time so long behind the last, until it is told to end. */
class Watcher {
  private isOver = false
  private readonly done: Promise<void>
  looks = 0

  constructor(everyMs: number, look: () => Promise<unknown>) {
    this.done = (async () => {
      for (let next = performance.now(); !this.isOver; next += everyMs) {
        await look()
        this.looks++
        await sleep(Math.max(0, next + everyMs - performance.now()))
      }
    })()
  }

  async end(): Promise<number> {
    this.isOver = true
    await this.done
    return this.looks
  }
}

interface Looking {
  readonly everyMs: number
  readonly look: () => Promise<unknown>
  readonly command?: ChildProcess
}

async function looking(how: How, control: string): Promise<Looking> {
  if (how === 'status' || how === 'statuses') {
    const everyMs = how === 'status' ? LOOK_MS : SCRAPE_MS
    return { everyMs, look: () => askProxy(control, 'GET /status') }
  }
  if (how === 'page' || how === 'all') {
    const command = spawn(PAGEFERRY, ['dashboard', '--control', control], { stdio: ['ignore', 'pipe', 'inherit'] })
    const [line] = (await once(createInterface({ input: command.stdout }), 'line')) as [string]
    const address = /http\S+/.exec(line)![0]
    const page = { everyMs: LOOK_MS, look: async () => (await fetch(`${address}data`)).text(), command }
    if (how === 'page') return page
    const scrapes = await looking('scrapes', control)
    let count = 0
    // the page is asked beside every so many scrapes
    const look = async (): Promise<void> => {
      await Promise.all([scrapes.look(), count++ % Math.round(LOOK_MS / SCRAPE_MS) === 0 ? page.look() : undefined])
    }
    return { ...scrapes, look, command }
  }
  const agent = how === 'scrapes' ? new http.Agent({ keepAlive: true, maxSockets: 1 }) : false
  return { everyMs: SCRAPE_MS, look: () => get({ socketPath: control, path: '/metrics', agent }) }
}

async function withPair<T>(
  options: readonly string[],
  use: (pair: RunningPair, folder: string) => Promise<T>,
): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-bench-'))
  try {
    const near = options.map(option => option.replace('FOLDER', folder))
    await using pair = await RunningPair.start(folder, { near, far: [] })
    await pair.near.said('session open')
    return await use(pair, folder)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** What arrives is nobody's: keeping it would cost more than all that is measured. */
function forgets({ target }: RunningPair): void {
  target.onConnection = socket => {
    const number = target.sockets.indexOf(socket)
    socket.on('data', () => {
      target.received[number] = Buffer.alloc(0)
    })
    socket.on('end', () => socket.end())
  }
}

/** Sends a guest's stream to the source proxy. @returns seconds that it took, as that says */
async function send(pair: RunningPair, folder: string, stream: Buffer): Promise<number> {
  forgets(pair)
  const { near } = pair
  const before = near.of('migration ended').length
  const qemu = net.connect(join(folder, 'source.sock'))
  qemu.on('error', () => {}).resume()
  qemu.end(stream)
  const { seconds } = await until('its end', () => near.of('migration ended')[before], 600_000)
  return Number(seconds)
}

const OFFERS = ['--control', 'FOLDER/control', '--history', 'FOLDER/history']

/** A guest whose migration has no end: its memory over and over, of pages that do not pack. */
function* endless(): Generator<Uint8Array> {
  const [idstr, pages, part] = ['pc.ram', 16_000, 100]
  yield new StreamEmitter()
    .header()
    .ramStart(2, [{ idstr, lengthBytes: pages * 4096 }])
    .eos()
    .footer(2)
    .bytes()
  for (let first = 0; ; first = (first + part) % pages) {
    const section = new StreamEmitter().sectionPart(2)
    for (let i = first; i < first + part; i++)
      section.page(i * 4096, randomBytes(4096), i === first ? idstr : undefined)
    yield section.eos().footer(2).bytes()
  }
}

/** Pages that do not pack. */
const noise = (megabytes: number): Buffer => migration(Array.from({ length: megabytes * 256 }, () => randomBytes(4096)))

async function slices(how: How, count: number): Promise<void> {
  await withPair([...OFFERS, '--rate', `${RATE_BYTES * 8}bit`], async (pair, folder) => {
    const control = join(folder, 'control')
    const qemu = net.connect(join(folder, 'source.sock'))
    qemu.on('error', () => {})
    forgets(pair)
    pipeline(endless, qemu, () => {}) // until it is destroyed
    const { everyMs, look, command } = await looking(how, control)
    const pid = pair.near.child.pid!
    await look()
    await sleep(SLICE_MS) // until it goes evenly
    const spent: Record<'off' | 'on', number[]> = { off: [], on: [] }
    const own: number[] = []
    let looks = 0
    for (let i = 0; i < 2 * count; i++) {
      const isOn = i % 2 === 1
      const watcher = isOn ? new Watcher(everyMs, look) : undefined
      const [cpu, ms, commandMs] = [cpuMs(pid), performance.now(), command ? cpuMs(command.pid!) : 0]
      await sleep(SLICE_MS)
      const percent = (100 * (cpuMs(pid) - cpu)) / (performance.now() - ms)
      spent[isOn ? 'on' : 'off'].push(percent)
      if (isOn && command) own.push((100 * (cpuMs(command.pid!) - commandMs)) / (performance.now() - ms))
      looks += (await watcher?.end()) ?? 0
    }
    const { sources } = (await askProxy(control, 'GET /status')) as SiteStatus
    if (sources[0]!.session!.migrations.length !== 1) throw new Error('the migration was over too soon')
    const [off, on] = [median(spent.off), median(spent.on)]
    const each = (((on - off) / 100) * count * SLICE_MS) / looks
    const text = (values: readonly number[]): string =>
      `${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)}`
    console.log(
      `${how}: ${on.toFixed(2)} % of a core (${text(spent.on)}), not watched ${off.toFixed(2)} % (${text(spent.off)}): ` +
        `${(on - off).toFixed(2)} % more, ${each.toFixed(2)} ms for each of ${looks}`,
    )
    if (command) {
      const { pss, alone } = memory(command.pid!)
      console.log(
        `  pageferry dashboard itself: ${median(own).toFixed(2)} % of a core, ${alone.toFixed(0)} MB alone, ${pss.toFixed(0)} MB with its share of what others have`,
      )
      command.kill()
      await once(command, 'exit')
    }
    qemu.destroy()
  })
}

/** What a migration took: seconds, and CPU time of both proxies, milliseconds. */
interface Took {
  readonly seconds: number
  readonly source: number
  readonly destination: number
}

const BOUNDS = {
  'the link, 100 Mbit/s': { megabytes: 25, options: ['--rate', '100Mbit'] },
  'the CPU': { megabytes: 100, options: [] },
} as const
/** Before anything is counted: code is compiled, memory is there. */
const WARM_ROUNDS = 2

/**
 * Between which the median of what was measured lies, so that it is wrong once in twenty: as many values are left out at
 * either end as coins show heads that seldom (the sign test).
 */
function medianBetween(values: readonly number[]): readonly [number, number] {
  const sorted = values.toSorted((a, b) => a - b)
  let left = 0
  for (let heads = 0, chance = 0, ways = 1; heads < sorted.length / 2; heads++) {
    chance += ways / 2 ** sorted.length
    if (chance > 0.025) break
    left = heads + 1
    ways = (ways * (sorted.length - heads)) / (heads + 1)
  }
  const first = Math.max(0, left - 1)
  return [sorted[first]!, sorted[sorted.length - 1 - first]!]
}

async function times(rounds: number): Promise<void> {
  for (const [bound, { megabytes, options }] of Object.entries(BOUNDS))
    await withPair([...OFFERS, ...options], async (pair, folder) => {
      const { everyMs, look } = await looking('scrapes', join(folder, 'control'))
      const [near, far] = [pair.near.child.pid!, pair.far.child.pid!]
      let looks = 0
      const move = async (isScraped: boolean): Promise<Took> => {
        const stream = noise(megabytes)
        const watcher = isScraped ? new Watcher(everyMs, look) : undefined
        const [source, destination] = [cpuMs(near), cpuMs(far)]
        const seconds = await send(pair, folder, stream)
        const took = { seconds, source: cpuMs(near) - source, destination: cpuMs(far) - destination }
        looks += (await watcher?.end()) ?? 0
        return took
      }
      await look()
      for (let i = 0; i < WARM_ROUNDS; i++) await move(false)
      looks = 0
      const took: Record<'alone' | 'scraped', Took[]> = { alone: [], scraped: [] }
      for (let i = 0; i < rounds; i++)
        // either comes first in turn
        for (const isScraped of i % 2 === 0 ? [false, true] : [true, false])
          took[isScraped ? 'scraped' : 'alone'].push(await move(isScraped))
      console.log(`${megabytes} MB that do not pack, bound by ${bound}; ${rounds} times each, ${looks} scrapes:`)
      const units = { seconds: 's', source: 'ms of CPU, source', destination: 'ms of CPU, destination' } as const
      for (const [name, unit] of Object.entries(units) as [keyof Took, string][]) {
        const of = (how: 'alone' | 'scraped'): number[] => took[how].map(one => one[name])
        const text = (values: readonly number[]): string => {
          const digits = name === 'seconds' ? 3 : 0
          return `${median(values).toFixed(digits)} (${Math.min(...values).toFixed(digits)} to ${Math.max(...values).toFixed(digits)})`
        }
        const ratios = of('scraped').map((value, i) => value / of('alone')[i]!)
        const [least, most] = medianBetween(ratios)
        const sure = rounds < 6 ? '' : '95 % ' // of fewer nothing can be said
        console.log(
          `  ${unit}: alone ${text(of('alone'))}, scraped ${text(of('scraped'))}; scraped by alone, pair by pair: ` +
            `${median(ratios).toFixed(4)}, ${sure}between ${least.toFixed(4)} and ${most.toFixed(4)}`,
        )
      }
    })
}

async function memories(rounds: number): Promise<void> {
  const stream = noise(20)
  const used: Record<'without' | 'with', number[]> = { without: [], with: [] }
  for (let i = 0; i < 2 * rounds; i++) {
    const how = i % 2 === 0 ? 'without' : 'with'
    await withPair(how === 'with' ? OFFERS : [], async (pair, folder) => {
      const watchers: Watcher[] = []
      if (how === 'with')
        for (const one of ['scrapes', 'status'] as const) {
          const { everyMs, look } = await looking(one, join(folder, 'control'))
          watchers.push(new Watcher(everyMs, look))
        }
      await send(pair, folder, stream)
      await sleep(5000) // some hundred scrapes
      used[how].push(memory(pair.near.child.pid!).alone)
      for (const watcher of watchers) await watcher.end()
    })
  }
  for (const [how, megabytes] of Object.entries(used))
    console.log(
      `${how}: median ${median(megabytes).toFixed(1)} MB of ${megabytes.map(one => one.toFixed(1)).join(', ')}`,
    )
}

const [first = '8', ...rest] = process.argv.slice(2)
if (first === 'times') await times(Number(rest[0] ?? 12))
else if (first === 'memory') await memories(Number(rest[0] ?? 3))
else for (const how of rest.length > 0 ? (rest as How[]) : HOWS) await slices(how, Number(first))
process.exit(0)
