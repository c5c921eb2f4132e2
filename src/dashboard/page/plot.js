/**
 * A plot over time, as SVG: lines, or areas one upon the other. What it shows where one points, or where the arrow keys
 * put its mark, stands below it as text.
 */
import { drawing, element, setText } from './elements.js'
import { formatTick } from './text.js'

const HEIGHT = 170
const TOP = 14
const BOTTOM = HEIGHT - 20
/** Of the drawing within, which is as wide as there is room. */
const WIDTH = 1000
const TICKS = 4

/** @typedef {{ readonly name: string, readonly text: string }} Line */
/** @typedef {{ readonly seconds: number, readonly values: readonly number[], readonly over?: number }} PlotPoint */

/** The end of an axis that has `most` on it: a round number. @param {number} most */
export function axisEnd(most) {
  if (!(most > 0)) return 1
  const power = 10 ** Math.floor(Math.log10(most))
  return [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10].map(part => part * power).find(end => end >= most * 0.9999) ?? most
}

/**
 * Where a key moves what stands at `now`; undefined: it is none that moves.
 *
 * @param {string} key
 * @param {number} now @param {number} last
 * @param {number} page how far PageUp and PageDown go
 */
export function movedBy(key, now, last, page) {
  /** @type {Record<string, number>} */
  const steps = {
    ArrowLeft: -1,
    ArrowDown: -1,
    ArrowRight: 1,
    ArrowUp: 1,
    PageDown: -page,
    PageUp: page,
    Home: -last,
    End: last,
  }
  if (!Object.hasOwn(steps, key) || last < 0) return undefined
  return Math.min(last, Math.max(0, now + steps[key]))
}

/** @param {number} value */
const rounded = value => Math.round(value * 10) / 10

export class Plot {
  /** @type {readonly PlotPoint[]} */
  points = []
  end = 1
  /** Which point is marked; undefined: the last, and no mark is seen. @type {number | undefined} */
  marked

  /**
   * @param {object} options
   * @param {string} options.title
   * @param {readonly Line[]} options.lines
   * @param {boolean} [options.stacked]
   * @param {Line} [options.over] a line over areas
   * @param {(value: number) => string} options.format
   */
  constructor({ title, lines, stacked = false, over, format }) {
    this.lines = lines
    this.stacked = stacked
    this.over = over
    this.format = format
    const kind = stacked ? 'area' : 'line'
    this.paths = lines.map(({ name }) => drawing('path', { class: `${kind} s-${name}` }))
    this.overPath = drawing('path', { class: `line s-${over?.name ?? 'none'}` })
    this.mark = drawing('line', { class: 'mark', x1: 0, x2: 0, y1: TOP, y2: BOTTOM, visibility: 'hidden' })
    const heights = Array.from({ length: TICKS + 1 }, (_, i) => BOTTOM - (i * (BOTTOM - TOP)) / TICKS)
    const grid = heights.map(y => drawing('line', { class: 'grid', x1: 0, x2: '100%', y1: y, y2: y }))
    this.yTicks = heights.map(y => drawing('text', { class: 'tick', x: 2, y: y - 3 }))
    this.xTicks = [0, 0.5, 1].map(part =>
      drawing('text', { class: `tick at-${part * 2}`, x: `${part * 100}%`, y: HEIGHT - 5 }),
    )
    const inner = drawing(
      'svg',
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', width: '100%', height: HEIGHT },
      ...this.paths,
      this.overPath,
    )
    const picture = drawing(
      'svg',
      { class: 'plot', width: '100%', height: HEIGHT, 'aria-hidden': 'true', focusable: 'false' },
      ...grid,
      inner,
      ...this.yTicks,
      ...this.xTicks,
      this.mark,
    )
    this.values = [...lines, ...(over ? [over] : [])].map(() => element('span', { class: 'value' }))
    const legend = element(
      'ul',
      { class: 'legend' },
      ...[...lines, ...(over ? [over] : [])].map(({ name, text }, i) =>
        element('li', {}, element('span', { class: `swatch s-${name}` }), `${text} `, this.values[i]),
      ),
    )
    this.at = element('p', { class: 'at' })
    this.slider = element('div', {
      class: 'over',
      tabindex: '0',
      role: 'slider',
      'aria-label': `${title}: point in time`,
      'aria-valuemin': '0',
      'aria-valuemax': '0',
      'aria-valuenow': '0',
    })
    this.slider.append(picture)
    this.slider.addEventListener('pointermove', event => this.point(event))
    this.slider.addEventListener('pointerleave', () => this.move(undefined))
    this.slider.addEventListener('blur', () => this.move(undefined))
    this.slider.addEventListener('keydown', event => this.key(event))
    this.node = element('figure', {}, element('figcaption', {}, title), this.slider, this.at, legend)
  }

  /** @param {readonly PlotPoint[]} points */
  show(points) {
    this.points = points
    if (this.marked !== undefined && this.marked >= points.length) this.marked = undefined
    const last = points.at(-1)
    if (!last) return
    const { stacked } = this
    const sums = points.map(({ values }) =>
      stacked ? values.reduce((sum, value) => sum + value, 0) : Math.max(...values),
    )
    const top = axisEnd(Math.max(...sums, ...points.map(({ over = 0 }) => over)))
    this.end = Math.max(last.seconds, 1)
    /** @param {PlotPoint} point @param {number} value */
    const at = (point, value) =>
      `${rounded((point.seconds / this.end) * WIDTH)} ${rounded(BOTTOM - (value / top) * (BOTTOM - TOP))}`
    const below = points.map(() => 0)
    for (const [i, path] of this.paths.entries()) {
      const line = points.map((point, k) => at(point, (stacked ? below[k] : 0) + point.values[i]))
      if (stacked) {
        const back = points.map((point, k) => at(point, below[k])).reverse()
        for (const [k, { values }] of points.entries()) below[k] += values[i]
        line.push(...back)
      }
      path.setAttribute('d', `M${line.join('L')}${stacked ? 'Z' : ''}`)
    }
    if (this.over) this.overPath.setAttribute('d', `M${points.map(point => at(point, point.over ?? 0)).join('L')}`)
    for (const [i, tick] of this.yTicks.entries()) setText(tick, i === 0 ? '' : this.format((top * i) / TICKS))
    for (const [i, tick] of this.xTicks.entries()) setText(tick, i === 0 ? '0' : formatTick((this.end * i) / 2))
    this.tell()
  }

  /** @param {number | undefined} marked */
  move(marked) {
    this.marked = marked
    this.tell()
  }

  tell() {
    const { points, marked } = this
    const index = marked ?? points.length - 1
    const point = points[index]
    if (!point) return
    const values = [...point.values, ...(this.over ? [point.over ?? 0] : [])].map(value => this.format(value))
    for (const [i, value] of values.entries()) setText(this.values[i], value)
    const when = marked === undefined ? 'now' : `after ${formatTick(point.seconds)}`
    setText(this.at, when)
    const part = `${rounded((point.seconds / this.end) * 1000) / 10}%`
    this.mark.setAttribute('x1', part)
    this.mark.setAttribute('x2', part)
    this.mark.setAttribute('visibility', marked === undefined ? 'hidden' : 'visible')
    const names = [...this.lines, ...(this.over ? [this.over] : [])]
    this.slider.setAttribute('aria-valuemax', String(points.length - 1))
    this.slider.setAttribute('aria-valuenow', String(index))
    const text = `${when}: ${names.map(({ text }, i) => `${text} ${values[i]}`).join(', ')}`
    // each change of it is read out where it has the focus: only those that the reader made
    if (marked !== undefined || document.activeElement !== this.slider) this.slider.setAttribute('aria-valuetext', text)
  }

  /** @param {PointerEvent} event */
  point(event) {
    const { left, width } = this.slider.getBoundingClientRect()
    const seconds = ((event.clientX - left) / width) * this.end
    let best = 0
    for (const [i, point] of this.points.entries())
      if (Math.abs(point.seconds - seconds) < Math.abs(this.points[best].seconds - seconds)) best = i
    this.move(best)
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const last = this.points.length - 1
    const moved = movedBy(event.key, this.marked ?? last, last, 10)
    if (moved === undefined) return
    event.preventDefault()
    this.move(moved)
  }
}
