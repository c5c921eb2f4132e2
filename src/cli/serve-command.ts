/** `pageferry serve --config FILE`: both roles in one process. */
import { readFileSync } from 'node:fs'
import type { CommandModule } from 'yargs'
import { type Configuration, type Mistake, readConfiguration } from '../daemon/configuration.ts'
import { DestinationDaemon } from '../daemon/destination-daemon.ts'
import { SourceDaemon } from '../daemon/source-daemon.ts'
import { takeListenFds } from '../daemon/systemd.ts'
import { ProxyError } from '../errors.ts'
import { formatAddress } from '../relay/address.ts'
import { parseEffort } from './codec-command.ts'
import { listenAt, logArrival } from './destination-command.ts'
import { proxySettings, type Runnable, runProxy, type StatusLine } from './proxy-options.ts'
import { parseDuration, parseRate, parseSize } from './quantity.ts'
import { logSummary } from './source-command.ts'

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
  let content: string
  try {
    content = readFileSync(args.config, 'utf8')
  } catch (cause) {
    throw new ProxyError('IO', `cannot read ${args.config}: ${(cause as Error).message}`, undefined, 'check the path', {
      cause,
    })
  }
  const { configuration, mistakes } = readConfiguration(content, {
    size: text => parseSize(text, 'pool-memory'),
    rate: text => parseRate(text, 'rate'),
    duration: text => parseDuration(text, 'duration'),
    effort: text => (text === 'auto' ? text : parseEffort(text)),
  })
  if (!configuration) {
    tellMistakes(args, mistakes)
    throw new ProxyError(
      'USAGE',
      `${mistakes.length} mistake${mistakes.length === 1 ? '' : 's'} in ${args.config}`,
      undefined,
      'mend them and try `--check` again',
    )
  }
  if (args.check) {
    process.stdout.write(args.json ? '[]\n' : `${args.config}: no mistakes\n`)
    return
  }
  await serve(configuration, args.json)
}

function tellMistakes({ config, json }: ServeArguments, mistakes: readonly Mistake[]): void {
  if (json) process.stdout.write(`${JSON.stringify(mistakes, null, 2)}\n`)
  else
    for (const { line, what, hint } of mistakes) process.stderr.write(`${config}:${line}: ${what}\n  hint: ${hint}\n`)
}

async function serve(configuration: Configuration, json: boolean): Promise<void> {
  const fds = takeListenFds()
  const status: StatusLine = { tell: () => {} }
  const common = (peerName: string | undefined) => ({ ...configuration, peerName, json })
  const proxies: Runnable[] = []
  const { log } = proxySettings(common(undefined), 'client')
  const where: string[] = []
  for (const peer of configuration.peers) {
    const daemon = new SourceDaemon({
      ...proxySettings(common(peer.peerName), 'client'),
      listen: peer.listen,
      beyondLoopback: false,
      peer,
      effort: configuration.effort === 'auto' ? 'auto' : parseEffort(configuration.effort).level,
      connections: peer.connections,
      rate: peer.rate,
      fds,
      onStatus: text => status.tell(`${peer.name}: ${text}`),
      onSummary: logSummary(log, json),
    })
    proxies.push(daemon)
    where.push(`${peer.listen.map(({ address }) => formatAddress(address)).join(' ')} to ${peer.name}`)
  }
  if (configuration.wanListen.length > 0) {
    const settings = proxySettings(common(configuration.peerName), 'server')
    proxies.push(
      new DestinationDaemon({
        ...settings,
        listen: configuration.wanListen.flatMap(at => listenAt(formatAddress(at), configuration.plaintext, false, fds)),
        targets: configuration.targets,
        ringPagesMax: settings.ringPages,
        placesMax: settings.places,
        onStatus: text => status.tell(text),
        onSummary: logArrival(log, json),
      }),
    )
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
    get running() {
      return proxies.reduce((sum, proxy) => sum + proxy.running, 0)
    },
  }
  await runProxy(all, log, status, () => log.info('serving', { from: where }))
}
