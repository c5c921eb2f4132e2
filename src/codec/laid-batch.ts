/**
 * A batch as frames carry it: each frame's part of it behind room for that frame's head, all in one stretch of memory. Frames
 * that follow each other then lie one behind the other, and a socket takes many of them as one piece: where it is given
 * several, Node joins them in fresh memory before it encrypts.
 */
import { copyRange } from '../bytes/copy.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../limits.ts'
import { FRAME_HEAD_BYTES } from '../wan/wire.ts'

/** Memory that a batch of so many bytes takes when it is laid. */
export function laidBytes(length: number): number {
  return length + Math.ceil(length / FRAME_PAYLOAD_BYTES_MAX) * FRAME_HEAD_BYTES
}

/**
 * Copies a batch to where its frames will go out.
 * @param parts all of it, in order
 * @param to `laidBytes` of it
 * @returns what each frame carries: views of `to`, with room for a head before each
 */
export function layBatch(parts: readonly Uint8Array[], to: Uint8Array): Uint8Array[] {
  const laid: Uint8Array[] = []
  let begin = FRAME_HEAD_BYTES // of this frame's part
  let at = begin
  for (const part of parts) {
    for (let from = 0; from < part.length; ) {
      if (at - begin === FRAME_PAYLOAD_BYTES_MAX) {
        laid.push(to.subarray(begin, at))
        begin = at + FRAME_HEAD_BYTES
        at = begin
      }
      const count = Math.min(part.length - from, begin + FRAME_PAYLOAD_BYTES_MAX - at)
      copyRange(part, from, from + count, to, at)
      from += count
      at += count
    }
  }
  laid.push(to.subarray(begin, at))
  return laid
}
