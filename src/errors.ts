/**
 * Typed errors and exit statuses. Every failure that leaves a module is a ProxyError whose code is stable: callers,
 * metrics and scripts compare the code, never the text.
 */

/** Every code, with the exit status of a command that fails with it. docs/operations.md carries the same table. */
export const ERROR_EXIT = {
  /** Wrong arguments or configuration. */
  USAGE: 2,
  /** An address that is not one of tcp:HOST:PORT, tcp:[V6]:PORT, tcp:HOST:FROM-TO, unix:PATH, fd:NAME. */
  ADDRESS: 2,
  /** A local file or socket could not be read or written (missing, full disk, permission). */
  IO: 1,
  /** Bytes that QEMU cannot have sent, or that this version does not know: relayed raw, never fatal by itself. */
  QEMU_SYNTAX: 3,
  /** A stream that ends in the middle where a whole one is needed (template build, estimate). */
  QEMU_TRUNCATED: 3,
  /** Not a pcap or pcapng file, or one that is damaged. */
  CAPTURE_FORMAT: 3,
  /** A capture that lacks segments of a migration. */
  CAPTURE_GAP: 3,
  /** Not a template set, or one of an unknown version. */
  TEMPLATE_FORMAT: 4,
  /** A template set whose bytes do not match their digests. */
  TEMPLATE_DAMAGED: 4,
  /** A template set that ends early. */
  TEMPLATE_TRUNCATED: 4,
  /** A set that was asked for is not in the store. */
  TEMPLATE_MISSING: 4,
  /** A set that is signed by nobody whom this host trusts, where that is asked for. */
  TEMPLATE_UNTRUSTED: 4,
  /** A batch that breaks the grammar of docs/protocol.md. */
  BATCH_FORMAT: 5,
  /** A batch that did not expand to the bytes its checksum promises. Nothing of it reached QEMU. */
  BATCH_CHECKSUM: 5,
  /** An encoded file or stream ends before its end mark. */
  BATCH_TRUNCATED: 5,
  /** Both sides speak Pageferry, in versions that do not fit. */
  PROTOCOL_VERSION: 6,
  /** The peer sent what docs/protocol.md does not allow, or does not speak Pageferry at all. */
  PROTOCOL_SYNTAX: 6,
  /** The peer sent a known frame in a state that does not allow it. */
  PROTOCOL_STATE: 6,
  /** A length or count from outside exceeds its bound in limits.ts. */
  LIMIT_EXCEEDED: 6,
  /** The peer is not who it must be: certificate, name, pre-shared key or resume proof. */
  PEER_AUTH: 7,
  /** No connection to the other proxy, or none any more for longer than the patience. */
  PEER_LOST: 8,
  /** The destination QEMU does not accept a connection, or the target is not allowed. */
  TARGET_REFUSED: 9,
  /** A QEMU went away, or this side's operator ended the migration. */
  QEMU_LOST: 10,
  /** A remote store cannot be reached, broke off, or does not work just now: worth another try. */
  STORE_LOST: 12,
  /** A remote store does not let us: credentials that are missing or not enough, a bucket that is not there. */
  STORE_REFUSED: 12,
  /** A remote store answered what no honest store answers. */
  STORE_ANSWER: 12,
  /** A channel is one of sets here (src/remote/), none of QEMU's: not its document, or one of an unknown version. */
  CHANNEL_FORMAT: 13,
  /** The document of a channel is signed by nobody that this host trusts. */
  CHANNEL_UNTRUSTED: 13,
  /** The document of a channel is older than what is in force, or has expired. */
  CHANNEL_STALE: 13,
  /** No remote store has a channel of that name. */
  CHANNEL_MISSING: 13,
  /** A channel was changed by somebody else meanwhile, or names sets that the store does not have. */
  CHANNEL_CONFLICT: 13,
  /** No migration of that id runs here. */
  MIGRATION_MISSING: 14,
  /** A migration whose guest may run at the destination already is not cancelled here. */
  CANCEL_REFUSED: 14,
  /** QEMU refuses a setting or the migration itself: nothing has begun. */
  MIGRATION_REFUSED: 16,
  /** A migration failed; the reason is QEMU's. */
  MIGRATION_FAILED: 17,
  /** A migration was cancelled, by a limit in time or by somebody else: the guest goes on at the source. */
  MIGRATION_CANCELLED: 18,
  /** A migration in postcopy lost its connection: the guest stands still until it is recovered. */
  MIGRATION_PAUSED: 19,
  /** A defect of ours. */
  INTERNAL: 70,
} as const

export type ErrorCode = keyof typeof ERROR_EXIT

/** Where it failed: a stream or file by name, and the byte in it, counted from its start. */
export interface Where {
  readonly stream: string
  /** None where it is about all of it: a file that cannot be opened. */
  readonly offset?: number | undefined
}

/** As people read it, behind what failed; nothing where that names the file already. */
export function whereText(where: Where | undefined): string {
  return where?.offset === undefined ? '' : ` (${where.stream}, byte ${where.offset})`
}

/** What failed, where in which stream, and what an operator can do about it. */
export class ProxyError extends Error {
  /** Stable: callers, metrics and scripts compare it, never the text. */
  readonly code: ErrorCode
  /** What is wrong: 'unknown RAM flags 0x800'. */
  readonly what: string
  readonly where: Where | undefined
  /** What happens now or what to do: 'relayed raw; report this with the QEMU version'. */
  readonly action: string

  constructor(code: ErrorCode, what: string, where: Where | undefined, action: string, options?: ErrorOptions) {
    super(`${code}: ${what}${whereText(where)}; ${action}`, options)
    this.name = 'ProxyError'
    this.code = code
    this.what = what
    this.where = where
    this.action = action
  }

  /** The fields that `--json` prints. */
  toJSON(): Record<string, unknown> {
    return { code: this.code, what: this.what, where: this.where ?? null, action: this.action }
  }
}

/** True where a thrown value is a ProxyError of this code. */
export function isProxyError(error: unknown, code?: ErrorCode): error is ProxyError {
  return error instanceof ProxyError && (code === undefined || error.code === code)
}

/** For what was thrown and nobody throws on purpose: our own defect, which ends what it was found in, and no more. */
export function defectOf(error: unknown): ProxyError {
  const what = `our own defect: ${(error as Error).message}`
  return new ProxyError('INTERNAL', what, undefined, 'please report it', { cause: error })
}

/** Our own defect: crash rather than guess. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition)
    throw new ProxyError('INTERNAL', message, undefined, 'this is a defect of Pageferry; please report it')
}
