/**
 * Chooses the effort of each batch so that the WAN, not the CPU, is what a migration waits for: docs/adr/0006-effort.md.
 * Pure: times come in.
 */
import { EFFORT_MAX, EFFORTS, type Effort } from '../compression/effort.ts'

/** What the encoding side is doing. */
export type Waiting =
  | 'wan' // enough is queued for the link: there is time to squeeze more
  | 'cpu' // the link would take more than is encoded
  | 'source' // QEMU has sent nothing: says nothing about either

/** A decision needs so much time of waiting on the WAN or CPU: several batches at any level. */
const SAMPLE_MS = 120
/** Below this share of CPU waiting the next level is tried, above the other it is left. */
const CPU_SHARE_UP = 0.15
const CPU_SHARE_DOWN = 0.4
/** A level that proved too slow is tried again after this time, doubled each time it fails again. */
const RETRY_MS = 1000
const RETRY_MAX_MS = 30_000

/** Where `auto` begins: fast enough that the first moments of a fast link are not lost. */
const LEVEL_START = 1
/** The last level costs ten times the one before for two or three percent: only who asks for it gets it. */
const LEVEL_AUTO_MAX = EFFORT_MAX - 1

export class EffortController {
  private readonly fixed: Effort | undefined
  private level = LEVEL_START
  private state: Waiting = 'source'
  private sinceMs = 0
  private wanMs = 0
  private cpuMs = 0
  private readonly retryAtMs = new Float64Array(EFFORT_MAX + 1)
  private readonly retryMs = new Float64Array(EFFORT_MAX + 1).fill(RETRY_MS)

  /** @param level a fixed level, or auto */
  constructor(level: number | 'auto') {
    this.fixed = level === 'auto' ? undefined : EFFORTS[level]
  }

  /** The effort of the next batch. `urgent`: a guest waits for it, so nothing slow. */
  effort(urgent: boolean): Effort {
    const effort = this.fixed ?? EFFORTS[this.level]!
    return urgent && effort.level > LEVEL_START ? EFFORTS[LEVEL_START]! : effort
  }

  /** Tells what the encoding side waits for from now on. */
  wait(state: Waiting, nowMs: number): void {
    const elapsed = nowMs - this.sinceMs
    this.sinceMs = nowMs
    if (this.state === 'wan') this.wanMs += elapsed
    else if (this.state === 'cpu') this.cpuMs += elapsed
    this.state = state
    const total = this.wanMs + this.cpuMs
    if (total >= SAMPLE_MS) this.decide(this.cpuMs / total, nowMs)
  }

  private decide(cpuShare: number, nowMs: number): void {
    this.wanMs = 0
    this.cpuMs = 0
    if (cpuShare > CPU_SHARE_DOWN && this.level > 0) {
      this.retryAtMs[this.level] = nowMs + this.retryMs[this.level]!
      this.retryMs[this.level] = Math.min(RETRY_MAX_MS, this.retryMs[this.level]! * 2)
      this.level--
    } else if (cpuShare < CPU_SHARE_UP && this.level < LEVEL_AUTO_MAX && nowMs >= this.retryAtMs[this.level + 1]!) {
      this.level++
    }
  }
}
