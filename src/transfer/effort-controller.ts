/**
 * Chooses the effort of each batch so that a migration gets through as fast as it can: docs/adr/0006-effort.md.
 * Pure: times come in.
 */
import { EFFORTS, type Effort, effortAt, LZ4, RUNGS as PACKING_RUNGS, RAW } from '../compression/effort.ts'

/** What `auto` takes, from the least CPU on: the first gets out of the way. */
export const RUNGS: readonly Effort[] = [RAW, ...PACKING_RUNGS]

/** What the encoding side is doing. */
export type Waiting =
  | 'wan' // enough is queued for the link: there is time to squeeze more
  | 'cpu' // the link would take more than is encoded
  | 'source' // QEMU has sent nothing: says nothing about either

/** A decision needs so much time of waiting on the WAN or CPU, and so many batches, unless those take too long. */
const SAMPLE_MS = 80
const SAMPLE_BATCHES = 8
const SAMPLE_MAX_MS = 400
/** The first is shorter where the CPU is all that is waited for: a fast link is not to wait for where `auto` begins. And of raw batches all are. */
const FIRST_SAMPLE_MS = 40
/**
 * More effort that brings so much less, of pages and of bytes, is found out before its sample is whole: where a batch of a
 * level takes 30 ms, a whole one costs more than all that was won before.
 */
const PLAINLY_LESS = 0.7
const PLAIN_MS = 40
const PLAIN_BATCHES = 2
/** Batches of the level before that may come out after a change: what the packer holds. */
const SETTLE_BATCHES = 3
/** Of the first batches nothing is learned: the link's window grows, and V8 is still compiling, on both sides. */
const START_BATCHES = 16
/** Above this share of CPU waiting the level before is tried first, below it the next one. */
const CPU_SHARE_DOWN = 0.4
/** Above this one the link has room whatever it was seen to take: it may never have been full. */
const CPU_SHARE_NEVER_FULL = 0.9
/**
 * Above this one the next level is not tried at all: the link has room for what there is. Encoding counts as waiting on
 * the CPU even while a full queue feeds the link, so half of the time says nothing yet.
 */
const CPU_SHARE_UP_MAX = 0.6
/**
 * More effort is right where the link is as full with it as it was before: then it carries more pages, whatever they are.
 * Where it is not, something else was waited for: this side's CPU, or the far side. Part of the bytes before that must
 * still go out; less is noise.
 */
const STILL_FULL = 0.85
/** Or so much more work gets through: the CPU is the limit now, but it was a good trade. */
const WORK_GAIN = 1.1
/**
 * Or as much work, for far fewer bytes: so on a machine whose CPU is shared with the guest, where neither link nor CPU is
 * ever busy all the time.
 */
const SAME_WORK = 0.97
const FAR_FEWER = 0.8
/** Less effort is right where so much more work gets through: what is less is noise, and not worth the bytes. */
const LESS_EFFORT_GAIN = 1.1
/** Work is counted in bytes of new pages: a byte of known ones, which need no packing, is so much. */
const KNOWN_WORK = 0.15
/** How fast it is forgotten, sample by sample, how full the link once was. */
const FULL_DECAY = 0.98
/** A level that proved slower is tried again after this time, doubled each time it fails again. */
const RETRY_MS = 400
const RETRY_MAX_MS = 30_000
/** And not before so many times of what the trial lost: then trials of a level cost no more than 5 %, whatever the pages do. */
const LOST_FACTOR = 20
/** So many times as much that arrives packed, or so much less, comes of other pages, of which a trial said nothing. */
const OTHER_PAGES = 2
/** Where the CPU was not waited for the trial cost nothing, and a queue that was just filling may have spoilt it. */
const CPU_SHARE_LINK_ALONE = 0.15
const RETRY_ALONE_MS = 200

/**
 * While batches are raw nobody knows what is in them: one in so many is encoded, at the lowest level. It takes up to twice as
 * long, so this is what looking costs at most: 3 %.
 */
const RAW_PER_PROBE = 32
/** Where so much of one is known as a whole, its level is tried. */
const PROBE_KNOWN = 0.5
/** Pages of which as much is known are not worth passing as they are: a reference costs less than a page. */
const RAW_FRESH_MIN = 0.5
/** A link that takes so much more than where it was waited for has become another. */
const LIMIT_PASSED = 1.1
/** Of bytes that packing leaves as many as these, nothing is saved. */
const NOTHING_SAVED = 0.9
/** A link that does not take raw batches is found out in this time. */
const RAW_PLAIN_MS = 3

/**
 * Of new bytes LZ4 leaves three in ten at least (0.2 to 0.43, the lab's guests with templates and without), and what packs
 * nothing all: on a link that is known to take no more, less effort cannot bring more work through.
 */
const LEFT_BY_LZ4 = 0.3
/**
 * A link that is not full may take more by now, and only less effort can show it: what is known of it bars that no longer than
 * this, and anew once it was tried. And between sites only: near by this side, and not the link, may be what was measured.
 */
const BELIEVED_MS = 1000

/** Guests that wait get no more. */
const URGENT_MAX = EFFORTS[1]!
/** Where `auto` begins: the first moments of a thin link are not lost, and those of a fast one are few. */
const RUNG_START = RUNGS.indexOf(EFFORTS[1]!)
/** And where it begins between sites: links as long as this are seldom faster than that level encodes. */
const RUNG_START_FAR = RUNGS.indexOf(EFFORTS[2]!)
const FAR_RTT_MS = 10
/**
 * And near by, on a link that is known to take so much, bytes a millisecond: few hosts fill it with more. What is known before
 * the first guest may be half of what it takes, or less, but seldom more (docs/adr/0029-warm-links.md).
 */
const RUNG_START_FAST = RUNGS.indexOf(LZ4)
const FAST_RATE = 30_000
/** On the way down effort 1 is passed over: it is so near to 2 that a trial seldom tells them apart. */
const RUNG_NEAR = RUNGS.indexOf(EFFORTS[1]!)
const RUNG_RAW = RUNGS.indexOf(RAW)
const RUNG_PROBE = RUNGS.indexOf(EFFORTS[0]!)
/** What is tried from raw batches on: what packs nothing saves a link little. */
const RUNG_ABOVE_RAW = RUNGS.indexOf(LZ4)
/** Verdicts by rung; and of each, as it was beside raw batches: that says nothing of it beside another level. */
const VERDICTS = 2 * RUNGS.length

/** Bytes a millisecond. */
interface Rate {
  readonly work: number
  /** Packed bytes that were handed in ... */
  readonly made: number
  /** ... and that arrived at the other side. */
  readonly packed: number
  /** How much of the raw bytes was not known. */
  readonly fresh: number
  /** Raw bytes. */
  readonly raw: number
}

/** What a rung brought, in a sample of so many milliseconds that ended then. */
interface Sampled {
  readonly rung: number
  readonly rate: Rate
  /** How much of the time the CPU was waited for. */
  readonly cpuShare: number
  readonly sampleMs: number
  readonly endMs: number
}

export class EffortController {
  private readonly fixed: Effort | undefined
  /** What is taken now: of RUNGS, by index. */
  private rung = RUNG_START
  private begun = false
  private isFar = false
  private state: Waiting = 'source'
  private sinceMs = 0
  private wanMs = 0
  private cpuMs = 0
  /** Of this sample. */
  private work = 0
  private rawBytes = 0
  private newBytes = 0
  private packedBytes = 0
  /** Bytes that wait for the link or are under way: now, and when the sample began. */
  private waitingBytes = 0
  private waitedBytes = 0
  private batches = 0
  private settling = START_BATCHES
  /** What the link took when it was waited for, packed bytes a millisecond, as long as that counts. */
  private limit = Number.POSITIVE_INFINITY
  private limitEndMs = 0
  /** What it is known to take, in the same unit; Infinity: not known. */
  private linkRate = Number.POSITIVE_INFINITY
  /** When less effort was last tried, or first not tried for what the link is known to take; 0: never. */
  private believedMs = 0
  /** Nothing was decided yet. */
  private isFirst = true
  /** Raw batches since the last that was encoded to see what is in them. */
  private unseen = 0
  /** That one was mostly known. */
  private seesKnown = false
  /** The most that the link was seen to take lately, packed bytes a millisecond. */
  private full = 0
  /** The rung before, and what got through there, bytes a millisecond, until the present one is judged. */
  private before: Sampled | undefined
  /** By rung that proved worse: not to be tried before this time ... */
  private readonly retryAtMs = new Float64Array(VERDICTS)
  /** ... or, on other pages, before this one; and how many packed bytes a millisecond arrived then, at its neighbour. */
  private readonly soonestMs = new Float64Array(VERDICTS)
  private readonly packedThen = new Float64Array(VERDICTS)
  private readonly retryMs = new Float64Array(VERDICTS).fill(RETRY_MS)

  /** @param level a fixed level, also LZ4's, or auto */
  constructor(level: number | 'auto') {
    this.fixed = level === 'auto' ? undefined : effortAt(level)
  }

  /** Batches may be packed with LZ4: all other than zstd's have columns that are. */
  get packsLz4(): boolean {
    return this.fixed?.method !== 'zstd'
  }

  /**
   * The first migration of a session begins.
   * @param rttMs the shortest seen of the link, 0: not known
   * @param linkRate bytes a millisecond that it is known to take; Infinity: not known
   */
  begin(rttMs: number, linkRate = Number.POSITIVE_INFINITY): void {
    if (this.begun) return
    this.begun = true
    this.isFar = rttMs >= FAR_RTT_MS
    if (this.isFar) this.rung = RUNG_START_FAR
    else if (Number.isFinite(linkRate) && linkRate >= FAST_RATE) this.rung = RUNG_START_FAST
  }

  /** What the next batch would have. Changes nothing. */
  present(urgent: boolean): Effort {
    return limited(this.fixed ?? RUNGS[this.rung]!, urgent)
  }

  /** The effort of the next batch, which is made now: of raw ones one in so many is encoded. `urgent`: a guest waits for it, so nothing slow. */
  effort(urgent: boolean): Effort {
    return limited(this.fixed ?? this.next(), urgent)
  }

  private next(): Effort {
    if (this.rung !== RUNG_RAW || ++this.unseen < RAW_PER_PROBE) return RUNGS[this.rung]!
    this.unseen = 0
    return RUNGS[RUNG_PROBE]!
  }

  /**
   * A batch is on its way: its raw bytes, those of them that cost time (BatchCounts.newBytes), and what they became.
   * @param effort that it was encoded with
   */
  sent(rawBytes: number, newBytes: number, packedBytes: number, effort?: Effort): void {
    this.waitingBytes += packedBytes
    if (this.rung === RUNG_RAW && effort === RUNGS[RUNG_PROBE] && this.settling === 0)
      this.seesKnown = newBytes < rawBytes * (1 - PROBE_KNOWN)
    // none of the level before comes behind the first raw one, and each is dear where the link does not take it
    if (effort === RAW && this.rung === RUNG_RAW && this.settling > 1) this.settling = 1
    if (this.settling > 0) {
      this.settling--
      this.beginSample()
    } else {
      this.work += newBytes + (rawBytes - newBytes) * KNOWN_WORK
      this.rawBytes += rawBytes
      this.newBytes += newBytes
      this.packedBytes += packedBytes
      this.batches++
    }
  }

  /**
   * Tells what the encoding side waits for from now on.
   * @param waitingBytes that have been sent and have not arrived
   * @param linkRate bytes a millisecond that the link is known to take; Infinity: it may take more than it was given
   */
  wait(state: Waiting, nowMs: number, waitingBytes: number, linkRate = Number.POSITIVE_INFINITY): void {
    this.linkRate = linkRate
    const elapsed = nowMs - this.sinceMs
    this.sinceMs = nowMs
    if (this.state === 'wan') this.wanMs += elapsed
    else if (this.state === 'cpu') this.cpuMs += elapsed
    this.state = state
    this.waitingBytes = waitingBytes
    const total = this.wanMs + this.cpuMs
    if (total < (this.rung === RUNG_RAW ? RAW_PLAIN_MS : PLAIN_MS) || this.settling > 0) return
    const cpuShare = this.cpuMs / total
    const rate = {
      work: this.work / total,
      made: this.packedBytes / total,
      packed: (this.packedBytes + this.waitedBytes - waitingBytes) / total,
      fresh: this.rawBytes > 0 ? this.newBytes / this.rawBytes : 0,
      raw: this.rawBytes / total,
    }
    const isShort = this.rung === RUNG_RAW || (this.full === 0 && cpuShare > CPU_SHARE_NEVER_FULL)
    const sampleMs = isShort ? FIRST_SAMPLE_MS : SAMPLE_MS
    const isWhole = total >= sampleMs && (this.batches >= SAMPLE_BATCHES || total >= SAMPLE_MAX_MS)
    if (!isWhole && !this.isPlainlyWorse(rate)) return
    this.beginSample()
    this.decide(cpuShare, rate, nowMs, total)
  }

  /** Whether this says enough of the level on trial, though its sample is not whole. */
  protected isPlainlyWorse({ work, made, raw, packed }: Rate): boolean {
    const { before } = this
    if (before === undefined || this.batches < PLAIN_BATCHES) return false
    // before the queue is full of them: what does not arrive says it
    if (this.rung === RUNG_RAW) return packed < before.rate.raw * PLAINLY_LESS
    if (before.rung === RUNG_RAW)
      return raw < before.rate.raw * PLAINLY_LESS && made < before.rate.packed * PLAINLY_LESS
    if (before.rung > this.rung) return false
    return work < before.rate.work * PLAINLY_LESS && made < before.rate.packed * PLAINLY_LESS
  }

  private beginSample(): void {
    this.wanMs = 0
    this.cpuMs = 0
    this.work = 0
    this.rawBytes = 0
    this.newBytes = 0
    this.packedBytes = 0
    this.waitedBytes = this.waitingBytes
    this.batches = 0
  }

  private decide(cpuShare: number, sampled: Rate, nowMs: number, sampleMs: number): void {
    const { rung } = this
    const { seesKnown } = this
    this.seesKnown = false
    // of raw batches nobody knows how much work they were: bytes compare alone
    const isBeside = rung === RUNG_RAW || this.before?.rung === RUNG_RAW
    const rate = isBeside ? byBytes(sampled) : sampled
    const { before: sampledBefore } = this
    const before = sampledBefore && isBeside ? { ...sampledBefore, rate: byBytes(sampledBefore.rate) } : sampledBefore
    this.before = undefined
    this.full = Math.max(this.full * FULL_DECAY, rate.packed)
    this.learnLimit(cpuShare, rate.packed, nowMs)
    if (before !== undefined) {
      const got = through(rate)
      const trialMs = nowMs - before.endMs
      // from raw batches more effort is tried where the CPU is waited for, too: there a link that is as full says nothing
      const isForLink = before.rung !== RUNG_RAW || Math.min(cpuShare, before.cpuShare) < CPU_SHARE_UP_MAX
      const isMore = isForLink ? isWorthMore(rate, before.rate) : isSameForLess(rate, before.rate)
      const better = before.rung < rung ? isMore : got > before.rate.work * LESS_EFFORT_GAIN
      if (!better) {
        // less effort on other pages was no trial: the level before is to be seen on them, and this one right after it
        const isTrial = before.rung < rung || isBeside || !this.areOtherPages(before.rate.fresh, rate.fresh)
        const lostMs = trialMs * shareLost(got, before.rate.work)
        if (isTrial) this.leave(verdictOf(rung, before.rung), cpuShare, nowMs, lostMs, before.rate.packed)
        if (rung === RUNG_RAW) this.limitTo(Math.max(rate.packed, before.rate.packed), nowMs)
        // all the way down was too far: then to the next one
        const next = rung === RUNG_RAW ? below(before.rung) : RUNG_RAW
        const goesOn = next !== RUNG_RAW && this.mayTry(next, nowMs, before.rate.packed)
        if (goesOn) this.before = { ...sampledBefore!, endMs: nowMs }
        this.moveTo(goesOn ? next : before.rung)
        return
      }
      this.retryMs[verdictOf(rung, before.rung)] = RETRY_MS
      if (before.rung > rung) {
        // it lost until it was found out, and that took about as long as the trial too
        const lostMs = (before.sampleMs + trialMs) * shareLost(before.rate.work, got)
        this.leave(verdictOf(before.rung, rung), 1, nowMs, lostMs, rate.packed)
      }
    }
    const to = this.choose(cpuShare, rate, seesKnown, nowMs)
    if (to === rung) return
    this.before = { rung, rate: sampled, cpuShare, sampleMs, endMs: nowMs }
    this.moveTo(to)
  }

  private learnLimit(cpuShare: number, packed: number, nowMs: number): void {
    if (cpuShare < CPU_SHARE_DOWN) this.limitTo(packed, nowMs)
    else if (packed > this.limit * LIMIT_PASSED || nowMs > this.limitEndMs) this.limit = Number.POSITIVE_INFINITY
  }

  private limitTo(packed: number, nowMs: number): void {
    this.limit = packed
    this.limitEndMs = nowMs + RETRY_MAX_MS
  }

  /** @returns the rung to try; the present one: none */
  private choose(cpuShare: number, rate: Rate, seesKnown: boolean, nowMs: number): number {
    const { work, packed, raw, fresh } = rate
    const { rung, isFirst } = this
    // a step down now would be a look at the link too
    const isBelieved = this.believedMs === 0 || nowMs - this.believedMs < BELIEVED_MS
    const linkRate = this.isFar && isBelieved ? this.linkRate : Number.POSITIVE_INFINITY
    const limit = Math.min(this.limit, linkRate)
    this.isFirst = false
    if (rung === RUNG_RAW) {
      if (seesKnown && this.mayTry(verdictOf(RUNG_PROBE, rung), nowMs, packed)) return RUNG_PROBE
      // also where the CPU is waited for: what is packed is not encrypted
      const verdict = verdictOf(RUNG_ABOVE_RAW, rung)
      const isSlower = packed * OTHER_PAGES < this.packedThen[verdict]! // the link is: it was judged on another one
      return isSlower || this.mayTry(verdict, nowMs, packed) ? RUNG_ABOVE_RAW : rung
    }
    const hasRoom = packed < this.full * STILL_FULL || cpuShare > CPU_SHARE_NEVER_FULL
    const takesRaw = raw * LESS_EFFORT_GAIN < limit && fresh > RAW_FRESH_MIN
    const isVain = savesNothing(rate)
    if (hasRoom && cpuShare > CPU_SHARE_DOWN) {
      const isWide = cpuShare > CPU_SHARE_NEVER_FULL && takesRaw
      // a link that has nothing to do is not to wait for each level in turn, nor is what none of them saves
      const atOnce = isFirst || isVain || below(rung) === RUNG_RAW
      if (isWide && atOnce && this.mayTry(RUNG_RAW, nowMs, packed)) return RUNG_RAW
      const next = below(rung)
      if (next !== RUNG_RAW && this.mayTry(next, nowMs, packed)) {
        if (mayBringMore(next, work, linkRate)) {
          this.believedMs = nowMs
          return next
        }
        if (this.believedMs === 0) this.believedMs = nowMs
      }
    }
    if (cpuShare < CPU_SHARE_UP_MAX) return this.mayTry(rung + 1, nowMs, packed) ? rung + 1 : rung
    // what saves nothing is work in vain
    return isVain && takesRaw && this.mayTry(RUNG_RAW, nowMs, packed) ? RUNG_RAW : rung
  }

  /**
   * A level was worse than its neighbour: not again for a while.
   * @param lostMs of its trial
   * @param packed what arrived at its neighbour
   */
  private leave(verdict: number, cpuShare: number, nowMs: number, lostMs: number, packed: number): void {
    const alone = cpuShare < CPU_SHARE_LINK_ALONE
    const retryMs = alone ? RETRY_ALONE_MS : this.retryMs[verdict]!
    const dearMs = Math.min(RETRY_MAX_MS, this.holdMs(lostMs))
    this.retryAtMs[verdict] = nowMs + Math.max(retryMs, dearMs)
    this.soonestMs[verdict] = nowMs + Math.max(Math.min(RETRY_MS, retryMs), dearMs)
    this.packedThen[verdict] = packed
    if (!alone) this.retryMs[verdict] = Math.min(RETRY_MAX_MS, this.retryMs[verdict]! * 2)
  }

  /** How long a level is left alone whose trial lost so much. */
  protected holdMs(lostMs: number): number {
    return lostMs * LOST_FACTOR
  }

  /** @param verdict of a rung, which may be one too high */
  private mayTry(verdict: number, nowMs: number, packed: number): boolean {
    if (verdict === RUNGS.length) return false
    const others = this.areOtherPages(this.packedThen[verdict]!, packed)
    return nowMs >= (others ? this.soonestMs[verdict]! : this.retryAtMs[verdict]!)
  }

  /** By the packed bytes that arrived when a level was left, and that arrive now; or by how much of them was new. */
  protected areOtherPages(then: number, now: number): boolean {
    return now > then * OTHER_PAGES || now * OTHER_PAGES < then
  }

  private moveTo(rung: number): void {
    this.rung = rung
    this.settling = SETTLE_BATCHES
  }
}

/** Whether a link that takes so much could carry what a lower level than the present one would make of more work. */
function mayBringMore(rung: number, work: number, linkRate: number): boolean {
  if (rung > RUNG_ABOVE_RAW) return true
  return work * LESS_EFFORT_GAIN * (rung === RUNG_ABOVE_RAW ? LEFT_BY_LZ4 : 1) < linkRate
}

/** Work a millisecond without what only filled the queue: after a step down that is the first that comes of it. */
function through({ work, made, packed }: Rate): number {
  return made > packed ? (work * packed) / made : work
}

/** Where the verdict on a rung is kept that was tried from another one. */
function verdictOf(rung: number, from: number): number {
  return from === RUNG_RAW ? RUNGS.length + rung : rung
}

function byBytes(rate: Rate): Rate {
  return { ...rate, work: rate.raw }
}

function limited(effort: Effort, urgent: boolean): Effort {
  return urgent && effort.level > URGENT_MAX.level ? URGENT_MAX : effort
}

function shareLost(work: number, elsewhere: number): number {
  return work < elsewhere ? 1 - work / elsewhere : 0
}

/** Whether more effort, which gave `now`, is better than what gave `before`. */
function isWorthMore(now: Rate, before: Rate): boolean {
  return now.made > before.packed * STILL_FULL || isSameForLess(now, before)
}

/** Whether that brings more work through, or as much for far fewer bytes. */
function isSameForLess(now: Rate, before: Rate): boolean {
  if (now.work > before.work * WORK_GAIN) return true
  return now.work > before.work * SAME_WORK && now.made * before.work < before.made * now.work * FAR_FEWER
}

function savesNothing({ made, raw }: Rate): boolean {
  return made > raw * NOTHING_SAVED
}

function below(rung: number): number {
  return rung - 1 === RUNG_NEAR ? rung - 2 : rung - 1
}
