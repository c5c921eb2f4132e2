/** What is found in the bytes of one channel at its source, while they are encoded: told to the channels of its session. Pure. */
import type { DiskFacts } from '../codec/disk-connection.ts'
import type { StreamFacts } from '../codec/flow-encoder.ts'
import type { Direction, NbdExport } from '../nbd/sink.ts'
import type { MultifdMethod, StreamPhase } from '../qemu/stream-sink.ts'
import type { SourceChannel, SourceChannels } from './source-channels.ts'

export class SourceFacts<C extends SourceChannel<C, S>, S> implements StreamFacts, DiskFacts {
  private readonly channels: SourceChannels<C, S>
  private readonly channel: C
  /** It was told that a direction is not understood. */
  private saidRaw = false

  /** @param channel has its flow, when there are bytes of it */
  constructor(channels: SourceChannels<C, S>, channel: C) {
    this.channels = channels
    this.channel = channel
  }

  private relayedRaw(reason: string, position?: number): void {
    const { migration, kind } = this.channel
    this.channels.relayedRaw(migration!, kind, reason, position)
  }

  // --- a migration's channel

  phase(phase: StreamPhase): void {
    this.channels.phase(this.channel.migration!, phase)
  }

  strayed(position: number, reason: string): void {
    this.relayedRaw(`${reason}: its end is looked for`, position)
  }

  degraded(position: number, reason: string): void {
    this.relayedRaw(reason, position)
  }

  compressed(method: MultifdMethod): void {
    this.relayedRaw(`QEMU compresses multifd with ${method}: set multifd-compression none, the pair saves more`)
  }

  // --- a disk's connection

  exported({ name, sizeBytes }: NbdExport): void {
    this.channels.disks.exported(this.channel, name, sizeBytes)
  }

  wrote(offset: number, lengthBytes: number): void {
    this.channels.disks.wrote(this.channel, offset, lengthBytes)
  }

  flushes(waits: boolean): void {
    this.channels.disks.flushes(this.channel, waits)
  }

  flushed(): void {
    this.channels.disks.flushed(this.channel)
  }

  raw(_direction: Direction, position: number, reason: string): void {
    if (this.saidRaw) return
    this.saidRaw = true
    this.channels.disks.obscured(this.channel)
    const tls = 'TLS within the connection: nothing can be saved; the WAN has TLS of its own'
    this.relayedRaw(reason === 'TLS' ? tls : reason, position)
  }
}
