/** What the parsers of one NBD connection tell. */

/** Which way bytes go: from the client (requests) or from the server (replies). Each has positions of its own. */
export type Direction = 'client' | 'server'

/** An export, and how one connection speaks of it: fixed when transmission begins. */
export interface NbdExport {
  /** Latin1 text of the bytes that the client asked by; '' is the server's default. */
  readonly name: string
  readonly sizeBytes: number
  /** What the server can do: NBD_FLAG_SEND_FLUSH and so on. */
  readonly transmissionFlags: number
  /** Chunks may answer, and have to answer READ. */
  readonly structured: boolean
  /** Extended requests and chunks, and no others. */
  readonly extended: boolean
  /** As the server said in answer to the option that led here; 0 where it did not. */
  readonly minimumBlockBytes: number
  readonly preferredBlockBytes: number
  readonly maximumPayloadBytes: number
  /** Metadata contexts that BLOCK_STATUS is answered for. */
  readonly contexts: readonly { readonly id: number; readonly name: string }[]
}

/**
 * A request, as it came. The object is the parsers' own and is another request after the call it was given to; a reply
 * brings what it answers.
 */
export interface NbdRequest {
  /** COMMAND, or an unknown number of an extended request. */
  readonly type: number
  readonly flags: number
  /** The two halves of the client's cookie. */
  readonly cookieHigh: number
  readonly cookieLow: number
  readonly offset: number
  /** Bytes of the export that it is about; 0 where only its payload tells (BLOCK_STATUS with a payload). */
  readonly lengthBytes: number
  /** Bytes behind its head. */
  readonly payloadBytes: number
}

/**
 * Positions count bytes from the start of their direction, below 2^53. [start, headEnd) of a message has come when it is
 * told; its payload, told at the same time, may still be to come. Within a direction events come in ascending order and do
 * not overlap.
 */
export interface NbdSink {
  /** An option and its data are complete. */
  option?(start: number, end: number, option: number): void
  /**
   * A reply to an option; `final` where it ends that. A server may give it before the option is complete, and so before it is
   * told.
   */
  optionReply?(start: number, end: number, option: number, type: number, final: boolean): void
  /** Transmission begins, in both directions. */
  begins(exported: NbdExport): void
  /** Every request, before anything else that is told of it. */
  request(start: number, headEnd: number, request: NbdRequest): void
  /** [start, end) of the client's direction is what is to stand at request.offset of the export. */
  writeData(start: number, end: number, request: NbdRequest): void
  /** A simple reply: the whole answer. */
  reply(start: number, headEnd: number, request: NbdRequest, error: number): void
  /**
   * A chunk of an answer, known or not, with `payloadBytes` behind what of it is head: of OFFSET_DATA and OFFSET_HOLE the
   * head has the fields before data, of others their first fields (CHUNK_PREFIX).
   *
   * @param error of a chunk that tells one, else 0
   * @param done this answers the request: its cookie may come again
   */
  chunk(
    start: number,
    headEnd: number,
    request: NbdRequest,
    type: number,
    payloadBytes: number,
    error: number,
    done: boolean,
  ): void
  /** [start, end) of the server's direction is what stands at `offset`, all of it within the request. */
  readData(start: number, end: number, request: NbdRequest, offset: number): void
  /** `lengthBytes` at `offset` read as zeroes. */
  readHole(request: NbdRequest, offset: number, lengthBytes: number): void
  /**
   * From `position` on nothing of this direction is looked at. Called once at most for each. Events before it stand, none
   * of this direction follows; the other one goes on for as long as it can be understood alone.
   */
  raw(direction: Direction, position: number, reason: string): void
}
