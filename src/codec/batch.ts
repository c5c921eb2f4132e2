/**
 * A batch as bytes: head, table of columns, packed columns. docs/protocol.md §4. What a column is packed with is decided
 * elsewhere (src/compression).
 */
import { ProxyError } from '../errors.ts'
import { VarintReader, writeVarint } from './varint.ts'
import {
  BATCH_FORMAT,
  BATCH_RAW_MAX,
  COLUMN_COUNT,
  columnBytesMax,
  LANE_SHIFT,
  METHOD,
  type Method,
  packedBytesMax,
} from './wire.ts'
import { Workspace } from './workspace.ts'

/** One column, packed. */
export interface PackedColumn {
  readonly column: number
  readonly method: Method
  readonly rawLength: number
  /** Pieces in order; views of memory that stays as it is until the peer has acknowledged the batch. */
  readonly parts: readonly Uint8Array[]
  readonly packedLength: number
  /** Memory of its one part, which comes back when the peer has acknowledged the batch: src/compression/column-buffers.ts. */
  readonly lent?: Buffer
}

/** Most bytes of a batch's head and table. */
const HEAD_MAX = 1 + 8 + 8 + 1 + COLUMN_COUNT * 18

/**
 * The batch as parts to send: head and table, then the columns in order.
 * @param checksum 8 bytes as the kernel writes them: lo then hi, little-endian words
 */
export function assembleBatch(rawLength: number, checksum: Uint8Array, columns: readonly PackedColumn[]): Uint8Array[] {
  const head = new Uint8Array(HEAD_MAX)
  head[0] = BATCH_FORMAT
  let at = writeVarint(head, 1, rawLength)
  for (let i = 0; i < 8; i++) head[at + i] = checksum[7 - i]!
  at += 8
  head[at++] = columns.length
  const parts: Uint8Array[] = [head]
  for (const column of columns) {
    head[at++] = column.column
    head[at++] = column.method
    at = writeVarint(head, at, column.rawLength)
    if (column.method !== METHOD.STORED) at = writeVarint(head, at, column.packedLength)
    parts.push(...column.parts)
  }
  parts[0] = head.subarray(0, at)
  return parts
}

/** A column as it arrived. */
export interface ArrivedColumn {
  readonly column: number
  readonly method: Method
  readonly rawLength: number
  /** In one piece or several. */
  readonly packed: readonly Uint8Array[]
}

/** A batch as it arrived; views of the parts given to `parseBatch`. */
export interface ArrivedBatch {
  readonly rawLength: number
  /** Big-endian u64. */
  readonly checksum: Uint8Array
  readonly columns: readonly ArrivedColumn[]
}

/**
 * Reads a whole batch. Every length meets its limit here, before memory is spent on it.
 * @param parts all of it in order; its head and table lie in the first, as protocol.md §3 has them
 * @throws BATCH_FORMAT
 */
export function parseBatch(parts: readonly Uint8Array[]): ArrivedBatch {
  const bytes = parts[0]!
  let total = 0
  for (const part of parts) total += part.length
  const bad = (what: string, offset: number): ProxyError =>
    new ProxyError(
      'BATCH_FORMAT',
      what,
      { stream: 'batch', offset },
      'the session ends and the source guest goes on; both proxies must run versions that fit',
    )
  if (bytes[0] !== BATCH_FORMAT) throw bad(`unknown batch format ${bytes[0] ?? 'none'}`, 0)
  const reader = new VarintReader('head')
  reader.reset(bytes, 1, bytes.length)
  const rawLength = reader.next()
  if (rawLength < 1 || rawLength > BATCH_RAW_MAX) throw bad(`a batch of ${rawLength} bytes`, 1)
  let at = reader.position
  if (at + 9 > bytes.length) throw bad('the head ends early', at)
  const checksum = bytes.subarray(at, at + 8)
  at += 8
  const count = bytes[at++]!
  if (count > COLUMN_COUNT) throw bad(`${count} columns`, at - 1)
  const columns: ArrivedColumn[] = []
  const pieces: Uint8Array[][] = [] // of each column
  const lengths: number[] = []
  let before = -1
  for (let i = 0; i < count; i++) {
    if (at + 3 > bytes.length) throw bad('the table ends early', at)
    const column = bytes[at]!
    const method = bytes[at + 1]! as Method
    if (column <= before || column >= COLUMN_COUNT) throw bad(`column ${column} after ${before}`, at)
    if (method >> LANE_SHIFT > 0)
      throw bad(`lane ${method >> LANE_SHIFT} of a column: the peer speaks a later version`, at + 1)
    if (method > METHOD.ZSTD_FRESH) throw bad(`unknown method ${method}`, at + 1)
    before = column
    reader.reset(bytes, at + 2, bytes.length)
    const raw = reader.next()
    const packed = method === METHOD.STORED ? raw : reader.next()
    if (raw === 0 || raw > Math.min(Workspace.capacity(column), columnBytesMax(rawLength)))
      throw bad(`column ${column} of ${raw} bytes`, at + 2)
    if (packed > total || packed > packedBytesMax(raw)) throw bad(`column ${column} of ${packed} packed bytes`, at + 2)
    at = reader.position
    pieces[i] = []
    columns.push({ column, method, rawLength: raw, packed: pieces[i]! })
    lengths.push(packed)
  }
  let part = 0
  let offset = at // of the next byte in its part
  for (let i = 0; i < count; i++) {
    const length = lengths[i]!
    if (at + length > total) throw bad(`column ${columns[i]!.column} ends early`, at)
    const packed = pieces[i]!
    for (let left = length; left > 0; ) {
      if (offset === parts[part]!.length) {
        part++
        offset = 0
      }
      const take = Math.min(left, parts[part]!.length - offset)
      packed.push(parts[part]!.subarray(offset, offset + take))
      offset += take
      left -= take
    }
    at += length
  }
  if (at !== total) throw bad('bytes behind the last column', at)
  return { rawLength, checksum, columns }
}
