/**
 * A guest's memory by address, as it fills: a cell for each part of it, from the bottom up what became of its pages, and
 * a dot where pages were sent again. What a cell has, where one points or where the arrow keys put the mark, stands below
 * it as text.
 */
import { drawing, element, setText } from './elements.js'
import { movedBy } from './plot.js'
import { formatSize } from './text.js'

/** @typedef {import('../../codec/memory-map.ts').MemoryMapStatus} MemoryMapStatus */

const MAP_COLUMNS = 64
/** Of a cell, with the gap behind it: units of the drawing, which is as wide as there is room; pixels. */
const CELL_WIDTH = 10
const CELL_HEIGHT = 14
const CELL_GAP = 1.5

/** Kinds of pages, from the bottom up: how style.css calls them, and how people do. */
/** @type {readonly { name: string, text: string, of: (map: MemoryMapStatus) => readonly number[] }[]} */
const MAP_KINDS = [
  { name: 'empty', text: 'empty', of: ({ empty }) => empty },
  { name: 'template', text: 'known to the other side', of: ({ known }) => known },
  { name: 'whole', text: 'sent', of: ({ sent }) => sent },
]
const MAP_TITLE = 'Guest memory by address'

/** @param {number} value */
const hundredth = value => Math.round(value * 100) / 100

/** @param {number} percent */
const percentText = percent => `${Math.floor(percent)} %`

export class MemoryPicture {
  /** @type {MemoryMapStatus | undefined} */
  map
  /** Which cell is marked. @type {number | undefined} */
  marked

  constructor() {
    this.ground = drawing('path', { class: 'ground' })
    this.paths = MAP_KINDS.map(({ name }) => drawing('path', { class: `area s-${name}` }))
    this.again = drawing('path', { class: 'again' })
    this.mark = drawing('rect', { class: 'cell-mark', width: CELL_WIDTH, height: CELL_HEIGHT, visibility: 'hidden' })
    this.picture = drawing(
      'svg',
      { class: 'memory', preserveAspectRatio: 'none', width: '100%', 'aria-hidden': 'true', focusable: 'false' },
      this.ground,
      ...this.paths,
      this.again,
      this.mark,
    )
    this.slider = element('div', {
      class: 'over',
      tabindex: '0',
      role: 'slider',
      'aria-label': `${MAP_TITLE}: part of it`,
      'aria-valuemin': '0',
      'aria-valuemax': '0',
      'aria-valuenow': '0',
    })
    this.slider.append(this.picture)
    this.slider.addEventListener('pointermove', event => this.point(event))
    this.slider.addEventListener('pointerleave', () => this.move(undefined))
    this.slider.addEventListener('blur', () => this.move(undefined))
    this.slider.addEventListener('keydown', event => this.key(event))
    this.values = MAP_KINDS.map(() => element('span', { class: 'value' }))
    this.againValue = element('span', { class: 'value' })
    const legend = element(
      'ul',
      { class: 'legend' },
      ...MAP_KINDS.map(({ name, text }, i) =>
        element('li', {}, element('span', { class: `swatch s-${name}` }), `${text} `, this.values[i]),
      ),
      element('li', {}, element('span', { class: 'swatch dot' }), 'sent again ', this.againValue),
    )
    this.at = element('p', { class: 'at memory-at' })
    this.node = element('figure', { hidden: '' }, element('figcaption', {}, MAP_TITLE), this.slider, this.at, legend)
  }

  /** @param {MemoryMapStatus | undefined} map */
  show(map) {
    this.map = map
    this.node.hidden = map === undefined
    if (!map) return
    const cells = map.empty.length
    if (this.marked !== undefined && this.marked >= cells) this.marked = undefined
    const rows = Math.ceil(cells / MAP_COLUMNS)
    this.picture.setAttribute('viewBox', `0 0 ${MAP_COLUMNS * CELL_WIDTH} ${rows * CELL_HEIGHT}`)
    this.picture.setAttribute('height', String(rows * CELL_HEIGHT))
    const [width, height] = [CELL_WIDTH - CELL_GAP, CELL_HEIGHT - CELL_GAP]
    /** @param {number} x @param {number} y @param {number} w @param {number} h */
    const box = (x, y, w, h) => `M${hundredth(x)} ${hundredth(y)}h${hundredth(w)}v${hundredth(h)}h${hundredth(-w)}z`
    const kinds = MAP_KINDS.map(({ of }) => of(map))
    const drawn = MAP_KINDS.map(() => '')
    let ground = ''
    let again = ''
    for (let cell = 0; cell < cells; cell++) {
      const x = (cell % MAP_COLUMNS) * CELL_WIDTH
      const y = Math.floor(cell / MAP_COLUMNS) * CELL_HEIGHT
      ground += box(x, y, width, height)
      const sum = kinds.reduce((all, shares) => all + shares[cell], 0)
      let bottom = y + height
      for (const [i, shares] of kinds.entries()) {
        const part = (shares[cell] / Math.max(100, sum)) * height
        if (part === 0) continue
        bottom -= part
        drawn[i] += box(x, bottom, width, part)
      }
      if (sum <= 100) continue
      // its area is as large as the share that was sent again, up to all of it
      const side = Math.max(0.2, Math.sqrt(Math.min(1, (sum - 100) / 100)))
      again += box(x + (width * (1 - side)) / 2, y + (height * (1 - side)) / 2, width * side, height * side)
    }
    this.ground.setAttribute('d', ground)
    for (const [i, path] of this.paths.entries()) path.setAttribute('d', drawn[i])
    this.again.setAttribute('d', again)
    this.tell()
  }

  /** @param {number | undefined} marked */
  move(marked) {
    this.marked = marked
    this.tell()
  }

  tell() {
    const { map, marked } = this
    if (!map) return
    const { bytes, cellBytes } = map
    const cells = map.empty.length
    const [from, to] = marked === undefined ? [0, cells] : [marked, marked + 1]
    /** Percent of the memory of these cells. @param {(cell: number) => number} of */
    const mean = of => {
      let sum = 0
      for (let cell = from; cell < to; cell++) sum += of(cell) * Math.min(cellBytes, bytes - cell * cellBytes)
      return sum / (Math.min(to * cellBytes, bytes) - from * cellBytes)
    }
    const kinds = MAP_KINDS.map(({ of }) => of(map))
    /** @param {number} cell */
    const all = cell => kinds.reduce((sum, shares) => sum + shares[cell], 0)
    // of a cell with pages that were sent again, shares of what was sent: those of each kind make up all of it
    const values = kinds.map(shares => percentText(mean(cell => (100 * shares[cell]) / Math.max(100, all(cell)))))
    const again = percentText(mean(cell => Math.max(0, all(cell) - 100)))
    const passed = percentText(mean(cell => Math.min(100, all(cell))))
    for (const [i, value] of values.entries()) setText(this.values[i], value)
    setText(this.againValue, again)
    const where =
      marked === undefined
        ? `all ${formatSize(bytes)}`
        : `${formatSize(from * cellBytes)} to ${formatSize(Math.min(to * cellBytes, bytes))}`
    const when = `${where}: ${passed} has passed`
    setText(this.at, when)
    const text = `${when}; ${MAP_KINDS.map(({ text }, i) => `${text} ${values[i]}`).join(', ')}, sent again ${again}`
    this.slider.setAttribute('aria-valuemax', String(cells - 1))
    this.slider.setAttribute('aria-valuenow', String(marked ?? 0))
    // each change of it is read out where it has the focus: only those that the reader made
    if (marked !== undefined || document.activeElement !== this.slider) this.slider.setAttribute('aria-valuetext', text)
    this.mark.setAttribute('visibility', marked === undefined ? 'hidden' : 'visible')
    if (marked === undefined) return
    this.mark.setAttribute('x', String((marked % MAP_COLUMNS) * CELL_WIDTH - CELL_GAP / 2))
    this.mark.setAttribute('y', String(Math.floor(marked / MAP_COLUMNS) * CELL_HEIGHT - CELL_GAP / 2))
  }

  /** @param {PointerEvent} event */
  point(event) {
    const { left, top, width, height } = this.slider.getBoundingClientRect()
    const cells = this.map?.empty.length ?? 0
    const rows = Math.ceil(cells / MAP_COLUMNS)
    const column = Math.floor(((event.clientX - left) / width) * MAP_COLUMNS)
    const row = Math.floor(((event.clientY - top) / height) * rows)
    const cell = Math.min(MAP_COLUMNS - 1, Math.max(0, column)) + MAP_COLUMNS * Math.min(rows - 1, Math.max(0, row))
    this.move(cell < cells ? cell : undefined)
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const moved = movedBy(event.key, this.marked ?? 0, (this.map?.empty.length ?? 0) - 1, MAP_COLUMNS)
    if (moved === undefined) return
    event.preventDefault()
    this.move(moved)
  }
}
