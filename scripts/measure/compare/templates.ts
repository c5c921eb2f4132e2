/**
 * Template sets of the comparison: pages that guests of the lab share, the golden image, all of one guest. Each is made
 * once; what a method knows is a store with links to some of them.
 */
import { createHash } from 'node:crypto'
import {
  existsSync,
  globSync,
  linkSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { pageferry } from '../../harness/proxies.ts'
import type { ComparedGuest } from './guests.ts'
import type { Templates } from './methods.ts'
import type { Method } from './results.ts'

const root = fileURLToPath(new URL('../../..', import.meta.url))
const lab = join(root, '.cache/lab')
/** The disk that all guests of the lab boot from, before any of them has written to it. */
const IMAGE = join(lab, 'base/disk.raw')
/** Of the files of sets: some time. */
const EPOCH_SECONDS = 1_600_000_000
/** What decides which pages an input has, and how a set is written. */
const MAKERS = ['capture', 'qemu', 'store', 'template']

/** A set, and what the results say of it. */
export interface TemplateSet extends Templates {
  readonly from: readonly string[]
  readonly pages: number
  readonly bytes: number
}

/** Sets that a method has, each by the inputs that it is made of. */
export type Knowledge = readonly (readonly string[])[]

/** Of disks. */
export const IMAGE_ALONE: Knowledge = [['golden image']]

/** The names of what is no guest. */
const FILES: Readonly<Record<string, () => string>> = {
  'golden image': () => IMAGE,
  'kernel k1': () => join(lab, 'base/k1/vmlinuz'),
  'kernel k2': () => join(lab, 'base/k2/vmlinuz'),
}

/**
 * What both sites know when this guest is migrated by this method, never the guest itself; undefined where that cannot be.
 * Nothing: where no set is made for it.
 */
export function knowledgeOf(guest: ComparedGuest, method: Method): Knowledge | undefined {
  if (method === 'pair-image') return guest.other === undefined ? undefined : [['golden image'], [guest.other]]
  if (method === 'pair-image-alone') return guest.debian && [['golden image'], [`kernel ${guest.debian.kernel}`]]
  return guest.templates.length === 0 ? [] : [guest.templates]
}

interface Note {
  readonly made: string
  readonly file: string
  readonly pages: number
  readonly bytes: number
}

/** Sets below a folder, none made twice. */
export class TemplateSets {
  private readonly folder: string
  private readonly report: (text: string) => void
  private readonly notes = new Map<string, Promise<Note>>()
  private readonly makers = makersDigest()

  constructor(folder: string, report: (text: string) => void) {
    this.folder = folder
    this.report = report
  }

  /**
   * Gives the store of some sets.
   * @returns undefined of none
   * @throws Error when streams are missing
   */
  async store(knowledge: Knowledge): Promise<TemplateSet | undefined> {
    if (knowledge.length === 0) return undefined
    const notes: Note[] = []
    // one after the other: a build has the memory and the disk to itself
    for (const inputs of knowledge) notes.push(await this.set(inputs))
    const store = join(this.folder, 'stores', knowledge.map(nameOf).join(','))
    rmSync(store, { recursive: true, force: true })
    mkdirSync(store, { recursive: true, mode: 0o700 })
    for (const [i, { file }] of notes.entries()) {
      const path = join(store, file)
      linkSync(join(this.folder, nameOf(knowledge[i]!), file), path)
      // the newest are held in memory: what a guest has, before what its disk has; a set has its place in all stores
      utimesSync(path, 0, EPOCH_SECONDS + i)
    }
    return {
      store,
      setFile: join(store, notes.at(-1)!.file),
      sets: notes.length,
      from: knowledge.flat(),
      pages: notes.reduce((sum, { pages }) => sum + pages, 0),
      bytes: notes.reduce((sum, { bytes }) => sum + bytes, 0),
    }
  }

  private set(inputs: readonly string[]): Promise<Note> {
    const name = nameOf(inputs)
    const found = this.notes.get(name) ?? this.made(inputs)
    this.notes.set(name, found)
    return found
  }

  private async made(inputs: readonly string[]): Promise<Note> {
    const paths = inputs.map(input => FILES[input]?.() ?? join(lab, 'streams', `${input}.stream`))
    const missing = paths.filter(path => !existsSync(path))
    if (missing.length > 0) throw new Error(`no ${missing.join(', ')}: run \`make lab\` first`)
    const files = paths.map(path => [statSync(path).size, statSync(path).mtimeMs])
    const made = JSON.stringify({ makers: this.makers, files })
    const folder = join(this.folder, nameOf(inputs))
    const noteFile = join(folder, 'note.json')
    const kept = existsSync(noteFile) ? (JSON.parse(readFileSync(noteFile, 'utf8')) as Note) : undefined
    if (kept?.made === made) return kept
    this.report(`templates of ${inputs.join(', ')}`)
    const part = `${folder}.part`
    for (const old of [folder, part]) rmSync(old, { recursive: true, force: true })
    mkdirSync(this.folder, { recursive: true })
    // of one input all pages, of several what two or more have
    const rule = ['--min-vms', inputs.length === 1 ? '1' : '2']
    const args = ['--json', ...rule, '--store', part, ...paths.map(path => realpathSync(path))]
    const built = JSON.parse(await pageferry('template', 'build', ...args)) as {
      path: string
      pages: number
      fileBytes: number
    }
    const file = built.path.slice(built.path.lastIndexOf('/') + 1)
    const note: Note = { made, file, pages: built.pages, bytes: built.fileBytes }
    writeFileSync(join(part, 'note.json'), JSON.stringify(note))
    renameSync(part, folder)
    return note
  }
}

function nameOf(inputs: readonly string[]): string {
  return inputs.join('+').replaceAll(' ', '-')
}

/** Tells sources by which sets come out alike from others: a set of an older reader of images is made again. */
function makersDigest(): string {
  const hash = createHash('sha256')
  for (const folder of MAKERS)
    for (const file of globSync('**/*.ts', { cwd: join(root, 'src', folder) }).toSorted())
      hash.update(file).update(readFileSync(join(root, 'src', folder, file)))
  return hash.digest('hex').slice(0, 16)
}
