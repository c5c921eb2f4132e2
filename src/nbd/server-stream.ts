import { readU16, readU32, readU64 } from '../bytes/big-endian.ts'
import { latin1 } from '../bytes/copy.ts'
import { NBD_NAME_BYTES_MAX, NBD_OPTION_BYTES_MAX } from '../limits.ts'
import { type Dialogue, NO_OPTION } from './dialogue.ts'
import { DirectionParser } from './direction-parser.ts'
import type { NbdSink } from './sink.ts'
import {
  CHUNK,
  CHUNK_DONE,
  CHUNK_PREFIX,
  CHUNK_TYPE,
  COMMAND,
  ERROR_OFFSET_LENGTH,
  EXPORT_LENGTH,
  EXPORT_ZEROES,
  EXTENDED_CHUNK,
  EXTENT_EXT_LENGTH,
  EXTENT_LENGTH,
  GREETING_LENGTH,
  GREETING_MAGIC,
  HANDSHAKE_FLAG,
  INFO,
  INFO_BLOCK_SIZE_LENGTH,
  INFO_EXPORT_LENGTH,
  OLDSTYLE_MAGIC,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY,
  OPTION_REPLY_HEAD_LENGTH,
  OPTION_REPLY_MAGIC,
  SIMPLE_REPLY,
} from './wire.ts'

/** What the next byte, or the one behind what is passed, belongs to. */
const STATE = { GREETING: 0, OPTION_REPLY: 1, OPTION_REPLY_REST: 2, EXPORT: 3, MESSAGE: 4 } as const

/** As ClientParser, for what the server says. Source: nbd-wire 2 and 4. */
export class ServerParser extends DirectionParser {
  /** Of the reply to an option that is being passed. */
  private replyStart = 0
  private replyType = 0

  constructor(sink: NbdSink, dialogue: Dialogue) {
    super('server', GREETING_LENGTH, sink, dialogue)
  }

  /** A message begins at `position`: in the handshake an answer to what was asked. */
  protected mayBegin(position: number): boolean {
    const { dialogue, head } = this
    if (this.state === STATE.MESSAGE || this.state === STATE.GREETING) return true
    if (dialogue.lost.client) this.giveUp(position, 'the client is not understood')
    else if (dialogue.pending === NO_OPTION) this.giveUp(position, 'a reply without an option')
    else if (dialogue.pending === OPTION.EXPORT_NAME) {
      this.state = STATE.EXPORT
      head.need = EXPORT_LENGTH + (dialogue.noZeroes ? 0 : EXPORT_ZEROES)
    }
    return !this.raw
  }

  protected step(position: number): undefined {
    if (this.state === STATE.MESSAGE) this.messageStep(position)
    else if (this.state === STATE.OPTION_REPLY) this.optionReplyStep(position)
    else if (this.state === STATE.EXPORT) this.exportStep()
    else this.greetingStep()
  }

  protected passed(position: number): undefined {
    if (this.state === STATE.OPTION_REPLY_REST) this.optionReplyDone(position)
  }

  // ---- handshake ----

  private greetingStep(): undefined {
    const { head, dialogue } = this
    const { bytes } = head
    if (readU32(bytes, 0) !== GREETING_MAGIC.HIGH || readU32(bytes, 4) !== GREETING_MAGIC.LOW) {
      return this.giveUp(0, 'not an NBD server')
    }
    const [high, low] = [readU32(bytes, 8), readU32(bytes, 12)]
    if (high === OLDSTYLE_MAGIC.HIGH && low === OLDSTYLE_MAGIC.LOW) return this.giveUp(8, 'oldstyle handshake')
    if (high !== OPTION_MAGIC.HIGH || low !== OPTION_MAGIC.LOW) return this.giveUp(8, 'unknown handshake')
    const flags = readU16(bytes, 16)
    if ((flags & ~(HANDSHAKE_FLAG.FIXED_NEWSTYLE | HANDSHAKE_FLAG.NO_ZEROES)) !== 0) {
      return this.giveUp(16, `unknown handshake flags 0x${flags.toString(16)}`)
    }
    dialogue.handshakeFlags = flags
    dialogue.greeted = true
    this.next(STATE.OPTION_REPLY, 0)
  }

  /** The answer to EXPORT_NAME. */
  private exportStep(): undefined {
    const { head, dialogue } = this
    const size = readU64(head.bytes, 0)
    if (size < 0) return this.giveUp(head.start, 'an export beyond 2^53')
    for (let at = EXPORT_LENGTH; at < head.have; at++) {
      if (head.bytes[at] !== 0) return this.giveUp(head.start + at, 'not zeroes behind an export')
    }
    dialogue.describe(size, readU16(head.bytes, 8))
    const why = dialogue.begin()
    if (why !== '') return this.giveUp(head.start, why)
    this.begins()
  }

  private optionReplyStep(position: number): undefined {
    const { head, dialogue } = this
    const { bytes } = head
    const option = readU32(bytes, 8)
    const type = readU32(bytes, 12)
    const length = readU32(bytes, 16)
    if (head.have === OPTION_REPLY_HEAD_LENGTH) {
      if (readU32(bytes, 0) !== OPTION_REPLY_MAGIC.HIGH || readU32(bytes, 4) !== OPTION_REPLY_MAGIC.LOW) {
        return this.giveUp(head.start, 'not a reply to an option')
      }
      if (option !== dialogue.pending) {
        return this.giveUp(head.start, `a reply to option ${option}, and ${dialogue.pending} was asked`)
      }
      if (length > NBD_OPTION_BYTES_MAX) return this.giveUp(head.start, `a reply of ${length} bytes to an option`)
    }
    const kept = this.keptOf(option, type, length)
    if (!head.wants(OPTION_REPLY_HEAD_LENGTH + kept)) return
    if (kept > 0 && !this.keep(type, length)) return
    this.replyStart = head.start
    this.replyType = type
    this.next(STATE.OPTION_REPLY_REST, length - kept)
    if (head.skip === 0) this.optionReplyDone(position)
  }

  /** Bytes of the data of a reply that say something. */
  private keptOf(option: number, type: number, length: number): number {
    if (type === OPTION_REPLY.INFO && (option === OPTION.GO || option === OPTION.INFO)) {
      return Math.min(length, INFO_BLOCK_SIZE_LENGTH)
    }
    if (type === OPTION_REPLY.META_CONTEXT && option === OPTION.SET_META_CONTEXT) {
      return Math.min(length, 4 + NBD_NAME_BYTES_MAX)
    }
    return 0
  }

  /** Takes what a reply says. @returns false where it was not understood */
  private keep(type: number, length: number): boolean {
    const { head, dialogue } = this
    const { bytes } = head
    const at = OPTION_REPLY_HEAD_LENGTH
    if (type === OPTION_REPLY.META_CONTEXT) {
      if (length < 4 || length > 4 + NBD_NAME_BYTES_MAX) return this.bad(`a metadata context of ${length} bytes`)
      if (!dialogue.addContext(readU32(bytes, at), latin1(bytes, at + 4, length - 4))) {
        return this.bad('too many metadata contexts')
      }
      return true
    }
    if (length < 2) return this.bad(`information of ${length} bytes`)
    const info = readU16(bytes, at)
    if (info === INFO.EXPORT) {
      const size = length === INFO_EXPORT_LENGTH ? readU64(bytes, at + 2) : -1
      if (size < 0) return this.bad('an export of a length that is none')
      dialogue.describe(size, readU16(bytes, at + 10))
    } else if (info === INFO.BLOCK_SIZE) {
      if (length !== INFO_BLOCK_SIZE_LENGTH) return this.bad('block sizes of a length that is none')
      dialogue.describeBlocks(readU32(bytes, at + 2), readU32(bytes, at + 6), readU32(bytes, at + 10))
    }
    return true
  }

  private optionReplyDone(position: number): void {
    const { dialogue, replyType, replyStart } = this
    const option = dialogue.pending
    const error = (replyType & OPTION_REPLY.ERROR_BIT) !== 0
    const acknowledged = replyType === OPTION_REPLY.ACK
    this.next(STATE.OPTION_REPLY, 0)
    let why = ''
    if (error) dialogue.refused()
    else if (acknowledged) why = dialogue.agreed()
    this.sink.optionReply?.(replyStart, position, option, replyType, error || acknowledged)
    if (why !== '') this.giveUp(position, why)
    else if (dialogue.tls) this.giveUp(position, 'TLS')
    else if (dialogue.exported) this.begins()
  }

  private begins(): void {
    this.next(STATE.MESSAGE, 0)
    this.sink.begins(this.dialogue.exported!)
  }

  // ---- transmission ----

  private messageStep(position: number): undefined {
    const { head, dialogue } = this
    const { bytes } = head
    const magic = readU32(bytes, 0)
    const headLength =
      magic === EXTENDED_CHUNK.MAGIC && dialogue.extended
        ? EXTENDED_CHUNK.LENGTH
        : magic === CHUNK.MAGIC && dialogue.structured && !dialogue.extended
          ? CHUNK.LENGTH
          : magic === SIMPLE_REPLY.MAGIC && !dialogue.extended
            ? SIMPLE_REPLY.LENGTH
            : 0
    if (headLength === 0) return this.giveUp(head.start, 'not a reply, or one of a kind that was not agreed')
    if (!head.wants(headLength)) return
    const slot = dialogue.requests.find(readU32(bytes, 8), readU32(bytes, 12))
    if (slot < 0) return this.giveUp(head.start, 'a reply without a request')
    dialogue.requests.read(slot, this.request)
    if (headLength === SIMPLE_REPLY.LENGTH) this.simpleReply(slot, position)
    else this.chunkStep(slot, headLength, position)
  }

  private simpleReply(slot: number, position: number): undefined {
    const { head, dialogue, request } = this
    const error = readU32(head.bytes, 4)
    const data = request.type === COMMAND.READ && error === 0 ? request.lengthBytes : 0
    if (data > 0 && dialogue.structured)
      return this.giveUp(head.start, 'data in a simple reply, and chunks were agreed')
    const { start } = head
    dialogue.requests.remove(slot)
    this.next(STATE.MESSAGE, data)
    this.sink.reply(start, position, request, error)
    if (data > 0) this.sink.readData(position, position + data, request, request.offset)
  }

  private chunkStep(slot: number, headLength: number, position: number): undefined {
    const { head, dialogue, request } = this
    const { bytes } = head
    const type = readU16(bytes, 6)
    const length = headLength === CHUNK.LENGTH ? readU32(bytes, 16) : readU64(bytes, 24)
    if (length < 0 || length > 0xffffffff) return this.giveUp(head.start, 'a chunk beyond 2^32')
    const prefix = prefixOf(type)
    if (length < prefix) return this.giveUp(head.start, `a chunk of type ${type} and ${length} bytes`)
    if (!head.wants(headLength + prefix)) return
    const wrong = this.wrongIn(type, headLength, length)
    if (wrong !== '') return this.giveUp(head.start, wrong)
    const done = (readU16(bytes, 4) & CHUNK_DONE) !== 0
    if (done) dialogue.requests.remove(slot)
    const payload = length - prefix
    const error = (type & CHUNK_TYPE.ERROR_BIT) !== 0 ? readU32(bytes, headLength) : 0
    const { start } = head
    this.next(STATE.MESSAGE, payload)
    this.sink.chunk(start, position, request, type, payload, error, done)
    if (type === CHUNK_TYPE.OFFSET_DATA && payload > 0) {
      this.sink.readData(position, position + payload, request, readU64(bytes, headLength))
    } else if (type === CHUNK_TYPE.OFFSET_HOLE) {
      this.sink.readHole(request, readU64(bytes, headLength), readU32(bytes, headLength + 8))
    }
  }

  /** What is wrong with a chunk whose head is complete, or ''. */
  private wrongIn(type: number, at: number, length: number): string {
    const { bytes } = this.head
    const { type: command } = this.request
    if ((type & CHUNK_TYPE.ERROR_BIT) !== 0) {
      const least = type === CHUNK_TYPE.ERROR_OFFSET ? ERROR_OFFSET_LENGTH : CHUNK_PREFIX.ERROR
      if (readU32(bytes, at) === 0) return 'an error chunk without an error'
      return least + readU16(bytes, at + 4) > length ? 'an error chunk too short for its text' : ''
    }
    switch (type) {
      case CHUNK_TYPE.NONE:
        return length > 0 ? 'a chunk of nothing with a payload' : ''
      case CHUNK_TYPE.OFFSET_DATA:
        return this.wrongPlace(readU64(bytes, at), length - CHUNK_PREFIX.OFFSET_DATA)
      case CHUNK_TYPE.OFFSET_HOLE:
        if (length !== CHUNK_PREFIX.OFFSET_HOLE) return `a hole of ${length} bytes`
        return this.wrongPlace(readU64(bytes, at), readU32(bytes, at + 8))
      case CHUNK_TYPE.BLOCK_STATUS:
        if (command !== COMMAND.BLOCK_STATUS) return 'a status that was not asked for'
        return length > 4 && (length - 4) % EXTENT_LENGTH === 0 ? '' : `a status of ${length} bytes`
      case CHUNK_TYPE.BLOCK_STATUS_EXT:
        if (command !== COMMAND.BLOCK_STATUS) return 'a status that was not asked for'
        return length > 8 && length - 8 === readU32(bytes, at + 4) * EXTENT_EXT_LENGTH
          ? ''
          : `an extended status of ${length} bytes`
    }
    return ''
  }

  /** What is wrong with data or a hole at a place, or ''. */
  private wrongPlace(offset: number, length: number): string {
    const { request } = this
    if (request.type !== COMMAND.READ) return 'data that was not asked for'
    const within = offset >= request.offset && offset + length <= request.offset + request.lengthBytes
    return within ? '' : 'data outside its request'
  }

  private next(state: number, skip: number): void {
    this.state = state
    this.head.next(state === STATE.MESSAGE ? SIMPLE_REPLY.LENGTH : OPTION_REPLY_HEAD_LENGTH, skip)
  }

  private bad(reason: string): false {
    this.giveUp(this.head.start, reason)
    return false
  }
}

/** Bytes of a chunk of this type, behind its head, that are read with that. */
function prefixOf(type: number): number {
  if ((type & CHUNK_TYPE.ERROR_BIT) !== 0) return CHUNK_PREFIX.ERROR
  switch (type) {
    case CHUNK_TYPE.OFFSET_DATA:
      return CHUNK_PREFIX.OFFSET_DATA
    case CHUNK_TYPE.OFFSET_HOLE:
      return CHUNK_PREFIX.OFFSET_HOLE
    case CHUNK_TYPE.BLOCK_STATUS:
      return CHUNK_PREFIX.BLOCK_STATUS
    case CHUNK_TYPE.BLOCK_STATUS_EXT:
      return CHUNK_PREFIX.BLOCK_STATUS_EXT
  }
  return 0
}
