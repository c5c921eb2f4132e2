/**
 * Channels that have something to say to their QEMU before the source knows that their migration is taken. Until then the
 * source may send it again on another session, and whoever listens there by then would get what this QEMU has had; so none is
 * dialled. It takes as long as to open a connection directly. Pure.
 */
import type { Arrival, ArrivingChannel } from './arrival.ts'

export interface UnconfirmedChannel<C extends ArrivingChannel> extends ArrivingChannel {
  /** Of its flow in the session. */
  readonly number: number
  readonly migration: Arrival<C>
}

export class Unconfirmed<C extends UnconfirmedChannel<C>> {
  private readonly waiting = new Set<C>()
  /** What the source had acknowledged when those were looked at last. */
  private lookedAt = 0
  private readonly isKnownTaken: (flow: number) => boolean

  /** @param isKnownTaken whether the source has acknowledged that this flow is taken */
  constructor(isKnownTaken: (flow: number) => boolean) {
    this.isKnownTaken = isKnownTaken
  }

  /** How many wait. */
  get size(): number {
    return this.waiting.size
  }

  /** It has something to say. @returns whether its QEMU may be dialled; if not, it waits */
  admits(channel: C): boolean {
    if (this.isConfirmed(channel.migration)) return true
    this.waiting.add(channel)
    return false
  }

  /** The source has acknowledged so many frames. @returns those whose QEMUs may be dialled now */
  acknowledged(frames: number): C[] {
    if (this.waiting.size === 0 || frames === this.lookedAt) return []
    this.lookedAt = frames
    const now: C[] = []
    const looked = new Map<Arrival<C>, boolean>()
    for (const channel of this.waiting) {
      const { migration } = channel
      const isConfirmed = looked.get(migration) ?? this.isConfirmed(migration)
      looked.set(migration, isConfirmed)
      if (isConfirmed) now.push(channel)
    }
    for (const channel of now) this.waiting.delete(channel)
    return now
  }

  /** It waits for nothing any more. */
  left(channel: C): void {
    this.waiting.delete(channel)
  }

  private isConfirmed(migration: Arrival<C>): boolean {
    if (!migration.isConfirmed)
      for (const { number } of migration.flows) if (this.isKnownTaken(number)) migration.isConfirmed = true
    return migration.isConfirmed
  }
}
