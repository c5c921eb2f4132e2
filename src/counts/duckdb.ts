/**
 * DuckDB as counts use it: in a fixed memory, with a folder of its own for what does not fit, and files by names that are
 * ours. The package is loaded here and nowhere else, and may be missing: only counting for a fleet needs its 70 MB.
 */
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import type { DuckDBConnection, DuckDBInstance, DuckDBValue } from '@duckdb/node-api'
import { type ErrorCode, isProxyError, ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { meanwhile } from '../system/meanwhile.ts'
import { finished, unfinished } from '../system/unfinished.ts'

/** The version that is tested, as package.json names it. */
const PACKAGE = '@duckdb/node-api'
const PACKAGE_VERSION = '1.5.6-r.1'
/** Least memory for sorting pages. */
export const DUCKDB_MEMORY_MIN = 128 << 20
/** What DuckDB's own limit does not see takes about as much again: buffers of the parquet writer, columns being read. */
const LIMIT_SHARE = 1 / 2
/** Each thread holds buffers of its own, and not all of them are seen by the limit: on a host of many cores not all are used. */
const MEMORY_PER_THREAD = 128 << 20
/** What each thread takes of the limit whatever there is to do: blocks that it fills at once (measured: 20 MiB). */
const LIMIT_PER_THREAD = 24 << 20
/** Magic at both ends of a parquet file. */
const MAGIC = 'PAR1'
/** Bytes that a row takes at least in an honest file: each has a place of its own among the pages, tags may come again. */
const ROW_LENGTH_MIN = 1
const FOLDER = 'pageferry-count-'
const SPILL = 'spill'
/** What an SQL error says before the number of a file with a row that cannot be. */
export const BAD_ROW_MARK = 'pageferry: bad row in '
const BAD_ROW = new RegExp(`^${BAD_ROW_MARK}(\\d+)`)
/** How DuckDB begins an error: with its type (src/common/exception.cpp), which its appender leaves out. */
const TYPE = /^(?:([A-Z][A-Za-z ]*) Error: |(Failed to append: ))/
/** What a type means here. All others, of queries that are ours, come from the bytes of a file. */
const MEANING: Readonly<Record<string, Meaning>> = {
  IO: 'system',
  Permission: 'system',
  'Out of Memory': 'memory',
  INTERRUPT: 'defect', // nobody asked for it
  INTERNAL: 'defect',
  FATAL: 'defect',
  Parser: 'defect',
  Syntax: 'defect',
  Catalog: 'defect',
}
type Meaning = 'system' | 'memory' | 'defect' | 'file'
/** An IO error that is none: a file whose bytes promise more than there are. */
const TOO_SHORT = 'Could not read enough bytes'
/** DuckDB's type is Out of Memory, but it is the disk that has no room: by its own measure, before the system says so. */
const NOT_SPILLED = 'failed to offload data block'
/** The system's own words, with which DuckDB ends what failed on a disk. */
const NO_ROOM = /: (?:No space left on device|Disk quota exceeded|File too large)$/m
/** Characters that DuckDB takes for a pattern. */
const PATTERN = /[*?[\]]/
/** How often a query that runs is looked after. */
const PROGRESS_MS = 200

/** Is told how much of it is done, 0 to 1, for as long as DuckDB knows. */
export type Share = (share: number) => void

export interface DuckDbOptions {
  /** From DUCKDB_MEMORY_MIN. */
  readonly memoryBytes: number
  /** Where a folder is made for what does not fit; undefined: the system's. */
  readonly spill?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** What a file should be. */
export interface FileKind {
  /** 'a page count' */
  readonly what: string
  /** What to do about one that is not. */
  readonly action: string
}

/** A file as it was given. */
interface NamedFile {
  readonly name: string
  readonly kind: FileKind
}

/** A parquet file that was looked at. */
export interface ParquetFile {
  /** As it was given. */
  readonly name: string
  /** A path for SQL that is ours. */
  readonly path: string
  readonly rows: number
}

export class DuckDb {
  /** A folder of its own, which goes when it is closed. */
  readonly folder: string
  readonly connection: DuckDBConnection
  /** Bytes of DuckDB's limit that are there for rows. */
  readonly roomBytes: number
  private readonly instance: DuckDBInstance
  private readonly signal: AbortSignal | undefined
  /** By their number. */
  private readonly files: NamedFile[] = []
  /** What `folder` is in. */
  private readonly above: string

  private constructor(
    above: string,
    folder: string,
    instance: DuckDBInstance,
    connection: DuckDBConnection,
    roomBytes: number,
    signal?: AbortSignal,
  ) {
    this.above = above
    this.folder = folder
    this.instance = instance
    this.connection = connection
    this.roomBytes = roomBytes
    this.signal = signal
    signal?.addEventListener('abort', this.interrupt)
  }

  /** @throws USAGE where the package is missing or the memory too small; IO */
  static async open({ memoryBytes, spill, signal }: DuckDbOptions): Promise<DuckDb> {
    if (memoryBytes < DUCKDB_MEMORY_MIN) {
      const action = `counts and choices take at least ${DUCKDB_MEMORY_MIN >> 20}MiB`
      throw new ProxyError('USAGE', `${memoryBytes} bytes of memory`, undefined, action)
    }
    const { DuckDBInstance } = await load()
    const above = resolve(spill ?? tmpdir())
    if (PATTERN.test(above)) {
      const action = 'give --spill a folder without *, ? and brackets in its path'
      throw new ProxyError('USAGE', `${above} would be taken for a pattern`, undefined, action)
    }
    const limitBytes = Math.floor(memoryBytes * LIMIT_SHARE)
    const threads = Math.max(1, Math.min(availableParallelism(), Math.floor(memoryBytes / MEMORY_PER_THREAD)))
    let folder = ''
    try {
      folder = mkdtempSync(join(above, FOLDER)) // mode 0700: pages of guests are known by what lies there
      unfinished(folder)
      const instance = await DuckDBInstance.create(':memory:', {
        memory_limit: `${Math.floor(limitBytes / 1024)}KiB`,
        threads: String(threads),
        temp_directory: join(folder, SPILL),
        preserve_insertion_order: 'false',
        // Nothing is fetched from anywhere because of a name.
        autoinstall_known_extensions: 'false',
        autoload_known_extensions: 'false',
      })
      const connection = await instance.connect()
      await connection.run('SET enable_progress_bar = true; SET enable_progress_bar_print = false')
      return new DuckDb(above, folder, instance, connection, limitBytes - threads * LIMIT_PER_THREAD, signal)
    } catch (error) {
      if (folder !== '') removeFolder(folder)
      throw ioError(error, 'cannot use', above)
    }
  }

  /** @throws the signal's reason */
  throwIfInterrupted(): void {
    this.signal?.throwIfAborted()
  }

  /** @throws LIMIT_EXCEEDED, IO, TEMPLATE_FORMAT for files that cannot be read, the signal's reason */
  async run(sql: string, values: DuckDBValue[] = [], share?: Share): Promise<void> {
    await this.rows(sql, values, share)
  }

  /** All rows; for answers that are small. @throws as run */
  async rows(sql: string, values: DuckDBValue[] = [], share?: Share): Promise<Record<string, DuckDBValue>[]> {
    const look = (): void => {
      if (this.signal?.aborted) this.interrupt() // again: DuckDB forgets it where it comes while a query is prepared
      if (share === undefined) return
      const { percentage } = this.connection.progress
      if (percentage >= 0) share(Math.min(1, percentage / 100))
    }
    try {
      this.throwIfInterrupted()
      const reader = await meanwhile(this.connection.runAndReadAll(sql, values), PROGRESS_MS, look)
      return reader.getRowObjects() as Record<string, DuckDBValue>[]
    } catch (error) {
      throw this.typed(error)
    }
  }

  /**
   * Looks whether a file is parquet with these columns, and no more rows than its bytes can hold.
   *
   * @param columns names with DuckDB's types
   * @param kind what it should be
   * @throws TEMPLATE_FORMAT, IO, USAGE
   */
  async file(name: string, columns: Readonly<Record<string, string>>, kind: FileKind): Promise<ParquetFile> {
    const named = { name, kind }
    const bad = (why: string): ProxyError => notWhat(named, why)
    const lengthBytes = lengthOfParquet(name, bad)
    // By a name of ours no name is a pattern, an address or a partition to DuckDB.
    const path = join(this.folder, `${String(this.files.push(named) - 1).padStart(7, '0')}.parquet`)
    symlinkSync(resolve(name), path)
    const ask = (sql: string, values?: DuckDBValue[]): Promise<Record<string, DuckDBValue>[]> =>
      this.rows(sql, values).catch(error => {
        throw isProxyError(error, 'TEMPLATE_FORMAT') && error.where === undefined ? bad(error.what) : error
      })
    const found = await ask(`SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM ${parquet([path])})`)
    for (const [column, type] of Object.entries(columns)) {
      const has = found.find(({ column_name }) => column_name === column)?.column_type
      if (has !== type) throw bad(has === undefined ? `no column ${column}` : `column ${column} is ${has}, not ${type}`)
    }
    const [{ rows = 0 } = {}] = await ask('SELECT num_rows AS rows FROM parquet_file_metadata(?)', [path])
    const count = Number(rows)
    if (!(count >= 0 && count <= lengthBytes / ROW_LENGTH_MIN)) throw bad(`${count} rows in ${lengthBytes} bytes`)
    return { name, path, rows: count }
  }

  close(): void {
    this.signal?.removeEventListener('abort', this.interrupt)
    this.connection.closeSync()
    this.instance.closeSync()
    removeFolder(this.folder)
  }

  /** What DuckDB throws, as what it means here. */
  typed(error: unknown): unknown {
    if (this.signal?.aborted) return this.signal.reason
    if (isProxyError(error) || !(error instanceof Error)) return error
    const [head = '', type = '', appending] = TYPE.exec(error.message) ?? []
    const told = error.message.slice(head.length)
    const meaning = appending === undefined ? (MEANING[type] ?? 'file') : meaningOfAppending(told)
    if (head === '' || meaning === 'defect') return error
    const line = told.split('\n')[0]!
    const noSpill = 'nothing is left behind; make room there, or give --spill another folder'
    if (line.startsWith(NOT_SPILLED)) {
      const what = `no room in ${this.above} for what does not fit into memory: ${line}`
      return typed('IO', what, this.above, noSpill, error)
    }
    if (meaning === 'memory') return typed('LIMIT_EXCEEDED', line, undefined, 'give --memory more', error)
    const { text, file } = this.named(line)
    if (meaning === 'system' && !line.startsWith(TOO_SHORT)) {
      const spilling = told.includes(`"${join(this.folder, SPILL)}`)
      const noRoom = spilling ? noSpill : 'nothing is left behind; make room where -o is'
      const action = NO_ROOM.test(told) ? noRoom : 'check the files, and the disks that they are on'
      return typed('IO', text, spilling ? this.above : file?.name, action, error)
    }
    const [, bad] = BAD_ROW.exec(line) ?? []
    const badFile = bad === undefined ? undefined : this.files[Number(bad)]
    if (badFile !== undefined) return notWhat(badFile, 'a row that it cannot have', error)
    // Not every error of DuckDB names the file: of one alone it is known.
    const about = file ?? (this.files.length === 1 ? this.files[0] : undefined)
    if (about !== undefined) return notWhat(about, text, error)
    const action = 'nothing was written; give each file alone to find the damaged one'
    return typed('TEMPLATE_FORMAT', text, undefined, action, error)
  }

  /** An error's text with files by the names that they were given by, and the first of these files. */
  private named(text: string): { text: string; file: NamedFile | undefined } {
    let first: NamedFile | undefined
    const [before = '', ...parts] = text.split(`${this.folder}/`)
    const named = parts.map(part => {
      const [path = '', number] = /^(\d{7})\.parquet/.exec(part) ?? []
      const file = number === undefined ? undefined : this.files[Number(number)]
      first ??= file
      return file === undefined ? `${this.folder}/${part}` : file.name + part.slice(path.length)
    })
    return { text: before + named.join(''), file: first }
  }

  private readonly interrupt = (): void => this.connection.interrupt()
}

/**
 * Files of ours as a table: columns by their names, so that counts of a later version may have more. Without
 * `hive_partitioning` a folder `key=1` above them would be a column.
 */
export function parquet(paths: readonly string[], ...options: string[]): string {
  const all = ['filename = true', 'union_by_name = true', 'hive_partitioning = false', ...options]
  return `read_parquet([${paths.map(quoted).join(', ')}], ${all.join(', ')})`
}

/** A text as SQL has it. */
export function quoted(text: string): string {
  return `'${text.replaceAll("'", "''")}'`
}

/** The appender says what failed without its type, in the words of the same places. */
function meaningOfAppending(told: string): Meaning {
  if (NO_ROOM.test(told)) return 'system'
  return told.startsWith(NOT_SPILLED) || /^(?:could not|failed to) (?:allocate|pin) /.test(told) ? 'memory' : 'defect'
}

function typed(code: ErrorCode, what: string, path: string | undefined, action: string, cause: unknown): ProxyError {
  return new ProxyError(code, what, path === undefined ? undefined : { stream: path }, action, { cause })
}

/** A file that is not what it should be. */
export function notWhat({ name, kind }: NamedFile, why: string, cause?: unknown): ProxyError {
  return typed('TEMPLATE_FORMAT', `${name} is not ${kind.what}: ${why}`, name, kind.action, cause)
}

/** Or the end of the process does: what failed before is not hidden by this. */
function removeFolder(folder: string): void {
  try {
    rmSync(folder, { recursive: true, force: true })
    finished(folder)
  } catch {
    // it stays among what is unfinished
  }
}

async function load(): Promise<typeof import('@duckdb/node-api')> {
  try {
    return await import('@duckdb/node-api')
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'ERR_MODULE_NOT_FOUND'
    const why = cause instanceof Error ? cause.message.split('\n')[0] : String(cause)
    const what = missing ? `counting needs ${PACKAGE}, which is not installed` : `${PACKAGE} cannot be loaded: ${why}`
    throw new ProxyError('USAGE', what, undefined, installing(), { cause })
  }
}

/** How to bring the package to where it is looked for. */
function installing(): string {
  const name = `${PACKAGE}@${PACKAGE_VERSION}`
  const root = resolve(import.meta.dirname, '../..')
  const above = dirname(root)
  if (basename(above) !== 'node_modules') return `in ${root}: npm install --no-save ${name}`
  // In a folder that is no project npm would take everything else away.
  const project = dirname(above)
  return existsSync(join(project, 'package.json')) ? `in ${project}: npm install ${name}` : `npm install -g ${name}`
}

/** Its length, where it is a file with parquet's magic at both ends. */
function lengthOfParquet(name: string, bad: (why: string) => ProxyError): number {
  let fd = -1
  try {
    fd = openSync(name, constants.O_RDONLY | constants.O_NONBLOCK) // a FIFO would be waited for, for ever
    const stat = fstatSync(fd)
    if (!stat.isFile()) throw bad('not a regular file')
    const ends = Buffer.alloc(2 * MAGIC.length)
    if (stat.size >= 12) {
      readSync(fd, ends, 0, MAGIC.length, 0)
      readSync(fd, ends, MAGIC.length, MAGIC.length, stat.size - MAGIC.length)
    }
    if (ends.toString('latin1') !== MAGIC + MAGIC) throw bad('not a parquet file, or cut off')
    return stat.size
  } catch (error) {
    throw ioError(error, 'cannot read', name)
  } finally {
    if (fd >= 0) closeSync(fd)
  }
}
