/**
 * The file of `pageferry serve`: both roles in one process, because guests move both ways. YAML, checked as a whole: every
 * mistake comes with its line and what to do.
 */
import { type Document, isScalar, LineCounter, parseDocument, visit } from 'yaml'
import { isProxyError } from '../errors.ts'
import { SESSIONS_MAX } from '../limits.ts'
import { parseDuration, parseSize } from '../quantity.ts'
import { RateSchedule } from '../rate-schedule.ts'
import type { Address } from '../relay/address.ts'
import type { Weights } from '../session/fairness.ts'
import { checkRules } from './configuration-rules.ts'
import { placeHint, SCHEMA, spellingHint } from './configuration-schema.ts'
import { type CommonSettings, DEFAULTS, type DiskAnswers, type DiskZeroes, keepBlocksDefault } from './settings.ts'

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
  checkRules(file, mistake)
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
              remote: file['remote-stores'],
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
      threads: file.threads,
      keepBlocksBytes: file['keep-blocks'] ?? keepBlocksDefault(file['store-key']),
      effort: file.effort,
      diskAnswers: file['disk-answers'],
      diskZeroes: file['disk-zeroes'],
      queueTargetMs: file['queue-target'],
      patienceMs: file.patience,
      patiencePostcopyMs: file['patience-postcopy'],
      rehearsalMs: file.rehearsal,
      control: file.control,
      history: file.history,
      metrics: file.metrics,
      logLevel: file['log-level'],
      hook: file.hook,
      caps: capsOfAll,
      weights: file.shares,
      peers,
      wanListen: (file.wan?.listen ?? []).map(({ at }) => at),
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
