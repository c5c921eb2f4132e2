/** What was seen of a migration since the page was opened: enough for a plot, however long it runs. */

/** @typedef {import('../../migration/summary.ts').PageCounts} PageCounts */

export const PAGE_BYTES = 4096

/** Classes of pages as the plot has them: its name in style.css, for people, and what of the counts is in it. */
/** @type {readonly { name: string, text: string, of: (pages: PageCounts) => number }[]} */
export const CLASSES = [
  { name: 'empty', text: 'empty', of: ({ zero, fill }) => zero + fill },
  { name: 'same', text: 'as sent last', of: ({ same }) => same },
  { name: 'template', text: 'in template sets', of: ({ template }) => template },
  { name: 'earlier', text: 'passed earlier', of: ({ earlier }) => earlier },
  { name: 'patched', text: 'patched', of: ({ patched }) => patched },
  { name: 'whole', text: 'new', of: ({ whole, raw = 0, opaque }) => whole + raw + opaque },
]

/** Points of a plot: more than it has pixels tell nothing. */
const POINTS_MAX = 600

/**
 * @typedef {object} Point
 * @property {number} seconds since the migration's beginning
 * @property {number} bytes of QEMU
 * @property {number} bytesWan
 * @property {number} rate of QEMU, bytes a second
 * @property {number} rateWan
 * @property {readonly number[]} classes bytes of memory, by CLASSES
 */

/** Of so long the rate is one, where the proxy does not say it. */
const RATE_SECONDS = 5

export class Series {
  /** @type {Point[]} */
  points = []
  stepSeconds = 0

  /** @param {Omit<Point, 'rate' | 'rateWan'> & { rate?: number | undefined, rateWan?: number | undefined }} seen */
  add(seen) {
    const { points } = this
    const last = points.at(-1)
    if (last && seen.seconds - last.seconds < this.stepSeconds) return
    const since = points.findLast(({ seconds }) => seconds <= seen.seconds - RATE_SECONDS) ?? points[0]
    const seconds = since ? seen.seconds - since.seconds : 0
    /** @param {'bytes' | 'bytesWan'} name */
    const rate = name => (since && seconds > 0 ? Math.max(0, seen[name] - since[name]) / seconds : 0)
    points.push({ ...seen, rate: seen.rate ?? rate('bytes'), rateWan: seen.rateWan ?? rate('bytesWan') })
    if (points.length <= POINTS_MAX) return
    this.points = points.filter((_, i) => i % 2 === 0)
    this.stepSeconds = (seen.seconds - this.points[0].seconds) / POINTS_MAX
  }
}
