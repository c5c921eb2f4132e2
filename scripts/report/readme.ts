/** Tables of the README that are made of what was measured: between two comments of it, so that none is written by hand. */

import { averageBlocks } from './content.ts'
import type { Block, Table } from './document.ts'
import type { Figures } from './figures.ts'
import { linkFigure } from './link-content.ts'
import { markdown } from './markdown.ts'

const BEGIN = '<!-- make report: begin -->'
const END = '<!-- make report: end -->'
const AVERAGES = ['direct', 'multifd-zstd', 'pair', 'pair-image'] as const

/** The README with what was measured in its place. @throws Error where it has no place for that */
export function withFigures(readme: string, figures: Figures): string {
  const [begin, end] = [readme.indexOf(BEGIN), readme.indexOf(END)]
  if (begin < 0 || end < begin) throw new Error(`the README has no place for figures: ${BEGIN} and ${END}`)
  return `${readme.slice(0, begin + BEGIN.length)}\n${rendered(figures)}${readme.slice(end)}`
}

function rendered(figures: Figures): string {
  const tables = (blocks: readonly Block[]): Table[] =>
    blocks.flatMap(block =>
      block.kind === 'table' ? [block.table] : block.kind === 'figure' ? [block.figure.table] : [],
    )
  const [links] = tables(linkFigure(figures))
  const [averages] = tables(averageBlocks(figures, AVERAGES))
  const blocks: Block[] = []
  if (links) blocks.push({ kind: 'table', table: without(links, 'measured') })
  if (averages) blocks.push({ kind: 'table', table: averages })
  return markdown({ title: '', subtitle: '', blocks }, false)
}

/** A table that lacks a column. */
function without({ caption, columns, rows }: Table, name: string): Table {
  const stays = columns.map(column => column.name !== name)
  const kept = <T>(cells: readonly T[]): T[] => cells.filter((_, i) => stays[i])
  return { caption, columns: kept(columns), rows: rows.map(kept) }
}
