/** Frames of a connection itself: they have no sequence number, go before all others, and are never sent again. */

import { encodeNumbers } from '../wan/bodies.ts'
import { FRAME } from '../wan/wire.ts'
import type { FrameWriter } from './frame-writer.ts'
import type { Path } from './path.ts'

const EMPTY = new Uint8Array(0)

/**
 * Puts out what is due on a connection: ACK, the answer to a PING, a PING of this side, DRAIN.
 * @param acknowledged what an ACK says of the session: the sequence number up to which all frames have arrived
 * @returns bytes put out
 */
export function pullPathFrames(
  path: Path,
  acknowledged: number,
  nowMs: number,
  writer: FrameWriter,
  out: Uint8Array[],
): number {
  let bytes = 0
  const arrived = path.tell()
  if (arrived !== undefined) bytes += writer.putSmall(out, FRAME.ACK, encodeNumbers(acknowledged, arrived))
  if (path.pong !== null) {
    bytes += writer.putSmall(out, FRAME.PONG, path.pong)
    path.pong = null
  }
  if (path.pingDue || nowMs >= path.pingDueMs) {
    bytes += writer.putSmall(out, FRAME.PING, encodeNumbers(path.ping(nowMs)))
  }
  if (path.drainDue) {
    path.drainDue = false
    bytes += writer.putSmall(out, FRAME.DRAIN, EMPTY)
  }
  return bytes
}
