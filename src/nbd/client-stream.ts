import { HIGH_HALF_END, readU16, readU32, readU64, TWO_32 } from '../bytes/big-endian.ts'
import { latin1 } from '../bytes/copy.ts'
import { NBD_NAME_BYTES_MAX, NBD_OPTION_BYTES_MAX } from '../limits.ts'
import { type Dialogue, NO_OPTION } from './dialogue.ts'
import { DirectionParser } from './direction-parser.ts'
import type { Requests } from './requests.ts'
import type { NbdSink } from './sink.ts'
import {
  CLIENT_FLAGS_LENGTH,
  COMMAND,
  COMMAND_FLAG,
  EXTENDED_REQUEST,
  OPTION,
  OPTION_HEAD_LENGTH,
  OPTION_MAGIC,
  REQUEST,
} from './wire.ts'

/** What the next byte, or the one behind what is passed, belongs to. */
const STATE = { FLAGS: 0, OPTION: 1, OPTION_REST: 2, REQUEST: 3, ENDED: 4 } as const

/** Places from here on are not exact numbers. */
const PLACES_END = HIGH_HALF_END * TWO_32

/**
 * Reads what the client of a connection says, cut anywhere, and tells its sink what lies where. Its {@link Dialogue} is
 * shared with the server's parser, to which the other direction's bytes are pushed as they come. Source: nbd-wire 2 and 3.
 */
export class ClientParser extends DirectionParser {
  /** Of the option that is being passed. */
  private option = 0
  private optionStart = 0
  private optionName = ''
  private extended = false
  private endedBy = ''
  private readonly unanswered: Requests

  /** @param unanswered what its client waits for: where answers do not come from the server alone, another table than that one's */
  constructor(sink: NbdSink, dialogue: Dialogue, unanswered = dialogue.requests) {
    super('client', CLIENT_FLAGS_LENGTH, sink, dialogue)
    this.unanswered = unanswered
  }

  /** It has said that it disconnects, or gives up: its server closes then. */
  get isDone(): boolean {
    return this.state === STATE.ENDED
  }

  /** A message begins at `position`. Nothing may before the server has said what the client has to know for it. */
  protected mayBegin(position: number): boolean {
    const { dialogue } = this
    if (this.state === STATE.REQUEST) return true
    if (this.state === STATE.ENDED) this.giveUp(position, `bytes behind ${this.endedBy}`)
    else if (dialogue.lost.server) this.giveUp(position, 'the server is not understood')
    else if (!dialogue.greeted) this.giveUp(position, 'the client spoke before the server')
    else if (dialogue.pending !== NO_OPTION)
      this.giveUp(position, 'the client did not wait for the answer to an option')
    else if (dialogue.tls) this.giveUp(position, 'TLS')
    else if (dialogue.exported) {
      this.extended = dialogue.extended
      this.next(STATE.REQUEST, 0)
    }
    return !this.raw
  }

  protected step(position: number): undefined {
    if (this.state === STATE.REQUEST) this.requestStep(position)
    else if (this.state === STATE.OPTION) this.optionStep(position)
    else this.flagsStep()
  }

  protected passed(position: number): undefined {
    if (this.state === STATE.OPTION_REST) this.optionDone(position)
  }

  private flagsStep(): undefined {
    const { dialogue, head } = this
    const flags = readU32(head.bytes, 0)
    if ((flags & ~dialogue.handshakeFlags) !== 0) {
      this.giveUp(head.start, `flags of the client that were not offered: 0x${flags.toString(16)}`)
      return
    }
    dialogue.clientFlags = flags
    this.next(STATE.OPTION, 0)
  }

  // ---- options ----

  private optionStep(position: number): undefined {
    const { head, dialogue } = this
    const { bytes } = head
    const option = readU32(bytes, 8)
    const length = readU32(bytes, 12)
    if (head.have === OPTION_HEAD_LENGTH) {
      if (readU32(bytes, 0) !== OPTION_MAGIC.HIGH || readU32(bytes, 4) !== OPTION_MAGIC.LOW) {
        return this.giveUp(head.start, 'not an option')
      }
      if (length > NBD_OPTION_BYTES_MAX) return this.giveUp(head.start, `an option of ${length} bytes`)
      if (!dialogue.fixed && option !== OPTION.EXPORT_NAME) {
        return this.giveUp(head.start, `option ${option} to a server that knows one alone`)
      }
      if (dialogue.extended && option === OPTION.EXPORT_NAME) {
        return this.giveUp(head.start, 'EXPORT_NAME behind EXTENDED_HEADERS')
      }
      dialogue.asked(option)
    }
    const nameLength = this.nameLength(option, length)
    if (nameLength === undefined) return
    const nameEnd = this.nameAt(option) + nameLength
    if (!head.wants(nameEnd)) return
    this.option = option
    this.optionStart = head.start
    this.optionName = latin1(bytes, nameEnd - nameLength, nameLength)
    this.next(STATE.OPTION_REST, OPTION_HEAD_LENGTH + length - nameEnd)
    if (head.skip === 0) this.optionDone(position)
  }

  /** Where the name of an export stands in an option, for one that has none where its data begins. */
  private nameAt(option: number): number {
    return option === OPTION.GO || option === OPTION.INFO ? OPTION_HEAD_LENGTH + 4 : OPTION_HEAD_LENGTH
  }

  /** Bytes of the export's name in an option; undefined where it is not there yet, or was given up. */
  private nameLength(option: number, length: number): number | undefined {
    const { head } = this
    let nameLength = 0
    if (option === OPTION.EXPORT_NAME) nameLength = length
    else if (option === OPTION.GO || option === OPTION.INFO) {
      // u32 length, name, u16 count of what is asked for
      if (length < 6) this.giveUp(head.start, `option ${option} of ${length} bytes`)
      if (this.raw || !head.wants(OPTION_HEAD_LENGTH + 4)) return undefined
      nameLength = readU32(head.bytes, OPTION_HEAD_LENGTH)
      if (nameLength > length - 6) this.giveUp(head.start, `a name of ${nameLength} bytes in an option of ${length}`)
    }
    if (nameLength > NBD_NAME_BYTES_MAX && !this.raw) this.giveUp(head.start, `a name of ${nameLength} bytes`)
    return this.raw ? undefined : nameLength
  }

  private optionDone(position: number): void {
    this.dialogue.named(this.optionName)
    this.next(STATE.OPTION, 0)
    if (this.option === OPTION.ABORT) this.end('ABORT')
    this.sink.option?.(this.optionStart, position, this.option)
  }

  // ---- requests ----

  private requestStep(position: number): undefined {
    const { head, request, dialogue, unanswered, extended } = this
    const { bytes } = head
    if (readU32(bytes, 0) !== (extended ? EXTENDED_REQUEST.MAGIC : REQUEST.MAGIC)) {
      return this.giveUp(head.start, 'not a request')
    }
    const flags = readU16(bytes, 4)
    const type = readU16(bytes, 6)
    const offset = readU64(bytes, 16)
    const length = extended ? readU64(bytes, 24) : readU32(bytes, 24)
    if (!extended && type > COMMAND.RESIZE) {
      return this.giveUp(head.start, `command ${type}, which may have a payload`)
    }
    if (offset < 0 || length < 0 || offset + length >= PLACES_END) return this.giveUp(head.start, 'a place beyond 2^53')
    // The protocol wants the flag with WRITE too. QEMU 10 leaves it out, and its server takes the payload all the same.
    const hasPayload = type === COMMAND.WRITE || (extended && (flags & COMMAND_FLAG.PAYLOAD_LEN) !== 0)
    if (hasPayload && length > 0xffffffff) return this.giveUp(head.start, `a payload of ${length} bytes`)
    request.type = type
    request.flags = flags
    request.cookieHigh = readU32(bytes, 8)
    request.cookieLow = readU32(bytes, 12)
    request.offset = offset
    request.lengthBytes = hasPayload && type !== COMMAND.WRITE ? 0 : length
    request.payloadBytes = hasPayload ? length : 0
    if (type !== COMMAND.DISC && !dialogue.lost.server) {
      if (unanswered.find(request.cookieHigh, request.cookieLow) >= 0) {
        return this.giveUp(head.start, 'a cookie that is under way')
      }
      if (unanswered.full) return this.giveUp(head.start, 'too many requests under way')
      unanswered.add(request)
    }
    const { start } = head
    this.next(STATE.REQUEST, request.payloadBytes)
    if (type === COMMAND.DISC) this.end('DISC')
    this.sink.request(start, position, request)
    if (type === COMMAND.WRITE && length > 0) this.sink.writeData(position, position + length, request)
  }

  /** The client has said its last. */
  private end(by: string): void {
    this.endedBy = by
    this.state = STATE.ENDED
  }

  private next(state: number, skip: number): void {
    this.state = state
    const request = this.extended ? EXTENDED_REQUEST.LENGTH : REQUEST.LENGTH
    this.head.next(state === STATE.REQUEST ? request : OPTION_HEAD_LENGTH, skip)
  }
}
