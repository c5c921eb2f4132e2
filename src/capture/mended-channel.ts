/**
 * Reads a channel of which a capture lacks bytes: a hole in a page costs that page, a hole over heads costs what stands
 * between it and the next record that can be found. What is missing is counted, so that it can be said.
 */
import type { ChannelKind } from '../qemu/channel-kind.ts'
import { MainStreamParser, type StreamEnd } from '../qemu/main-stream.ts'
import { MultifdParser } from '../qemu/multifd-channel.ts'
import type { StreamSink } from '../qemu/stream-sink.ts'
import { PAGE_SIZE } from '../qemu/wire.ts'
import { SEARCH_LENGTH } from './limits.ts'
import {
  findPacket,
  findRecord,
  type KnownRam,
  nameBefore,
  PACKET_PROOF_LENGTH,
  RECORD_PROOF_LENGTH,
} from './record-search.ts'

/** Looks on as the parser takes the channel's bytes, in order, cut anywhere, holes in bodies filled. */
export interface FeedWatcher {
  /** The parser is about to take these and to tell what it finds in them. */
  feeding(chunk: Buffer, at: number, length: number): void
  /** It has taken them; those behind the first `understood` come again, or not at all (below 0: of earlier ones too). */
  fed(chunk: Buffer, at: number, length: number, understood: number): void
  /**
   * What it had of an unfinished field is forgotten: the next bytes begin a record.
   *
   * @param lead what would have to stand before them for a stream without a hole
   */
  dropped(lead: Uint8Array): void
}

/** What is missing of a channel. */
export interface Missing {
  /** Holes, and the bytes that they lack. */
  gaps: number
  lengthBytes: number
  /** Where the first one is, and why. */
  firstAt: number
  reason: string
  /** Bytes behind holes that were there and could not be read: up to the next record. */
  unreadBytes: number
  /** Reading could not go on at all from here; undefined: it could, behind every hole. */
  lostAt: number | undefined
}

/** In place of missing bytes of bodies. */
const FILLER = Buffer.alloc(64 << 10)
const NO_BYTES: Buffer = Buffer.alloc(0)

export class MendedChannel {
  readonly missing: Missing = {
    gaps: 0,
    lengthBytes: 0,
    firstAt: 0,
    reason: '',
    unreadBytes: 0,
    lostAt: undefined,
  }
  readonly parser: MainStreamParser | MultifdParser
  private readonly main: MainStreamParser | undefined
  private readonly multifd: MultifdParser | undefined
  private readonly watcher: FeedWatcher
  /** Where the last filled hole ends in the channel; pages that begin before are not whole. */
  private holeEnd = 0
  /** Position in the channel of the next byte that comes. */
  private at = 0
  /** Bytes since the last hole in which a record is looked for, in pieces; undefined where none is. */
  private search: Buffer[] | undefined
  private searchLength = 0
  /** The parser was made to go on behind a hole. */
  private resumed = false

  constructor(kind: ChannelKind, events: StreamSink, watcher: FeedWatcher) {
    this.main = kind === 'multifd' ? undefined : new MainStreamParser(events)
    this.multifd = kind === 'multifd' ? new MultifdParser(events) : undefined
    this.parser = (this.main ?? this.multifd)!
    this.watcher = watcher
  }

  /** Whether a page that begins there has bytes that are only filler. Asked when the parser tells of it. */
  isTorn(position: number): boolean {
    return position < this.holeEnd
  }

  push(chunk: Buffer, at: number, length: number): void {
    this.at += length
    if (this.missing.lostAt !== undefined) return
    if (this.search === undefined) {
      this.feed(chunk, at, length)
      return
    }
    this.search.push(Buffer.from(chunk.subarray(at, at + length)))
    this.searchLength += length
    if (this.searchLength >= SEARCH_LENGTH) this.lookThrough(false)
  }

  /** So many bytes are missing here. */
  gap(lengthBytes: number, reason: string): void {
    const { missing } = this
    if (missing.gaps++ === 0) {
      missing.firstAt = this.at
      missing.reason = reason
    }
    missing.lengthBytes += lengthBytes
    if (this.search !== undefined) this.lookThrough(true)
    this.at += lengthBytes
    if (missing.lostAt !== undefined || this.parser.raw) return
    if (this.search !== undefined) {
      // Nothing was found between two holes.
      missing.unreadBytes += this.searchLength
      this.beginSearch()
      return
    }
    let left = lengthBytes
    for (let fill = Math.min(left, this.parser.passable); fill > 0; fill = Math.min(left, this.parser.passable)) {
      const take = Math.min(fill, FILLER.length)
      // Before the parser tells of a page that this completes.
      this.holeEnd = this.parser.position + take
      this.feed(FILLER, 0, take)
      left -= take
    }
    if (left > 0) this.beginSearch()
  }

  /** The channel ended. */
  end(): void {
    if (this.search === undefined) return
    this.lookThrough(true)
    if (this.search === undefined) return
    this.missing.unreadBytes += this.searchLength
    this.search = undefined
    // Behind the last page of a multifd channel nothing need come; of a main stream its end should.
    if (this.main !== undefined) this.missing.lostAt ??= this.at
  }

  /** How it ended, as the parser sees it. */
  finish(): StreamEnd {
    return { ramComplete: false, ...this.parser.finish() }
  }

  private feed(chunk: Buffer, at: number, length: number): void {
    const { parser, watcher } = this
    const wasRaw = parser.raw
    watcher.feeding(chunk, at, length)
    parser.push(chunk, at, length)
    // Undefined where RAM is over.
    const wrongAt = !wasRaw && parser.raw && this.resumed ? parser.finish().degradedAt : undefined
    if (wrongAt === undefined) {
      watcher.fed(chunk, at, length, length)
      return
    }
    const understood = wrongAt - (parser.position - length)
    watcher.fed(chunk, at, length, understood)
    this.searchAgain(chunk, at, length, understood)
  }

  /**
   * What was found behind a hole was no record after all, but somebody's memory that looks like some: looks further on, a
   * page's length behind where that showed, so that a file of such memory is not looked through for every record in it.
   */
  private searchAgain(chunk: Buffer, at: number, length: number, understood: number): void {
    const from = Math.max(0, understood)
    const skip = Math.min(length, from + PAGE_SIZE)
    this.missing.unreadBytes += skip - from
    this.beginSearch(Buffer.from(chunk.subarray(at + skip, at + length)))
  }

  private beginSearch(...pieces: Buffer[]): void {
    this.search = pieces
    this.searchLength = pieces.reduce((sum, { length }) => sum + length, 0)
  }

  /** @param all no more bytes follow without a hole */
  private lookThrough(all: boolean): void {
    const ram = this.main === undefined ? undefined : this.knownRam()
    if (this.main !== undefined && ram === undefined) {
      this.missing.lostAt = this.at - this.searchLength
      this.search = undefined
      return
    }
    const proof = ram ? RECORD_PROOF_LENGTH : PACKET_PROOF_LENGTH
    while (this.search !== undefined && (all || this.searchLength >= SEARCH_LENGTH)) {
      const bytes = Buffer.concat(this.search)
      const last = all ? bytes.length - 1 : bytes.length - proof
      const found = ram ? findRecord(bytes, 0, last, bytes.length, ram) : findPacket(bytes, 0, last, bytes.length)
      if (found >= 0) {
        this.missing.unreadBytes += found
        this.resume(bytes, found, ram)
        continue
      }
      if (!all) this.missing.unreadBytes += last + 1
      this.beginSearch(all ? bytes : bytes.subarray(last + 1))
      return
    }
  }

  private resume(bytes: Buffer, from: number, ram: KnownRam | undefined): void {
    this.search = undefined
    const { main } = this
    const position = this.at - bytes.length + from
    const lead = main?.leadToRecord() ?? NO_BYTES
    const name = ram ? Buffer.from(nameBefore(bytes, from, main!.continuedEnd, ram)) : NO_BYTES
    const goesOn = main?.resumeAtRecord(position - name.length) ?? this.multifd!.resumeAtPacket(position)
    if (!goesOn) {
      this.missing.lostAt = position
      return
    }
    this.resumed = true
    this.watcher.dropped(lead)
    if (name.length > 0) this.feed(name, 0, name.length)
    this.feed(bytes, from, bytes.length - from)
  }

  private knownRam(): KnownRam | undefined {
    const { main } = this
    const sectionId = main!.ramSectionId
    const { blocks, blocksComplete } = main!.memory()
    if (sectionId < 0 || !blocksComplete) return undefined
    const lengths = new Map(blocks.map(({ idstr, lengthBytes }) => [idstr, lengthBytes]))
    const [longest, offsetEnd] = [...lengths].reduce((most, block) => (block[1] > most[1] ? block : most))
    return { sectionId, blocks: lengths, longest, offsetEnd }
  }
}
