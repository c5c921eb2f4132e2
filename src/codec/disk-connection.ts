/**
 * One NBD connection as one of the two proxies has it. The direction that comes in here is encoded: this is the parser of
 * its flow, and tells that where messages and the blocks of their data lie. The other direction is listened to, because
 * what a reply is made of only its request tells.
 */
import { crc32 } from 'node:zlib'
import { latin1Bytes } from '../bytes/copy.ts'
import { ClientParser } from '../nbd/client-stream.ts'
import { Dialogue } from '../nbd/dialogue.ts'
import { ServerParser } from '../nbd/server-stream.ts'
import type { Direction, NbdExport, NbdRequest, NbdSink } from '../nbd/sink.ts'
import { COMMAND } from '../nbd/wire.ts'
import { firstBlock, hasPlace, headLengthOf, wholeBlocks } from './disk-messages.ts'
import type { ChannelParser, FlowEncoder } from './flow-encoder.ts'
import { FORM, PAGE_SIZE } from './wire.ts'

/** What a connection tells beside records. */
export interface DiskFacts {
  /** Transmission begins. */
  exported?(exported: NbdExport): void
  /** From here on nothing of a direction is looked at: all of it is relayed as it is. */
  raw?(direction: Direction, position: number, reason: string): void
  /** The client waits for a FLUSH and for nothing else that brings data; or does so no more. */
  flushes?(waits: boolean): void
  /** A FLUSH was answered, and well. */
  flushed?(): void
}

export class DiskConnection implements ChannelParser, NbdSink {
  private readonly flow: FlowEncoder
  private readonly encoded: Direction
  private readonly facts: DiskFacts
  private readonly parser: ClientParser | ServerParser
  private readonly other: ClientParser | ServerParser
  private isExported = false
  /** FLUSHes that are not answered, and whether that has been told. */
  private flushesAsked = 0
  private toldFlushes = false
  /** Bytes of a reply's head, where it brings data. */
  private headLength = 0
  /** Where the next whole block of the data under way lies, how many are to come, and the number of it. */
  private blockAt = 0
  private blocksLeft = 0
  private blockNumber = 0

  /**
   * @param flow of the direction that is encoded; this becomes its parser
   * @param encoded which that is: the client's where the client is at this site
   */
  constructor(flow: FlowEncoder, encoded: Direction, facts: DiskFacts = {}) {
    const dialogue = new Dialogue()
    const client = new ClientParser(this, dialogue)
    const server = new ServerParser(this, dialogue)
    this.flow = flow
    this.encoded = encoded
    this.facts = facts
    this.parser = encoded === 'client' ? client : server
    this.other = encoded === 'client' ? server : client
    flow.parser = this
  }

  /** Takes bytes of the direction that is encoded: its flow calls it. */
  push(chunk: Uint8Array, at: number, length: number): void {
    this.parser.push(chunk, at, length)
    this.tellBlocks(this.parser.position)
  }

  /** Takes bytes of the other direction, before they are given to whom they are for. */
  listen(chunk: Uint8Array, at: number, length: number): void {
    this.other.push(chunk, at, length)
  }

  get position(): number {
    return this.parser.position
  }

  /** Bytes of a head or block that is not complete. In the handshake everything goes at once. */
  get pending(): number {
    const { parser } = this
    if (!this.isExported) return 0
    return this.blocksLeft > 0 ? Math.max(0, parser.position - this.blockAt) : parser.pending
  }

  // --- what the parsers tell: NbdSink

  begins(exported: NbdExport): void {
    const { structured, extended, name } = exported
    this.isExported = true
    const asks = extended ? FORM.EXTENDED_REQUEST : FORM.REQUEST
    const answers = extended ? FORM.EXTENDED_DATA_CHUNK : structured ? FORM.DATA_CHUNK : FORM.SIMPLE_REPLY
    this.headLength = headLengthOf(answers)
    // Connections to one export have the places of its blocks in common, and hardly those of another disk or of RAM.
    this.flow.exports(this.encoded === 'client' ? asks : answers, crc32(latin1Bytes(name)) >>> 1)
    this.facts.exported?.(exported)
  }

  request(start: number, headEnd: number, { type, offset, payloadBytes }: NbdRequest): void {
    if (type === COMMAND.FLUSH) this.flushesAsked++
    this.tellFlushes(this.flushesAsked > 0 && payloadBytes === 0)
    if (this.encoded === 'client') this.message(start, headEnd, offset, type === COMMAND.WRITE ? payloadBytes : 0)
  }

  readData(start: number, end: number, _request: NbdRequest, offset: number): void {
    if (this.encoded === 'server') this.message(start - this.headLength, start, offset, end - start)
  }

  /** Replies without data are relayed as they are, and data is told of by itself, right behind the head that brings it. */
  reply(_start: number, _headEnd: number, request: NbdRequest, error: number): void {
    this.answered(request, error, true)
  }

  chunk(
    _start: number,
    _headEnd: number,
    request: NbdRequest,
    _type: number,
    _payloadBytes: number,
    error: number,
    done: boolean,
  ): void {
    this.answered(request, error, done)
  }

  readHole(): void {}
  writeData(): void {}

  raw(direction: Direction, position: number, reason: string): void {
    this.tellFlushes(false) // nobody would tell of the answer
    this.facts.raw?.(direction, position, reason)
  }

  private answered({ type }: NbdRequest, error: number, done: boolean): void {
    if (type !== COMMAND.FLUSH || !done) return
    this.flushesAsked--
    if (this.flushesAsked === 0) this.tellFlushes(false)
    if (error === 0) this.facts.flushed?.()
  }

  private tellFlushes(waits: boolean): void {
    if (waits === this.toldFlushes) return
    this.toldFlushes = waits
    this.facts.flushes?.(waits)
  }

  /** A message's head, and how many bytes of the export from `offset` on follow it. */
  private message(start: number, headEnd: number, offset: number, dataBytes: number): void {
    this.tellBlocks(start)
    if (!hasPlace(offset, dataBytes) || !this.flow.message(start, headEnd, offset, dataBytes)) return
    this.blockNumber = firstBlock(offset)
    this.blockAt = headEnd + this.blockNumber * PAGE_SIZE - offset
    this.blocksLeft = wholeBlocks(offset, dataBytes)
  }

  /** Tells of the blocks that are complete at this position. */
  private tellBlocks(position: number): void {
    while (this.blocksLeft > 0 && this.blockAt + PAGE_SIZE <= position) {
      this.flow.diskBlock(this.blockAt, this.blockAt + PAGE_SIZE, this.blockNumber)
      this.blockAt += PAGE_SIZE
      this.blockNumber++
      this.blocksLeft--
    }
  }
}
