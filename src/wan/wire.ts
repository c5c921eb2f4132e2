/**
 * Numbers of the hellos and frames: docs/protocol.md §2 and §3. They stand nowhere else; a test pins each by literal.
 * Bounds (payload sizes, counts) stand in limits.ts.
 */

/** First bytes of each hello: "PGFY", CR LF, ^Z, LF, so that a text conversion on the way breaks it visibly. */
export const MAGIC = [0x50, 0x47, 0x46, 0x59, 0x0d, 0x0a, 0x1a, 0x0a] as const

export const VERSION_MAJOR = 1
export const VERSION_MINOR = 0

/** Begins the name in ALPN by which a client's TLS is told from QEMU's own; no server looks at it. */
export const ALPN_PREFIX = 'pageferry/'
export const ALPN = `${ALPN_PREFIX}${VERSION_MAJOR}`

/** Magic, both versions and the body's length. */
export const HELLO_HEAD_BYTES = 16

/** Optional parts of the protocol, by their names in hellos. */
export const FEATURE = {
  /** Sets whose pages stay on the disk (protocol.md §5, §6). */
  COLD_SETS: 'cold-sets',
  /** Connections of NBD (protocol.md §9). */
  DISKS: 'disks',
  /** What stands on a disk, on its way to who reads it (protocol.md §9). Only with DISKS. */
  DISK_REPLIES: 'disk-replies',
  /** Blocks of disks that both sides keep on their own disks (protocol.md §5, §9). Only with DISKS. */
  KEPT_BLOCKS: 'kept-blocks',
} as const

/** Those that this version can do. Reserved are `lanes`, `regions` and `extended-operations` (protocol.md §4 to §6). */
export const FEATURES: readonly string[] = Object.values(FEATURE)

/** The kind in OPEN of a connection of a disk. */
export const KIND_DISK = 'disk'

/** Type, flags, flow, length, sequence number, check. */
export const FRAME_HEAD_BYTES = 16

/** The part of a frame's head that its check covers. */
export const FRAME_CHECKED_BYTES = 12

/** Frame types. */
export const FRAME = {
  OPEN: 1,
  DATA: 2,
  BATCH: 3,
  FIN: 4,
  RESET: 5,
  CREDIT: 6,
  END: 7,
  WANT: 8,
  PAGE: 9,
  ACK: 16,
  PING: 17,
  PONG: 18,
  BYE: 19,
  DRAIN: 20,
  /** Of those that are ignored (FRAME_OPTIONAL): it will never have a meaning. */
  PAD: 255,
} as const

/** Frame types with this bit are ignored by a side that does not know them. */
export const FRAME_OPTIONAL = 0x80

/** Flag of BATCH: further parts of the batch follow. */
export const FLAG_MORE = 1

/** Sequence numbers stay below this: at a million frames a second they last nine years. */
export const SEQUENCE_END = 2 ** 48

/** Codes of RESET and BYE. Those that an ErrorCode has the name of mean the same. */
export const CODE = {
  NONE: 0,
  QEMU_LOST: 1,
  TARGET_REFUSED: 2,
  PEER_LOST: 3,
  PROTOCOL_SYNTAX: 4,
  PROTOCOL_STATE: 5,
  BATCH_FORMAT: 6,
  BATCH_CHECKSUM: 7,
  LIMIT_EXCEEDED: 8,
  INTERNAL: 9,
  SHUTDOWN: 10,
  CANCELLED: 11,
} as const

/** What a server may refuse a hello with; what has no name here is INTERNAL. */
export const REFUSALS = [
  'PROTOCOL_VERSION',
  'PROTOCOL_SYNTAX',
  'PROTOCOL_STATE',
  'PEER_AUTH',
  'LIMIT_EXCEEDED',
  'PEER_LOST',
  'INTERNAL',
] as const
export type Refusal = (typeof REFUSALS)[number]
