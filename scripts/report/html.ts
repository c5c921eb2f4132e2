/** The report as one page that needs nothing from outside: style.css, page.js, plots and data are in it. */
import { readFileSync } from 'node:fs'
import { escapeText } from './charts.ts'
import type { Block, Figure, Report, Table, TableCell, Text } from './document.ts'
import { mapColours } from './map-content.ts'

const file = (name: string): string => readFileSync(new URL(name, import.meta.url), 'utf8')

/** Markdown's `code`, **bold** and [links](URL). */
function inline(text: Text): string {
  return escapeText(text)
    .replaceAll(/`([^`]+)`/g, '<code>$1</code>')
    .replaceAll(/\*\*([^*]+)\*\*/g, '<strong>$1</strong>')
    .replaceAll(/\[([^\]]+)\]\(([^)\s]+)\)/g, '<a href="$2">$1</a>')
}

const SIGNS = { met: '✓', missed: '✗', failed: '!', 'not measured': '–' } as const

function cell(one: TableCell, numeric: boolean | undefined, head: boolean): string {
  const [text, state] = typeof one === 'string' ? [one, undefined] : [one.text, one.state]
  const inner = state
    ? `<span class="state ${state.replace(' ', '-')}"><b aria-hidden="true">${SIGNS[state]}</b> ${inline(text)}</span>`
    : inline(text)
  const tag = head ? 'th scope="row"' : 'td'
  // sentences wrap; names and figures do not
  const shape = numeric ? ' class="n"' : text.length > 32 ? ' class="long"' : ' class="short"'
  return `<${tag}${shape}>${inner}</${tag.slice(0, 2)}>`
}

function table({ caption, columns, rows }: Table): string {
  const head = columns.map(({ name, numeric }) => `<th scope="col"${numeric ? ' class="n"' : ''}>${inline(name)}</th>`)
  const body = rows.map(row => `<tr>${row.map((one, i) => cell(one, columns[i]!.numeric, i === 0)).join('')}</tr>`)
  // a region that scrolls by itself must be reached by keys
  return (
    `<section class="scroll" tabindex="0" aria-label="${escapeText(caption)}"><table><caption>${inline(caption)}</caption>` +
    `<thead><tr>${head.join('')}</tr></thead><tbody>${body.join('')}</tbody></table></section>`
  )
}

function figure({ title, note, legend, plot, table: behind }: Figure): string {
  const keys = legend.map(
    ({ series, label, mark }) =>
      `<button type="button" class="key s-${series}" data-series="${series}" aria-pressed="false"><i class="${mark}"></i>${escapeText(label)}</button>`,
  )
  const keyRow = keys.length > 0 ? `<div class="keys" role="group" aria-label="Pick out">${keys.join('')}</div>` : ''
  return (
    `<section class="figure"><h3>${inline(title)}</h3><p class="note">${inline(note)}</p>${keyRow}${plot}` +
    `<details class="behind"><summary>Figures behind this plot</summary>${table(behind)}</details></section>`
  )
}

function block(one: Block): string {
  switch (one.kind) {
    case 'heading':
      return `<h${one.level} id="${one.id}">${inline(one.text)}</h${one.level}>`
    case 'text':
      return `<p>${inline(one.text)}</p>`
    case 'warning':
      return `<p class="warning" role="alert">${inline(one.text)}</p>`
    case 'list':
      return `<ul>${one.items.map(item => `<li>${inline(item)}</li>`).join('')}</ul>`
    case 'code':
      return `<pre tabindex="0">${escapeText(one.text)}</pre>`
    case 'tiles':
      return `<div class="tiles">${one.tiles.map(({ value, text }) => `<p><strong>${escapeText(value)}</strong> ${inline(text)}</p>`).join('')}</div>`
    case 'table':
      return table(one.table)
    case 'details':
      return `<details class="part"${one.open ? ' open' : ''}><summary>${inline(one.title)}</summary>${one.blocks.map(block).join('')}</details>`
    case 'grid':
      return `<div class="grid">${one.blocks.map(block).join('')}</div>`
    case 'figure':
      return figure(one.figure)
  }
}

/** @param data what the page offers to save, JSON */
export function html({ title, subtitle, blocks }: Report, data: unknown): string {
  const contents = blocks.flatMap(one =>
    one.kind === 'heading' && one.level === 2 ? [`<a href="#${one.id}">${inline(one.text)}</a>`] : [],
  )
  const json = JSON.stringify(data).replaceAll('<', '\\u003c')
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeText(title)}</title>
<link rel="icon" href="data:,">
<style>${file('style.css')}${mapColours()}</style>
</head>
<body>
<header>
<h1>${escapeText(title)}</h1>
<p>${inline(subtitle)}</p>
<nav aria-label="Contents">${contents.join('')}</nav>
</header>
<main>
${blocks.map(block).join('\n')}
</main>
<footer><p>Made by <code>make report</code>. <button type="button" id="save">Save the results as JSON</button></p></footer>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="data">${json}</script>
<script>${file('page.js')}</script>
</body>
</html>
`
}
