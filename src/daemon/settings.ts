/** What both proxies of a process go by, as values: read once, from options or from the file of `pageferry serve`. */
import { isProxyError, ProxyError } from '../errors.ts'
import { PATIENCE_MS, QUEUE_TARGET_MS, REHEARSAL_MS, REHEARSAL_MS_MAX, WEIGHT_MAX } from '../limits.ts'
import type { Level } from '../log.ts'
import { parseDuration, parseSize } from '../quantity.ts'
import type { Address } from '../relay/address.ts'
import { parseMetricsAddress } from '../relay/metrics-address.ts'
import { requireChannelName } from '../remote/channel.ts'
import { storeNames } from '../remote/open-store.ts'
import type { Weights } from '../session/fairness.ts'
import { parseThreads, type Threads } from '../transfer/helpers/thread-count.ts'
import type { SupplySettings } from './set-supply.ts'

export interface CommonSettings {
  /** Folder with certificates or keys; undefined: plain text, because the operator said so. */
  readonly tlsCreds: string | undefined
  readonly store: string | undefined
  /** File with this host's key. */
  readonly storeKey: string | undefined
  /** File with the public keys of those who may sign sets; undefined: it is not asked who made them. */
  readonly signers: string | undefined
  /** Where sets come from; undefined: they are there. */
  readonly supply: SupplySettings | undefined
  /** undefined: shared where there is a store. */
  readonly learn: 'off' | 'shared' | 'all' | undefined
  readonly learnSizeBytes: number
  readonly learnAgeMs: number
  readonly poolMemoryBytes: number
  /** Disk space for blocks of disks that have passed. */
  readonly keepBlocksBytes: number
  /** Template sets beyond it stay on the disk. */
  readonly setMemoryBytes: number
  /** That match, pack and unpack. */
  readonly threads: Threads
  readonly queueTargetMs: number
  readonly patienceMs: number
  /** The same after a migration's switch to postcopy; undefined: as patienceMs. */
  readonly patiencePostcopyMs: number | undefined
  /** How long a start may rehearse, in ms; 0: not at all. */
  readonly rehearsalMs: number
  /** Path of the control socket; undefined: none. */
  readonly control: string | undefined
  /** File for the migrations that ended last; undefined: they are kept in memory. */
  readonly history: string | undefined
  /** Where metrics can be had beside the control socket. */
  readonly metrics: Address | undefined
  /** What is less is not in the log. */
  readonly logLevel: Level
  /** Program that is told of migrations; undefined: none. */
  readonly hook: string | undefined
}

/** The same as people write it. */
export interface CommonTexts {
  readonly tlsCreds?: string | undefined
  readonly plaintext: boolean
  /** Its own, and remote ones. */
  readonly store?: readonly string[] | undefined
  readonly storeKey?: string | undefined
  readonly storeInsecure: boolean
  readonly storeSize?: string | undefined
  readonly channel?: readonly string[] | undefined
  readonly trust?: string | undefined
  readonly signers?: string | undefined
  readonly learn?: 'off' | 'shared' | 'all' | undefined
  readonly learnSize: string
  readonly learnAge: string
  readonly poolMemory: string
  readonly setMemory: string
  readonly threads: string
  /** undefined: DEFAULTS has it, but where what lies on this host's disk is encrypted. */
  readonly keepBlocks?: string | undefined
  readonly queueTarget: string
  readonly patience: string
  readonly patiencePostcopy?: string | undefined
  readonly rehearsal: string
  readonly control?: string | undefined
  readonly history?: string | undefined
  readonly metrics?: string | undefined
  readonly logLevel: Level
  readonly hook?: string | undefined
}

/** Who answers writes of disks at a source: the far side, or the proxy (docs/adr/0020-early-answers.md). */
export const DISK_ANSWERS = ['far', 'early'] as const
export type DiskAnswers = (typeof DISK_ANSWERS)[number]

/** What a destination makes of zeroes that are written to disks: what was said, or holes. */
export const DISK_ZEROES = ['as-said', 'unmap'] as const
export type DiskZeroes = (typeof DISK_ZEROES)[number]

/** Where nothing is said. */
export const DEFAULTS = {
  /** What a process that takes sessions has for all their rings: one peer alone has half of it, what a source proxy offers. */
  poolMemoryOfAll: '512MiB',
  setMemory: '512MiB',
  keepBlocks: '8GiB',
  learnSize: '4GB',
  learnAge: '30d',
  queueTarget: `${QUEUE_TARGET_MS}ms`,
  patience: `${PATIENCE_MS / 1000}s`,
  rehearsal: `${REHEARSAL_MS / 1000}s`,
  diskAnswers: 'far',
  diskZeroes: 'as-said',
} as const

/** What a cap on all peers together is of, where a peer is named. */
export const ALL_PEERS = 'all'

/**
 * What memory and disks get beside each other: `disks=1,memory=3`. What is not named has 1.
 * @throws USAGE
 */
export function parseWeights(text: string, option: string): Weights {
  const weights: Weights = { memory: 1, disks: 1 }
  const named = new Set<string>()
  for (const part of text.split(',')) {
    const [, name, value] = /^\s*(memory|disks)=(\d{1,3})\s*$/.exec(part) ?? []
    const weight = Number(value)
    if (name === undefined || named.has(name) || weight < 1 || weight > WEIGHT_MAX) {
      const hint = `give disks=1,memory=3: whole numbers from 1 to ${WEIGHT_MAX}`
      throw new ProxyError('USAGE', `${option} ${JSON.stringify(text)}`, undefined, hint)
    }
    named.add(name)
    weights[name as keyof Weights] = weight
  }
  return weights
}

/** Why a site that wants signatures does not learn. */
export const LEARNED_UNSIGNED = 'learned sets are signed by nobody, and would not be used: --learn off'

/**
 * @param note is handed each option that is wrong, which the settings then lack. Default: the first is thrown
 * @throws USAGE, with the option that is wrong
 */
export function readCommon(texts: CommonTexts, note?: (error: ProxyError) => void): CommonSettings {
  const { tlsCreds, storeKey, signers } = texts
  const each = <T>(read: () => T): T => {
    try {
      return read()
    } catch (error) {
      if (note === undefined || !isProxyError(error)) throw error
      note(error)
      return undefined as never
    }
  }
  const { own: store, remote } = each(() => storeNames(texts.store)) ?? { own: undefined, remote: [] }
  each(() => requireSecured(texts))
  const learn = texts.learn ?? (signers === undefined ? undefined : 'off')
  each(() => requireStore(store, learn, signers))
  return {
    tlsCreds,
    store,
    storeKey,
    signers,
    supply: each(() => readSupply(texts, store, remote)),
    learn,
    learnSizeBytes: each(() => parseSize(texts.learnSize, '--learn-size')),
    learnAgeMs: each(() => parseDuration(texts.learnAge, '--learn-age')),
    poolMemoryBytes: each(() => parseSize(texts.poolMemory, '--pool-memory')),
    keepBlocksBytes: each(() =>
      texts.keepBlocks === undefined ? keepBlocksDefault(storeKey) : parseSize(texts.keepBlocks, '--keep-blocks'),
    ),
    setMemoryBytes: each(() => parseSize(texts.setMemory, '--set-memory')),
    threads: each(() => parseThreads(texts.threads)),
    queueTargetMs: each(() => parseDuration(texts.queueTarget, '--queue-target')),
    patienceMs: each(() => parseDuration(texts.patience, '--patience')),
    patiencePostcopyMs: each(() =>
      texts.patiencePostcopy === undefined ? undefined : parseDuration(texts.patiencePostcopy, '--patience-postcopy'),
    ),
    rehearsalMs: each(() => parseRehearsal(texts.rehearsal, '--rehearsal')),
    control: texts.control,
    history: texts.history,
    logLevel: texts.logLevel,
    hook: texts.hook,
    metrics: each(() => (texts.metrics === undefined ? undefined : parseMetricsAddress(texts.metrics))),
  }
}

function requireSecured({ plaintext, tlsCreds }: CommonTexts): void {
  if (plaintext && tlsCreds !== undefined)
    throw new ProxyError('USAGE', '--plaintext and --tls-creds', undefined, 'give one of them')
  if (plaintext || tlsCreds !== undefined) return
  const hint =
    '`pageferry keygen` makes certificates or keys for both sides; --plaintext goes without, where the link is safe by itself'
  throw new ProxyError('USAGE', 'no --tls-creds', undefined, hint)
}

function requireStore(store: string | undefined, learn: string | undefined, signers: string | undefined): void {
  if (store === undefined && learn !== undefined && learn !== 'off')
    throw new ProxyError('USAGE', `--learn ${learn} without --store`, undefined, 'give --store DIR')
  if (signers === undefined) return
  if (store === undefined) throw new ProxyError('USAGE', '--signers without --store', undefined, 'give --store DIR')
  if (learn !== 'off') throw new ProxyError('USAGE', `--signers and --learn ${learn}`, undefined, LEARNED_UNSIGNED)
}

/** @throws USAGE where it is none, or longer than a start may take */
export function parseRehearsal(text: string, option: string): number {
  const ms = parseDuration(text, option)
  if (ms <= REHEARSAL_MS_MAX) return ms
  throw new ProxyError('USAGE', `${option} ${text}`, undefined, `give at most ${REHEARSAL_MS_MAX / 1000}s`)
}

/** Blocks that are kept are not encrypted: where the store's sets are, only who asks for it has them kept. */
export function keepBlocksDefault(storeKey: string | undefined): number {
  return storeKey === undefined ? parseSize(DEFAULTS.keepBlocks, '--keep-blocks') : 0
}

/** What `--channel` and remote stores ask for. @throws USAGE where the one is there without the other */
function readSupply(
  texts: CommonTexts,
  own: string | undefined,
  remote: readonly string[],
): SupplySettings | undefined {
  const { channel: channels = [], trust, signers, storeKey, storeInsecure, storeSize } = texts
  if (channels.length === 0 && remote.length === 0 && trust === undefined && storeSize === undefined) return undefined
  const missing = (what: string, action: string): ProxyError => new ProxyError('USAGE', what, undefined, action)
  if (remote.length === 0) throw missing('no remote store under --store', 'give --store s3://BUCKET/PREFIX, for one')
  if (own === undefined)
    throw missing('remote stores without a folder', "give --store DIR too, for this host's own sets")
  if (channels.length === 0)
    throw missing('remote stores without --channel', 'give --channel NAME: which sets to fetch')
  if (trust === undefined) throw missing('--channel without --trust', 'give --trust FILE: who may sign channels')
  for (const name of channels) requireChannelName(name)
  return {
    own,
    storeKey,
    remote,
    insecure: storeInsecure,
    channels,
    trust,
    signers,
    maxBytes: storeSize === undefined ? undefined : parseSize(storeSize, '--store-size'),
  }
}
