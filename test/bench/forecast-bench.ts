/**
 * `node test/bench/forecast-bench.ts [GUEST,GUEST] [LINK LINK]`: the lab's streams through a pair, with sets and without;
 * what is said halfway, and how it ended. Leaves the curves in docs/measured/forecast.json, where they replace those of the
 * same guest and link: test/migration/forecast.test.ts holds the forecaster against them. Needs `make lab`.
 */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { PageInput } from '../../src/capture/pages.ts'
import { buildSet } from '../../src/store/build.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { Replay, root, streamPath } from './replay.ts'

/** One migration. */
export interface Curve {
  readonly guest: string
  readonly link: string
  /** Whether both proxies had a set of other guests' pages. */
  readonly sets: boolean
  /** As it ended. */
  readonly seconds: number
  readonly bytesIn: number
  readonly bytesWan: number
  /** On the way: share of the guest's pages (above 1: sent again), seconds, bytesIn, bytesWan. */
  readonly points: readonly (readonly [number, number, number, number])[]
}

/** docs/measured/forecast.json. */
export interface Curves {
  readonly format: 1
  readonly when: string
  readonly command: string
  readonly machine: string
  readonly curves: readonly Curve[]
}

const FILE = join(root, 'docs/measured/forecast.json')

/** A set for each guest is made of others: of these, or of those where the guest is like one of these. */
const SETS = { plain: ['idle', 'nginx', 'redis', 'compiling'], other: ['nginx-k2', 'postgres', 'python'] } as const

if (import.meta.main) {
  const streams = readdirSync(join(root, '.cache/lab/streams')).flatMap(file => /^(.+)\.stream$/.exec(file)?.[1] ?? [])
  const guests = process.argv[2]?.split(',') ?? streams
  const links = process.argv[3]?.split(' ') ?? ['15Mbit,40ms', '100Mbit,40ms', '400Mbit,10ms']
  const folder = temporaryFolder('forecast')
  const built = async (kind: keyof typeof SETS): Promise<string> => {
    const path = join(folder.path, kind)
    if (existsSync(path)) return path
    const inputs: PageInput[] = []
    for (const name of SETS[kind]) inputs.push(await PageInput.open(streamPath(name)))
    await buildSet(inputs, { minVms: 2, maxBytes: undefined, memoryBytes: 512 << 20 }, new TemplateStore(path))
    return path
  }
  const curve = join(folder.path, 'curve')
  for (const sets of [false, true].slice(...(process.argv[4]?.split(',').map(Number) ?? [])))
    for (const guest of guests) {
      const kind = (SETS.plain as readonly string[]).includes(guest) || guest === 'nginx-q10' ? 'other' : 'plain'
      const args = sets ? ['--store', await built(kind), '--learn', 'off'] : []
      for (const link of links) {
        rmSync(curve, { force: true })
        await using replay = await Replay.start({
          link,
          sourceArgs: args,
          destinationArgs: args,
          sourceEnv: {
            NODE_OPTIONS: `--import=${pathToFileURL(join(root, 'test/bench/forecast-recorder.ts'))}`,
            FORECAST_CURVE: curve,
          },
        })
        const [played] = await replay.play([streamPath(guest)])
        const { seconds, bytesIn, bytesWan, forecast } = played!.summary!
        const points = readFileSync(curve, 'utf8')
          .trim()
          .split('\n')
          .map(line => JSON.parse(line))
        const said = forecast
          ? `${forecast.seconds.join(' to ')} s, ${forecast.bytesWan.map(bytes => (bytes / 1e6).toFixed(1)).join(' to ')} MB`
          : 'nothing'
        process.stderr.write(
          `${guest} ${link} ${sets ? 'sets' : 'none'}: said ${said}; ${seconds.toFixed(1)} s, ${(bytesWan / 1e6).toFixed(1)} MB\n`,
        )
        keep({ guest, link, sets, seconds, bytesIn, bytesWan, points })
      }
    }
  folder.remove()
}

/** Curves that were kept, and in the place of one alike or behind them this one. */
function keep(curve: Curve): void {
  const curves: Curve[] = existsSync(FILE) ? (JSON.parse(readFileSync(FILE, 'utf8')) as Curves).curves.slice() : []
  const key = ({ guest, link, sets }: Curve): string => `${guest} ${link} ${sets}`
  const at = curves.findIndex(one => key(one) === key(curve))
  if (at < 0) curves.push(curve)
  else curves[at] = curve
  const head = {
    format: 1,
    when: new Date().toISOString().slice(0, 10),
    command: 'node test/bench/forecast-bench.ts',
    machine: `${cpus().length} cores, ${cpus()[0]!.model}, with other work beside it`,
  }
  const lines = curves.map(one => JSON.stringify(one)).join(',\n')
  writeFileSync(FILE, `${JSON.stringify(head).slice(0, -1)},"curves":[\n${lines}\n]}\n`)
}
