/**
 * A kdump file in makedumpfile's flattened form, as QEMU writes it to whatever cannot seek: pieces of the file, each with
 * its place, in the order in which they were written. Source: makedumpfile(8), -F; QEMU dump/dump.c, write_start_flat_header.
 */
import { ProxyError } from '../errors.ts'
import { FLAT_PIECES_MAX } from './limits.ts'
import { type PlacedBytes, Window } from './placed-bytes.ts'

export const FLATTENED_MAGIC = 'makedumpfile\0'
/** Before the first piece. */
const HEADER_LENGTH = 4096
/** i64 place in the file, i64 length, big-endian; both -1 behind the last piece. */
const PIECE_HEADER_LENGTH = 16
const PIECES_AT_FIRST = 4096

/** The file that the pieces make. What no piece has is zeros, as where a file was not written; or is missing, where pieces are. */
export class FlattenedFile implements PlacedBytes {
  private readonly file: PlacedBytes
  private count = 0
  /** The end was there. */
  private whole = false
  /** By place in the file that they make, ascending; of several at one place the last is the newest. */
  private places = new Float64Array(PIECES_AT_FIRST)
  private lengths = new Float64Array(PIECES_AT_FIRST)
  /** Where the bytes stand. */
  private positions = new Float64Array(PIECES_AT_FIRST)

  private constructor(file: PlacedBytes) {
    this.file = file
  }

  /** Goes over the pieces once. @throws CAPTURE_FORMAT, LIMIT_EXCEEDED */
  static async open(file: PlacedBytes, name: string): Promise<FlattenedFile> {
    const flattened = new FlattenedFile(file)
    const window = new Window(file)
    for (let at = HEADER_LENGTH; ; ) {
      let header = window.find(at, PIECE_HEADER_LENGTH)
      if (header < 0) header = await window.move(at, PIECE_HEADER_LENGTH)
      if (header < 0) break // cut: what is missing is found missing where it is wanted
      const place = Number(window.bytes.readBigInt64BE(header))
      const length = Number(window.bytes.readBigInt64BE(header + 8))
      if (place === -1) {
        flattened.whole = true
        break
      }
      if (place < 0 || length <= 0 || !Number.isSafeInteger(place + at + PIECE_HEADER_LENGTH + length)) {
        const action = 'copy it again; or write it anew: (qemu) dump-guest-memory -z FILE'
        const where = { stream: name, offset: at }
        throw new ProxyError('CAPTURE_FORMAT', 'a piece of a flattened dump that is none', where, action)
      }
      at += PIECE_HEADER_LENGTH + length
      if (flattened.count === FLAT_PIECES_MAX) {
        const where = { stream: name, offset: at }
        const what = `a flattened dump of more than ${FLAT_PIECES_MAX} pieces`
        throw new ProxyError('LIMIT_EXCEEDED', what, where, 'put it together first: makedumpfile -R OUT < FILE')
      }
      flattened.add(place, length, at - length)
    }
    flattened.sort()
    return flattened
  }

  async read(into: Buffer, at: number): Promise<number> {
    let have = 0
    while (have < into.length) {
      const place = at + have
      const piece = this.pieceAt(place)
      const next = piece + 1 < this.count ? this.places[piece + 1]! : undefined
      const end = piece < 0 ? 0 : Math.min(this.places[piece]! + this.lengths[piece]!, next ?? Infinity)
      if (end > place) {
        const part = into.subarray(have, have + Math.min(end - place, into.length - have))
        const read = await this.file.read(part, this.positions[piece]! + place - this.places[piece]!)
        have += read
        if (read < part.length) break // it became shorter
      } else {
        if (next === undefined || !this.whole) break
        const gap = Math.min(next - place, into.length - have)
        into.fill(0, have, have + gap)
        have += gap
      }
    }
    return have
  }

  private add(place: number, length: number, position: number): void {
    if (this.count === this.places.length) {
      this.places = grown(this.places)
      this.lengths = grown(this.lengths)
      this.positions = grown(this.positions)
    }
    this.places[this.count] = place
    this.lengths[this.count] = length
    this.positions[this.count++] = position
  }

  private sort(): void {
    const { places, count } = this
    const order = Uint32Array.from({ length: count }, (_, piece) => piece)
    order.sort((a, b) => places[a]! - places[b]! || a - b)
    const sorted = (values: Float64Array): Float64Array<ArrayBuffer> =>
      Float64Array.from(order, piece => values[piece]!)
    this.lengths = sorted(this.lengths)
    this.positions = sorted(this.positions)
    this.places = sorted(this.places)
  }

  /** The last piece that begins there or before; -1 where none does. */
  private pieceAt(place: number): number {
    let low = 0
    let high = this.count
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.places[middle]! <= place) low = middle + 1
      else high = middle
    }
    return low - 1
  }
}

function grown(values: Float64Array): Float64Array<ArrayBuffer> {
  const more = new Float64Array(values.length * 2)
  more.set(values)
  return more
}
