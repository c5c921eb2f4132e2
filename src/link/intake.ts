/**
 * Bytes of a connection of the WAN land one behind the other in memory of ours, where most frames then lie whole. By 'data'
 * events each TLS record comes in memory of its own, and a frame that lies in two of them is joined in a third: where no page
 * is known that cost a destination a sixth of its CPU time (test/daemon/pair-bench.ts).
 */
import type net from 'node:net'
import { CHUNK_BYTES, type Chunks } from '../bytes/chunks.ts'
import { copyRange } from '../bytes/copy.ts'

/** A record of TLS is never cut: KeyUse counts pieces. */
const ROOM_BYTES_MIN = 16384
/** Takes what is whole of the bytes from `from` up to `end`, and keeps views of it. @returns where the rest begins */
export type TakeWhole = (chunk: Uint8Array, from: number, end: number) => number

/** Where bytes land. What has been taken is not written again before it was given back (src/bytes/chunks.ts). */
export class Intake {
  readonly #take: TakeWhole
  readonly #chunks: Chunks
  #chunk: Uint8Array
  /** First byte that was not taken, and the first that is not there. */
  #from = 0
  #end = 0

  /**
   * @param take leaves less than a frame, so that there is always room. It says of each view that it keeps whether it will
   *   come back: what nobody speaks for is written again
   */
  constructor(take: TakeWhole, chunks: Chunks) {
    this.#take = take
    this.#chunks = chunks
    this.#chunk = chunks.take()
  }

  /** Where the next bytes may land. */
  room(): Uint8Array {
    if (CHUNK_BYTES - this.#end < ROOM_BYTES_MIN) {
      const chunk = this.#chunks.take()
      copyRange(this.#chunk, this.#from, this.#end, chunk, 0)
      this.#chunks.retire(this.#chunk)
      this.#chunk = chunk
      this.#end -= this.#from
      this.#from = 0
    }
    return this.#chunk.subarray(this.#end)
  }

  /** Bytes that lie elsewhere. */
  push(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const room = this.room()
      const count = Math.min(room.length, bytes.length - at)
      copyRange(bytes, at, at + count, room, 0)
      at += count
      this.landed(count)
    }
  }

  /** So many bytes have landed there. */
  landed(count: number): void {
    this.#end += count
    this.#from = this.#take(this.#chunk, this.#from, this.#end)
  }
}

/** What net.Socket makes of its option `onread`, which neither an accepted socket nor TLS over one can be given. */
interface WithHandle {
  _handle: { useUserBuffer?: (buffer: Uint8Array) => void } | null
  [name: symbol]: unknown
}

/**
 * Has a socket read into an intake from now on, in place of 'data' events; it is paused and holds nothing that was read.
 * Private to Node (20 to 26 have it), as in src/relay/qemu-socket.ts.
 * @returns false where that is not as expected: the socket is as it was
 */
export function readInto(socket: net.Socket, intake: Intake): boolean {
  const inner = socket as unknown as WithHandle
  const symbols = Object.getOwnPropertySymbols(socket)
  const [buffer, callback, generator] = ['kBuffer', 'kBufferCb', 'kBufferGen'].map(name =>
    symbols.find(({ description }) => description === name),
  )
  const handle = inner._handle
  if (!buffer || !callback || !generator || typeof handle?.useUserBuffer !== 'function') return false
  const room = intake.room()
  inner[callback] = (count: number): void => intake.landed(count)
  inner[generator] = (): Uint8Array => intake.room()
  inner[buffer] = room
  handle.useUserBuffer(room)
  return true
}
