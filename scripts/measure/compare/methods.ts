/** How each method takes the bytes from one QEMU to the other. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Forecast, Passed } from '../../../src/migration/forecast.ts'
import { claimPort } from '../../harness/claimed-port.ts'
import { Proxies } from '../../harness/proxies.ts'
import { endChild } from '../../harness/qemu/cleanup.ts'
import type { MigrationSettings, QemuGuest } from '../../harness/qemu/guest.ts'
import type { OpenedWan } from '../../harness/wan/open.ts'
import { hasProgram } from '../../lab/tools.ts'
import { descendantSeconds, ownSeconds } from './cpu.ts'
import type { Method, Run } from './results.ts'

/** What the pair and its peers may know beforehand. */
export interface Templates {
  /** Folder that `pageferry template build` filled. */
  readonly store: string
  /** One of them: a header, and pages as they are. */
  readonly setFile: string
  /** How many sets there are in it. */
  readonly sets: number
}

/** A way to the destination, ready for a migration. */
export interface Route extends AsyncDisposable {
  readonly sourceUri: string
  /** Where the destination QEMU waits. */
  readonly targetUri: string
  readonly source: MigrationSettings
  readonly destination: MigrationSettings
  /** CPU seconds so far of what is neither QEMU, by part. */
  cpuSeconds(source: QemuGuest, destination: QemuGuest): Record<string, number>
  /** The route's own account of the migration that has ended. */
  account(): Promise<Pick<Run, 'classes' | 'forecast'>>
  /** What its programs said last, for when something went wrong. */
  readonly log: string
}

const NOTHING_TOLD = async () => ({ classes: null })

const RETURN_PATH = { 'return-path': true }

/** Settings of QEMU's own ways: capabilities of both sides, and of the source; parameters of both. */
const QEMU_ALONE: Partial<Record<Method, { both?: MigrationSettings; source?: MigrationSettings }>> = {
  direct: {},
  xbzrle: { both: { capabilities: { xbzrle: true }, parameters: { 'xbzrle-cache-size': 64 << 20 } } },
  'multifd-zstd': {
    both: {
      capabilities: { multifd: true },
      parameters: { 'multifd-channels': 4, 'multifd-compression': 'zstd', 'multifd-zstd-level': 1 },
    },
  },
  'auto-converge': { source: { capabilities: { 'auto-converge': true } } },
}

/**
 * What `zstd --stream-size` is told, and given: QEMU's stream, then zeros. Without a size it takes no --patch-from from
 * a pipe, and it refuses 2 GiB. A migration that needs more fails.
 */
const PIPE_BYTES = 2_000_000_000

/** Programs that methods need beyond QEMU and the pair, and the Debian packages that have them. */
export const PROGRAMS: Partial<
  Record<Method, readonly (readonly [program: string, debianPackage: string | undefined])[]>
> = {
  'zstd-pipe': [
    ['zstd', 'zstd'],
    ['socat', 'socat'],
  ],
  wanproxy: [['wanproxy', undefined]],
}

/** Why a method cannot be had here; undefined where it can. */
export function whyNot(method: Method): string | undefined {
  const missing = PROGRAMS[method]?.find(([program]) => !hasProgram(program))
  return missing && `no program ${missing[0]} in PATH`
}

/** Whether it goes through the pair, so that proxies tell of it. */
export function isPair(method: Method): method is PairMethod {
  return method === 'paper' || method.startsWith('pair')
}

/** Opens the way of one method. */
export async function openRoute(
  method: Method,
  wan: OpenedWan,
  folder: string,
  templates: Templates | undefined,
): Promise<Route> {
  if (isPair(method)) return throughPair(method, wan, folder, templates)
  if (method === 'zstd-pipe') return throughPipe(wan, templates)
  if (method === 'wanproxy') return throughWanproxy(wan, folder)
  const { both = {}, source = {} } = QEMU_ALONE[method]!
  const port = await claimPort()
  const { host, port: reached } = await wan.reach(port)
  const capabilities = { ...RETURN_PATH, ...both.capabilities }
  return {
    sourceUri: `tcp:${host}:${reached}`,
    targetUri: `tcp:${wan.listenHost}:${port}`,
    source: { capabilities: { ...capabilities, ...source.capabilities }, parameters: both.parameters ?? {} },
    destination: { capabilities, parameters: both.parameters ?? {} },
    cpuSeconds: () => ({}),
    account: NOTHING_TOLD,
    log: '',
    [Symbol.asyncDispose]: async () => {},
  }
}

/**
 * The paper's pair has no other knowledge than its templates, no smaller pages, and nothing is compressed: references
 * alone, neither to what has passed nor to what a place held before.
 */
const PAPER = { both: ['--learn', 'off', '--pool-memory', '0'], source: ['--effort', '0'] }

type PairMethod = 'paper' | 'pair' | 'pair-image' | 'pair-image-alone'

async function throughPair(
  method: PairMethod,
  wan: OpenedWan,
  folder: string,
  templates: Templates | undefined,
): Promise<Route> {
  const options = { tls: 'psk', ...(method === 'paper' ? PAPER : {}) } as const
  const pair = await Proxies.start(wan, folder, templates?.store, options)
  try {
    await pair.ready(120_000, templates?.sets)
  } catch (error) {
    await pair[Symbol.asyncDispose]()
    throw error
  }
  return {
    sourceUri: pair.sourceUri,
    targetUri: pair.targetUri,
    source: { capabilities: RETURN_PATH },
    destination: { capabilities: RETURN_PATH },
    cpuSeconds: () => ({
      'source proxy': ownSeconds(pair.pids.source) + descendantSeconds(pair.pids.source),
      'destination proxy': ownSeconds(pair.pids.destination) + descendantSeconds(pair.pids.destination),
    }),
    account: async () => {
      const summary = await pair.summary()
      if (!summary) return { classes: null }
      // A record is 8 bytes and a page, or 9 for a zero page; the summary does not tell dense pages from others.
      const { zero, same, template, earlier, fill, patched, whole, opaque } = summary.pages
      const records = { fill, previous: same, template, earlier, patched, compressed: whole, opaque }
      const classes: Record<string, { pages: number; bytes: number }> = { zero: { pages: zero, bytes: zero * 9 } }
      for (const [name, pages] of Object.entries(records)) classes[name] = { pages, bytes: pages * 4104 }
      const counted = Object.values(classes).reduce((sum, { bytes }) => sum + bytes, 0)
      const { seconds, bytesIn, bytesWan, forecast, firstPass } = summary
      return {
        classes: { ...classes, other: { pages: 0, bytes: Math.max(0, bytesIn - counted) } },
        ...(forecast && firstPass ? { forecast: forecastOf(forecast, firstPass, { seconds, bytesIn, bytesWan }) } : {}),
      }
    },
    get log() {
      return pair.log
    },
    [Symbol.asyncDispose]: () => pair[Symbol.asyncDispose](),
  }
}

function forecastOf(
  { atSeconds, seconds, bytesIn, bytesWan }: Forecast,
  firstPass: Passed,
  ended: Passed,
): NonNullable<Run['forecast']> {
  return { atSeconds, seconds, bytesIn, bytesWan, firstPass, ended }
}

/** What a skilled user would rig up. One way only: QEMU has no return path through a pipe. */
async function throughPipe(wan: OpenedWan, templates: Templates | undefined): Promise<Route> {
  const port = await claimPort()
  const { host, port: reached } = await wan.reach(port)
  const options = `-q --long=31 --single-thread ${templates ? `--patch-from='${templates.setFile}'` : ''}`
  // The zeros push out what zstd still holds of the stream's end; whoever has seen that end closes the pipe.
  const pack = `(cat; exec cat /dev/zero) | head -c ${PIPE_BYTES} | zstd -3 ${options} --stream-size=${PIPE_BYTES} -c`
  return {
    sourceUri: `exec:${pack} | socat -u - TCP:${host}:${reached}`,
    targetUri: `exec:socat -u TCP-LISTEN:${port},bind=${wan.listenHost},reuseaddr - | zstd -d ${options} -c`,
    source: {},
    destination: {},
    cpuSeconds: (source, destination) => ({
      zstd: descendantSeconds(source.pid) + descendantSeconds(destination.pid),
    }),
    account: NOTHING_TOLD,
    log: '',
    // Its processes have QEMUs for parents and end with them; the namespaces' end takes the rest.
    [Symbol.asyncDispose]: async () => {},
  }
}

/**
 * WANProxy at both sites, as its own examples have it: XCodec and zlib between the two. Written after those; there is no
 * Debian package, so this has never met a real one.
 */
async function throughWanproxy(wan: OpenedWan, folder: string): Promise<Route> {
  const [near, far, port] = [await claimPort(), await claimPort(), await claimPort()]
  const peer = await wan.reach(port)
  interface End {
    readonly listen: readonly [host: string, port: number]
    readonly connect: readonly [host: string, port: number]
    /** Which of its two sides faces the WAN. */
    readonly encoded: 'interface' | 'peer'
  }
  const ends = {
    source: { listen: ['127.0.0.1', near], connect: [peer.host, peer.port], encoded: 'peer' },
    destination: { listen: [wan.listenHost, port], connect: ['127.0.0.1', far], encoded: 'interface' },
  } satisfies Record<string, End>
  const configuration = ({ listen, connect, encoded }: End) => [
    ...['create codec codec0', 'set codec0.codec XCodec', 'set codec0.compressor zlib', 'activate codec0'],
    ...['create interface if0', 'set if0.family IPv4', `set if0.host "${listen[0]}"`, `set if0.port "${listen[1]}"`],
    ...['activate if0', 'create peer peer0', 'set peer0.family IPv4', `set peer0.host "${connect[0]}"`],
    ...[`set peer0.port "${connect[1]}"`, 'activate peer0', 'create proxy proxy0', 'set proxy0.interface if0'],
    ...['set proxy0.peer peer0', `set proxy0.${encoded}_codec codec0`, 'activate proxy0', ''],
  ]
  let log = ''
  const children = (['destination', 'source'] as const).map(site => {
    const file = join(folder, `wanproxy-${site}.conf`)
    writeFileSync(file, configuration(ends[site]).join('\n'))
    const child = wan.spawn(site, ['wanproxy', '-c', file])
    for (const output of [child.stdout!, child.stderr!])
      output.setEncoding('utf8').on('data', (text: string) => {
        log = (log + text).slice(-4000)
      })
    return { part: `${site} proxy`, child }
  })
  await sleep(1000) // it does not say when it listens
  return {
    sourceUri: `tcp:127.0.0.1:${near}`,
    targetUri: `tcp:127.0.0.1:${far}`,
    source: { capabilities: RETURN_PATH },
    destination: { capabilities: RETURN_PATH },
    cpuSeconds: () => Object.fromEntries(children.map(({ part, child }) => [part, ownSeconds(child.pid!)])),
    account: NOTHING_TOLD,
    get log() {
      return log
    },
    [Symbol.asyncDispose]: async () => {
      for (const { child } of children) await endChild(child, 1000)
    },
  }
}
