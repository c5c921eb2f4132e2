/**
 * Frames (protocol.md §3): what crosses a connection after the hellos.
 */

/** One frame as it arrived. FrameDecoder hands out the same object each time: copy what is to be kept, not the object. */
export interface Frame {
  type: number
  flags: number
  flow: number
  /** 0 in unsequenced frames. */
  sequence: number
  /** A view of the pushed chunk where the payload lies in one piece, else of memory of its own. */
  payload: Uint8Array
}

/**
 * Cuts a connection's bytes into frames; resumes at any byte. Errors end the connection, not the session: what was lost
 * with it is sent again on the next.
 */
export class FrameDecoder {
  /** @param onFrame called for each whole frame, in order, from inside push */
  constructor(_onFrame: (frame: Frame) => void) {}

  /**
   * Takes the next bytes of the connection. The chunk must not be written again: payloads are views of it.
   * @throws ProxyError LIMIT_EXCEEDED for a length above its type's bound, PROTOCOL_SYNTAX for a frame that is damaged
   */
  push(_chunk: Uint8Array): void {}
}
