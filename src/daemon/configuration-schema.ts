/** What the file of `pageferry serve` may hold, setting by setting, and how each is spelled. */
import { z } from 'zod'
import { parseEffortOrAuto } from '../compression/effort.ts'
import { isProxyError } from '../errors.ts'
import { CONNECTIONS_MAX, SESSIONS_CEILING, SESSIONS_MAX, WEIGHT_MAX } from '../limits.ts'
import { requireServerName } from '../link/credentials.ts'
import { parseCap, parseDuration, parseSize } from '../quantity.ts'
import { requireTimeZone } from '../rate-schedule.ts'
import { parseAddress, parsePeer } from '../relay/address.ts'
import { fileMode } from '../relay/group.ts'
import { parseMetricsAddress } from '../relay/metrics-address.ts'
import { requireChannelName } from '../remote/channel.ts'
import { parseThreads } from '../transfer/helpers/thread-count.ts'
import { DEFAULTS, DISK_ANSWERS, DISK_ZEROES, parseRehearsal } from './settings.ts'
import { LEVELS } from './text-log.ts'

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
export const SCHEMA = (() => {
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
    'keep-blocks': size('keep-blocks').optional(),
    threads: text(value => parseThreads(value, 'threads')).prefault('auto'),
    effort: text(value => parseEffortOrAuto(value, 'effort')).prefault('auto'),
    ...caps,
    shares: z.strictObject({ memory: weight, disks: weight }).prefault({}),
    'time-zone': text(value => requireTimeZone(value, 'time-zone')).optional(),
    'disk-answers': z.enum(DISK_ANSWERS).default(DEFAULTS.diskAnswers),
    'disk-zeroes': z.enum(DISK_ZEROES).default(DEFAULTS.diskZeroes),
    'queue-target': duration('queue-target').prefault(DEFAULTS.queueTarget),
    patience: duration('patience').prefault(DEFAULTS.patience),
    'patience-postcopy': duration('patience-postcopy').optional(),
    rehearsal: text(value => parseRehearsal(value, 'rehearsal')).prefault(DEFAULTS.rehearsal),
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

/** What a file says, each setting by itself. */
export type FileSettings = z.output<typeof SCHEMA>

/** How settings are spelled that the options of the same name spell otherwise. */
const SPELLINGS: Readonly<Record<string, string>> = {
  disks: 'targets by name, disks: { default: "tcp:127.0.0.3:10809" }; a listener for disks says disks: true',
  'rate-schedule': 'a text, or a list of them: ["mon-fri 08:00-18:00 200Mbit", "sat,sun none"]',
  share: `of a peer: a whole number from 1 to ${WEIGHT_MAX}`,
  shares: `shares: { disks: 1, memory: 3 }, whole numbers from 1 to ${WEIGHT_MAX}`,
}

export function spellingHint(path: readonly PropertyKey[]): string {
  const key = path.findLast(part => typeof part === 'string' && Object.hasOwn(SPELLINGS, part))
  return key === undefined ? 'docs/operations.md has an example' : `write ${SPELLINGS[key as string]}`
}

/** Settings of a peer alone. */
const OF_PEERS = new Set(['address', 'connections', 'share', 'tls-server-name'])

/** @param path where an unknown key stands */
export function placeHint(path: readonly PropertyKey[], key: string): string {
  if (path.length === 0 && OF_PEERS.has(key)) return 'it is a setting of a peer'
  if (path.length > 0 && Object.hasOwn(SCHEMA.shape, key)) return 'it stands at the top of the file'
  return 'docs/operations.md lists all settings'
}
