/**
 * Chooses the effort of each batch so that a migration gets through as fast as it can: docs/adr/0006-effort.md.
 * Pure: times come in.
 */
import { EFFORT_MAX, EFFORTS, type Effort } from '../compression/effort.ts'

/** What the encoding side is doing. */
export type Waiting =
  | 'wan' // enough is queued for the link: there is time to squeeze more
  | 'cpu' // the link would take more than is encoded
  | 'source' // QEMU has sent nothing: says nothing about either

/** A decision needs so much time of waiting on the WAN or CPU, and so many batches, unless those take too long. */
const SAMPLE_MS = 80
const SAMPLE_BATCHES = 8
const SAMPLE_MAX_MS = 400
/** Batches of the level before that may come out after a change: what the packer holds. */
const SETTLE_BATCHES = 3
/** Above this share of CPU waiting the level before is tried first, below it the next one. */
const CPU_SHARE_DOWN = 0.4
/** Above this one the next level is not tried at all: the link has room for what there is. */
const CPU_SHARE_UP_MAX = 0.7
/** Below this share the link alone holds things up: fewer bytes cannot be worse. */
const CPU_SHARE_LINK_ALONE = 0.15
/** Rates of two samples that differ by less are the same: then the level that sends fewer bytes is the better one. */
const RATE_NOISE = 0.03
/** A level that proved slower is tried again after this time, doubled each time it fails again. */
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
  /** Of this sample. */
  private rawBytes = 0
  private batches = 0
  private settling = 0
  /** The level before, and what got through there, raw bytes a millisecond, until the present one is judged. */
  private before: { readonly level: number; readonly rate: number } | undefined
  /** By level: not to be moved to before this time. */
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

  /** A batch of so many raw bytes is on its way. */
  sent(rawBytes: number): void {
    if (this.settling > 0) {
      this.settling--
      this.beginSample()
    } else {
      this.rawBytes += rawBytes
      this.batches++
    }
  }

  /** Tells what the encoding side waits for from now on. */
  wait(state: Waiting, nowMs: number): void {
    const elapsed = nowMs - this.sinceMs
    this.sinceMs = nowMs
    if (this.state === 'wan') this.wanMs += elapsed
    else if (this.state === 'cpu') this.cpuMs += elapsed
    this.state = state
    const total = this.wanMs + this.cpuMs
    if (total < SAMPLE_MS || this.settling > 0) return
    if (this.batches < SAMPLE_BATCHES && total < SAMPLE_MAX_MS) return
    const cpuShare = this.cpuMs / total
    const rate = this.rawBytes / total
    this.beginSample()
    this.decide(cpuShare, rate, nowMs)
  }

  private beginSample(): void {
    this.wanMs = 0
    this.cpuMs = 0
    this.rawBytes = 0
    this.batches = 0
  }

  private decide(cpuShare: number, rate: number, nowMs: number): void {
    const { level, before } = this
    this.before = undefined
    if (before !== undefined) {
      const rose = before.level < level
      const better = rose
        ? rate > before.rate * (1 - RATE_NOISE) || cpuShare < CPU_SHARE_LINK_ALONE // whatever the sample says
        : rate > before.rate * (1 + RATE_NOISE)
      if (!better) {
        this.retryAtMs[level] = nowMs + this.retryMs[level]!
        this.retryMs[level] = Math.min(RETRY_MAX_MS, this.retryMs[level]! * 2)
        this.moveTo(before.level)
        return
      }
      this.retryMs[level] = RETRY_MS
    }
    const down = cpuShare > CPU_SHARE_DOWN && this.mayTry(level - 1, nowMs)
    const up = !down && cpuShare < CPU_SHARE_UP_MAX && this.mayTry(level + 1, nowMs)
    if (!down && !up) return
    this.before = { level, rate }
    this.moveTo(down ? level - 1 : level + 1)
  }

  private mayTry(level: number, nowMs: number): boolean {
    return level >= 0 && level <= LEVEL_AUTO_MAX && nowMs >= this.retryAtMs[level]!
  }

  private moveTo(level: number): void {
    this.level = level
    this.settling = SETTLE_BATCHES
  }
}
