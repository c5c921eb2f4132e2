/** `pageferry check`: whether two sites fit together, and what to run where they do not. */
import type { CommandModule } from 'yargs'
import { readConfiguration } from '../daemon/configuration.ts'
import { readSmallFile } from '../daemon/small-file.ts'
import { AGENT } from '../daemon/version.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { HELLO_SETS_MAX } from '../limits.ts'
import { Credentials } from '../link/credentials.ts'
import { probe } from '../link/probe.ts'
import { parseCap } from '../quantity.ts'
import { parsePeer } from '../relay/address.ts'
import { HostChannels, isUsable } from '../remote/host-channels.ts'
import { storeNames } from '../remote/open-store.ts'
import { isClockSynchronized } from '../system/clock.ts'
import { FEATURE } from '../wan/wire.ts'
import {
  brokenFinding,
  type CheckedPeer,
  clockFinding,
  type Finding,
  type HeldSets,
  keysFindings,
  peerFindings,
  statusFindings,
  THIS_SITE,
} from './check-findings.ts'
import { CONTROL_OPTION, controlSockets, JSON_OPTION, statusOf } from './control-option.ts'
import { print, printLines } from './output.ts'
import { existingStore, STORE_KEY_OPTION } from './store-key.ts'
import { STORES_OPTION } from './store-names.ts'

interface CheckArguments {
  readonly peer: string | undefined
  readonly config: string | undefined
  readonly control: string | undefined
  readonly tlsCreds: string | undefined
  readonly peerName: string | undefined
  readonly tlsServerName: string | undefined
  readonly plaintext: boolean
  readonly store: readonly string[] | undefined
  readonly storeKey: string | undefined
  readonly throughput: boolean
  readonly rate: string | undefined
  readonly json: boolean
}

/** Exit status where something does not work. docs/operations.md has it in its table. */
const EXIT_WRONG = 15
/** Round trips that are measured. */
const PINGS = 8
const THROUGHPUT_MS = 2000

export const checkCommand: CommandModule<object, CheckArguments> = {
  command: 'check',
  describe: 'Look whether two sites fit together, and say what mends what does not',
  builder: yargs =>
    yargs
      .option('peer', {
        describe: 'HOST:PORT of the destination proxy; with --config the name of one peer of the file',
        type: 'string',
        requiresArg: true,
      })
      .option('config', {
        describe: 'File of `pageferry serve`: all of its peers, with what it says of keys and store',
        type: 'string',
        requiresArg: true,
        conflicts: ['tls-creds', 'store', 'control'],
      })
      .option('control', {
        ...CONTROL_OPTION,
        describe: 'Control socket of a proxy that runs: ask it instead of dialling',
        defaultDescription: 'without --peer and --config those of the units that run here',
        conflicts: 'peer',
      })
      .option('store', STORES_OPTION)
      .option('store-key', STORE_KEY_OPTION)
      .option('tls-creds', {
        describe: 'Directory with certificates or keys.psk, as of the source proxy',
        type: 'string',
        requiresArg: true,
      })
      .option('peer-name', {
        describe: 'Name that the certificate of the other proxy must carry',
        type: 'string',
        requiresArg: true,
      })
      .option('tls-server-name', {
        describe: 'Name to send in clear (TLS server name indication)',
        type: 'string',
        requiresArg: true,
      })
      .option('plaintext', { describe: 'No TLS on the WAN', type: 'boolean', default: false })
      .option('throughput', {
        describe: 'Measure for two seconds what the link carries: what is sent is thrown away there',
        type: 'boolean',
        default: false,
      })
      .option('rate', { describe: 'Cap for that, such as 200Mbit', type: 'string', requiresArg: true })
      .option('json', JSON_OPTION)
      .example('$0 check --config /etc/pageferry/pageferry.yaml', 'both sites of serve, one after the other')
      .example(
        '$0 check --peer fra.example.net:9444 --tls-creds /etc/pageferry/tls --store /var/lib/pageferry',
        'a source',
      )
      .example('$0 check', 'the proxies that run here say what they see')
      .epilogue('Exit status 0: it works; 15: something does not.') as never,
  handler: runCheck,
}

/** What all peers of a site have in common. */
interface CheckedSite {
  readonly tlsCreds: string | undefined
  readonly store: string | undefined
  readonly storeKey: string | undefined
  /** Also takes sessions. */
  readonly isServer: boolean
  readonly serverPeerName: string | undefined
  readonly peers: readonly (Omit<CheckedPeer, 'held' | 'isPlaintext'> & {
    readonly tlsServerName: string | undefined
    readonly rate: number
  })[]
}

async function runCheck(args: CheckArguments): Promise<void> {
  const cap = args.rate === undefined ? Number.POSITIVE_INFINITY : parseCap(args.rate, '--rate')
  const asksProxies = args.peer === undefined && args.config === undefined
  requireUsed(args, asksProxies)
  const findings = asksProxies ? await askProxies(args.control) : await lookAround(siteOf(args), args, cap)
  findings.push(clockFinding(await isClockSynchronized()))
  if (findings.some(({ state }) => state === 'wrong')) process.exitCode = EXIT_WRONG
  if (args.json) printLines(JSON.stringify({ findings }, null, 2))
  else for (const line of rendered(findings)) print(line)
}

/** That nothing was said which would not count: a check that passes otherwise says less than one thinks. @throws USAGE */
function requireUsed(args: CheckArguments, asksProxies: boolean): void {
  const { tlsCreds, peerName, tlsServerName, plaintext, store, storeKey, throughput, rate, config } = args
  const ofFile = { 'peer-name': peerName, 'tls-server-name': tlsServerName, 'store-key': storeKey }
  const ofPeer = { 'tls-creds': tlsCreds, store, ...ofFile }
  const refuse = (idle: Readonly<Record<string, unknown>>, where: string, hint: string): void => {
    const name = Object.keys(idle).find(one => idle[one] !== undefined && idle[one] !== false)
    if (name !== undefined) throw new ProxyError('USAGE', `--${name} ${where}`, undefined, hint)
  }
  const dials =
    'give --peer HOST:PORT or --config FILE; without them proxies that run are asked, and nothing is dialled'
  if (asksProxies) refuse({ ...ofPeer, plaintext, throughput, rate }, 'without --peer', dials)
  if (config !== undefined) refuse({ ...ofFile, plaintext }, 'with --config', 'the file says it')
}

async function askProxies(control: string | undefined): Promise<Finding[]> {
  const findings: Finding[] = []
  for (const path of controlSockets(control)) findings.push(...statusFindings(await statusOf(path), Date.now()))
  return findings
}

/** @throws USAGE, ADDRESS, IO */
function siteOf(args: CheckArguments): CheckedSite {
  if (args.config !== undefined) return siteOfFile(args.config, args.peer)
  const { tlsCreds, plaintext } = args
  if (plaintext === (tlsCreds !== undefined)) {
    const hint = 'give --tls-creds DIR as the source proxy has it, or --plaintext'
    throw new ProxyError('USAGE', plaintext ? '--plaintext and --tls-creds' : 'no --tls-creds', undefined, hint)
  }
  const name = args.peer!
  const { peerName, tlsServerName, storeKey } = args
  return {
    ...{ tlsCreds, storeKey, store: storeNames(args.store).own },
    ...{ isServer: false, serverPeerName: undefined },
    peers: [{ ...parsePeer(name), name, peerName, tlsServerName, rate: Number.POSITIVE_INFINITY }],
  }
}

/** @throws USAGE, IO */
function siteOfFile(path: string, only: string | undefined): CheckedSite {
  const { configuration, mistakes } = readConfiguration(readSmallFile(path, '--config'))
  if (!configuration) {
    const { line, what, hint } = mistakes[0]!
    const others = mistakes.length > 1 ? `${hint}; \`pageferry serve --check\` has all ${mistakes.length}` : hint
    throw new ProxyError('USAGE', `${path}:${line}: ${what}`, undefined, others)
  }
  const { tlsCreds, store, storeKey, wanListen, peerName: serverPeerName } = configuration
  const peers = configuration.peers.filter(({ name }) => only === undefined || name === only)
  if (peers.length === 0 && only !== undefined) {
    const names = configuration.peers.map(({ name }) => name).join(', ') || 'none'
    throw new ProxyError('USAGE', `no peer ${JSON.stringify(only)} in ${path}`, undefined, `peers are: ${names}`)
  }
  return {
    ...{ tlsCreds, store, storeKey, serverPeerName, isServer: wanListen.length > 0 },
    peers: peers.map(({ listen, caps, ...peer }) => ({
      ...peer,
      rate: caps.at(Date.now()).bytesPerSecond,
      targets: [...new Set(listen.map(one => one.name))],
    })),
  }
}

/** Looks at this site, and at the others from here. */
async function lookAround(site: CheckedSite, args: CheckArguments, cap: number): Promise<Finding[]> {
  const findings: Finding[] = []
  const { tlsCreds: directory, store, storeKey, peers } = site
  let held: HeldSets | undefined
  try {
    if (store !== undefined) held = await setsIn(store, storeKey)
  } catch (error) {
    findings.push(brokenFinding('store', proxyError(error)))
  }
  if (site.isServer && directory !== undefined) {
    const keys = openKeys(() => new Credentials({ role: 'server', directory, ...named(site.serverPeerName) }))
    findings.push(...keys.findings)
  }
  for (const peer of peers) {
    const { tlsServerName: serverName } = peer
    const keys =
      directory === undefined
        ? undefined
        : openKeys(
            () =>
              new Credentials({
                role: 'client',
                directory,
                ...named(peer.peerName),
                ...(serverName !== undefined && { serverName }),
              }),
          )
    // peers of one site have one key
    for (const finding of keys?.findings ?? [])
      if (!findings.some(({ text }) => text === finding.text)) findings.push(finding)
    if (keys && !keys.credentials) continue
    const found = await probe({
      ...{ host: peer.host, port: peer.port, credentials: keys?.credentials, pings: PINGS },
      offer: {
        agent: `${AGENT} check`,
        sets: [],
        ...(held && held.digests.length > 0 && { cold: held.digests }),
        features: [FEATURE.COLD_SETS],
      },
      throughput: args.throughput ? { forMs: THROUGHPUT_MS, rateMax: Math.min(cap, peer.rate) } : undefined,
    })
    const checked: CheckedPeer = { ...peer, held, isPlaintext: keys === undefined }
    findings.push(...peerFindings(checked, found, Date.now()))
  }
  if (peers.length === 0) {
    const text = 'nothing to dial: guests only come here'
    findings.push({ of: THIS_SITE, what: 'peer', state: 'unknown', text, mend: 'pageferry check at the other site' })
  }
  return findings
}

function named(peerName: string | undefined): { readonly peerName?: string } {
  return peerName === undefined ? {} : { peerName }
}

function openKeys(open: () => Credentials): {
  readonly credentials?: Credentials
  readonly findings: readonly Finding[]
} {
  try {
    const credentials = open()
    const role = credentials.role === 'client' ? 'to send' : 'to receive'
    return { credentials, findings: keysFindings(role, credentials.describe, credentials.warnings) }
  } catch (error) {
    return { findings: [brokenFinding('keys', proxyError(error))] }
  }
}

/** What a proxy with this store would offer. @throws IO, USAGE, TEMPLATE_* */
async function setsIn(folder: string, keyPath: string | undefined): Promise<HeldSets> {
  const store = await existingStore(folder, keyPath)
  const inForce = await new HostChannels(folder).inForce(Date.now())
  const sets = (await store.list())
    .filter(({ digest, problem }) => problem === undefined && isUsable(inForce, digest))
    .sort((a, b) => b.modified.getTime() - a.modified.getTime())
    .slice(0, HELLO_SETS_MAX)
  const learned = sets.filter(({ metadata }) => metadata?.learned !== undefined)
  return { folder, digests: sets.map(({ digest }) => digest), learned: new Set(learned.map(({ digest }) => digest)) }
}

/** Anything else is a defect. */
function proxyError(error: unknown): ProxyError {
  if (isProxyError(error)) return error
  throw error
}

const MARK: Readonly<Record<Finding['state'], string>> = {
  ok: 'ok',
  warning: 'warning',
  wrong: 'WRONG',
  unknown: 'unknown',
}

function* rendered(findings: readonly Finding[]): Generator<string> {
  let of: string | undefined
  for (const finding of findings) {
    if (finding.of !== of) yield finding.of
    of = finding.of
    yield `  ${MARK[finding.state].padEnd(8)} ${finding.what.padEnd(12)} ${finding.text}`
    if (finding.mend !== undefined) yield `  ${' '.repeat(21)} mend: ${finding.mend}`
  }
}
