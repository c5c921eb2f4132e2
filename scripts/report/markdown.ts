/** The report as Markdown. */
import type { Block, Report, Table, TableCell } from './document.ts'

const MARKS = { met: '**met:** ', missed: '**missed:** ', failed: '', 'not measured': '' } as const

function cellText(cell: TableCell): string {
  const text =
    typeof cell === 'string' ? cell : cell.text === cell.state ? cell.text : `${MARKS[cell.state]}${cell.text}`
  return text.replaceAll('|', '\\|').replaceAll('\n', ' ')
}

function table({ caption, columns, rows }: Table): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`
  return [
    `${caption}\n`,
    line(columns.map(({ name }) => name.replaceAll('|', '\\|'))),
    line(columns.map(({ numeric }) => (numeric ? '---:' : '---'))),
    ...rows.map(row => line(row.map(cellText))),
  ].join('\n')
}

function block(one: Block): string {
  switch (one.kind) {
    case 'heading':
      return `${'#'.repeat(one.level)} ${one.text}`
    case 'text':
      return one.text
    case 'warning':
      return `> **${one.text}**`
    case 'list':
      return one.items.map(item => `- ${item}`).join('\n')
    case 'code':
      return one.text.replaceAll(/^/gm, '    ')
    case 'tiles':
      return one.tiles.map(({ value, text }) => `- **${value}** ${text}`).join('\n')
    case 'table':
      return table(one.table)
    case 'details':
      return [`#### ${one.title}`, ...one.blocks.map(block)].join('\n\n')
    case 'grid':
      return one.blocks.map(block).join('\n\n')
    case 'figure':
      return [`#### ${one.figure.title}`, one.figure.note, table(one.figure.table)].join('\n\n')
  }
}

/** All of it, a heading of level 1 and how it is made first; or, without `head`, the blocks alone. */
export function markdown({ title, subtitle, blocks }: Report, head = true): string {
  const note =
    'Made by `make report` out of [measured/](measured/): do not edit. It makes the same with plots too, `.cache/report/results.html`: one file without anything from outside.'
  return `${[...(head ? [`# ${title}`, subtitle, note] : []), ...blocks.map(block)].join('\n\n')}\n`
}
