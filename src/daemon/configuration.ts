/**
 * The file of `pageferry serve`: both roles in one process, because guests move both ways. YAML, checked as a whole: every
 * mistake comes with its line and what to do.
 */
import { type Document, isScalar, LineCounter, parseDocument, visit } from 'yaml'
import { z } from 'zod'
import { parseEffortOrAuto } from '../compression/effort.ts'
import { isProxyError } from '../errors.ts'
import { CONNECTIONS_MAX, SESSIONS_CEILING, SESSIONS_MAX, WEIGHT_MAX } from '../limits.ts'
import { requireServerName } from '../link/credentials.ts'
import { parseCap, parseDuration, parseSize } from '../quantity.ts'
import { RateSchedule, requireTimeZone } from '../rate-schedule.ts'
import {
  type Address,
  formatAddress,
  inTheWay,
  isLoopback,
  isRange,
  OTHER_TARGET_HINT,
  OWN_SOCKET_HINT,
  parseAddress,
  parsePeer,
} from '../relay/address.ts'
import { fileMode } from '../relay/group.ts'
import { requireChannelName } from '../remote/channel.ts'
import { isRemoteName } from '../remote/remote-store.ts'
import type { Weights } from '../session/fairness.ts'
import {
  ALL_PEERS,
  type CommonSettings,
  DEFAULTS,
  DISK_ANSWERS,
  DISK_ZEROES,
  type DiskAnswers,
  type DiskZeroes,
  LEARNED_UNSIGNED,
  parseMetricsAddress,
} from './settings.ts'
import { LEVELS } from './text-log.ts'

/** One thing that is wrong with a configuration file. */
export interface Mistake {
  /** Counted from 1. */
  readonly line: number
  readonly what: string
  readonly hint: string
}

export interface PeerConfiguration {
  readonly name: string
  readonly host: string
  readonly port: number
  readonly connections: number
  /** What may go to it when. */
  readonly caps: RateSchedule
  /** Its weight among peers, where they share a cap. */
  readonly share: number
  readonly peerName: string | undefined
  readonly tlsServerName: string | undefined
  readonly listen: readonly ListenerConfiguration[]
  /** The same for disks. */
  readonly disks: readonly ListenerConfiguration[]
}

interface ListenerConfiguration {
  readonly name: string
  readonly address: Address
  readonly mode: number | undefined
  /** Name or number. */
  readonly group: string | undefined
}

export interface Configuration extends CommonSettings {
  /** What may go to all peers together, when. */
  readonly caps: RateSchedule
  /** What memory and disks get beside each other. */
  readonly weights: Readonly<Weights>
  readonly effort: number | 'auto'
  readonly diskAnswers: DiskAnswers
  readonly diskZeroes: DiskZeroes
  readonly peers: readonly PeerConfiguration[]
  readonly wanListen: readonly Address[]
  readonly peerName: string | undefined
  readonly sessionsMax: number
  readonly targets: ReadonlyMap<string, Address>
  /** The same for disks. */
  readonly disks: ReadonlyMap<string, Address>
}

const NAME = z.string().regex(/^[A-Za-z0-9_.-]{1,64}$/, 'a name has letters, digits, "_", "-" and ".", 64 at most')

/** A text and what a reader makes of it; its ProxyError becomes the message. */
function text<T>(read: (value: string) => T) {
  return z.coerce.string().transform((value, context) => {
    try {
      return read(value)
    } catch (error) {
      if (!isProxyError(error)) throw error
      context.addIssue({ code: 'custom', message: `${error.what}; ${error.action}` })
      return z.NEVER
    }
  })
}

const channelName = (value: string): string => {
  requireChannelName(value)
  return value
}
const socketPath = (value: string): string => {
  parseAddress(`unix:${value}`)
  return value
}
const size = (name: string) => text(value => parseSize(value, name))
const duration = (name: string) => text(value => parseDuration(value, name))

/** What the file may hold; what comes out of it are values. */
const SCHEMA = (() => {
  const address = text(value => ({ text: value, at: parseAddress(value) }))
  const weight = z.int().min(1).max(WEIGHT_MAX).default(1)
  const caps = {
    rate: text(value => parseCap(value, 'rate')).default(Number.POSITIVE_INFINITY),
    'rate-schedule': z.union([z.string(), z.array(z.string()).min(1)]).optional(),
  }
  const peer = z.strictObject({
    address: text(parsePeer),
    connections: z.int().min(1).max(CONNECTIONS_MAX).default(1),
    ...caps,
    share: weight,
    'peer-name': z.string().optional(),
    'tls-server-name': text(requireServerName).optional(),
  })
  return z.strictObject({
    store: z.string().optional(),
    'tls-creds': z.string().optional(),
    plaintext: z.boolean().default(false),
    'pool-memory': size('pool-memory').prefault(DEFAULTS.poolMemoryOfAll),
    'set-memory': size('set-memory').prefault(DEFAULTS.setMemory),
    effort: text(value => parseEffortOrAuto(value, 'effort')).prefault('auto'),
    ...caps,
    shares: z.strictObject({ memory: weight, disks: weight }).prefault({}),
    'time-zone': text(value => requireTimeZone(value, 'time-zone')).optional(),
    'disk-answers': z.enum(DISK_ANSWERS).default(DEFAULTS.diskAnswers),
    'disk-zeroes': z.enum(DISK_ZEROES).default(DEFAULTS.diskZeroes),
    'queue-target': duration('queue-target').prefault(DEFAULTS.queueTarget),
    patience: duration('patience').prefault(DEFAULTS.patience),
    'patience-postcopy': duration('patience-postcopy').optional(),
    control: text(socketPath).optional(),
    history: z.string().optional(),
    metrics: text(parseMetricsAddress).optional(),
    'log-level': z.enum(LEVELS).default('info'),
    hook: z.string().optional(),
    'store-key': z.string().optional(),
    'remote-stores': z.array(z.string()).default([]),
    'store-insecure': z.boolean().default(false),
    'store-size': size('store-size').optional(),
    channels: z.array(text(channelName)).default([]),
    trust: z.string().optional(),
    signers: z.string().optional(),
    learn: z.enum(['off', 'shared', 'all']).optional(),
    'learn-size': size('learn-size').optional(),
    'learn-age': duration('learn-age').optional(),
    peers: z.record(NAME, peer).default({}),
    listeners: z
      .array(
        z.strictObject({
          at: address,
          peer: NAME,
          target: NAME.default('default'),
          disks: z.boolean().default(false),
          mode: text(value => fileMode(value)).optional(),
          group: z.coerce.string().optional(),
        }),
      )
      .default([]),
    wan: z
      .strictObject({
        listen: z.array(address).min(1),
        'peer-name': z.string().optional(),
        'sessions-max': z.int().min(2).max(SESSIONS_CEILING).default(SESSIONS_MAX),
      })
      .optional(),
    targets: z.record(NAME, address).default({}),
    disks: z.record(NAME, address).default({}),
  })
})()

/** How settings are spelled that the options of the same name spell otherwise. */
const SPELLINGS: Readonly<Record<string, string>> = {
  disks: 'targets by name, disks: { default: "tcp:127.0.0.3:10809" }; a listener for disks says disks: true',
  'rate-schedule': 'a text, or a list of them: ["mon-fri 08:00-18:00 200Mbit", "sat,sun none"]',
  share: `of a peer: a whole number from 1 to ${WEIGHT_MAX}`,
  shares: `shares: { disks: 1, memory: 3 }, whole numbers from 1 to ${WEIGHT_MAX}`,
}

function spellingHint(path: readonly PropertyKey[]): string {
  const key = path.findLast(part => typeof part === 'string' && Object.hasOwn(SPELLINGS, part))
  return key === undefined ? 'docs/operations.md has an example' : `write ${SPELLINGS[key as string]}`
}

/** Settings of a peer alone. */
const OF_PEERS = new Set(['address', 'connections', 'share', 'tls-server-name'])

/** @param path where an unknown key stands */
function placeHint(path: readonly PropertyKey[], key: string): string {
  if (path.length === 0 && OF_PEERS.has(key)) return 'it is a setting of a peer'
  if (path.length > 0 && Object.hasOwn(SCHEMA.shape, key)) return 'it stands at the top of the file'
  return 'docs/operations.md lists all settings'
}

/** Caps as the schema has them. */
interface Caps {
  readonly rate: number
  readonly 'rate-schedule'?: string | string[] | undefined
}

/** What a file says. */
export interface ReadConfiguration {
  /** Where it is right. */
  readonly configuration?: Configuration
  /** Where it is not: every one. */
  readonly mistakes: readonly Mistake[]
  /** Line of the deepest part of a path of keys that the file has. */
  lineOf(path: readonly PropertyKey[]): number
}

/** Reads a configuration. */
export function readConfiguration(content: string): ReadConfiguration {
  const lines = new LineCounter()
  const document = parseDocument(content, { lineCounter: lines, logLevel: 'error' })
  const mistakes: Mistake[] = document.errors.map(error => ({
    line: lines.linePos(error.pos[0]).line,
    what: error.message.split('\n')[0]!.replace(/ at line .*$/, ''),
    hint: 'the file is YAML: see docs/operations.md for an example',
  }))

  const lineOf = (path: readonly PropertyKey[]): number => {
    for (let length = path.length; length > 0; length--) {
      const node = document.getIn(path.slice(0, length), true) as { range?: [number, number, number] } | undefined
      if (node?.range) return lines.linePos(node.range[0]).line
    }
    return 1
  }
  const mistake = (path: readonly PropertyKey[], what: string, hint: string): void => {
    mistakes.push({ line: lineOf(path), what, hint })
  }

  visit(document, {
    Pair: (_, { key }) => {
      // zod drops it without a word
      if (isScalar(key) && key.value === '__proto__')
        mistakes.push({ line: lines.linePos(key.range![0]).line, what: 'a key __proto__', hint: 'choose another name' })
    },
  })
  if (mistakes.length > 0) return { mistakes, lineOf }
  let plain: unknown
  try {
    plain = document.toJS() ?? {}
  } catch (error) {
    const what = (error as Error).message // an alias without its anchor, or too many of them
    return { mistakes: [{ line: lines.linePos(strayAlias(document)).line, what, hint: STAR_HINT }], lineOf }
  }
  const checked = SCHEMA.safeParse(plain)
  if (!checked.success) {
    for (const { path, message, code, ...rest } of checked.error.issues) {
      const place = path.length > 0 ? path.join('.') : 'the file'
      const keys = code === 'unrecognized_keys' ? (rest as { keys: string[] }).keys : []
      if (keys.length > 0) {
        for (const key of keys) mistake([...path, key], `unknown setting ${JSON.stringify(key)}`, placeHint(path, key))
      } else mistake(path, `${place}: ${message}`, spellingHint(path))
    }
    return { mistakes: mistakes.sort((a, b) => a.line - b.line), lineOf }
  }
  const file = checked.data

  if (!file.plaintext && file['tls-creds'] === undefined)
    mistake(['tls-creds'], 'neither tls-creds nor plaintext: true', '`pageferry keygen` makes certificates or keys')
  if (file.plaintext && file['tls-creds'] !== undefined)
    mistake(['plaintext'], 'plaintext and tls-creds', 'give one of them')
  if (file.store === undefined) {
    for (const key of ['store-key', 'learn', 'learn-size', 'learn-age'] as const)
      if (file[key] !== undefined && file[key] !== 'off')
        mistake([key], `${key} without store`, 'name a folder under store')
  }
  if (file.signers !== undefined) {
    if (file.store === undefined) mistake(['signers'], 'signers without store', 'name a folder under store')
    if (file.learn !== undefined && file.learn !== 'off')
      mistake(['learn'], `signers, and learn: ${file.learn}`, LEARNED_UNSIGNED)
  }
  const remote = file['remote-stores']
  if (remote.length > 0 || file.channels.length > 0 || file.trust !== undefined || file['store-size'] !== undefined) {
    if (file.store === undefined) mistake(['remote-stores'], 'remote stores without store', 'name a folder under store')
    if (remote.length === 0) mistake(['channels'], 'channels without remote-stores', 'list s3://BUCKET/PREFIX, for one')
    if (file.channels.length === 0) mistake(['remote-stores'], 'remote-stores without channels', 'name those to follow')
    if (file.trust === undefined) mistake(['channels'], 'channels without trust', 'name the file with the public keys')
  }
  for (const [i, name] of remote.entries())
    if (!isRemoteName(name))
      mistake(
        ['remote-stores', i],
        `${name} is no remote store`,
        's3://BUCKET/PREFIX, https://HOST/PATH or file:///PATH',
      )
  if (file.listeners.length === 0 && !file.wan)
    mistake([], 'nothing to do', 'give listeners with peers, or wan with targets')
  for (const [i, listener] of file.listeners.entries()) {
    if (!Object.hasOwn(file.peers, listener.peer))
      mistake(
        ['listeners', i, 'peer'],
        `no peer ${JSON.stringify(listener.peer)}`,
        `peers are: ${Object.keys(file.peers).join(', ') || 'none'}`,
      )
    const { at, text: where } = listener.at
    for (const key of ['mode', 'group'] as const) {
      if (listener[key] !== undefined && at.kind !== 'unix')
        mistake(['listeners', i, key], `${key} of ${where}`, 'only the file of a Unix socket has one')
    }
    if (!isLoopback(at) && at.kind !== 'fd')
      mistake(
        ['listeners', i, 'at'],
        `${where} can be reached from other hosts`,
        'nothing authenticates QEMU: use a loopback address or a Unix socket',
      )
    for (const [name, target] of [...Object.entries(file.targets), ...Object.entries(file.disks)]) {
      if (overlap(at, target.at))
        mistake(
          ['listeners', i, 'at'],
          `${where} is where target ${name} is dialled`,
          'QEMU listens there: use another loopback address, such as 127.0.0.2',
        )
    }
  }
  if (file['disk-answers'] === 'early' && !file.listeners.some(({ disks }) => disks))
    mistake(['disk-answers'], 'disk-answers: early, and no listener for disks', 'say disks: true at one')
  if (file['disk-zeroes'] === 'unmap' && Object.keys(file.disks).length === 0)
    mistake(['disk-zeroes'], 'disk-zeroes: unmap without disks', 'name the servers of disks under disks')
  const zone = file['time-zone']
  const capsAt = (path: readonly string[], { rate, 'rate-schedule': schedule }: Caps): RateSchedule => {
    const written = typeof schedule === 'string' ? schedule : schedule?.join('\n')
    try {
      if (written !== undefined) return RateSchedule.parse(written, rate, zone, 'rate-schedule')
    } catch (error) {
      if (!isProxyError(error)) throw error
      mistake([...path, 'rate-schedule'], error.what, error.action)
    }
    return RateSchedule.always(rate)
  }
  const capsOfAll = capsAt([], file)
  const caps = new Map(Object.entries(file.peers).map(([name, peer]) => [name, capsAt(['peers', name], peer)]))
  if (Object.hasOwn(file.peers, ALL_PEERS))
    mistake(['peers', ALL_PEERS], `a peer called ${ALL_PEERS}`, 'the word stands for all of them: choose another name')
  for (const [name] of Object.entries(file.peers)) {
    if (!file.listeners.some(listener => listener.peer === name))
      mistake(
        ['peers', name],
        `no listener leads to peer ${JSON.stringify(name)}`,
        'add a listener with this peer, or remove it',
      )
  }
  if (file.wan && Object.keys(file.targets).length === 0)
    mistake(['wan'], 'wan without targets', 'name the destination QEMUs under targets')
  for (const key of ['targets', 'disks'] as const) {
    if (!file.wan && Object.keys(file[key]).length > 0)
      mistake([key], `${key} without wan`, 'say under wan where source proxies connect')
  }
  for (const [name, { at, text }] of Object.entries(file.disks)) {
    if (Object.values(file.targets).some(target => inTheWay(at, target.at)))
      mistake(['disks', name], `${text} is a target of migrations, too`, OTHER_TARGET_HINT)
  }
  const wanListen = (file.wan?.listen ?? []).map(({ at }) => at)
  for (const [i, at] of wanListen.entries()) {
    if (at.kind === 'unix' || isRange(at))
      mistake(['wan', 'listen', i], `${formatAddress(at)}`, 'the WAN side listens on one TCP port, or fd:NAME')
    else if (file.plaintext && at.kind === 'tcp' && !isLoopback(at))
      mistake(
        ['wan', 'listen', i],
        `plaintext at ${formatAddress(at)}`,
        'anyone who reaches that port could migrate a guest here',
      )
  }
  const sockets = [
    ...file.listeners.map(({ at: { at, text } }, i) => ({ at, text, path: ['listeners', i, 'at'] })),
    ...(file.wan?.listen ?? []).map(({ at, text }, i) => ({ at, text, path: ['wan', 'listen', i] })),
  ]
  for (const [i, { at, text, path }] of sockets.entries()) {
    if (sockets.slice(0, i).some(before => inTheWay(at, before.at)))
      mistake(path, `${text} is listened at twice`, OWN_SOCKET_HINT)
  }
  if (mistakes.length > 0) return { mistakes: mistakes.sort((a, b) => a.line - b.line), lineOf }

  const listenersOf = (name: string, ofDisks: boolean): ListenerConfiguration[] =>
    file.listeners
      .filter(({ peer, disks }) => peer === name && disks === ofDisks)
      .map(({ target, at, mode, group }) => ({ name: target, address: at.at, mode, group }))
  const peers = Object.entries(file.peers).map(([name, peer]) => {
    return {
      name,
      ...peer.address,
      connections: peer.connections,
      caps: caps.get(name)!,
      share: peer.share,
      peerName: peer['peer-name'],
      tlsServerName: peer['tls-server-name'],
      listen: listenersOf(name, false),
      disks: listenersOf(name, true),
    }
  })
  return {
    mistakes,
    lineOf,
    configuration: {
      tlsCreds: file['tls-creds'],
      store: file.store,
      storeKey: file['store-key'],
      signers: file.signers,
      supply:
        file.store === undefined || file.trust === undefined
          ? undefined
          : {
              own: file.store,
              storeKey: file['store-key'],
              remote,
              insecure: file['store-insecure'],
              channels: file.channels,
              trust: file.trust,
              signers: file.signers,
              maxBytes: file['store-size'],
            },
      learn: file.learn ?? (file.signers === undefined ? undefined : 'off'),
      learnSizeBytes: file['learn-size'] ?? parseSize(DEFAULTS.learnSize, 'learn-size'),
      learnAgeMs: file['learn-age'] ?? parseDuration(DEFAULTS.learnAge, 'learn-age'),
      poolMemoryBytes: file['pool-memory'],
      setMemoryBytes: file['set-memory'],
      effort: file.effort,
      diskAnswers: file['disk-answers'],
      diskZeroes: file['disk-zeroes'],
      queueTargetMs: file['queue-target'],
      patienceMs: file.patience,
      patiencePostcopyMs: file['patience-postcopy'],
      control: file.control,
      history: file.history,
      metrics: file.metrics,
      logLevel: file['log-level'],
      hook: file.hook,
      caps: capsOfAll,
      weights: file.shares,
      peers,
      wanListen,
      peerName: file.wan?.['peer-name'],
      sessionsMax: file.wan?.['sessions-max'] ?? SESSIONS_MAX,
      targets: new Map(Object.entries(file.targets).map(([name, { at }]) => [name, at])),
      disks: new Map(Object.entries(file.disks).map(([name, { at }]) => [name, at])),
    },
  }
}

const STAR_HINT = 'a value that begins with * or & means something to YAML: put it in quotes'

/** Offset of the first alias that has no anchor before it, or of the first one at all. */
function strayAlias(document: Document.Parsed): number {
  const aliases: { offset: number; isStray: boolean }[] = []
  visit(document, {
    Alias: (_, alias) => void aliases.push({ offset: alias.range![0], isStray: alias.resolve(document) === undefined }),
  })
  return (aliases.find(({ isStray }) => isStray) ?? aliases[0])?.offset ?? 0
}

/**
 * What differs between two configurations and counts only after a restart: all but caps and shares, and targets where
 * source proxies are listened for.
 * @returns names as in the file
 */
export function needRestart(before: Configuration, after: Configuration): string[] {
  const settings = ({
    caps,
    weights,
    peers,
    targets,
    disks,
    wanListen,
    peerName,
    sessionsMax,
    supply,
    ...rest
  }: Configuration): Map<string, string> =>
    new Map([
      ...Object.entries({
        ...rest,
        remoteStores: supply?.remote,
        storeInsecure: supply?.insecure,
        channels: supply?.channels,
        trust: supply?.trust,
        storeSizeBytes: supply?.maxBytes,
      }).map(([key, value]) => [kebab(key), JSON.stringify(value)] as const),
      ['wan', JSON.stringify([wanListen, peerName, sessionsMax])],
      ...peers.map(({ caps, share, ...peer }) => [`peers.${peer.name}`, JSON.stringify(peer)] as const),
    ])
  const was = settings(before)
  const is = settings(after)
  return [...new Set([...was.keys(), ...is.keys()])].filter(key => was.get(key) !== is.get(key))
}

/** As the file has it: without the unit. */
function kebab(key: string): string {
  return key.replace(/(?:Bytes|Ms)$/, '').replaceAll(/[A-Z]/g, letter => `-${letter.toLowerCase()}`)
}

/** Whether a listener and a target name the same port of the same address. */
function overlap(a: Address, b: Address): boolean {
  if (a.kind === 'unix' && b.kind === 'unix') return a.path === b.path
  if (a.kind !== 'tcp' || b.kind !== 'tcp') return false
  return a.host === b.host && a.port <= b.portTo && b.port <= a.portTo
}
