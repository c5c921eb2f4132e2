/** The bytes of a connection that has no flow yet: no more than tell what it is. */
import { CHANNEL_START_BYTES_MAX, type ChannelKind } from '../qemu/channel-kind.ts'
import { bearsMark, isOwnHello, MARK_BYTES_MAX } from '../wan/own-hello.ts'
import { ChannelHead } from './channel-ends.ts'

export class ChannelStart {
  /** Grows on once the flow is open: what follows may say who the guest is. */
  readonly head = new ChannelHead()
  private memory = new Uint8Array(CHANNEL_START_BYTES_MAX)
  private length = 0
  private told = false

  /** Not a byte has come. */
  get isSilent(): boolean {
    return this.length === 0
  }

  get bytes(): Uint8Array {
    return this.memory.subarray(0, this.length)
  }

  /** Where the next bytes may land; undefined where there is no room: what follows waits until the flow is open. */
  get room(): Uint8Array | undefined {
    return this.length < this.memory.length ? this.memory.subarray(this.length) : undefined
  }

  /** So many bytes are in `room`. @returns what it is, once, as soon as they tell */
  filled(count: number): ChannelKind | undefined {
    this.head.push(this.memory, this.length, count)
    this.length += count
    if (this.told) return undefined
    const kind = this.kind()
    this.told = kind !== undefined
    // of all that begins as QEMU's channels do, a TLS client alone takes more to tell
    if (this.told) this.memory = this.memory.subarray(0, Math.max(this.length, CHANNEL_START_BYTES_MAX))
    else if (this.room === undefined) this.grow()
    return kind
  }

  private kind(): ChannelKind | undefined {
    const { bytes } = this
    const { kind } = this.head
    const isOwn = kind === 'tls' ? bearsMark(bytes) : kind === 'unknown' ? isOwnHello(bytes) : false
    return isOwn === undefined ? undefined : isOwn ? 'proxy' : kind
  }

  private grow(): void {
    const { bytes } = this
    this.memory = new Uint8Array(MARK_BYTES_MAX)
    this.memory.set(bytes)
  }
}
