/** Text and Markdown as manual pages have them (man(7)): what the documents of docs/ use of Markdown, and no more. */

/** Plain text as roff takes it: what it would understand otherwise is escaped. */
export function escapeRoff(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll("'", '\\(aq')
    .replaceAll('`', '\\(ga')
    .replaceAll('^', '\\(ha')
    .replaceAll('~', '\\(ti')
    .replace(/^\./, '\\&.')
    .replaceAll(/[^\s\\]{24,}/g, word => word.replaceAll(/([/,:=;])(?=[\w(])/g, '$1\\:')) // a place where a long word may break
}

/** One line of Markdown: code and bold in bold, emphasis in italics, links as their text. */
export function inline(text: string): string {
  return text
    .split(/(`[^`]+`)/)
    .map(part =>
      part.startsWith('`') && part.length > 1 ? `\\fB${escapeRoff(part.slice(1, -1))}\\fR` : emphasis(part),
    )
    .join('')
    .replace(/^(?=[.'])/, '\\&')
}

function emphasis(text: string): string {
  return text
    .replaceAll(/\[([^\]]+)\]\([^)]*\)/g, '$1')
    .split(/(\*\*[^*]+\*\*|(?<!\*)\*[^*\s][^*]*\*)/)
    .map(part => {
      if (part.startsWith('**') && part.length > 4) return `\\fB${escapeRoff(part.slice(2, -2))}\\fR`
      if (part.startsWith('*') && part.length > 2) return `\\fI${escapeRoff(part.slice(1, -1))}\\fR`
      return escapeRoff(part)
    })
    .join('')
}

/** Lines as they are, indented. */
export function verbatim(lines: readonly string[]): string[] {
  return [
    '.PP',
    '.RS 4',
    '.nf',
    '.na',
    ...lines.map(line => escapeRoff(line).replace(/^$/, '\\&')),
    '.fi',
    '.ad l',
    '.RE',
  ]
}

/** Cells of a row of a table; a bar within code, or behind a backslash, parts nothing. */
function cells(row: string): string[] {
  const bars = row.replaceAll(/`[^`]*`|\\\|/g, piece => piece.replaceAll('|', '\0'))
  const inner = bars.trim().replace(/^\|/, '').replace(/\|$/, '')
  return inner.split('|').map(cell => cell.replaceAll('\\\0', '|').replaceAll('\0', '|').trim())
}

/** A table as a list: its first column, and below it the others with their heads. */
function table(rows: readonly string[]): string[] {
  const [heads = [], , ...body] = rows.map(cells)
  const out: string[] = []
  for (const [first = '', ...others] of body) {
    out.push('.TP', first === '' ? '\\&' : inline(first).replace(/^(?!\\f)(.*)$/, '\\fB$1\\fR'))
    const told = others.flatMap((cell, i) => {
      const head = heads[i + 1] ?? ''
      if (cell === '') return []
      return [others.length === 1 || head === '' ? inline(cell) : `\\fI${inline(head)}\\fR: ${inline(cell)}`]
    })
    out.push(told.length === 0 ? '\\&' : told.join('\n.br\n'))
  }
  return out
}

const ITEM = /^( *)([*-]|\d+\.) +(.*)$/

/** A document without its title, as the body of a manual page. */
export function markdown(text: string): string[] {
  const lines = text.split('\n')
  const out: string[] = []
  for (let at = 0; at < lines.length; ) {
    const line = lines[at]!
    const while_ = (accept: (line: string) => boolean): string[] => {
      const from = at
      while (at < lines.length && accept(lines[at]!)) at++
      return lines.slice(from, at)
    }
    const heading = /^(#+) (.*)$/.exec(line)
    const item = ITEM.exec(line)
    if (line.trim() === '') at++
    else if (/^```/.test(line)) {
      at++
      out.push(...verbatim(while_(line => !line.startsWith('```'))))
      at++
    } else if (heading) {
      const [, marks, title] = heading
      if (marks!.length > 1) out.push(`${marks!.length === 2 ? '.SH' : '.SS'} "${plain(title!)}"`)
      at++
    } else if (line.startsWith('|')) out.push(...table(while_(line => line.startsWith('|'))))
    else if (line.startsWith('    ')) {
      const block = while_(line => line.startsWith('    ') || line.trim() === '')
      while (block.at(-1)?.trim() === '') block.pop()
      out.push(...verbatim(block.map(line => line.slice(4))))
    } else if (item) {
      at++
      const more = while_(line => line.trim() !== '' && !ITEM.test(line) && !/^(#|\||```)/.test(line))
      const mark = /\d/.test(item[2]!) ? `${item[2]} 4` : '\\(bu 2'
      out.push(`.IP ${mark}`, [item[3]!, ...more.map(line => line.trim())].map(inline).join('\n'))
    } else {
      const paragraph = while_(line => line.trim() !== '' && !ITEM.test(line) && !/^(#|\||```)/.test(line))
      out.push('.PP', paragraph.map(line => inline(line.trim())).join('\n'))
    }
  }
  return out
}

/** Of a heading: its text. */
function plain(text: string): string {
  return escapeRoff(text.replaceAll(/[`*]/g, '').replaceAll(/\[([^\]]+)\]\([^)]*\)/g, '$1')).replaceAll('"', '\\(dq')
}

/** The section of a document below a heading, without the heading. @throws where there is none */
export function sectionOf(document: string, heading: string): string {
  const from = document.indexOf(`\n## ${heading}\n`)
  if (from === -1) throw new Error(`no section ${heading}`)
  const text = document.slice(document.indexOf('\n', from + 1) + 1)
  const end = text.search(/^## /m)
  return end === -1 ? text : text.slice(0, end)
}

/** A manual page. `name` as in `pageferry-source`, `what` the rest of the line under NAME. */
export function page(
  head: { readonly name: string; readonly section: number; readonly date: string; readonly version: string },
  what: string,
  body: readonly string[],
): string {
  const title = `.TH ${head.name.toUpperCase().replaceAll('-', '\\-')} ${head.section} ${head.date} "Pageferry ${head.version}" "Pageferry"`
  return [
    `'\\" t`,
    '.ds AD l', // where a groff sets its own at each paragraph,
    title,
    '.nh',
    '.ad l',
    '.SH NAME',
    `${escapeRoff(head.name)} \\- ${inline(what)}`,
    ...body,
    '',
  ].join('\n')
}
