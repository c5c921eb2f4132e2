/** How much should be encoded now: later is better, since what is queued is parked, but an ACK must find something to send. */

import { BULK_BYTES_MAX, FRAME_BYTES_MAX, type Outbox } from './outbox.ts'
import type { Paths } from './paths.ts'
import type { RateCap } from './rate-cap.ts'

/** Batches that should lie ready while the windows are full. */
const READY_BYTES = 2 * FRAME_BYTES_MAX
/** Part of the queue target that batches may come late by, so that they need not be small. */
const LATE_SHARE = 0.2

/** WAN bytes that further batches should have together: what the windows have room for, less what waits already. */
export function bulkRoom({ queuedBytes, resendBytes, unackedBytes }: Outbox, paths: Paths, rate: RateCap): number {
  const windows = READY_BYTES - queuedBytes - resendBytes + paths.roomBytes
  // The windows know what the link takes, not what we let go: what is more would wait here, where no queue target sees it.
  const capped = Math.max(Math.floor(rate.readyBytes), READY_BYTES) - queuedBytes
  return Math.max(0, Math.min(windows, capped, BULK_BYTES_MAX - unackedBytes - queuedBytes))
}

/** WAN bytes of room that are worth waiting for: what the link takes in a part of the queue target, at most half of what can be. */
export function bulkQuantum(paths: Paths, rate: RateCap): number {
  const most = Math.min(READY_BYTES + paths.windowBytes, Math.max(rate.readyBytes, READY_BYTES))
  return Math.min((paths.rate / 1000) * paths.targetMs * LATE_SHARE, most / 2)
}
