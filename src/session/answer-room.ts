/**
 * Room for DATA: what waits in the lanes and what is kept until it is acknowledged, over all flows of a session. Who was
 * given less than it wanted is told when there is more, whichever of the two made the room.
 */

import type { Share } from '../fair-shares.ts'
import { ANSWERS_FREE_BYTES, FRAME_PAYLOAD_BYTES_MAX } from '../limits.ts'
import type { Flow } from './flow.ts'

export class AnswerRoom {
  private readonly memory: Share
  /** Bytes that wait, and these with those that are not acknowledged. */
  private queued = 0
  private kept = 0
  /** What the budget was asked for beyond the free part. */
  private taken = 0
  private readonly starved = new Set<Flow>()

  constructor(memory: Share) {
    this.memory = memory
  }

  /** @param laneBytes that may wait. @returns how many of `wanted` bytes have room */
  room(flow: Flow, wanted: number, laneBytes: number): number {
    const room = Math.max(0, Math.min(laneBytes - this.queued, this.memoryRoom))
    if (room < wanted) this.starved.add(flow)
    return Math.min(room, wanted)
  }

  /** Bytes were handed in. */
  enqueued(bytes: number): void {
    this.queued += bytes
    this.keep(bytes)
  }

  /** They went out, and are kept. */
  sent(bytes: number): void {
    this.queued -= bytes
  }

  /** Nobody wants them any more. */
  dropped(bytes: number): void {
    this.queued -= bytes
    this.keep(-bytes)
  }

  acknowledged(bytes: number): void {
    this.keep(-bytes)
  }

  /** Whether a flow waits for room. */
  get isAwaited(): boolean {
    return this.starved.size > 0
  }

  /** Flows that wait, one after the other, as long as there is room: who wants more then goes to the end. */
  tell(laneBytes: number, call: (flow: Flow) => void): void {
    // those of now: who wants more when it was called waits for the next time
    let flows = this.starved.size
    for (const flow of this.starved) {
      if (flows-- === 0 || this.queued * 2 > laneBytes || this.memoryRoom < FRAME_PAYLOAD_BYTES_MAX) return
      this.starved.delete(flow)
      if (flow.send === 'open') call(flow)
    }
  }

  forget(flow: Flow): void {
    this.starved.delete(flow)
  }

  /** The session is over, and its memory given back. */
  clear(): void {
    this.starved.clear()
    this.queued = 0
    this.kept = 0
    this.taken = 0
  }

  private keep(bytes: number): void {
    this.kept += bytes
    const need = Math.max(0, this.kept - ANSWERS_FREE_BYTES)
    if (need > this.taken) this.taken += this.memory.takeUpTo(need - this.taken)
    else if (need < this.taken) {
      this.memory.give(this.taken - need)
      this.taken = need
    }
  }

  private get memoryRoom(): number {
    return Math.max(0, ANSWERS_FREE_BYTES - this.kept) + this.memory.room
  }
}
