/** What the parsers of channels tell. */

/**
 * What the records of a channel tell. Positions count bytes from the start of the channel's stream, below 2^53. Bytes
 * that no record event covers are everything else; the caller finds them as the gaps between record events, which come
 * in ascending order and never overlap.
 */
export interface RamSink {
  /**
   * A RAMBlock became known to this channel: from the block list, or by the first record that names it where there is
   * no list (recovery, preempt). It covers no bytes. Comes before any event with this `block`.
   *
   * @param block index from 0 in order of appearance, the same on every channel that shares the BlockTable
   * @param idstr latin1 text of 1 to 255 bytes
   * @param lengthBytes used_length, 0 where it is unknown; no record event of a RAMBlock of known length lies beyond it
   */
  block(block: number, idstr: string, lengthBytes: number): void
  /**
   * A whole ZERO record with fill 0: [start, end), 9 bytes, or 10 + idstr length where it is named (no CONTINUE).
   *
   * @param offset byte offset of the page in its RAMBlock, a multiple of 4096 below 2^53
   */
  zeroRecord(start: number, end: number, block: number, offset: number, named: boolean): void
  /**
   * A whole PAGE record: [start, end), its body is [end - 4096, end). Comes once all its bytes have been pushed.
   */
  pageRecord(start: number, end: number, block: number, offset: number, named: boolean): void
  /**
   * A record that stays raw gives the destination's page a content that we do not hold: XBZRLE, COMPRESS_PAGE, or a
   * ZERO whose fill is not 0; or a compressed multifd packet does. Comes in order with the record events, once the
   * record's head is known.
   */
  opaquePage(block: number, offset: number): void
}

/** A fact about the stream, told once. */
export type StreamPhase =
  | 'header' // magic and version
  | 'return-path' // OPEN_RETURN_PATH: the destination will answer
  | 'postcopy-advise' // POSTCOPY_ADVISE of 16 bytes: postcopy of RAM may follow
  | 'colo' // ENABLE_COLO
  | 'ram-start' // START of ram: the block list follows
  | 'switchover' // SWITCHOVER_START: the guest is stopped
  | 'ram-end' // END of ram is complete: raw from here in precopy
  | 'postcopy' // PACKAGED: pages may be waited for from here on
  | 'snapshot-devices' // device state after RAM PARTs without END (background-snapshot): raw from here
  | 'recovery' // a connection without header, after a postcopy pause
  | 'eof' // EOF element; seen in postcopy only, because in precopy it hides behind device state

/** What the parser of a main or a preempt channel tells. */
export interface RecordSink extends RamSink {
  /** Of main. @param position the first byte behind the field that told it */
  phase(phase: StreamPhase, position: number): void
  /**
   * A section that the parser cannot read, or cannot read on, begins at `position` or lies there. Its bytes are raw, and
   * what follows is looked for: record events may come again, or {@link degraded}. Told once a section.
   */
  strayed?(position: number, reason: string): void
  /**
   * The parser does not understand the field that starts at `position`, and passes everything from there on raw for
   * good. Called once at most. Events before it stand; none follows.
   */
  degraded(position: number, reason: string): void
}

/** A compression method of multifd packets, whose data stays raw. */
export type MultifdMethod = 'zlib' | 'zstd' | 'qpl' | 'uadk' | 'qatzip'

/**
 * What the parser of any channel tells. Multifd has packets in place of RAM records: what neither `packet` nor `pageBody`
 * covers is raw (hello, compressed data, device state), and `block` has lengthBytes 0 where main's block list has not come
 * yet, although it has one.
 */
export interface StreamSink extends RecordSink {
  /** The hello is complete: [0, end). `channel` is its id, 0 to 254; channels do not connect in the order of ids. */
  hello?(channel: number, end: number): void
  /**
   * The header of a RAM packet is complete: [start, headerEnd), 1344 bytes. Then come zeroPage, and pageBody or
   * opaquePage, for its pages.
   *
   * @param flags MULTIFD_FLAG bits; SYNC may come with pages (QEMU 7.2)
   * @param block index of the RAMBlock of all its pages, -1 where it has none: then name and offsets are stale
   */
  packet(start: number, headerEnd: number, normalPages: number, zeroPages: number, flags: number, block: number): void
  /** The packet makes this page zero: it has no bytes beyond its offset in the header. */
  zeroPage(block: number, offset: number): void
  /** A whole page of an uncompressed packet, [start, end), 4096 bytes, once all of them have been pushed. */
  pageBody(start: number, end: number, block: number, offset: number): void
  /** The first compressed packet, at `position`: nothing can be saved on it, so the operator should hear of it. */
  compressed(method: MultifdMethod, position: number): void
}
