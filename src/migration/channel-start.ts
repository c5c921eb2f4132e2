/** The bytes of a connection that has no flow yet: no more than tell what it is. */
import { CHANNEL_START_BYTES_MAX, type ChannelKind } from '../qemu/channel-kind.ts'
import { ChannelHead } from './channel-ends.ts'

export class ChannelStart {
  /** Grows on once the flow is open: what follows may say who the guest is. */
  readonly head = new ChannelHead()
  private readonly memory = new Uint8Array(CHANNEL_START_BYTES_MAX)
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
    const kind = this.told ? undefined : this.head.kind
    this.told ||= kind !== undefined
    return kind
  }
}
