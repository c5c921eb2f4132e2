/**
 * One cap for several sessions of a process, by weight. Each has tokens of its own, which come in proportion to the
 * weights of those that have room for more: who sends nothing, or less, has its fill, and leaves what comes to the others.
 */

import { assert } from '../errors.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../limits.ts'
import { FRAME_HEAD_BYTES } from '../wan/wire.ts'

export const FRAME_BYTES_MAX = FRAME_HEAD_BYTES + FRAME_PAYLOAD_BYTES_MAX
/** What may be saved up, and what should lie ready: a turn of the event loop or two. */
export const BURST_MS = 10

/** Tokens saved up at most. */
export function burstOf(bytesPerSecond: number): number {
  return Math.max((bytesPerSecond / 1000) * BURST_MS, 4 * FRAME_BYTES_MAX)
}

export class SharedCap {
  private bytesPerSecond: number
  private readonly shares: CapShare[] = []
  private filledAtMs = 0

  /** @param bytesPerSecond Infinity: no cap */
  constructor(bytesPerSecond: number) {
    this.bytesPerSecond = bytesPerSecond
  }

  /** A share for one session after the other. @param weight more than 0 */
  join(weight: number): CapShare {
    const share = new CapShare(this, weight)
    this.shares.push(share)
    return share
  }

  leave(share: CapShare): void {
    const index = this.shares.indexOf(share)
    if (index >= 0) this.shares.splice(index, 1)
  }

  /** How many have one. */
  get size(): number {
    return this.shares.length
  }

  /** Whoever waits for tokens is to be woken: they may come sooner. */
  set(bytesPerSecond: number, nowMs: number): void {
    assert(bytesPerSecond > 0, 'a rate is more than 0')
    this.refill(nowMs)
    this.bytesPerSecond = bytesPerSecond
    for (const share of this.shares) share.tokens = Math.min(share.tokens, burstOf(bytesPerSecond))
  }

  /** @internal CapShare asks for it. */
  refill(nowMs: number): void {
    const { bytesPerSecond, shares } = this
    const sinceMs = Math.max(0, nowMs - this.filledAtMs)
    this.filledAtMs = Math.max(this.filledAtMs, nowMs)
    if (bytesPerSecond === Number.POSITIVE_INFINITY) {
      for (const share of shares) share.tokens = 0
      return
    }
    this.pour((sinceMs * bytesPerSecond) / 1000)
  }

  /** @internal Gives tokens to those that have room for more. @returns how many were left */
  pour(bytes: number): number {
    const { shares } = this
    const most = burstOf(this.bytesPerSecond)
    const room = shares.reduce((sum, { tokens }) => sum + Math.max(0, most - tokens), 0)
    let rest = Math.min(room, bytes)
    const left = bytes - rest
    // each turn fills one of them at least, or all that there is to give is given
    for (let turn = 0; turn < shares.length && rest > 0; turn++) {
      const weights = this.openWeights
      if (weights === 0) break
      let given = 0
      for (const share of shares) {
        const part = share.tokens < most ? Math.min((rest * share.weight) / weights, most - share.tokens) : 0
        share.tokens += part
        given += part
      }
      rest -= given
    }
    return left + Math.max(0, rest)
  }

  /** @internal What comes to a share just now, as long as the others want what they want. */
  rateOf(share: CapShare): number {
    if (this.bytesPerSecond === Number.POSITIVE_INFINITY) return Number.POSITIVE_INFINITY
    const isFull = share.tokens >= burstOf(this.bytesPerSecond)
    return (this.bytesPerSecond * share.weight) / (this.openWeights + (isFull ? share.weight : 0))
  }

  /** Of those that have room for more. */
  private get openWeights(): number {
    const most = burstOf(this.bytesPerSecond)
    let sum = 0
    for (const { tokens, weight } of this.shares) if (tokens < most) sum += weight
    return sum
  }
}

export class CapShare {
  private readonly cap: SharedCap
  /** It may change at any time. */
  weight: number
  /** Bytes that may go; below 0 where urgent ones went before. */
  tokens = 0

  /** @internal SharedCap makes them. */
  constructor(cap: SharedCap, weight: number) {
    this.cap = cap
    this.weight = weight
  }

  refill(nowMs: number): void {
    this.cap.refill(nowMs)
  }

  /** Bytes a second that come just now; Infinity: there is no cap. */
  get bytesPerSecond(): number {
    return this.cap.rateOf(this)
  }
}
