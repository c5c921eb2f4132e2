/**
 * Numbers that the NBD protocol fixes (docs/nbd-wire.md). Nothing here is ours to choose. 64-bit magics are in two halves,
 * as they are read.
 */

/** The server's first 8 bytes, "NBDMAGIC", and what tells newstyle ("IHAVEOPT", which also opens each option) from oldstyle. */
export const GREETING_MAGIC = { HIGH: 0x4e42444d, LOW: 0x41474943 } as const
export const OPTION_MAGIC = { HIGH: 0x49484156, LOW: 0x454f5054 } as const
export const OLDSTYLE_MAGIC = { HIGH: 0x00004202, LOW: 0x81861253 } as const
export const OPTION_REPLY_MAGIC = { HIGH: 0x0003e889, LOW: 0x045565a9 } as const

/** Bytes of the server's greeting: two magics, u16 flags. */
export const GREETING_LENGTH = 18

/** Flags of the greeting, u16. */
export const HANDSHAKE_FLAG = {
  FIXED_NEWSTYLE: 1, // other options than EXPORT_NAME are answered
  NO_ZEROES: 2, // the answer to EXPORT_NAME may do without its 124 zeros
} as const

/** Flags of the client, u32: the same bits, and none that the server did not offer. */
export const CLIENT_FLAGS_LENGTH = 4

/** u64 magic, u32 option, u32 length of the data behind it. */
export const OPTION_HEAD_LENGTH = 16

/** u64 magic, u32 option, u32 type, u32 length of the data behind it. */
export const OPTION_REPLY_HEAD_LENGTH = 20

export const OPTION = {
  EXPORT_NAME: 1, // its answer has no head: see EXPORT_LENGTH
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const

/** Types of a reply to an option. ACK and errors end it, all others (unknown ones too) come before its end. */
export const OPTION_REPLY = { ACK: 1, SERVER: 2, INFO: 3, META_CONTEXT: 4, ERROR_BIT: 0x8000_0000 } as const

/** What an INFO tells, u16. */
export const INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const

/** Bytes of the data of such an INFO, its u16 counted: size u64, flags u16; three sizes, u32. */
export const INFO_EXPORT_LENGTH = 12
export const INFO_BLOCK_SIZE_LENGTH = 14

/** The answer to EXPORT_NAME: u64 size, u16 flags, then zeros unless both sides said NO_ZEROES. */
export const EXPORT_LENGTH = 10
export const EXPORT_ZEROES = 124

/** Transmission flags, u16: what a server says that it can. */
export const TRANSMISSION_FLAG = {
  READ_ONLY: 2,
  SEND_FLUSH: 4,
  SEND_FUA: 8,
  SEND_TRIM: 32,
  SEND_WRITE_ZEROES: 64,
  CAN_MULTI_CONN: 256, // a FLUSH on one connection covers what was answered on all
} as const

/** Magics of what is sent in transmission, u32, and bytes of the heads that they open. */
export const REQUEST = { MAGIC: 0x25609513, LENGTH: 28 } as const
export const EXTENDED_REQUEST = { MAGIC: 0x21e41c71, LENGTH: 32 } as const
export const SIMPLE_REPLY = { MAGIC: 0x67446698, LENGTH: 16 } as const
export const CHUNK = { MAGIC: 0x668e33ef, LENGTH: 20 } as const
export const EXTENDED_CHUNK = { MAGIC: 0x6e8a278c, LENGTH: 32 } as const

export const COMMAND = {
  READ: 0,
  WRITE: 1, // the only one with a payload, but where EXTENDED_REQUEST says another has one
  DISC: 2, // the only one without an answer
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
  RESIZE: 8, // `offset` is the new size
} as const

/** Flags of a request, u16. */
export const COMMAND_FLAG = {
  FUA: 1, // durable before it is answered
  NO_HOLE: 2, // zeroes are to be allocated
  DF: 4, // one chunk of data
  REQ_ONE: 8, // one extent
  FAST_ZERO: 16, // or an error
  PAYLOAD_LEN: 32, // of an extended request: its length is its payload's
} as const

/** Errors of a reply, u32. */
export const NBD_ERROR = { EIO: 5, ENOSPC: 28 } as const

/** Flag of a chunk, u16: the last one of its reply. */
export const CHUNK_DONE = 1

/** Types of chunks, u16. */
export const CHUNK_TYPE = {
  NONE: 0,
  OFFSET_DATA: 1, // u64 offset, data
  OFFSET_HOLE: 2, // u64 offset, u32 length
  BLOCK_STATUS: 5, // u32 context, then u32 length, u32 status each
  BLOCK_STATUS_EXT: 6, // u32 context, u32 count, then u64 length, u64 status each
  ERROR: 0x8001, // u32 error, u16 length of a text, the text
  ERROR_OFFSET: 0x8002, // the same, then u64 offset
  ERROR_BIT: 0x8000, // of all that begin as ERROR does
} as const

/** Bytes that a chunk of each type has to have at least, and of which its head is then taken to be made. */
export const CHUNK_PREFIX = { OFFSET_DATA: 8, OFFSET_HOLE: 12, BLOCK_STATUS: 4, BLOCK_STATUS_EXT: 8, ERROR: 6 } as const

/** Bytes of an ERROR_OFFSET without its text. */
export const ERROR_OFFSET_LENGTH = 14

/** Bytes of an extent's description. */
export const EXTENT_LENGTH = 8
export const EXTENT_EXT_LENGTH = 16
