/** What a connection from the source QEMU is, told by its first bytes. */
export type ChannelKind = 'main' | 'multifd' | 'tls' | 'recovery' | 'preempt' | 'unknown'

/** Bytes after which {@link channelKind} always answers. */
export const CHANNEL_KIND_BYTES_MAX = 4

// No RAM address looks like one of the magics: addresses lie below 2^52, so a preempt channel opens with 00 00.
const STARTS: readonly { kind: ChannelKind; bytes: readonly number[] }[] = [
  { kind: 'main', bytes: [0x51, 0x45, 0x56, 0x4d] }, // "QEVM"
  { kind: 'multifd', bytes: [0x11, 0x22, 0x33, 0x44] }, // the hello's magic
  { kind: 'recovery', bytes: [0x08, 0x00, 0x0a] }, // COMMAND RECV_BITMAP: main after a postcopy pause, no header
  { kind: 'preempt', bytes: [0x00, 0x00] }, // a RAM record
]
/** TLS record: handshake, then version 3.0 to 3.4. */
const TLS = { RECORD_HANDSHAKE: 0x16, MAJOR: 0x03, MINOR_MAX: 0x04 } as const

/**
 * Classifies a connection by its first `length` bytes. The caller peeks: the bytes still belong to the channel.
 *
 * @returns undefined while fewer bytes are there than it takes; never from {@link CHANNEL_KIND_BYTES_MAX} bytes on.
 * Source: qemu-wire-format 1.2.
 */
export function channelKind(bytes: Uint8Array, at = 0, length = bytes.length - at): ChannelKind | undefined {
  let open = false
  for (const start of STARTS) {
    const count = Math.min(length, start.bytes.length)
    let i = 0
    while (i < count && bytes[at + i] === start.bytes[i]) i++
    if (i === start.bytes.length) return start.kind
    if (i === length) open = true
  }
  if (length === 0) return undefined
  if (bytes[at] === TLS.RECORD_HANDSHAKE) {
    if (length === 1) return undefined
    if (bytes[at + 1] === TLS.MAJOR) {
      if (length === 2) return undefined
      if (bytes[at + 2]! <= TLS.MINOR_MAX) return 'tls'
    }
  }
  return open ? undefined : 'unknown'
}
