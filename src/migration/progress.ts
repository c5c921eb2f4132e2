/**
 * How far a migration is, how fast, and how long it will still take: from where in the guest's memory its last records lay,
 * and what passed until then. Pure: times come in.
 *
 * QEMU goes through dirty pages in the order of their addresses, so that a place behind which a channel falls back begins
 * its next pass, and a place says how much of a pass is done, whatever is dirty. How much the guest wrote during a pass is
 * what the next one brings: passes that shrink converge.
 */
import { PAGE_SIZE } from '../codec/wire.ts'
import type { BlockTable } from '../qemu/block-table.ts'
import type { Counted } from './forecast.ts'
import { type ByteRates, type RatedBytes, Rates } from './rates.ts'

/** Of less of a pass nothing is said of the rest of it. */
const SHARE_MIN = 0.02
/** Of less of a pass it is not said how much it brings. */
const SHARE_JUDGED = 0.25
/** Passes that do not shrink by more than this come to no end that anybody waits for. */
const SHRINKS = 0.95
/**
 * Of less of the first pass nothing is said of the migration's end: guests have most of their pages at low addresses, so
 * that what is left may take a tenth of what it would if it went on.
 */
const SHARE_HALF = 0.5
/** Until a pass is judged: it and all that follow take so much of the one before, where each is at most 0.6 of that. */
const UNJUDGED = 1.5
/** QEMU stops the guest where the rest takes no longer: its default of downtime-limit. */
const DOWNTIME_S = 0.3
/** A line is told at each tenth of a pass, and so long behind the last one at the soonest. */
const TOLD_SHARE = 0.1
const TOLD_MS = 10_000

/** Where in the guest's memory: a RAMBlock of the table, and a page of it. */
export interface MemoryPlace {
  readonly block: number
  readonly page: number
}

export interface MigrationProgress extends ByteRates {
  /** From 1. */
  readonly pass: number
  /** Of that pass, 0 to 1. */
  readonly share: number
  /** To the end of the pass, at the rates of now. */
  readonly passSeconds?: number
  /** To the end of the migration, where it converges; from the second pass on. */
  readonly seconds?: number
  /**
   * Between which it ends, where it converges; from half of the first pass on. In that pass what the guest writes is not
   * known: nothing, with nothing in what is left, up to as much again as that pass.
   */
  readonly secondsBetween?: readonly [number, number]
  /** Whether passes shrink; from the second one on. */
  readonly converges?: boolean
}

/** Where a channel was last, and in which pass. */
interface Position {
  pass: number
  at: number
}

/** @typeParam C - a channel */
export class Progress<C extends object> {
  private readonly positions = new WeakMap<C, Position>()
  private pass = 1
  /** Furthest place of any channel in this pass, bytes from the first RAMBlock's start. */
  private at = 0
  private passMs: number
  /** Where this pass began: its first dirty page may lie far behind the first page. */
  private passAt = 0
  private passPages = 0
  /** Seconds that the pass before took. */
  private beforeSeconds = 0
  /** Pages of the pass before. */
  private beforePages = 0
  private pages = 0
  private readonly rates: Rates
  /** Where each RAMBlock begins, and behind the last one: all of the guest's memory. */
  private starts: readonly number[] = []
  private toldMs: number
  private toldTenth = 0

  constructor(startMs: number) {
    this.passMs = startMs
    this.toldMs = startMs
    this.rates = new Rates(startMs)
  }

  /**
   * A batch of a channel was handed in.
   * @param place of the last page in it; undefined: there is none
   * @returns whether it is time for a line about it
   */
  sent(channel: C, place: MemoryPlace | undefined, blocks: BlockTable, counted: Counted, nowMs: number): boolean {
    this.pages = counted.pages
    this.rates.passed(counted, nowMs)
    if (place && blocks.complete) this.moves(channel, this.bytesTo(place, blocks), nowMs)
    return this.isLineDue(nowMs)
  }

  /** @returns undefined where nothing is known of the guest's memory. */
  status(counted: RatedBytes, nowMs: number): MigrationProgress | undefined {
    const { starts, pass, share } = this
    if (starts.length === 0) return undefined
    return { pass, share: rounded(share, 4), ...this.rates.status(counted, nowMs), ...this.expected(nowMs) }
  }

  /** Of the present pass. */
  private get share(): number {
    const all = this.starts.at(-1) ?? 0
    return all === 0 ? 0 : Math.min(1, this.at / all)
  }

  private expected(nowMs: number): Pick<MigrationProgress, 'passSeconds' | 'seconds' | 'secondsBetween' | 'converges'> {
    const { share, pass, beforePages, beforeSeconds } = this
    const elapsed = (nowMs - this.passMs) / 1000
    const unjudged = UNJUDGED * beforeSeconds - elapsed
    if (share < SHARE_MIN) return pass === 1 ? {} : { secondsBetween: between(0, Math.max(0, unjudged)) }
    const whole = elapsed / share
    const left = whole - elapsed
    const passSeconds = rounded(left, 1)
    if (pass === 1)
      return share < SHARE_HALF ? { passSeconds } : { passSeconds, secondsBetween: between(0, left + whole) }
    if (share < SHARE_JUDGED || beforePages === 0)
      return { passSeconds, secondsBetween: between(0, Math.max(left, unjudged)) }
    const sent = this.pages - this.passPages
    const shrinks = sent / share / beforePages
    if (shrinks >= SHRINKS) return { passSeconds, converges: false }
    const seconds = rounded(left + furtherSeconds(whole, shrinks), 1)
    // at least as if no more of this pass were dirty; at most as if what is left of it were as dense as it was from its
    // first page on, and as if passes shrank less and less: a guest writes the same pages again, so that half of the
    // time brings more than half of them
    const soFar = furtherSeconds(elapsed, sent / beforePages)
    const rest = (1 - share) / Math.max(share - this.passAt / this.starts.at(-1)!, SHARE_MIN)
    const dense = Math.min(Math.sqrt((sent * (1 + rest)) / beforePages), SHRINKS)
    const most = elapsed * rest + furtherSeconds(elapsed * (1 + rest), dense)
    return { passSeconds, converges: true, seconds, secondsBetween: between(soFar, Math.max(most, seconds)) }
  }

  private moves(channel: C, at: number, nowMs: number): void {
    let position = this.positions.get(channel)
    if (!position) {
      position = { pass: this.pass, at }
      this.positions.set(channel, position)
    } else if (at < position.at) position.pass = Math.max(position.pass + 1, this.pass)
    position.at = at
    if (position.pass > this.pass) {
      this.pass = position.pass
      this.passAt = at
      this.beforeSeconds = (nowMs - this.passMs) / 1000
      this.beforePages = this.pages - this.passPages
      this.passPages = this.pages
      this.passMs = nowMs
      this.at = at
      this.toldTenth = 0
    } else if (position.pass === this.pass) this.at = Math.max(this.at, at)
  }

  private bytesTo({ block, page }: MemoryPlace, blocks: BlockTable): number {
    if (this.starts.length !== blocks.size + 1) {
      const starts = [0]
      for (let i = 0; i < blocks.size; i++) starts.push(starts[i]! + blocks.lengthBytes(i))
      this.starts = starts
    }
    return this.starts[block]! + (page + 1) * PAGE_SIZE
  }

  private isLineDue(nowMs: number): boolean {
    const tenth = Math.floor(this.share / TOLD_SHARE)
    if (tenth <= this.toldTenth || nowMs - this.toldMs < TOLD_MS) return false
    this.toldTenth = tenth
    this.toldMs = nowMs
    return true
  }
}

/** Of all passes behind one of so many seconds, each smaller by that factor, until QEMU stops the guest. */
function furtherSeconds(whole: number, shrinks: number): number {
  let seconds = 0
  for (let next = whole * shrinks; next > DOWNTIME_S; next *= shrinks) seconds += next
  return seconds
}

/** With the time that the guest is stopped for. */
function between(least: number, most: number): readonly [number, number] {
  return [rounded(least, 1), rounded(most + DOWNTIME_S, 1)]
}

function rounded(value: number, digits: number): number {
  const scale = 10 ** digits
  return Math.round(value * scale) / scale
}
