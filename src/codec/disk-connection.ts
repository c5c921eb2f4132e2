/**
 * One NBD connection as one of the two proxies has it. The direction that comes in here is encoded: this is the parser of
 * its flow, and tells that where messages and the blocks of their data lie. The other direction is listened to, because
 * what a reply is made of only its request tells.
 *
 * A server's direction has a flow for as long as something of it is encoded (`attach`): what it says beside that goes as
 * it is (`passes`), and is followed all the same.
 */
import { crc32 } from 'node:zlib'
import { latin1Bytes } from '../bytes/copy.ts'
import { assert } from '../errors.ts'
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
  /** The client asks for a change of so many bytes of its export: to write, to zero or to trim them. */
  wrote?(offset: number, lengthBytes: number): void
  /** The client waits for a FLUSH and for nothing else that brings data; or does so no more. */
  flushes?(waits: boolean): void
  /** A FLUSH was answered, and well. */
  flushed?(): void
}

/** Bytes of a READ from which on its answer is worth encoding: with less there is no whole block in it. */
const READ_BYTES_MIN = PAGE_SIZE

export class DiskConnection implements ChannelParser, NbdSink {
  private flow: FlowEncoder | undefined
  private readonly encoded: Direction
  private readonly facts: DiskFacts
  private readonly client: ClientParser
  private readonly parser: ClientParser | ServerParser
  private readonly other: ClientParser | ServerParser
  private readonly dialogue = new Dialogue()
  /** FLUSHes that are not answered, and whether that has been told. */
  private flushesAsked = 0
  private toldFlushes = false
  /** Form of its messages and number of its export, once that is known. */
  private exports: { readonly form: number; readonly block: number } | undefined
  /** READs of READ_BYTES_MIN and more that are not answered. */
  private reads = 0
  /** Where the data of the last answer to one ends. */
  private dataEnd = 0
  /** Bytes of a reply's head, where it brings data. */
  private headLength = 0
  /** Where the next whole block of the data under way lies, how many are to come, and the number of it. */
  private blockAt = 0
  private blocksLeft = 0
  private blockNumber = 0

  /**
   * @param flow of the direction that is encoded; this becomes its parser. undefined: it comes later, or never
   * @param encoded which that is: the client's where the client is at this site
   */
  constructor(flow: FlowEncoder | undefined, encoded: Direction, facts: DiskFacts = {}) {
    const { dialogue } = this
    const client = new ClientParser(this, dialogue)
    const server = new ServerParser(this, dialogue)
    this.client = client
    this.encoded = encoded
    this.facts = facts
    this.parser = encoded === 'client' ? client : server
    this.other = encoded === 'client' ? server : client
    if (flow) this.attach(flow)
  }

  /** The client has not said that it disconnects: a server that closes leaves it in the middle. */
  get isOpen(): boolean {
    return !this.client.raw && !this.client.isDone
  }

  /**
   * From here on the direction is encoded by this flow, of which nothing may wait; this becomes its parser. Of data that is
   * under way the rest goes as it is.
   */
  attach(flow: FlowEncoder): void {
    if (this.flow === flow) return
    this.flow = flow
    flow.parser = this
    flow.startAt(this.parser.position)
    if (this.exports) flow.exports(this.exports.form, this.exports.block)
  }

  /**
   * Takes bytes of the direction that are not encoded. Nothing of its flow may wait, which it has no more; and the far side
   * must not be owed blocks, which it is only while `isRead`.
   */
  passes(chunk: Uint8Array, at: number, length: number): void {
    assert(this.blocksLeft === 0, 'blocks that were promised go as they are')
    this.flow = undefined
    this.parser.push(chunk, at, length)
  }

  /** Whether what the server says next may be worth encoding: it is saying what stands on the disk, or owes it. */
  get isRead(): boolean {
    return !this.parser.raw && (this.reads > 0 || this.parser.position < this.dataEnd)
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

  /** Requests that are not answered, as far as both directions are understood. */
  get unanswered(): number {
    return this.dialogue.requests.count
  }

  /** Bytes of a head or block that is not complete. In the handshake everything goes at once. */
  get pending(): number {
    const { parser } = this
    if (!this.exports) return 0
    return this.blocksLeft > 0 ? Math.max(0, parser.position - this.blockAt) : parser.pending
  }

  // --- what the parsers tell: NbdSink

  begins(exported: NbdExport): void {
    const { structured, extended, name } = exported
    const asks = extended ? FORM.EXTENDED_REQUEST : FORM.REQUEST
    const answers = extended ? FORM.EXTENDED_DATA_CHUNK : structured ? FORM.DATA_CHUNK : FORM.SIMPLE_REPLY
    this.headLength = headLengthOf(answers)
    // Connections to one export have the places of its blocks in common, and hardly those of another disk or of RAM.
    this.exports = { form: this.encoded === 'client' ? asks : answers, block: crc32(latin1Bytes(name)) >>> 1 }
    this.flow?.exports(this.exports.form, this.exports.block)
    this.facts.exported?.(exported)
  }

  request(start: number, headEnd: number, request: NbdRequest): void {
    const { type, offset, lengthBytes, payloadBytes } = request
    if (isWorthIt(request)) this.reads++
    if (type === COMMAND.WRITE || type === COMMAND.WRITE_ZEROES || type === COMMAND.TRIM)
      this.facts.wrote?.(offset, lengthBytes)
    if (type === COMMAND.FLUSH) this.flushesAsked++
    this.tellFlushes(this.flushesAsked > 0 && payloadBytes === 0)
    if (this.encoded === 'client') this.message(start, headEnd, offset, type === COMMAND.WRITE ? payloadBytes : 0)
  }

  readData(start: number, end: number, request: NbdRequest, offset: number): void {
    if (isWorthIt(request)) this.dataEnd = end
    if (this.encoded === 'server') this.message(start - this.headLength, start, offset, end - start)
  }

  /** Replies without data are relayed as they are, and data is told of by itself, right behind the head that brings it. */
  reply(_start: number, _headEnd: number, request: NbdRequest, error: number): void {
    this.answered(request, error, true)
    if (isWorthIt(request)) this.reads--
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
    if (done && isWorthIt(request)) this.reads--
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
    if (!hasPlace(offset, dataBytes) || !this.flow?.message(start, headEnd, offset, dataBytes)) return
    this.blockNumber = firstBlock(offset)
    this.blockAt = headEnd + this.blockNumber * PAGE_SIZE - offset
    this.blocksLeft = wholeBlocks(offset, dataBytes)
  }

  /** Tells of the blocks that are complete at this position. */
  private tellBlocks(position: number): void {
    while (this.blocksLeft > 0 && this.blockAt + PAGE_SIZE <= position) {
      this.flow!.diskBlock(this.blockAt, this.blockAt + PAGE_SIZE, this.blockNumber)
      this.blockAt += PAGE_SIZE
      this.blockNumber++
      this.blocksLeft--
    }
  }
}

/** A READ whose answer may have a whole block in it. */
function isWorthIt({ type, lengthBytes }: NbdRequest): boolean {
  return type === COMMAND.READ && lengthBytes >= READ_BYTES_MIN
}
