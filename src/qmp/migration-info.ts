/** What query-migrate and query-status return, as far as it is understood. QEMU qapi/migration.json, MigrationInfo. */
import { isIPv4 } from 'node:net'
import { fieldsOf } from './settings.ts'

/** Where a migration stands, whatever a version of QEMU calls it. */
export type MigrationPhase =
  /** There is none, or none any more. */
  | 'none'
  /** The guest runs at the source. */
  | 'precopy'
  /** It stands still, and is handed over. */
  | 'switching'
  | 'cancelling'
  /** It runs at the destination, on pages that may not have come. */
  | 'postcopy'
  /** So, and the connection is broken. */
  | 'paused'
  | 'completed'
  | 'failed'
  | 'cancelled'

const PHASES: Readonly<Record<string, MigrationPhase>> = {
  none: 'none',
  setup: 'precopy',
  'wait-unplug': 'precopy',
  active: 'precopy',
  'pre-switchover': 'switching',
  device: 'switching',
  failing: 'switching', // 10.2 on: it fails, and is not done with that
  cancelling: 'cancelling',
  'postcopy-paused': 'paused',
  completed: 'completed',
  failed: 'failed',
  cancelled: 'cancelled',
}

/** A status that is not known is one between precopy and the end: of postcopy where its name says so. */
export function phaseOf(status: string): MigrationPhase {
  if (Object.hasOwn(PHASES, status)) return PHASES[status]!
  return status.startsWith('postcopy') ? 'postcopy' : 'switching'
}

export interface MigrationInfo {
  /** QEMU's own word; `none` where there was no migration. */
  readonly status: string
  readonly phase: MigrationPhase
  readonly totalMs?: number
  /** From stopping the guest to its last byte handed to the kernel. */
  readonly downtimeMs?: number
  readonly setupMs?: number
  /** What QEMU says of a failure. */
  readonly error?: string
  /** Percent of their time that the guest's processors are held back. */
  readonly throttle?: number
  /** Where a destination listens, as QEMU spells it; empty while it waits to be told. undefined: no TCP, no path. */
  readonly listensAt: readonly (string | undefined)[]
  /** Bytes of RAM: handed to the pair, still to be handed, of the guest. */
  readonly transferredBytes?: number
  readonly remainingBytes?: number
  readonly totalBytes?: number
  readonly postcopyBytes?: number
  /** Of RAM and all else, a second. */
  readonly bytesPerSecond?: number
  readonly dirtyBytesPerSecond?: number
  /** The pass that runs, from 1; or the last one. */
  readonly pass?: number
}

/** Characters of a text of QEMU's that are kept. */
const TEXT_CHARS_MAX = 1000

/** @throws ProxyError IO where it is no answer of QEMU's */
export function readMigrationInfo(answer: unknown): MigrationInfo {
  const fields = fieldsOf('query-migrate', answer)
  const status = textOf(fields.status) ?? 'none'
  const ram = typeof fields.ram === 'object' && fields.ram !== null ? (fields.ram as Record<string, unknown>) : {}
  const pageBytes = figureOf(ram['page-size']) ?? 4096
  const rate = figureOf(ram.mbps)
  const dirty = figureOf(ram['dirty-pages-rate'])
  return without({
    status,
    phase: phaseOf(status),
    totalMs: figureOf(fields['total-time']),
    downtimeMs: figureOf(fields.downtime),
    setupMs: figureOf(fields['setup-time']),
    error: textOf(fields['error-desc']),
    throttle: figureOf(fields['cpu-throttle-percentage']),
    listensAt: Array.isArray(fields['socket-address']) ? fields['socket-address'].map(addressOf) : [],
    transferredBytes: figureOf(ram.transferred),
    remainingBytes: figureOf(ram.remaining),
    totalBytes: figureOf(ram.total),
    postcopyBytes: figureOf(ram['postcopy-bytes']),
    bytesPerSecond: rate === undefined ? undefined : (rate * 1e6) / 8,
    dirtyBytesPerSecond: dirty === undefined ? undefined : dirty * pageBytes,
    pass: figureOf(ram['dirty-sync-count']),
  })
}

/** Of TCP and Unix sockets alone. QEMU qapi/sockets.json, SocketAddress. */
function addressOf(entry: unknown): string | undefined {
  const { type, ...fields } = (entry ?? {}) as Record<string, unknown>
  const [host, port, path] = [textOf(fields.host), textOf(fields.port), textOf(fields.path)]
  if (type === 'unix' && path !== undefined) return `unix:${path}`
  if (type !== 'inet' || host === undefined || port === undefined) return undefined
  return `tcp:${host.includes(':') ? `[${host}]` : host}:${port}`
}

const TCP = /^tcp:(.*):(\d+)$/

/** Whether who listens there may be who is reached at `wanted`. Where that is not known, yes. */
export function mayBeAt(there: string | undefined, wanted: string): boolean {
  if (there === undefined || there === wanted) return true
  const [one, other] = [TCP.exec(there), TCP.exec(wanted)]
  if (one && other) return one[2] === other[2] && [one[1]!, other[1]!].some(host => !isIPv4(host) || host === '0.0.0.0')
  // a path that does not begin at the root begins where its QEMU was started
  const both = [there, wanted]
  return both.every(text => text.startsWith('unix:')) && both.some(text => !text.startsWith('unix:/'))
}

/** The run state of a guest: `running`, `paused`, `inmigrate`, `postmigrate`. @throws ProxyError IO */
export function readRunState(answer: unknown): string {
  return textOf(fieldsOf('query-status', answer).status) ?? 'not told'
}

function textOf(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value.slice(0, TEXT_CHARS_MAX) : undefined
}

function figureOf(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : undefined
}

/** Fields that QEMU did not give are not there, as JSON has it. */
function without(fields: { [K in keyof MigrationInfo]: MigrationInfo[K] | undefined }): MigrationInfo {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as never
}
