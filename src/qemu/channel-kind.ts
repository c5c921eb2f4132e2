/** What a connection from the source QEMU is, told by its first bytes. */
import { readU16, readU32 } from '../bytes/big-endian.ts'
import { COMMAND, ELEMENT, FILE_MAGIC, FILE_VERSION, MULTIFD, RAM_FLAG, RAM_FLAG_MASK } from './wire.ts'

/** 'proxy' is none of QEMU's, but a link's beginning, where a source looks for it: src/migration/channel-start.ts. */
export type ChannelKind = 'main' | 'multifd' | 'tls' | 'recovery' | 'preempt' | 'proxy' | 'unknown'

/** Bytes after which {@link channelKind} always answers. */
export const CHANNEL_KIND_BYTES_MAX = 4
/** Bytes after which {@link channelStart} always answers. QEMU sends so many at once on every channel that speaks. */
export const CHANNEL_START_BYTES_MAX = 8

/** TLS record: handshake, then version 3.0 to 3.4, u16 length; in it a ClientHello, whose u24 length has a zero on top. */
const TLS = { RECORD_HANDSHAKE: 0x16, MAJOR: 0x03, MINOR_MAX: 0x04, CLIENT_HELLO: 1 } as const
/** Version, random, empty session id, one cipher suite, one compression method, behind the handshake's head. */
const CLIENT_HELLO_BYTES_MIN = 4 + 2 + 32 + 1 + 4 + 2
const RECORD_BYTES_MAX = 0x4000

/** Which values the byte at `i` of a channel's start may have, as far as it can be said byte by byte. */
type Shape = (byte: number, i: number) => boolean

interface Start {
  readonly kind: ChannelKind
  /** Bytes that tell it from the other kinds. */
  readonly told: number
  /** Bytes that have one shape with every QEMU. */
  readonly length: number
  readonly shape: Shape
  /** What those say together. */
  readonly whole?: (bytes: Uint8Array, at: number) => boolean
}

function words(...values: number[]): Shape {
  const expected = values.flatMap(value => [value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff])
  return (byte, i) => byte === expected[i]
}

/** A preempt channel's first record: named or not, a page, a zero page, or the end. */
const PREEMPT_FLAGS: ReadonlySet<number> = new Set([
  RAM_FLAG.PAGE,
  RAM_FLAG.ZERO,
  RAM_FLAG.PAGE | RAM_FLAG.CONTINUE,
  RAM_FLAG.ZERO | RAM_FLAG.CONTINUE,
  RAM_FLAG.EOS,
])

const STARTS: readonly Start[] = [
  { kind: 'main', told: 4, length: 8, shape: words(FILE_MAGIC, FILE_VERSION) },
  { kind: 'multifd', told: 4, length: 8, shape: words(MULTIFD.MAGIC, MULTIFD.VERSION) },
  {
    // Main after a postcopy pause has no header: COMMAND RECV_BITMAP, u16 length, cstr of a RAMBlock that fills it.
    kind: 'recovery',
    told: 3,
    length: 6,
    shape: (byte, i) =>
      i === 0 ? byte === ELEMENT.COMMAND : i === 1 ? byte === 0 : i === 2 ? byte === COMMAND.RECV_BITMAP : true,
    whole: (bytes, at) => bytes[at + 5]! > 0 && readU16(bytes, at + 3) === 1 + bytes[at + 5]!,
  },
  {
    // A RAM record: no RAMBlock is as large as the magics would have it.
    kind: 'preempt',
    told: 2,
    length: 8,
    shape: (byte, i) => i > 1 || byte === 0,
    whole: (bytes, at) => PREEMPT_FLAGS.has(readU32(bytes, at + 4) & RAM_FLAG_MASK),
  },
  {
    kind: 'tls',
    told: 3,
    length: 7,
    shape: (byte, i) => {
      if (i === 0) return byte === TLS.RECORD_HANDSHAKE
      if (i === 1) return byte === TLS.MAJOR
      if (i === 2) return byte <= TLS.MINOR_MAX
      if (i === 5) return byte === TLS.CLIENT_HELLO
      return i < 5 || byte === 0
    },
    whole: (bytes, at) => {
      const length = readU16(bytes, at + 3)
      return length >= CLIENT_HELLO_BYTES_MIN && length <= RECORD_BYTES_MAX
    },
  },
]

/**
 * Classifies a channel by its first `length` bytes. The caller peeks: the bytes still belong to the channel.
 *
 * @returns undefined while fewer bytes are there than it takes; never from {@link CHANNEL_KIND_BYTES_MAX} bytes on.
 * Source: qemu-wire-format 1.2.
 */
export function channelKind(bytes: Uint8Array, at = 0, length = bytes.length - at): ChannelKind | undefined {
  return classify(bytes, at, length, false)
}

/**
 * As {@link channelKind}, but looks at all that every channel of QEMU 7.2 to 10 begins with: a waiting destination QEMU
 * exits over anything else.
 *
 * @returns `unknown` from the first byte on that fits no channel; undefined while it may become one; never from
 * {@link CHANNEL_START_BYTES_MAX} bytes on. Source: qemu-wire-format 1.2, 2.1, 2.6, 3.1, 4.1, 6.
 */
export function channelStart(bytes: Uint8Array, at = 0, length = bytes.length - at): ChannelKind | undefined {
  return classify(bytes, at, length, true)
}

function classify(bytes: Uint8Array, at: number, length: number, strict: boolean): ChannelKind | undefined {
  let open = false
  for (const { kind, told, length: full, shape, whole } of STARTS) {
    const wanted = strict ? full : told
    const count = Math.min(length, wanted)
    let i = 0
    while (i < count && shape(bytes[at + i]!, i)) i++
    if (i < count) continue
    if (count < wanted) open = true
    else if (!strict || whole === undefined || whole(bytes, at)) return kind
  }
  return open ? undefined : 'unknown'
}
