/** The round trip of a connection without our own queue: measured, and from time to time measured anew by draining it. */

import type { Queue } from './delivery-rate.ts'

/** A smallest round trip older than this is measured again, with the queues drained for one round trip. */
const RTT_MIN_AGE_MS = 10_000
/** What a busy host holds up is over by then. */
const LASTS_MS = 100
/** No round trip is measured shorter: 0 stands for none. */
const RTT_RESOLUTION_MS = 0.001

export class RoundTrip {
  /** Smoothed, and the smallest seen lately; 0 before the first measurement. */
  smoothedMs = 0
  minMs = 0
  private minAt: number
  private bloatedSince = 0
  /** A frame sent from here on has no queue of ours before it; Infinity: no probe. */
  private probeFrom = Number.POSITIVE_INFINITY
  private probedMinMs = 0

  constructor(nowMs: number) {
    this.minAt = nowMs
  }

  /** The queues are being drained. */
  get isProbing(): boolean {
    return this.probeFrom !== Number.POSITIVE_INFINITY
  }

  /** @param rtt of the latest sample @param spareMs that the window makes */
  queue(rtt: number, spareMs: number, nowMs: number): Queue {
    if (this.bloatedSince > 0)
      return nowMs - this.bloatedSince < Math.max(LASTS_MS, this.smoothedMs) ? 'long' : 'lasting'
    return rtt < this.minMs + spareMs / 2 ? 'none' : 'ours'
  }

  /**
   * One that was measured.
   * @param starting the window still grows
   * @returns 'probed': the queues were drained, and it is what the link takes now; 'longer': and far more than before
   */
  sample(sentAt: number, nowMs: number, targetMs: number, starting: boolean): 'probed' | 'longer' | undefined {
    const rtt = Math.max(nowMs - sentAt, RTT_RESOLUTION_MS)
    this.smoothedMs = this.smoothedMs === 0 ? rtt : this.smoothedMs + (rtt - this.smoothedMs) / 8
    let probe = false
    if (this.minMs === 0 || rtt <= this.minMs) {
      // Far shorter all at once: the way is another one, and this sample still has our queue in it.
      probe = !starting && rtt < this.minMs * 0.7
      this.minMs = rtt
      this.minAt = nowMs
    } else if (rtt <= this.minMs * 1.125 + 1) {
      this.minAt = nowMs // still as short as ever
    }
    if (sentAt >= this.probeFrom) {
      // Sent after the queues were drained: this is what the link takes now, even where it is more than before.
      const longer = rtt > 1.5 * this.probedMinMs
      this.minMs = rtt
      this.minAt = nowMs
      this.probeFrom = Number.POSITIVE_INFINITY
      this.bloatedSince = 0
      return longer ? 'longer' : 'probed'
    }
    // More delay than our own queue makes: the link got slower (the queue drains once the window follows), or its way
    // longer, where a window for the old round trip would starve it. Draining the queues tells which. While the window
    // doubles the delay is its own doing, and goes with it.
    if (rtt > this.minMs + Math.max(2 * targetMs, 20, this.minMs / 2)) {
      if (this.bloatedSince === 0 || starting) this.bloatedSince = nowMs
      else if (nowMs - this.bloatedSince > Math.max(LASTS_MS, 2 * this.smoothedMs)) probe = true
    } else {
      this.bloatedSince = 0
    }
    if (probe || nowMs - this.minAt > RTT_MIN_AGE_MS) this.renew(nowMs)
    return undefined
  }

  /** Has the queues drained, to see what the link takes now. */
  renew(nowMs: number): void {
    if (this.isProbing) return
    this.probeFrom = nowMs + this.smoothedMs
    this.probedMinMs = this.minMs
  }
}
