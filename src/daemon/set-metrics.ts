/** What template sets bring, for Prometheus: so many sets have figures of their own, what the rest brings is `others`. */
import type { Counter, Registry } from 'prom-client'
import type { SetGain } from '../codec/set-gains.ts'
import { HISTORY_SETS_MAX, METRICS_SET_IDLE_MS, METRICS_SETS_MAX } from '../limits.ts'

/** Sets without figures of their own. */
const OTHERS = 'others'
/** Digits of a digest, as in the log. */
const NAME_DIGITS = 12

interface Tally {
  pages: number
  bytes: number
  /** When it brought something last. */
  lastMs: number
  /** What of it has been exported; undefined: nothing, not even that it is there. */
  exported: { readonly pages: number; readonly bytes: number } | undefined
}

export class SetMetrics {
  private readonly pages: Counter<'set'>
  private readonly bytes: Counter<'set'>
  private readonly nowMs: () => number
  /** By label. */
  private readonly tallies = new Map<string, Tally>()

  constructor(client: typeof import('prom-client'), registers: Registry[], nowMs = () => performance.now()) {
    const counter = (name: string, help: string): Counter<'set'> =>
      new client.Counter({ name, help, labelNames: ['set'], registers })
    this.nowMs = nowMs
    this.pages = counter('pageferry_template_set_pages_total', 'Pages of guests that a template set had whole.')
    this.bytes = counter(
      'pageferry_template_set_bytes_total',
      'Bytes of guests that came out of a template set, parts of pages counted; not packed.',
    )
  }

  /** A migration or a disk transfer has ended. @param gains the most first */
  take(gains: readonly SetGain[]): void {
    const nowMs = this.nowMs()
    for (const [i, { set, pages, bytes }] of gains.entries()) {
      const name = set.slice(0, NAME_DIGITS)
      // what a set of hundreds brings by the way takes no place from those that pay
      const tally = this.tallies.get(name) ?? ((i < HISTORY_SETS_MAX && this.add(name, nowMs)) || this.others(nowMs))
      tally.pages += pages
      tally.bytes += bytes
      tally.lastMs = nowMs
    }
  }

  /** Before a rendering. A counter begins at 0: of one that begins at more Prometheus sees no increase. */
  collect(): void {
    for (const [set, tally] of this.tallies) {
      const { pages, bytes, exported } = tally
      if (exported === undefined) {
        this.pages.inc({ set }, 0)
        this.bytes.inc({ set }, 0)
        tally.exported = { pages: 0, bytes: 0 }
        continue
      }
      this.pages.inc({ set }, pages - exported.pages)
      this.bytes.inc({ set }, bytes - exported.bytes)
      tally.exported = { pages, bytes }
    }
  }

  /** @returns undefined where all places are taken by sets that bring something */
  private add(name: string, nowMs: number): Tally | undefined {
    const named = [...this.tallies].filter(([other]) => other !== OTHERS)
    if (named.length >= METRICS_SETS_MAX) {
      const [oldest, { lastMs }] = named.reduce((least, each) => (each[1].lastMs < least[1].lastMs ? each : least))
      if (nowMs - lastMs < METRICS_SET_IDLE_MS) return undefined
      this.tallies.delete(oldest)
      this.pages.remove(oldest)
      this.bytes.remove(oldest)
    }
    return this.begin(name, nowMs)
  }

  private others(nowMs: number): Tally {
    return this.tallies.get(OTHERS) ?? this.begin(OTHERS, nowMs)
  }

  private begin(name: string, lastMs: number): Tally {
    const tally: Tally = { pages: 0, bytes: 0, lastMs, exported: undefined }
    this.tallies.set(name, tally)
    return tally
  }
}
