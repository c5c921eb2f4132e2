/** The store: a folder of template sets under their digests. Sets appear in it whole or not at all. */
import { randomBytes } from 'node:crypto'
import { rmSync } from 'node:fs'
import { type FileHandle, lstat, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { isProxyError, ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { COLD_PAGES_MAX } from '../limits.ts'
import { writeDigest } from '../template/digest.ts'
import { digestOfSet, encodeHead, encodeMetadata, type SetMetadata, type SetRecords } from '../template/format.ts'
import {
  DIGEST_LENGTH,
  digestOfFileName,
  PAGE_SIZE,
  setFileName,
  setLayout,
  signatureFileName,
} from '../template/wire.ts'
import { Sealer, type StoreKey, sealedLength } from './cipher.ts'
import { ColdSet, type SetTable } from './cold-set.ts'
import { fileState } from './set-bytes.ts'
import { SetFile } from './set-file.ts'

/** Pages of guests: for the owner alone. */
const FOLDER_MODE = 0o700
const FILE_MODE = 0o600
/** A folder that its group may read, and that hands its group on (setgid), wants the group to read what is in it. */
const SHARED_FOLDER = 0o2040
const GROUP_READS = 0o040
/** Bytes of one write. */
const WRITE_LENGTH = 1 << 20
const TEMPORARY = /^\.put-(\d+)-[0-9a-f]+\.tmp$/
/** A put writes all the time. One untouched for so long, by a process that is not there, will not go on. */
const TEMPORARY_IDLE_MS = 10 * 60_000
/** Beside a set that came from a remote store (src/remote/host-channels.ts): empty. */
const FETCHED = /^\.fetched-([0-9a-f]{64})$/
/** What a fetch left that was ended (src/remote/fetcher.ts). The next one goes on from there, for a day. */
const FETCHED_PART = /^\.fetch-[0-9a-f]{64}[-.][0-9a-z.-]+$/
const FETCHED_PART_IDLE_MS = 24 * 3_600_000

/** One set of a store, as a listing shows it. */
export interface StoredSet {
  readonly digest: string
  readonly path: string
  readonly fileBytes: number
  readonly modified: Date
  /** When its file changed in any way, its owner and mode included. */
  readonly changed: Date
  /** Kept encrypted. */
  readonly sealed: boolean
  /** undefined where the head of the file is sound. */
  readonly problem: ProxyError | undefined
  /** 0 where there is a problem. */
  readonly pages: number
  readonly metadata: SetMetadata | undefined
}

type ListedOutline = Awaited<ReturnType<typeof SetFile.outline>>

/** What a put did. */
export interface PutResult {
  readonly digest: string
  readonly path: string
  readonly fileBytes: number
  /** The set was there already, sound. */
  readonly existed: boolean
}

/** Temporary files of this process. A process that exits in the middle takes them along. */
const temporaries = new Set<string>()
let exitHooked = false

export class TemplateStore {
  readonly folder: string
  private readonly key: StoreKey | undefined
  /** By path: what a sound set says of itself, and what tells its file from another; a head may have hundreds of megabytes. */
  private readonly outlines = new Map<string, { readonly state: string; readonly outline: ListedOutline }>()

  /** By path: what a listing read, so that whoever opens the set next need not read hundreds of megabytes again. */
  private readonly tables = new Map<string, SetTable>()
  private tablePages = 0

  /**
   * Touches nothing: the folder has to exist when something is read, and is made when something is put.
   * @param key of this host: what is put is encrypted, and what is encrypted can be read
   */
  constructor(folder: string, key?: StoreKey) {
    this.folder = folder
    this.key = key
  }

  /**
   * That the store is there: for those who were told of it, and must not take a mistyped path for an empty store.
   *
   * @throws IO where it is not there, is no folder, or cannot be read
   */
  async requireThere(): Promise<void> {
    try {
      await readdir(this.folder)
    } catch (error) {
      throw ioError(error, 'cannot read store', this.folder)
    }
  }

  /**
   * The sets of the store by name, their seals verified, in constant memory; a file that was sound is read again only when
   * it changes. Other files are ignored, and so is a folder
   * that is not there.
   *
   * @param keepTables what is read of sets is kept for `openCold`, until `dropTables`
   * @throws IO where the folder cannot be read
   */
  async list(keepTables = false): Promise<StoredSet[]> {
    const sets: StoredSet[] = []
    for (const digest of await this.digests()) {
      const path = this.pathOf(digest)
      // Before it is read: what changes meanwhile is seen the next time.
      const found = await lstat(path).catch(() => undefined)
      if (found === undefined) continue // removed meanwhile
      const state = fileState(found)
      const kept = this.outlines.get(path)
      let outline = kept?.state === state ? kept.outline : undefined
      let problem: ProxyError | undefined
      try {
        outline ??= await this.outlineOf(path, keepTables)
        this.outlines.set(path, { state, outline })
      } catch (error) {
        if (!isProxyError(error)) throw error
        problem = error
      }
      const { sealed = isProxyError(problem, 'USAGE'), pageCount: pages = 0, metadata } = outline ?? {}
      const { size: fileBytes, mtime: modified, ctime: changed } = found
      sets.push({ digest, path, fileBytes, modified, changed, sealed, problem, pages, metadata })
    }
    const there = new Set(sets.map(({ path }) => path))
    for (const path of this.outlines.keys()) if (!there.has(path)) this.outlines.delete(path)
    return sets
  }

  private async outlineOf(path: string, keepTable: boolean): Promise<ListedOutline> {
    if (!keepTable) return SetFile.outline(path, this.key, false)
    const table = await ColdSet.table(path, this.key)
    this.takeTable(path) // of the file that was there before
    if (this.tablePages + table.outline.pageCount <= COLD_PAGES_MAX) {
      this.tablePages += table.outline.pageCount
      this.tables.set(path, table)
    }
    return { ...table.outline, sealed: table.sealed }
  }

  /** Lets go of what a listing has kept of tables. @param but digests of sets that are about to be opened */
  dropTables(but: readonly string[] = []): void {
    const wanted = new Set(but.map(digest => this.pathOf(digest)))
    for (const path of this.tables.keys()) if (!wanted.has(path)) this.takeTable(path)
  }

  private takeTable(path: string): SetTable | undefined {
    const kept = this.tables.get(path)
    this.tables.delete(path)
    this.tablePages -= kept?.outline.pageCount ?? 0
    return kept
  }

  /**
   * A text that is another one as soon as sets come, go, are replaced, or become readable. Opens nothing.
   *
   * @param counts which sets count
   * @throws IO where the folder is not there or cannot be read
   */
  async fingerprint(counts: (digest: string) => boolean = () => true): Promise<string> {
    await this.requireThere()
    const lines: string[] = []
    for (const digest of await this.digests()) {
      if (!counts(digest)) continue
      const found = await lstat(this.pathOf(digest)).catch(() => undefined)
      lines.push(`${digest} ${found?.size} ${found?.mtimeMs} ${found?.ctimeMs}`)
    }
    return lines.join()
  }

  /** Digests of the sets by their names alone, ascending; nothing is opened. @throws IO */
  async digests(): Promise<string[]> {
    const found: string[] = []
    for (const name of await namesIn(this.folder)) {
      const digest = digestOfFileName(name)
      if (digest !== undefined) found.push(digest)
    }
    return found.sort()
  }

  /**
   * The one set whose digest starts so.
   *
   * @returns its whole digest
   * @throws TEMPLATE_MISSING where there is none, USAGE where there are several, IO
   */
  async find(prefix: string): Promise<string> {
    const wanted = (digestOfFileName(prefix) ?? prefix).toLowerCase()
    const found = wanted === '' ? [] : (await this.digests()).filter(digest => digest.startsWith(wanted))
    if (found.length === 1) return found[0]!
    if (found.length === 0) {
      const what = `no template set ${JSON.stringify(prefix)} in ${this.folder}`
      throw new ProxyError('TEMPLATE_MISSING', what, undefined, '`pageferry store list` shows what is there')
    }
    throw new ProxyError('USAGE', `${found.length} template sets begin with ${prefix}`, undefined, 'give more digits')
  }

  /** Opens the one set whose digest starts so. @throws as {@link find} and SetFile.open */
  async open(prefix: string): Promise<SetFile> {
    return SetFile.open(this.pathOf(await this.find(prefix)), this.key, false)
  }

  /** Opens the one set whose digest starts so; its pages stay in its file. @throws as {@link find} and ColdSet.open */
  async openCold(prefix: string): Promise<ColdSet> {
    const path = this.pathOf(await this.find(prefix))
    return ColdSet.open(path, this.key, false, this.takeTable(path))
  }

  /** Whether what is put is kept encrypted. */
  get encrypts(): boolean {
    return this.key !== undefined
  }

  pathOf(digest: string): string {
    return join(this.folder, setFileName(digest))
  }

  /** True where the set is there and every page of it is sound. @throws IO, USAGE: encrypted, and not with our key */
  async holds(digest: string): Promise<boolean> {
    let file: SetFile | undefined
    try {
      file = await SetFile.open(this.pathOf(digest), this.key, false)
      return await file.isSound()
    } catch (error) {
      if (isProxyError(error) && error.code !== 'IO' && error.code !== 'USAGE') return false
      if (((error as Error).cause as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') return false
      throw error
    } finally {
      await file?.close()
    }
  }

  /** True where the set is there, its head sound and its file as long as that says; its pages are not read. @throws IO, USAGE */
  async isWhole(digest: string): Promise<boolean> {
    try {
      await SetFile.outline(this.pathOf(digest), this.key, false)
      return true
    } catch (error) {
      if (isProxyError(error) && error.code.startsWith('TEMPLATE_')) return false
      throw error
    }
  }

  /**
   * Puts a set into the store: whole, on the disk, under its name, or not at all. Pages are verified on their way. Where
   * the set is there already, `pages` is not read; where it is there but damaged, it is replaced. It gets the folder's
   * owner where root puts it, and is for the group too where the folder is setgid and readable by its group: a proxy that is not root can read it.
   *
   * @param pages the pages in order, cut at any page; a piece is the caller's again when the next is asked for
   * @throws IO (full disk among others), INTERNAL where pages do not match the records; the signal's reason
   */
  async put(
    metadata: SetMetadata,
    records: SetRecords,
    pages: () => AsyncIterable<Uint8Array>,
    signal?: AbortSignal,
  ): Promise<PutResult> {
    const digest = digestOfSet(metadata, records)
    const path = this.pathOf(digest)
    const { lengthBytes } = setLayout(records.count, encodeMetadata(metadata).length)
    const fileBytes = this.key ? sealedLength(lengthBytes) : lengthBytes
    signal?.throwIfAborted()
    if (await this.holds(digest)) return { digest, path, fileBytes, existed: true }

    try {
      await mkdir(this.folder, { recursive: true, mode: FOLDER_MODE })
      await this.sweep()
    } catch (error) {
      throw ioError(error, 'cannot use store', this.folder)
    }
    const temporary = join(this.folder, `.put-${process.pid}-${randomBytes(8).toString('hex')}.tmp`)
    hookExit()
    temporaries.add(temporary)
    let file: FileHandle | undefined
    try {
      file = await open(temporary, 'wx', FILE_MODE)
      await shareAsFolder(file, this.folder)
      const sealer = this.key ? new Sealer(this.key, lengthBytes) : undefined
      const writer = new BlockWriter(file, sealer)
      await writer.begin()
      for (const piece of encodeHead(metadata, records)) await writer.write(piece)
      let place = 0
      for await (const piece of pages()) {
        signal?.throwIfAborted()
        place = checkPages(records, place, piece)
        await writer.write(piece)
      }
      if (place !== records.count) throw pagesDiffer(place)
      await writer.end()
      await file.sync()
      await file.close()
      file = undefined
      signal?.throwIfAborted()
      await rename(temporary, path)
      await syncFolder(this.folder)
    } catch (error) {
      await file?.close().catch(() => {})
      await rm(temporary, { force: true }).catch(() => {})
      if (signal?.aborted && error === signal.reason) throw error
      throw ioError(
        error,
        `cannot store a set of ${fileBytes} bytes in`,
        this.folder,
        undefined,
        ', or choose fewer pages',
      )
    } finally {
      temporaries.delete(temporary)
    }
    return { digest, path, fileBytes, existed: false }
  }

  /** Removes a set, and who signed it; somebody else may have done so. @throws IO */
  async remove(digest: string): Promise<void> {
    try {
      await rm(this.pathOf(digest), { force: true })
      await rm(join(this.folder, signatureFileName(digest)), { force: true })
      await syncFolder(this.folder)
    } catch (error) {
      throw ioError(error, 'cannot remove', this.pathOf(digest))
    }
  }

  /** Removes what killed puts and fetches left. @param dryRun only tells @returns its names */
  async sweep(dryRun = false): Promise<string[]> {
    const swept: string[] = []
    for (const name of await namesIn(this.folder)) {
      const isFetched = FETCHED_PART.test(name)
      const owner = TEMPORARY.exec(name)?.[1]
      if (!isFetched && (owner === undefined || isRunning(Number(owner)))) continue
      const path = join(this.folder, name)
      const found = await stat(path).catch(() => undefined)
      // The time guards a put by a process that we cannot see: in another container, on the same folder.
      const idleMs = isFetched ? FETCHED_PART_IDLE_MS : TEMPORARY_IDLE_MS
      if (!found || Date.now() - found.mtimeMs <= idleMs) continue
      swept.push(name)
      if (!dryRun) await rm(path, { force: true })
    }
    return swept
  }
}

/** Writes in large blocks, one of them under way while the next one fills; encrypts where it is given how. */
class BlockWriter {
  private readonly file: FileHandle
  private readonly sealer: Sealer | undefined
  private blocks = [Buffer.allocUnsafe(WRITE_LENGTH), Buffer.allocUnsafe(WRITE_LENGTH)]
  private have = 0
  private underWay: Promise<void> = Promise.resolve()

  constructor(file: FileHandle, sealer: Sealer | undefined) {
    this.file = file
    this.sealer = sealer
  }

  async begin(): Promise<void> {
    if (this.sealer) await this.take(this.sealer.header)
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (!this.sealer) await this.take(bytes)
    else for (const piece of this.sealer.push(bytes)) await this.take(piece)
  }

  private async take(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const take = Math.min(bytes.length - at, WRITE_LENGTH - this.have)
      this.blocks[0]!.set(bytes.subarray(at, at + take), this.have)
      this.have += take
      at += take
      if (this.have === WRITE_LENGTH) await this.flush()
    }
  }

  async end(): Promise<void> {
    if (this.sealer) for (const piece of this.sealer.end()) await this.take(piece)
    await this.flush()
    await this.underWay
  }

  private async flush(): Promise<void> {
    await this.underWay
    const block = this.blocks[0]!.subarray(0, this.have)
    this.underWay = this.writeAll(block)
    this.underWay.catch(() => {}) // reported by whoever awaits it next
    this.blocks.reverse()
    this.have = 0
  }

  private async writeAll(block: Uint8Array): Promise<void> {
    for (let at = 0; at < block.length; ) {
      const { bytesWritten } = await this.file.write(block, at, block.length - at)
      at += bytesWritten
    }
  }
}

/** Checks whole pages against their records. @returns the place after them */
function checkPages(records: SetRecords, place: number, pages: Uint8Array): number {
  const found = Buffer.allocUnsafe(DIGEST_LENGTH)
  const wanted = Buffer.allocUnsafe(DIGEST_LENGTH)
  for (let at = 0; at < pages.length; at += PAGE_SIZE, place++) {
    if (place === records.count) throw pagesDiffer(place)
    writeDigest(pages.subarray(at, at + PAGE_SIZE), found, 0)
    records.copyDigest(place, wanted, 0)
    if (!found.equals(wanted)) throw pagesDiffer(place)
  }
  return place
}

function pagesDiffer(place: number): ProxyError {
  const what = `page ${place} is not the page that was counted`
  return new ProxyError('IO', what, undefined, 'nothing was stored; an input changed while it was read')
}

/** Gives the file to whom the folder says. Root alone can give files away; others make them their own. */
export async function shareAsFolder(file: FileHandle, folder: string): Promise<void> {
  const { uid, gid, mode } = await stat(folder)
  if ((mode & SHARED_FOLDER) === SHARED_FOLDER) await file.chmod(FILE_MODE | GROUP_READS)
  if (process.geteuid?.() === 0) await file.chown(uid, gid)
}

/**
 * Writes a small file beside the sets: whole, and on the disk. What a process leaves that is killed is swept, as a put's is.
 * @param path of the file
 * @param ready asked once all is written: where it rejects, nothing has changed
 * @throws IO
 */
export async function putBeside(
  path: string,
  content: string | Uint8Array,
  ready?: () => Promise<void>,
): Promise<void> {
  const folder = dirname(path)
  const temporary = join(folder, `.put-${process.pid}-${randomBytes(8).toString('hex')}.tmp`)
  try {
    const file = await open(temporary, 'wx', FILE_MODE)
    try {
      await shareAsFolder(file, folder)
      await file.writeFile(content)
      await file.sync()
    } finally {
      await file.close()
    }
    await ready?.()
    await rename(temporary, path)
    await syncFolder(folder)
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {})
    throw ioError(error, 'cannot write', path)
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH'
  }
}

/** The set of which a file of this name says that it came from a remote store. */
export function digestOfFetched(name: string): string | undefined {
  return FETCHED.exec(name)?.[1]
}

/** Names of what lies in a store's folder; none where it is not there. @throws IO */
export async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw ioError(error, 'cannot read store', folder)
  }
}

/** A renamed file survives a power cut only once its folder is on the disk too. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

function hookExit(): void {
  if (exitHooked) return
  exitHooked = true
  process.on('exit', () => {
    for (const path of temporaries) rmSync(path, { force: true })
  })
}
