/**
 * Plots as inline SVG. Widths are parts of whatever width there is, so that text keeps its size on a phone. Colours and
 * dashes come from style.css by series (`s-NAME`); what a mark means when pointed at is its `data-tip` (page.js).
 */

export function escapeText(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')
}

const percent = (part: number, whole: number): string => `${whole > 0 ? Math.round((part / whole) * 10000) / 100 : 0}%`

function svg(height: number, label: string, content: string, attributes = ''): string {
  return `<svg class="plot" width="100%" height="${height}" role="img" aria-label="${escapeText(label)}"${attributes}>${content}</svg>`
}

export interface BarRow {
  readonly label: string
  /** Empty: the same row's next bar. */
  readonly series: string
  /** undefined: nothing to draw, `text` says why. */
  readonly value: number | undefined
  readonly text: string
  /** What the bar is an average of. */
  readonly dots: readonly { readonly value: number; readonly tip: string }[]
}

const BAR_ROW = 40

/** Horizontal bars with their labels above them. */
export function bars(label: string, rows: readonly BarRow[], most: number): string {
  // 0.99: the outermost dot is not cut in half
  const x = (value: number): string => percent(value * 0.99, most)
  const drawn = rows.map((row, i) => {
    const y = i * BAR_ROW
    const bar =
      row.value === undefined
        ? `<rect class="none" x="0" y="${y + 19}" width="100%" height="12"/>`
        : `<rect class="bar" x="0" y="${y + 19}" width="${x(row.value)}" height="12" rx="2" data-tip="${escapeText(`${row.label}: ${row.text}`)}"/>`
    const dots = row.dots.map(
      dot => `<circle class="dot" cx="${x(dot.value)}" cy="${y + 25}" r="3.5" data-tip="${escapeText(dot.tip)}"/>`,
    )
    return (
      `<g class="series s-${row.series}" data-series="${row.series}"><text class="label" x="0" y="${y + 13}">${escapeText(row.label)}</text>` +
      `<text class="value" x="100%" y="${y + 13}">${escapeText(row.text)}</text>${bar}${dots.join('')}</g>`
    )
  })
  return svg(rows.length * BAR_ROW, label, drawn.join(''))
}

export interface StackRow {
  readonly label: string
  readonly note: string
  readonly parts: readonly {
    readonly series: string
    readonly name: string
    readonly value: number
    readonly text: string
  }[]
}

const STACK_ROW = 50

/** Horizontal bars of parts that make a whole. Parts too narrow for their text are told by tips and table. */
export function stacks(label: string, rows: readonly StackRow[]): string {
  const drawn = rows.map((row, i) => {
    const y = i * STACK_ROW
    const whole = row.parts.reduce((sum, { value }) => sum + value, 0)
    let before = 0
    const parts = row.parts.map(({ series, name, value, text }) => {
      const share = value / whole
      const middle = percent(before + value / 2, whole)
      const tip = escapeText(`${row.label}, ${name}: ${text}, ${percent(value, whole).replace(/\.\d+/, '')}`)
      const inside =
        share >= 0.12
          ? `<text class="inside" x="${middle}" y="${y + 35}">${percent(share, 1).replace(/\.\d+/, '')}</text>`
          : ''
      const part =
        `<g class="series s-${series}" data-series="${series}"><rect class="bar" x="${percent(before, whole)}" y="${y + 19}" ` +
        `width="${percent(value, whole)}" height="24" data-tip="${tip}"/>${inside}</g>`
      before += value
      return part
    })
    return (
      `<text class="label" x="0" y="${y + 13}">${escapeText(row.label)}</text>` +
      `<text class="value" x="100%" y="${y + 13}">${escapeText(row.note)}</text>${parts.join('')}`
    )
  })
  return svg(rows.length * STACK_ROW, label, drawn.join(''))
}

/** With a name of its own, where x alone does not say what it is. */
export type Point = readonly [x: number, y: number, name?: string]

export interface LinePlot {
  readonly label: string
  readonly lines: readonly {
    readonly series: string
    readonly name: string
    readonly points: readonly Point[]
    /** Points that its line does not go through. */
    readonly loose?: readonly Point[]
  }[]
  readonly height: number
  /** Ticks of both axes, the last being the end of the axis; logarithmic axes begin with their first tick. */
  readonly xTicks: readonly number[]
  readonly yTicks: readonly number[]
  readonly logarithmic?: boolean
  readonly xText: (x: number) => string
  readonly yText: (y: number) => string
  readonly dots?: boolean
}

/** Lines over common axes; page.js shows all values where one points. */
export function lines(plot: LinePlot): string {
  const { height, xTicks, yTicks, logarithmic = false } = plot
  const scale = (ticks: readonly number[]) => {
    const [from, to] = [logarithmic ? Math.log(ticks[0]!) : 0, logarithmic ? Math.log(ticks.at(-1)!) : ticks.at(-1)!]
    return (value: number): number => ((logarithmic ? Math.log(value) : value) - from) / (to - from)
  }
  const [x, y] = [scale(xTicks), scale(yTicks)]
  const bottom = height - 20
  const yOf = (value: number): number => Math.round((bottom - y(value) * (bottom - 14)) * 10) / 10
  const grid = yTicks.map(tick => `<line class="grid" x1="0" x2="100%" y1="${yOf(tick)}" y2="${yOf(tick)}"/>`)
  const heights = yTicks.map(
    tick => `<text class="tick" x="2" y="${yOf(tick) - 3}">${escapeText(plot.yText(tick))}</text>`,
  )
  const ticks = xTicks.map((tick, i) => {
    const anchor = i === xTicks.length - 1 ? 'end' : i === 0 ? 'start' : 'middle'
    return `<text class="tick" x="${percent(x(tick), 1)}" y="${height - 5}" style="text-anchor:${anchor}">${escapeText(plot.xText(tick))}</text>`
  })
  const paths = plot.lines.map(({ series, points, loose = [] }) => {
    const at = points.map(([px, py]) => `${Math.round(x(px) * 1000)} ${yOf(py)}`)
    const dots = plot.dots
      ? [...points, ...loose]
          .map(([px, py]) => `<circle class="dot" cx="${percent(x(px), 1)}" cy="${yOf(py)}" r="3"/>`)
          .join('')
      : ''
    return (
      `<g class="series s-${series}" data-series="${series}"><svg viewBox="0 0 1000 ${height}" preserveAspectRatio="none" width="100%" height="${height}">` +
      `<path class="line" d="M${at.join('L')}"/></svg>${dots}</g>`
    )
  })
  const data = plot.lines.map(({ series, name, points, loose = [] }) => ({
    series,
    name,
    points: [...points, ...loose]
      .sort(([one], [other]) => one - other)
      .map(([px, py, said]) => [Math.round(x(px) * 10000) / 10000, said ?? plot.xText(px), plot.yText(py)]),
  }))
  const cross = `<line class="cross" x1="0" x2="0" y1="14" y2="${bottom}" visibility="hidden"/>`
  return svg(
    height,
    plot.label,
    `${grid.join('')}${paths.join('')}${heights.join('')}${ticks.join('')}${cross}`,
    ` data-lines="${escapeText(JSON.stringify(data))}"`,
  )
}

/** 1, 3, 10, 30 and so on, from at or below `least` to at or above `most`: of a logarithmic axis. */
export function logarithmicTicks(least: number, most: number): number[] {
  const at = (i: number): number => (i % 2 === 0 ? 1 : 3) * 10 ** Math.floor(i / 2)
  let i = 2 * Math.floor(Math.log10(least))
  while (at(i + 1) <= least) i++
  const ticks = [at(i)]
  while (ticks.at(-1)! < most) ticks.push(at(++i))
  return ticks
}

/** Round numbers from 0 that end at or above `most`: three to six of them. */
export function ticksTo(most: number): number[] {
  if (!(most > 0)) return [0, 1]
  const rough = most / 4
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 2.5, 5, 10].find(factor => factor * power >= rough)! * power
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, i) => i * step)
}
