/** `pageferry serve --config FILE`: both roles in one process. */
import { accessSync, constants, statSync } from 'node:fs'
import type { CommandModule } from 'yargs'
import {
  type Configuration,
  type Mistake,
  needRestart,
  type ReadConfiguration,
  readConfiguration,
} from '../daemon/configuration.ts'
import { Control } from '../daemon/control.ts'
import { DestinationDaemon } from '../daemon/destination-daemon.ts'
import { type Runnable, runProxy, type StatusLine } from '../daemon/run-proxy.ts'
import { checkSupply, type SetSupply } from '../daemon/set-supply.ts'
import { Site } from '../daemon/site.ts'
import { readSmallFile } from '../daemon/small-file.ts'
import { SourceDaemon } from '../daemon/source-daemon.ts'
import { takeListenFds } from '../daemon/systemd.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { Credentials } from '../link/credentials.ts'
import { formatAddress } from '../relay/address.ts'
import { groupId } from '../relay/group.ts'
import { readTrustedKeys } from '../remote/channel-keys.ts'
import { openRemoteStore } from '../remote/open-store.ts'
import type { Role } from '../session/api.ts'
import { listenAt } from './destination-command.ts'
import { print, printLines, tell } from './output.ts'
import { newTeller, type ProcessMemory, processMemory, proxySettings, startSupply } from './proxy-options.ts'
import { storeKeyOf } from './store-key.ts'

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
  const mistakes = args.check && configuration ? await missingThings(configuration, file) : file.mistakes
  if (!configuration || mistakes.length > 0) {
    tellMistakes(args, mistakes)
    throw wrong(args.config, mistakes)
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

/** What the file names and this host does not have, or may not read: keys, certificates, stores. */
async function missingThings(configuration: Configuration, { lineOf }: ReadConfiguration): Promise<Mistake[]> {
  const mistakes: Mistake[] = []
  const check = async (path: string | readonly PropertyKey[], look: () => unknown): Promise<void> => {
    try {
      await look()
    } catch (error) {
      if (!isProxyError(error)) throw error
      mistakes.push({ line: lineOf(typeof path === 'string' ? [path] : path), what: error.what, hint: error.action })
    }
  }
  const { tlsCreds, store, storeKey, supply, learn } = configuration
  const isWritten = learn !== 'off' || supply !== undefined
  const roles: Role[] = []
  if (configuration.peers.length > 0) roles.push('client')
  if (configuration.wanListen.length > 0) roles.push('server')
  if (tlsCreds !== undefined)
    for (const role of roles) await check('tls-creds', () => void new Credentials({ role, directory: tlsCreds }))
  await check('pool-memory', () => void memoryOf(configuration))
  if (store !== undefined) await check('store', () => checkFolder(store, isWritten))
  if (storeKey !== undefined) await check('store-key', () => void storeKeyOf(storeKey))
  if (supply !== undefined) {
    const { trust, remote, insecure } = supply
    await check('trust', () => void readTrustedKeys(trust))
    for (const [i, name] of remote.entries())
      await check(['remote-stores', i], async () => (await openRemoteStore(name, { insecure })).close())
  }
  for (const { listen } of configuration.peers)
    for (const { group } of listen) await check('listeners', () => groupOf(group))
  return mistakes.sort((a, b) => a.line - b.line)
}

/** @throws USAGE, IO */
function groupOf(group: string | undefined): number | undefined {
  return group === undefined ? undefined : groupId(group)
}

/** @throws IO */
function checkFolder(path: string, isWritten: boolean): void {
  try {
    if (!statSync(path).isDirectory()) throw new ProxyError('IO', `${path} is no folder`, undefined, 'give a folder')
    accessSync(path, constants.R_OK | constants.X_OK | (isWritten ? constants.W_OK : 0))
  } catch (error) {
    if (isProxyError(error)) throw error
    const hint = 'make it, for the user that the proxy runs as: install -d -m 700 -o USER FOLDER'
    throw new ProxyError('IO', (error as Error).message, undefined, hint, { cause: error })
  }
}

function wrong(path: string, mistakes: readonly Mistake[]): ProxyError {
  const count = `${mistakes.length} mistake${mistakes.length === 1 ? '' : 's'}`
  return new ProxyError('USAGE', `${count} in ${path}`, undefined, 'mend them and try `--check` again')
}

function tellMistakes({ config, json }: ServeArguments, mistakes: readonly Mistake[]): void {
  if (json) printLines(JSON.stringify(mistakes, null, 2))
  else
    for (const { line, what, hint } of mistakes) {
      tell(`${config}:${line}: ${what}`)
      tell(`  hint: ${hint}`)
    }
}

/** @throws USAGE */
function memoryOf({ poolMemoryBytes, setMemoryBytes, wanListen }: Configuration): ProcessMemory {
  return processMemory(poolMemoryBytes, setMemoryBytes, wanListen.length > 0)
}

async function serve({ config, json }: ServeArguments, configuration: Configuration): Promise<void> {
  if (configuration.supply) await checkSupply(configuration.supply)
  const fds = takeListenFds()
  const status: StatusLine = { tell: () => {} }
  const proxies: Runnable[] = []
  const sources = new Map<string, SourceDaemon>()
  let destination: DestinationDaemon | undefined
  const teller = newTeller(json)
  const { events } = teller
  const memory = memoryOf(configuration)
  const where: string[] = []
  for (const peer of configuration.peers) {
    const daemon = new SourceDaemon({
      ...proxySettings(configuration, peer, 'client', events, memory),
      listen: peer.listen.map(entry => ({ ...entry, group: groupOf(entry.group) })),
      beyondLoopback: false,
      peer,
      name: peer.name,
      effort: configuration.effort,
      connections: peer.connections,
      rate: peer.rate,
      fds,
      onStatus: text => status.tell(`${peer.name}: ${text}`),
    })
    proxies.push(daemon)
    sources.set(peer.name, daemon)
    where.push(`${peer.listen.map(({ address }) => formatAddress(address)).join(' ')} to ${peer.name}`)
  }
  if (configuration.wanListen.length > 0) {
    const settings = proxySettings(configuration, configuration, 'server', events, memory)
    destination = new DestinationDaemon({
      ...settings,
      listen: configuration.wanListen.flatMap(at =>
        listenAt(formatAddress(at), configuration.tlsCreds === undefined, false, fds),
      ),
      targets: configuration.targets,
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
      for (const proxy of proxies) await proxy.start()
    },
    stop: async () => {
      await Promise.all(proxies.map(async proxy => proxy.stop().then(() => proxy.ended)))
    },
    abort: async () => {
      await Promise.all(proxies.map(proxy => proxy.abort()))
    },
    reload: () => {
      for (const proxy of proxies) proxy.reload()
    },
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
      throw wrong(config, mistakes)
    }
    for (const { name, rate } of next.peers) sources.get(name)?.setRate(rate)
    destination?.setTargets(next.targets)
    events.info('settings read again', { counting: 'rate of peers, targets' })
    const settings = needRestart(configuration, next)
    if (settings.length > 0) events.warn('a restart is needed for changed settings', { settings: settings.join(', ') })
  }
  const started = (): void => {
    events.info('serving', { from: where })
    supply = startSupply(configuration, events)
  }
  const control = new Control(configuration, new Site([...sources.values()], destination, events), events)
  await runProxy(all, teller, status, control, started, reloadSettings)
}
