/** `pageferry serve --config FILE`: both roles in one process. */
import type { CommandModule } from 'yargs'
import { CapKeeper } from '../daemon/cap-keeper.ts'
import { type Configuration, type Mistake, type ReadConfiguration, readConfiguration } from '../daemon/configuration.ts'
import { needRestart } from '../daemon/configuration-changes.ts'
import { Control } from '../daemon/control.ts'
import { DestinationDaemon } from '../daemon/destination-daemon.ts'
import { rehearse } from '../daemon/rehearsal.ts'
import { type Runnable, runProxy, type StatusLine } from '../daemon/run-proxy.ts'
import { checkSupply, type SetSupply } from '../daemon/set-supply.ts'
import { ALL_PEERS } from '../daemon/settings.ts'
import { Site } from '../daemon/site.ts'
import { readSmallFile } from '../daemon/small-file.ts'
import { SourceDaemon } from '../daemon/source-daemon.ts'
import { takeListenFds } from '../daemon/systemd.ts'
import { formatAddress } from '../relay/address.ts'
import { groupId } from '../relay/group.ts'
import { checkListen } from '../relay/listener.ts'
import type { Role } from '../session/api.ts'
import { type CapShare, SharedCap } from '../session/shared-cap.ts'
import { threadCount } from '../transfer/helpers/thread-count.ts'
import { looker, missingThings, tellMistakes, wrong } from './check-settings.ts'
import { listenAt } from './destination-command.ts'
import { print } from './output.ts'
import {
  newTeller,
  type ProcessMemory,
  processMemory,
  proxySettings,
  rehearsalOf,
  startSupply,
  tellStart,
} from './proxy-options.ts'

interface ServeArguments {
  readonly config: string
  readonly check: boolean
  readonly json: boolean
}

export const serveCommand: CommandModule<object, ServeArguments> = {
  command: 'serve',
  describe: 'Run both proxies of a site in one process',
  builder: yargs =>
    yargs
      .option('config', {
        describe: 'Configuration file (YAML)',
        type: 'string',
        requiresArg: true,
        demandOption: true,
      })
      .option('check', {
        describe: 'Only check the file: every mistake, with line and hint',
        type: 'boolean',
        default: false,
      })
      .option('json', { describe: 'Log JSON, one object a line', type: 'boolean', default: false })
      .example('$0 serve --config /etc/pageferry/site.yaml --check', 'before a restart')
      .example('$0 serve --config /etc/pageferry/site.yaml', 'guests go out and come in') as never,
  handler: runServe,
}

async function runServe(args: ServeArguments): Promise<void> {
  const file = readFile(args.config)
  const { configuration } = file
  const mistakes = args.check && configuration ? await missing(configuration, file) : file.mistakes
  if (!configuration || mistakes.length > 0) {
    tellMistakes(args.json, mistakes, ({ line }) => `${args.config}:${line}: `)
    throw wrong(args.config, mistakes.length)
  }
  if (args.check) {
    print(args.json ? '[]' : `${args.config}: no mistakes`)
    return
  }
  await serve(args, configuration)
}

/** @throws IO */
function readFile(path: string): ReadConfiguration {
  return readConfiguration(readSmallFile(path, '--config'))
}

/** What the file names and this host does not have, or may not read. */
async function missing(configuration: Configuration, { lineOf }: ReadConfiguration): Promise<Mistake[]> {
  const mistakes: Mistake[] = []
  const look = looker((key, { what, action }) => {
    mistakes.push({ line: lineOf(typeof key === 'string' ? [key] : key), what, hint: action })
  })
  const { peers, wanListen } = configuration
  const roles: Role[] = []
  if (peers.length > 0) roles.push('client')
  if (wanListen.length > 0) roles.push('server')
  await missingThings(
    configuration,
    roles.map(role => ({ role })),
    look,
  )
  await look('pool-memory', () => void memoryOf(configuration))
  for (const { listen, disks } of peers) {
    for (const { address, group } of [...listen, ...disks]) {
      await look('listeners', () => groupOf(group))
      await look('listeners', () => checkListen(address))
    }
  }
  return mistakes.sort((a, b) => a.line - b.line)
}

/** @throws USAGE, IO */
function groupOf(group: string | undefined): number | undefined {
  return group === undefined ? undefined : groupId(group)
}

/** @throws USAGE */
function memoryOf(configuration: Configuration): ProcessMemory {
  return processMemory(configuration, configuration.wanListen.length > 0)
}

async function serve({ config, json }: ServeArguments, configuration: Configuration): Promise<void> {
  if (configuration.supply) await checkSupply(configuration.supply)
  const fds = takeListenFds()
  const status: StatusLine = { tell: () => {} }
  const proxies: Runnable[] = []
  const sources = new Map<string, SourceDaemon>()
  let destination: DestinationDaemon | undefined
  const teller = newTeller(json, configuration.logLevel)
  const { events } = teller
  const memory = memoryOf(configuration)
  const where: string[] = []
  const weights = { ...configuration.weights }
  const together = new SharedCap(Number.POSITIVE_INFINITY)
  const shares = new Map<string, CapShare>()
  const capsOfAll = new CapKeeper({
    schedule: configuration.caps,
    apply: bytesPerSecond => {
      together.set(bytesPerSecond, performance.now())
      for (const source of sources.values()) source.capChanged()
    },
    tell: told => events.info('rate', { ...told, peer: ALL_PEERS }),
  })
  together.set(capsOfAll.bytesPerSecond, performance.now())
  for (const peer of configuration.peers) {
    const shared = together.join(peer.share)
    shares.set(peer.name, shared)
    const daemon = new SourceDaemon({
      ...proxySettings(configuration, peer, 'client', events, memory),
      listen: peer.listen.map(entry => ({ ...entry, group: groupOf(entry.group) })),
      disks: peer.disks.map(entry => ({ ...entry, group: groupOf(entry.group) })),
      beyondLoopback: false,
      peer,
      name: peer.name,
      effort: configuration.effort,
      diskAnswers: configuration.diskAnswers,
      connections: peer.connections,
      rate: peer.caps,
      ...{ shared, weights },
      fds,
      onStatus: text => status.tell(`${peer.name}: ${text}`),
    })
    proxies.push(daemon)
    sources.set(peer.name, daemon)
    const at = [...peer.listen, ...peer.disks].map(({ address }) => formatAddress(address))
    where.push(`${at.join(' ')} to ${peer.name}`)
  }
  if (configuration.wanListen.length > 0) {
    const settings = proxySettings(configuration, configuration, 'server', events, memory)
    destination = new DestinationDaemon({
      ...settings,
      listen: configuration.wanListen.flatMap(at =>
        listenAt(formatAddress(at), configuration.tlsCreds === undefined, false, fds),
      ),
      targets: configuration.targets,
      disks: configuration.disks,
      diskZeroes: configuration.diskZeroes,
      ringPagesMax: settings.ringPages,
      placesMax: settings.places,
      sessionsMax: configuration.sessionsMax,
      onStatus: text => status.tell(text),
    })
    proxies.push(destination)
    where.push(
      `${configuration.wanListen.map(formatAddress).join(' ')} to ${[...configuration.targets.keys()].join(', ')}`,
    )
  }
  const all: Runnable = {
    start: async () => {
      capsOfAll.start()
      for (const proxy of proxies) await proxy.start()
    },
    stop: async () => {
      await Promise.all(proxies.map(async proxy => proxy.stop().then(() => proxy.ended)))
    },
    abort: async () => {
      await Promise.all(proxies.map(proxy => proxy.abort()))
    },
    reload: () => proxies.map(proxy => proxy.reload()).includes(true),
    get warnings() {
      return proxies.flatMap(proxy => proxy.warnings)
    },
    get running() {
      return proxies.reduce((sum, proxy) => sum + proxy.running, 0)
    },
  }
  let supply: SetSupply | undefined
  /** Takes over what may change while migrations run; the file as a whole is right, or nothing of it counts. */
  const reloadSettings = (): void => {
    supply?.askNow()
    const { configuration: next, mistakes } = readFile(config)
    if (!next) {
      for (const { line, what, hint } of mistakes)
        events.error('mistake in the settings', { at: `${config}:${line}`, what, hint })
      throw wrong(config, mistakes.length)
    }
    Object.assign(weights, next.weights)
    capsOfAll.renew(next.caps)
    for (const { name, caps, share } of next.peers) {
      Object.assign(shares.get(name) ?? {}, { weight: share })
      sources.get(name)?.caps.renew(caps)
    }
    destination?.setTargets(next.targets, next.disks)
    events.info('settings read again', { counting: 'caps, shares, targets' })
    const settings = needRestart(configuration, next)
    if (settings.length > 0) events.warn('a restart is needed for changed settings', { settings: settings.join(', ') })
  }
  const started = (): void => {
    events.info('serving', { from: where })
    supply = startSupply(configuration, events)
  }
  const control = new Control(
    configuration,
    new Site(
      [...sources.values()],
      destination,
      sources.size > 0 ? capsOfAll : undefined,
      threadCount(configuration.threads),
    ),
    events,
  )
  const rates = Object.fromEntries(Array.from(sources, ([name, { caps }]) => [name, caps.bytesPerSecond]))
  if (sources.size > 0 && Number.isFinite(capsOfAll.bytesPerSecond)) rates[ALL_PEERS] = capsOfAll.bytesPerSecond
  const role = [sources.size > 0 && 'source', destination && 'destination'].filter(Boolean).join(' and ')
  await tellStart(events, role, configuration, rates)
  const rehearsal = { ...rehearsalOf(configuration, memory), ...(sources.size > 0 && { effort: configuration.effort }) }
  await runProxy(all, teller, status, control, started, reloadSettings, signal => rehearse(rehearsal, events, signal))
}
