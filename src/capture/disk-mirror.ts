/**
 * A disk at rest, as the mirror that would move it: what QEMU's `blockdev-mirror` says to an export of the other site, and
 * what that answers. So that it can be estimated as a mirror is carried. What is zero is said and not sent: in pieces of
 * 64 KiB, the least that a mirror looks at, as those of a sparse image are.
 */
import { writeU16, writeU32, writeU64 } from '../bytes/big-endian.ts'
import {
  CLIENT_FLAGS_LENGTH,
  COMMAND,
  GREETING_LENGTH,
  GREETING_MAGIC,
  HANDSHAKE_FLAG,
  INFO,
  INFO_EXPORT_LENGTH,
  OPTION,
  OPTION_HEAD_LENGTH,
  OPTION_MAGIC,
  OPTION_REPLY,
  OPTION_REPLY_HEAD_LENGTH,
  OPTION_REPLY_MAGIC,
  REQUEST,
  SIMPLE_REPLY,
} from '../nbd/wire.ts'
import type { PageBatch } from '../template/batch.ts'
import { PAGE_SIZE } from '../template/wire.ts'
import type { Chunks } from './input-file.ts'
import type { PageInput } from './pages.ts'

/** What a mirror copies or leaves out: its granularity where nobody sets one, and a cluster of qcow2. */
const PIECE_PAGES = 16
/** Zeroes of one request at most, as seen of QEMU's mirror (docs/nbd-wire.md). */
const ZEROES_MAX = 16 << 20
/** Longer than any input: how many blocks a pipe has only its end tells. */
const EXPORT_BYTES = 2 ** 50
/** HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES. */
const TRANSMISSION_FLAGS = 0x006d
const NAME = 'disk'
const NO_BYTES = Buffer.alloc(PIECE_PAGES * PAGE_SIZE)

/** Both directions of the connection: whoever takes a chunk of the client's asks for the server's answer before the next. */
export class DiskMirror {
  /** Blocks that are named and not sent, as they are zero. */
  zeroBlocks = 0
  private readonly input: PageInput
  private said: Buffer = greeting()
  private cookie = 0
  /** Zeroes that were not said yet. */
  private zeroesAt = 0
  private zeroes = 0

  constructor(input: PageInput) {
    this.input = input
  }

  /** What the server has said since the last call; at first its greeting. */
  answer(): Uint8Array {
    const { said } = this
    this.said = Buffer.alloc(0)
    return said
  }

  /** What the client says. Chunks are valid until the next is asked for. @throws as the pages of the input do */
  async *chunks(readBytes?: (count: number) => void): Chunks {
    this.said = exported()
    yield opening()
    for await (const batch of this.input.pages(readBytes)) {
      yield* this.batch(batch)
      batch.release()
    }
    if (this.zeroes > 0) yield this.sayZeroes()
    const flush = this.request(COMMAND.FLUSH, 0, 0)
    this.said = this.reply()
    yield flush
    yield this.request(COMMAND.DISC, 0, 0)
  }

  /** A batch is 1 MiB, the most that a mirror sends in one request. */
  private *batch({ bytes, firstPage, count }: PageBatch): Generator<Buffer> {
    for (let from = 0; from < count; ) {
      let to = from
      const zero = isZero(bytes, from, count)
      while (to < count && isZero(bytes, to, count) === zero) to = Math.min(count, to + PIECE_PAGES)
      const at = (firstPage + from) * PAGE_SIZE
      const length = (to - from) * PAGE_SIZE
      if (zero) {
        this.zeroBlocks += to - from
        if (this.zeroes === 0) this.zeroesAt = at
        this.zeroes += length
      }
      if (this.zeroes > 0 && (!zero || this.zeroes >= ZEROES_MAX)) yield this.sayZeroes()
      if (!zero) {
        yield this.request(COMMAND.WRITE, at, length)
        this.said = this.reply()
        yield bytes.subarray(from * PAGE_SIZE, to * PAGE_SIZE)
      }
      from = to
    }
  }

  private sayZeroes(): Buffer {
    const request = this.request(COMMAND.WRITE_ZEROES, this.zeroesAt, this.zeroes)
    this.zeroes = 0
    this.said = this.reply()
    return request
  }

  private request(type: number, offset: number, length: number): Buffer {
    const head = Buffer.alloc(REQUEST.LENGTH)
    writeU32(head, 0, REQUEST.MAGIC)
    writeU16(head, 6, type)
    writeU64(head, 8, ++this.cookie)
    writeU64(head, 16, offset)
    writeU32(head, 24, length)
    return head
  }

  /** To the last request. */
  private reply(): Buffer {
    const head = Buffer.alloc(SIMPLE_REPLY.LENGTH)
    writeU32(head, 0, SIMPLE_REPLY.MAGIC)
    writeU64(head, 8, this.cookie)
    return head
  }
}

/** Whether the piece that begins at this page of a batch has no byte but zeroes. */
function isZero(bytes: Buffer, page: number, count: number): boolean {
  const from = page * PAGE_SIZE
  const to = Math.min(count, page + PIECE_PAGES) * PAGE_SIZE
  return bytes.compare(NO_BYTES, 0, to - from, from, to) === 0
}

const FLAGS = HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES

function greeting(): Buffer {
  const bytes = Buffer.alloc(GREETING_LENGTH)
  writeU32(bytes, 0, GREETING_MAGIC.HIGH)
  writeU32(bytes, 4, GREETING_MAGIC.LOW)
  writeU32(bytes, 8, OPTION_MAGIC.HIGH)
  writeU32(bytes, 12, OPTION_MAGIC.LOW)
  writeU16(bytes, 16, FLAGS)
  return bytes
}

/** Flags, and GO: u32 length of the name, the name, no requests for information. */
function opening(): Buffer {
  const data = Buffer.alloc(4 + NAME.length + 2)
  writeU32(data, 0, NAME.length)
  data.write(NAME, 4, 'latin1')
  const head = Buffer.alloc(CLIENT_FLAGS_LENGTH + OPTION_HEAD_LENGTH)
  writeU32(head, 0, FLAGS)
  writeU32(head, 4, OPTION_MAGIC.HIGH)
  writeU32(head, 8, OPTION_MAGIC.LOW)
  writeU32(head, 12, OPTION.GO)
  writeU32(head, 16, data.length)
  return Buffer.concat([head, data])
}

/** The answers to GO: what is exported, and yes. */
function exported(): Buffer {
  const info = Buffer.alloc(INFO_EXPORT_LENGTH)
  writeU16(info, 0, INFO.EXPORT)
  writeU64(info, 2, EXPORT_BYTES)
  writeU16(info, 10, TRANSMISSION_FLAGS)
  return Buffer.concat([optionReply(OPTION_REPLY.INFO, info), optionReply(OPTION_REPLY.ACK, Buffer.alloc(0))])
}

function optionReply(type: number, data: Buffer): Buffer {
  const head = Buffer.alloc(OPTION_REPLY_HEAD_LENGTH)
  writeU32(head, 0, OPTION_REPLY_MAGIC.HIGH)
  writeU32(head, 4, OPTION_REPLY_MAGIC.LOW)
  writeU32(head, 8, OPTION.GO)
  writeU32(head, 12, type)
  writeU32(head, 16, data.length)
  return Buffer.concat([head, data])
}
