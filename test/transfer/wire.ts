/** Memory of a connection of the WAN, as the link reads into it and lends it. */
import { CHUNKS } from '../../src/bytes/chunks.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/limits.ts'
import { FRAME_HEAD_BYTES } from '../../src/wan/wire.ts'

/** What a connection reads batches into: frames that follow each other in chunks, whatever their batch. */
export class Wire {
  private chunk = CHUNKS.take()
  private at = 0
  /** Chunks that were taken. */
  taken = 1

  /** The parts of a batch, lent. */
  parts(bytes: Uint8Array): Uint8Array[] {
    const parts: Uint8Array[] = []
    for (let from = 0; from < bytes.length; from += FRAME_PAYLOAD_BYTES_MAX) {
      const payload = bytes.subarray(from, from + FRAME_PAYLOAD_BYTES_MAX)
      if (this.at + FRAME_HEAD_BYTES + payload.length > this.chunk.length) {
        CHUNKS.retire(this.chunk)
        this.chunk = CHUNKS.take()
        this.at = 0
        this.taken++
      }
      this.at += FRAME_HEAD_BYTES
      const part = this.chunk.subarray(this.at, this.at + payload.length)
      part.set(payload)
      this.at += payload.length
      CHUNKS.lend(part)
      parts.push(part)
    }
    return parts
  }

  close(): void {
    CHUNKS.retire(this.chunk)
  }
}
