/** What is kept of frames that arrived: views of the chunks that sockets read, of 64 KiB. */
import { copyOf } from '../bytes/copy.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../limits.ts'
import { FRAME_HEAD_BYTES } from '../wan/wire.ts'

/**
 * The payload, or a copy where the view would pin more than a few bytes beside it: what is kept is counted by its own bytes.
 * Half a frame of DATA in a chunk would pin eight times the bytes that credit counts.
 */
export function keptPayload(payload: Uint8Array): Uint8Array {
  return payload.length + FRAME_HEAD_BYTES >= payload.buffer.byteLength ? payload : copyOf(payload)
}

/**
 * Parts of a batch that waits, likewise. All but the last are full and go on without a copy: four of them lie in one chunk,
 * which is the most that one pins. The last one may stand alone in such a chunk.
 */
export function keptParts(parts: readonly Uint8Array[]): readonly Uint8Array[] {
  const last = parts.at(-1)
  if (last === undefined || last.length === FRAME_PAYLOAD_BYTES_MAX || last.length * 2 >= last.buffer.byteLength) {
    return parts
  }
  return parts.with(-1, copyOf(last))
}
