/** What the parsers of channels with RAM records tell. */

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
   * ZERO whose fill is not 0. Comes in order with the record events, once the record's head is known.
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

/** What the parser tells of a main stream; see {@link RamSink} for the record events. */
export interface RecordSink extends RamSink {
  /** @param position the first byte behind the field that told it */
  phase(phase: StreamPhase, position: number): void
  /**
   * A section that the parser cannot read, or cannot read on, begins at `position` or lies there. Its bytes are raw, and
   * what follows is looked for: record events may come again, or {@link degraded}. Told once a section.
   */
  strayed?(position: number, reason: string): void
  /**
   * The parser does not understand the field that starts at `position`, and passes everything from there on raw for
   * good. Called once at most. Record events before it stand; none follows.
   */
  degraded(position: number, reason: string): void
}

/** What the parser tells of a preempt channel; see {@link RamSink} for the record events. */
export interface PreemptSink extends RamSink {
  /** As RecordSink's: everything from `position` on is raw for good. */
  degraded(position: number, reason: string): void
}
