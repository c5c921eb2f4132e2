/** Template sets of the comparison, made of the lab's streams: one for each choice of guests, kept. */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { pageferry } from '../../harness/proxies.ts'
import type { Templates } from './methods.ts'

const streams = fileURLToPath(new URL('../../../.cache/lab/streams', import.meta.url))

/** A set, and what the results say of it. */
export interface TemplateSet extends Templates {
  readonly from: readonly string[]
  readonly pages: number
  readonly bytes: number
}

interface Note {
  readonly sizes: readonly number[]
  readonly file: string
  readonly pages: number
  readonly bytes: number
}

/**
 * Gives the set of pages that two or more of these guests have, below `cache`.
 * @throws Error when streams are missing
 */
export async function templateSet(from: readonly string[], cache: string): Promise<TemplateSet> {
  const paths = from.map(name => join(streams, `${name}.stream`))
  const missing = paths.filter(path => !existsSync(path))
  if (missing.length > 0) throw new Error(`no ${missing.join(', ')}: run \`make lab\` first`)
  const sizes = paths.map(path => statSync(path).size)
  const store = join(cache, from.join('+'))
  const noteFile = join(store, 'note.json')
  if (existsSync(noteFile)) {
    const note = JSON.parse(readFileSync(noteFile, 'utf8')) as Note
    if (JSON.stringify(note.sizes) === JSON.stringify(sizes)) return asSet(store, from, note)
  }
  rmSync(store, { recursive: true, force: true })
  mkdirSync(cache, { recursive: true })
  const built = JSON.parse(await pageferry('template', 'build', '--json', '--store', `${store}.part`, ...paths)) as {
    path: string
    pages: number
    fileBytes: number
  }
  const file = built.path.slice(built.path.lastIndexOf('/') + 1)
  const note: Note = { sizes, file, pages: built.pages, bytes: built.fileBytes }
  writeFileSync(join(`${store}.part`, 'note.json'), JSON.stringify(note))
  renameSync(`${store}.part`, store)
  return asSet(store, from, note)
}

function asSet(store: string, from: readonly string[], { file, pages, bytes }: Note): TemplateSet {
  return { store, setFile: join(store, file), from, pages, bytes }
}
