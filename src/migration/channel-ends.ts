/** What the first and last bytes of a channel tell, without a parser: both proxies look at them alike. */
import { readU32 } from '../bytes/big-endian.ts'
import { latin1 } from '../bytes/copy.ts'
import { MACHINE_TYPE_LENGTH_MAX } from '../limits.ts'
import { CHANNEL_START_BYTES_MAX, type ChannelKind, channelStart } from '../qemu/channel-kind.ts'
import { COMMAND, CONFIGURATION_SUBSECTION, ELEMENT, UUID_LENGTH } from '../qemu/wire.ts'

/** Header, machine type and the few subsections that QEMU has. */
const HEAD_BYTES_MAX = 640
/** Behind magic and version: on main the configuration, in a multifd hello the UUID. */
const BODY_AT = 8
/** u8 element, u16 command, u16 length. */
const OPEN_RETURN_PATH = [ELEMENT.COMMAND, 0, COMMAND.OPEN_RETURN_PATH, 0, 0] as const
/** Bytes that are logged of what is no channel of QEMU: enough to know an HTTP request or a banner by. */
const SHOWN_BYTES = 16

/** Who a guest is, as far as its channel says. */
export interface GuestName {
  /** As QEMU's `-machine` has it: 'pc-q35-8.2'. */
  readonly machine?: string
  /** `-uuid`: in a multifd hello always, on main with the capability validate-uuid. */
  readonly uuid?: string
}

/** The first bytes of a channel. */
export class ChannelHead {
  private readonly bytes = new Uint8Array(HEAD_BYTES_MAX)
  private length = 0

  /** Bytes that were there, up to some hundred. */
  get lengthBytes(): number {
    return this.length
  }

  /** What it begins as; undefined where it takes more bytes. See channelStart. */
  get kind(): ChannelKind | undefined {
    return channelStart(this.bytes, 0, Math.min(this.length, CHANNEL_START_BYTES_MAX))
  }

  get isFull(): boolean {
    return this.length === HEAD_BYTES_MAX
  }

  push(bytes: Uint8Array, at: number, length: number): void {
    const take = Math.min(length, HEAD_BYTES_MAX - this.length)
    if (take === 0) return
    this.bytes.set(bytes.subarray(at, at + take), this.length)
    this.length += take
  }

  /** For logs, hexadecimal. */
  get shown(): string {
    return Buffer.from(this.bytes.subarray(0, Math.min(this.length, SHOWN_BYTES))).toString('hex')
  }

  /** Who the guest is, as far as it is there; nothing where the bytes are not as they should be. */
  guest(): GuestName {
    const { bytes, length } = this
    if (this.kind === 'multifd') {
      const uuid = length >= BODY_AT + UUID_LENGTH ? uuidText(bytes, BODY_AT) : ''
      return uuid === '' ? {} : { uuid }
    }
    const { machine, uuid } = this.configuration()
    return { ...(machine === undefined ? {} : { machine }), ...(uuid === undefined ? {} : { uuid }) }
  }

  /** Of main: behind its configuration it asks the destination to answer, as with return-path or postcopy-ram. */
  get opensReturnPath(): boolean {
    const { end } = this.configuration()
    return end >= 0 && end + OPEN_RETURN_PATH.length <= this.length && startsWith(this.bytes, end, OPEN_RETURN_PATH)
  }

  /** `end`: of main's header, -1 where it is not there yet or is no main's. */
  private configuration(): { readonly machine?: string; readonly uuid?: string; readonly end: number } {
    const { bytes, length } = this
    if (this.kind !== 'main') return { end: -1 }
    if (bytes[BODY_AT] !== ELEMENT.CONFIGURATION) return { end: BODY_AT } // older machine types have none
    const machineLength = readU32(bytes, BODY_AT + 1)
    let at = BODY_AT + 5 + machineLength
    if (machineLength > MACHINE_TYPE_LENGTH_MAX || at > length) return { end: -1 }
    const machine = latin1(bytes, BODY_AT + 5, machineLength)
    let uuid = ''
    const found = (end: number) => (uuid === '' ? { machine, end } : { machine, uuid, end })
    // u8 05, cstr name, u32 version, body
    while (at + 2 <= length && bytes[at] === ELEMENT.SUBSECTION) {
      const body = at + 2 + bytes[at + 1]! + 4
      if (body + 4 > length) return found(-1)
      const name = latin1(bytes, at + 2, bytes[at + 1]!)
      at = body + 4
      if (name === CONFIGURATION_SUBSECTION.UUID) {
        at = body + UUID_LENGTH
        if (at > length) return found(-1)
        uuid = uuidText(bytes, body)
      } else if (name === CONFIGURATION_SUBSECTION.CAPABILITIES) {
        for (let left = readU32(bytes, body); left > 0 && at < length; left--) at += 1 + bytes[at]!
      } else if (name !== CONFIGURATION_SUBSECTION.TARGET_PAGE_BITS) return found(-1)
    }
    return found(at < length ? at : -1)
  }
}

function startsWith(bytes: Uint8Array, at: number, start: readonly number[]): boolean {
  return start.every((byte, i) => bytes[at + i] === byte)
}

/** '' where it is not set: all zero. */
function uuidText(bytes: Uint8Array, at: number): string {
  const hex = Buffer.from(bytes.subarray(at, at + UUID_LENGTH)).toString('hex')
  if (/^0*$/.test(hex)) return ''
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
}

const TAIL_BYTES = 6
/** `}]}`: the last device's fields, the devices, the description. */
const DESCRIPTION_END = [0x7d, 0x5d, 0x7d] as const

/** The last bytes of a main channel: whether QEMU came to its end, or was cut off. */
export class ChannelTail {
  private readonly last = new Uint8Array(TAIL_BYTES)

  push(bytes: Uint8Array, at: number, length: number): void {
    const { last } = this
    const take = Math.min(length, TAIL_BYTES)
    if (take < TAIL_BYTES) last.copyWithin(0, take)
    for (let i = 0; i < take; i++) last[TAIL_BYTES - take + i] = bytes[at + length - take + i]!
  }

  /**
   * True where the last bytes are those with which QEMU ends: the device description's (JSON), or, without one as after
   * postcopy, a section's footer and the end mark. A stream that was cut off looks so by an unlikely chance.
   * Source: qemu-wire-format 2.2, 2.4, 2.5.
   */
  get isWhole(): boolean {
    const { last } = this
    if (DESCRIPTION_END.every((byte, i) => last[TAIL_BYTES - 3 + i] === byte)) return true
    return last[0] === ELEMENT.SECTION_FOOTER && last[TAIL_BYTES - 1] === ELEMENT.EOF
  }
}
