/**
 * Whether every document that is named somewhere is in the tree, with the section that is named: part of `npm run check`.
 *
 *   node scripts/check-documents.ts [ROOT]
 *
 * What is looked at: names that end in .md, links of Markdown with their anchors, numbers of sections behind a document's
 * name (`protocol.md §4 to §7`, `qemu-wire-format 2.7, 3.1`), ADRs by number; in documents also sources by their path.
 */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const LOOKED_AT = /\.(ts|md|sh|json|cjs|service|socket|yaml|py)$|^(Makefile|pageferry)$/
const LEFT_OUT = new Set([
  'node_modules',
  'dist',
  'package-lock.json',
  'streams',
  'CHANGELOG.md',
  'check-documents.test.ts',
])
/** Where a document may be that is named without a folder. */
const FOLDERS = ['', 'docs', 'docs/adr', 'src/kernel', 'scripts/report']

/** A name that ends in .md, not in an address; then perhaps numbers of sections. */
const NAMED = /(?<![\w/.:$}-])((?:\.{0,2}\/)?[\w-][\w./-]*\.md)\b/g
const SECTION = String.raw`§?\d+(?:\.\d+)*`
const SECTIONS = new RegExp(String.raw`^[\s\x60*)\]]*,?\s*((?:section |§)${SECTION}(?:(?:, | and | to |,)${SECTION})*)`)
/** A document's name without .md, then numbers of sections. */
const BARE = /(?<![\w/.-])([a-z]+(?:-[a-z]+)+)\x60? +(\d+(?:\.\d+)*(?:(?:, | and | to |,)\d+(?:\.\d+)*)*)(?![\d-])/g
const LINK = /\]\(([^)#\s]*)(?:#([^)\s]+))?\)/g
/** A source or folder of sources, by its path from the root or from src/. */
const SOURCE = /(?<![\w./*-])((?:src|test|scripts)\/[\w./-]*\w|(?:[a-z-]+\/)+[\w.-]+\.ts)(?![\w*{])/g
const ADR = /(?:\badr\/|\bADR )(\d{1,4})\b/g

/** A file and a line of it where something is named that is not there. */
export interface Dangling {
  readonly file: string
  readonly line: number
  readonly what: string
}

/** Looks through all files below `root`. */
export function danglingCitations(root: string): Dangling[] {
  const found: Dangling[] = []
  for (const file of files(root)) {
    const text = readFileSync(file, 'utf8')
    // a comment may go on in the next line
    const flat = text.replace(/\n[ \t]*(?:\*|\/\/|#)[ \t]?/g, between => ' '.padEnd(between.length))
    const tell = (at: number, what: string) => {
      found.push({ file: relative(root, file), line: text.slice(0, at).split('\n').length, what })
    }
    for (const { 0: all, 1: name, index } of flat.matchAll(NAMED)) {
      if (/^\/?(usr|etc)\//.test(name!)) continue // where packages put them
      const document = documentOf(root, file, name!)
      if (document === undefined) {
        tell(index, `${name} is not there`)
        continue
      }
      const cited = SECTIONS.exec(flat.slice(index + all.length))?.[1]
      for (const section of missing(document, cited)) tell(index, `${name} has no section ${section}`)
    }
    for (const { 1: name, 2: cited, index } of flat.matchAll(BARE)) {
      const document = documentOf(root, file, `${name}.md`)
      if (document === undefined) {
        if (/-(format|protocol|notes)$/.test(name!)) tell(index, `${name}.md is not there`)
        continue
      }
      for (const section of missing(document, cited)) tell(index, `${name}.md has no section ${section}`)
    }
    for (const { 1: number, index } of flat.matchAll(ADR)) {
      const folder = join(root, 'docs/adr')
      const start = `${number!.padStart(4, '0')}-`
      if (!existsSync(folder) || !readdirSync(folder).some(name => name.startsWith(start)))
        tell(index, `ADR ${number} is not there`)
    }
    if (!file.endsWith('.md')) continue
    for (const { 1: path, index } of text.matchAll(SOURCE)) {
      const places = [dirname(file), root, join(root, 'src')]
      if (basename(file) !== 'results.md' && !places.some(folder => existsSync(join(folder, path!))))
        tell(index, `${path} is not there`)
    }
    for (const { 1: path, 2: anchor, index } of text.matchAll(LINK)) {
      if (/^[a-z]+:/.test(path!)) continue
      const target = path === '' ? file : resolve(dirname(file), path!)
      if (!existsSync(target)) tell(index, `${path} is not there`)
      else if (anchor && target.endsWith('.md') && !anchors(target).has(anchor)) {
        tell(index, `${path || basename(file)} has no heading #${anchor}`)
      }
    }
  }
  return found
}

function* files(folder: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (LEFT_OUT.has(entry.name) || (entry.name.startsWith('.') && entry.name !== '.ci')) continue
    const path = join(folder, entry.name)
    if (entry.isDirectory()) yield* files(path)
    else if (entry.isFile() && LOOKED_AT.test(entry.name)) yield path
  }
}

function documentOf(root: string, file: string, name: string): string | undefined {
  const places = [resolve(dirname(file), name), ...FOLDERS.map(folder => join(root, folder, name))]
  return places.find(path => existsSync(path) && statSync(path).isFile())
}

/** Numbers of sections among those cited that the document does not have. */
function missing(document: string, cited: string | undefined): string[] {
  if (cited === undefined) return []
  const text = readFileSync(document, 'utf8')
  const has = (number: string) =>
    new RegExp(String.raw`^(?:#+ |\*\*)${number.replaceAll('.', '\\.')}(?![\d.]*\d)`, 'm').test(text)
  return (cited.match(/\d+(?:\.\d+)*/g) ?? []).filter(number => !has(number))
}

/** The anchors that a reader of Markdown gives to headings. */
function anchors(document: string): Set<string> {
  const headings = readFileSync(document, 'utf8').match(/^#+ .*$/gm) ?? []
  return new Set(
    headings.map(heading =>
      heading
        .replace(/^#+ /, '')
        .toLowerCase()
        .replace(/[^\w\s-]/g, '')
        .trim()
        .replaceAll(' ', '-'),
    ),
  )
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = resolve(process.argv[2] ?? fileURLToPath(new URL('..', import.meta.url)))
  const dangling = danglingCitations(root)
  for (const { file, line, what } of dangling) console.error(`${file}:${line}: ${what}`)
  if (dangling.length > 0) process.exitCode = 1
}
