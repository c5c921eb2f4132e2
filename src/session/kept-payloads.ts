/** What is kept of frames that arrived: views of the chunks that sockets read, of 64 KiB. */
import { copyOf } from '../bytes/copy.ts'
import { FRAME_HEAD_BYTES } from '../wan/wire.ts'

/**
 * The payload, or a copy where the view would pin more than a few bytes beside it: what is kept is counted by its own bytes.
 * Half a frame of DATA in a chunk would pin eight times the bytes that credit counts.
 */
export function keptPayload(payload: Uint8Array): Uint8Array {
  return payload.length + FRAME_HEAD_BYTES >= payload.buffer.byteLength ? payload : copyOf(payload)
}

/**
 * Parts of a batch that waits, likewise, without a copy where they pin twice their own bytes at most. Full ones that follow
 * each other lie four to a chunk; but a peer may send one in each, and whatever it likes beside it.
 */
export function keptParts(parts: readonly Uint8Array[]): readonly Uint8Array[] {
  let bytes = 0
  let pinned = 0
  let chunk: ArrayBufferLike | undefined
  for (const { length, buffer } of parts) {
    bytes += FRAME_HEAD_BYTES + length
    if (buffer !== chunk) pinned += buffer.byteLength
    chunk = buffer
  }
  return pinned > 2 * bytes ? parts.map(copyOf) : parts
}
