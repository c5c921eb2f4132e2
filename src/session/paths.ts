/** The connections of a session: which stand, what they carry together, and whether they still work. */

import { CONNECTION_STUCK_MS, CONNECTIONS_MAX, WINDOW_BYTES_MIN } from '../limits.ts'
import type { SessionStats } from './api.ts'
import type { Path } from './path.ts'

/** While there are connections tick is called this often; where it comes later by the second, this process stood still. */
const TICK_INTERVAL_MS = 1000
const STOOD_STILL_MS = 1500

/** What a look at the connections found. */
export interface PathsTick {
  /** This process stood still for so long; 0: it did not. */
  readonly stillMs: number
  /** Connections that do not work any more, and why. */
  readonly dead: readonly { readonly path: Path; readonly why: string }[]
  /** Something is due on one of them. */
  readonly isWork: boolean
}

export class Paths {
  private readonly byNumber: (Path | null)[] = new Array(CONNECTIONS_MAX).fill(null)
  private standing: readonly Path[] = []
  private readonly PathClass: typeof Path
  /** Milliseconds that bytes may wait in the link beyond its round trip. */
  targetMs: number
  /** This side takes no new migrations: told on each connection, now or later. */
  draining = false
  private tickedMs = 0

  constructor(PathClass: typeof Path, targetMs: number) {
    this.PathClass = PathClass
    this.targetMs = targetMs
  }

  get(connection: number): Path | null {
    return this.byNumber[connection] ?? null
  }

  /** Those that stand, by number. */
  get all(): readonly Path[] {
    return this.standing
  }

  get count(): number {
    return this.standing.length
  }

  /** @param connection one that is not among them */
  add(connection: number, nowMs: number): Path {
    const path = new this.PathClass(connection, this.targetMs, nowMs)
    path.drainDue = this.draining
    if (this.count === 0) this.tickedMs = nowMs
    this.byNumber[connection] = path
    this.list()
    return path
  }

  remove(path: Path): void {
    this.byNumber[path.connection] = null
    this.list()
  }

  setTarget(ms: number): void {
    this.targetMs = ms
    for (const path of this.standing) path.setTarget(ms)
  }

  drain(): void {
    this.draining = true
    for (const path of this.standing) path.drainDue = true
  }

  private list(): void {
    this.standing = this.byNumber.filter(path => path !== null)
  }

  /** Heartbeats and delayed ACKs. */
  tick(nowMs: number): PathsTick {
    // What came while this process was stopped lies unread in the sockets: that time proves nothing.
    const lateMs = nowMs - this.tickedMs - TICK_INTERVAL_MS
    const stillMs = lateMs > STOOD_STILL_MS ? lateMs : 0
    this.tickedMs = nowMs
    const dead: { path: Path; why: string }[] = []
    let isWork = false
    for (const path of this.standing) {
      if (stillMs > 0) path.stoodStill(stillMs, nowMs)
      if (nowMs >= path.deadMs) dead.push({ path, why: `nothing arrived for ${Math.round(nowMs - path.heardMs)} ms` })
      else if (nowMs >= path.stuckMs) {
        const why = `nothing of what was sent has arrived for ${CONNECTION_STUCK_MS} ms; does the path take large packets?`
        dead.push({ path, why })
      } else if (path.tick(nowMs)) isWork = true
    }
    return { stillMs, dead, isWork }
  }

  /** When `tick` is to be called next; Infinity: there are none. */
  get nextTickMs(): number {
    let next = this.count > 0 ? this.tickedMs + TICK_INTERVAL_MS : Number.POSITIVE_INFINITY
    for (const path of this.standing) next = Math.min(next, path.nextTickMs)
    return next
  }

  /** Bytes that may be under way, and that may go out beside those that are. */
  get windowBytes(): number {
    let bytes = 0
    for (const path of this.standing) bytes += path.window
    return bytes
  }

  get roomBytes(): number {
    let bytes = 0
    for (const path of this.standing) bytes += Math.max(0, path.window - path.inFlight)
    return bytes
  }

  /** Bytes of DATA that may wait: what the link carries within the windows. */
  get laneBytes(): number {
    return Math.max(this.windowBytes, WINDOW_BYTES_MIN)
  }

  /** Bytes a second that arrive over all of them. */
  get rate(): number {
    let rate = 0
    for (const path of this.standing) rate += path.rate
    return rate
  }

  /** Bytes a millisecond that they take together; Infinity while one's window still grows, and without any. */
  get knownRate(): number {
    const isKnown = this.count > 0 && !this.standing.some(path => path.isStarting)
    return isKnown ? this.rate / 1000 : Number.POSITIVE_INFINITY
  }

  get inFlight(): number {
    let bytes = 0
    for (const path of this.standing) bytes += path.inFlight
    return bytes
  }

  /** Smallest of the round trips (smoothed); 0 before the first measurement. */
  get rttMs(): number {
    let rtt = 0
    for (const path of this.standing) if (path.rttMs > 0 && (rtt === 0 || path.rttMs < rtt)) rtt = path.rttMs
    return rtt
  }

  /** Shortest round trip seen lately; 0 before the first measurement, and without connections. */
  get rttMinMs(): number {
    const seen = this.standing.flatMap(path => (path.rttMinMs > 0 ? path.rttMinMs : []))
    return seen.length === 0 ? 0 : Math.min(...seen)
  }

  stats(): Pick<SessionStats, 'rttMs' | 'rate' | 'inFlight' | 'window' | 'connections'> {
    const connections = this.standing.map(({ connection, rttMinMs, rttMs, rate, inFlight, window }) => ({
      ...{ connection, rttMinMs, rttMs, rate, inFlight, window },
    }))
    const { rttMs, rate, inFlight, windowBytes: window } = this
    return { rttMs, rate, inFlight, window, connections }
  }
}
