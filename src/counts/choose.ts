/** Chooses pages over any number of counts, out of core, and reads what was chosen. */
import { ProxyError } from '../errors.ts'
import { VM_NAME_BYTES_MAX } from '../limits.ts'
import { CHOICE_ENTRY_LENGTH, ChoiceTable } from '../template/choice-table.ts'
import { encodeMetadata, type SetMetadata } from '../template/format.ts'
import { TAG_LENGTH, TAG_WORDS } from '../template/page-tag.ts'
import { COUNT_MAX, PAGES_MAX, pagesWithin } from '../template/wire.ts'
import { COUNT_COLUMNS, copySql } from './count.ts'
import { rangesOf } from './digest-ranges.ts'
import {
  BAD_ROW_MARK,
  DUCKDB_MEMORY_MIN,
  DuckDb,
  notWhat,
  type ParquetFile,
  parquet,
  quoted,
  type Share,
} from './duckdb.ts'
import { writeWhole } from './write-whole.ts'

export interface ChooseRule {
  /** A page is chosen from so many VMs on. */
  readonly minVms: number
  /** Limit of the set's file. */
  readonly maxBytes?: number | undefined
  /** Pages that are on a disk come before all others. */
  readonly preferImages?: boolean | undefined
}

export interface ChooseOptions {
  readonly memoryBytes: number
  readonly spill?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** How far a choice is. Grouping comes in parts, one after the other. */
export interface ChooseProgress {
  readonly step: 'vms' | 'group' | 'rank'
  /** From 1. */
  readonly part: number
  readonly parts: number
  /** Rows that the step is about: of all counts, or pages that the rule takes. */
  readonly rows: number
  /** Of the part, 0 to 1. */
  readonly share: number
}

export interface ChoosePagesOptions extends ChooseOptions {
  readonly progress?: ((progress: ChooseProgress) => void) | undefined
  /** In how many parts pages are grouped; undefined: as many as the memory asks for. */
  readonly parts?: number | undefined
}

export interface ChooseReport {
  readonly path: string
  readonly files: number
  /** Rows of all counts. */
  readonly rows: number
  /** VMs of all counts, each once. */
  readonly vms: number
  readonly pages: number
  /** Pages that the rule takes, had it no limit of size. */
  readonly eligiblePages: number
  readonly fileBytes: number
}

const COUNT_FILE = { what: 'a page count', action: 'nothing was written; leave it out, or count again' }
const CHOICE_FILE = {
  what: 'a choice of pages',
  action: 'nothing was stored; give a file that `pageferry template choose` wrote',
}
/** What a choice needs; `choose` writes its `place` too, the rank from 0. */
const CHOICE_COLUMNS = {
  digest: 'BLOB',
  vms: 'BIGINT',
  occurrences: 'BIGINT',
  images: 'BIGINT',
  key: 'VARCHAR',
  min_vms: 'BIGINT',
  max_bytes: 'BIGINT',
  of_vms: 'BIGINT',
} as const
/** Bits of a place within a file; the file's own number stands above them. */
const FIRST_BITS = 40
/**
 * Bytes of DuckDB's limit that grouping may take a row. Spilling, it takes 5 to 7 and gets slow (ADR 0011). Where the rows
 * need more than there is, they are grouped range by range of their digests, which are as good as random; counts are sorted
 * by them, so that of each range little more is read than what is in it.
 */
const GROUP_BYTES_PER_ROW = 16
/** In SQL over {@link parquet}: the whole query fails, and says by which file. */
const BAD_ROW = `error('${BAD_ROW_MARK}' || parse_filename(filename, true))`
/** What stands in the column `key`. */
const KEY_ID = /^(?:[0-9a-f]{16})?$/
/** In SQL: of a key so much that a longer one is known. Texts are cut by DuckDB, whose memory is limited, not by us. */
const KEY = 'left(key, 17) AS key'

/** @throws USAGE, IO, TEMPLATE_FORMAT for files that are no counts, TEMPLATE_MISSING, LIMIT_EXCEEDED, the signal's reason */
export async function choosePages(
  paths: readonly string[],
  rule: ChooseRule,
  path: string,
  options: ChoosePagesOptions,
): Promise<ChooseReport> {
  const db = await DuckDb.open(options)
  try {
    const files: ParquetFile[] = []
    for (const name of paths) files.push(await db.file(name, COUNT_COLUMNS, COUNT_FILE))
    const rows = files.reduce((sum, file) => sum + file.rows, 0)
    const all = parquet(files.map(file => file.path))
    const { progress = () => {}, parts = Math.ceil((rows * GROUP_BYTES_PER_ROW) / db.roomBytes) } = options
    const { written, fileBytes } = await writeWhole(path, temporary => {
      return rank(db, { sql: all, rows, ranges: rangesOf(parts) }, rule, temporary, progress)
    })
    return { path, files: files.length, rows, ...written, fileBytes }
  } finally {
    db.close()
  }
}

/** All counts together. */
interface Counts {
  /** As a table. */
  readonly sql: string
  readonly rows: number
  /** Conditions that cut it into parts. */
  readonly ranges: readonly string[]
}

/** Chooses of the counts, and writes what is chosen. */
async function rank(
  db: DuckDb,
  { sql: all, rows, ranges }: Counts,
  { minVms, maxBytes, preferImages }: ChooseRule,
  path: string,
  progress: (progress: ChooseProgress) => void,
): Promise<Pick<ChooseReport, 'vms' | 'pages' | 'eligiblePages'>> {
  const telling = (of: Omit<ChooseProgress, 'share'>): Share => {
    const share: Share = share => progress({ ...of, share })
    share(0)
    return share
  }
  const { key, vms } = await keyAndVms(db, all, telling({ step: 'vms', part: 1, parts: 1, rows }))
  if (minVms > vms) {
    const what = `counts of ${vms} VM${vms === 1 ? '' : 's'} for pages of at least ${minVms}`
    throw new ProxyError('USAGE', what, undefined, 'give counts of more VMs, or a smaller --min-vms')
  }
  const metadata: SetMetadata = { maxBytes, minVms, vms }
  const most = maxBytes === undefined ? PAGES_MAX : pagesWithin(maxBytes, encodeMetadata(metadata).length)
  if (most === 0) {
    throw new ProxyError('USAGE', `--max-size ${maxBytes} holds no page`, undefined, 'give at least 16KiB')
  }

  const parts = ranges.length
  for (const [i, range] of ranges.entries()) {
    const into = i === 0 ? 'CREATE TABLE eligible AS' : 'INSERT INTO eligible'
    await db.run(`${into} ${groupSql(all, range, minVms)}`, [], telling({ step: 'group', part: i + 1, parts, rows }))
  }
  const [{ count = 0 } = {}] = await db.rows('SELECT count(*) AS count FROM eligible')
  const eligiblePages = Number(count)
  if (eligiblePages === 0) {
    const what = `no page is in ${minVms} or more of these ${vms} VMs`
    const action = 'nothing was written; give counts that have more in common'
    throw new ProxyError('TEMPLATE_MISSING', what, undefined, action)
  }
  if (maxBytes === undefined && eligiblePages > PAGES_MAX) {
    throw new ProxyError('LIMIT_EXCEEDED', `${eligiblePages} pages in one set`, undefined, 'give a --max-size')
  }
  const order = `${preferImages ? 'least(images, 1) DESC, ' : ''}vms DESC, occurrences DESC, first, digest`
  const ranked = `SELECT row_number() OVER (ORDER BY ${order}) - 1 AS place, digest::BLOB AS digest, vms, occurrences, images,
      ${quoted(key)} AS key, ${minVms}::BIGINT AS min_vms, ${maxBytes ?? 'NULL'}::BIGINT AS max_bytes, ${vms}::BIGINT AS of_vms
    FROM (SELECT * FROM eligible ORDER BY ${order} LIMIT ${most}) ORDER BY place`
  const share = telling({ step: 'rank', part: 1, parts: 1, rows: eligiblePages })
  await db.run(copySql(ranked, path, 'page choice'), [], share)
  return { vms, pages: Math.min(most, eligiblePages), eligiblePages }
}

/** The one key of all counts, and their VMs. Reads the two columns only, which take next to nothing. */
async function keyAndVms(db: DuckDb, all: string, share: Share): Promise<{ key: string; vms: number }> {
  const known = `CASE WHEN key IS NULL THEN ${BAD_ROW} ELSE key END AS key`
  const keys = await db.rows(`SELECT DISTINCT ${KEY} FROM (SELECT ${known} FROM ${all}) LIMIT 2`)
  if (keys.length > 1) {
    const action = 'their digests cannot be compared; count again with one --key, or choose of each by itself'
    throw new ProxyError('USAGE', 'the counts were made under different keys', undefined, action)
  }
  const key = String(keys[0]?.key ?? '')
  if (!KEY_ID.test(key)) {
    throw new ProxyError('TEMPLATE_FORMAT', 'no key has such an id', undefined, 'nothing was written; count again')
  }
  const vm = `CASE WHEN strlen(vm) <= ${VM_NAME_BYTES_MAX} THEN vm ELSE ${BAD_ROW} END`
  await db.run(
    `CREATE TABLE vms AS SELECT vm, (row_number() OVER (ORDER BY vm))::INTEGER AS id FROM (SELECT DISTINCT ${vm} AS vm FROM ${all})`,
    [],
    share,
  )
  const [{ count = 0 } = {}] = await db.rows('SELECT count(*) AS count FROM vms')
  return { key, vms: Number(count) }
}

/**
 * Pages of a range that are in enough VMs. A VM first, then VMs: one that was counted on two days, or on two hosts, is one.
 * Its occurrences are those of the count that has most. docs/operations.md has the same for Spark and Trino.
 */
function groupSql(all: string, range: string, minVms: number): string {
  const ofVm = `octet_length(digest) = 0 AND occurrences = 0`
  const ofPage = `octet_length(digest) = ${TAG_LENGTH} AND occurrences > 0 AND first >= 0 AND first < ${2 ** FIRST_BITS}`
  const kind = `kind IN ('memory', 'disk')`
  return `SELECT digest, count(*) AS vms, sum(occurrences)::BIGINT AS occurrences, count(*) FILTER (image) AS images, min(first) AS first
    FROM (
      SELECT digest, id, max(occurrences) AS occurrences, bool_or(kind = 'disk') AS image, min(first) AS first
      FROM (
        SELECT vm, kind, occurrences, first + (parse_filename(filename, true)::BIGINT << ${FIRST_BITS}) AS first,
          CASE WHEN coalesce(${ofPage} AND ${kind}, false) THEN digest::UUID
            WHEN coalesce(${ofVm} AND ${kind}, false) THEN NULL ELSE ${BAD_ROW} END AS digest
        FROM ${all} WHERE ${range}
      ) JOIN vms USING (vm) WHERE digest IS NOT NULL GROUP BY digest, id
    ) GROUP BY digest HAVING count(*) >= ${minVms}`
}

/** A choice, read. */
export interface Choice {
  readonly table: ChoiceTable
  readonly metadata: SetMetadata
  /** Id of the key of its counts; empty: none. */
  readonly keyId: string
}

/**
 * Reads a choice: of `template choose`, or of the same columns by whatever engine. Its table and what DuckDB takes to read
 * it stay together within the memory.
 *
 * @throws TEMPLATE_FORMAT, IO, USAGE, LIMIT_EXCEEDED where it takes more than the memory
 */
export async function readChoice(path: string, options: ChooseOptions): Promise<Choice> {
  const db = await DuckDb.open({ ...options, memoryBytes: Math.min(options.memoryBytes, DUCKDB_MEMORY_MIN) })
  const bad = (why: string): ProxyError => notWhat({ name: path, kind: CHOICE_FILE }, why)
  try {
    const file = await db.file(path, CHOICE_COLUMNS, CHOICE_FILE)
    if (file.rows === 0) throw bad('no page')
    if (file.rows > PAGES_MAX) throw bad(`${file.rows} pages in one set`)
    const needBytes = DUCKDB_MEMORY_MIN + file.rows * CHOICE_ENTRY_LENGTH
    if (needBytes > options.memoryBytes) {
      const action = `give --memory at least ${Math.ceil(needBytes / 2 ** 20)}MiB`
      const what = `${file.rows} chosen pages do not fit into --memory`
      throw new ProxyError('LIMIT_EXCEEDED', what, { stream: path }, action)
    }
    const { keyId, metadata } = await aboutChoice(db, file, bad)
    const table = new ChoiceTable(path, file.rows)
    await fill(db, file, table, metadata.vms, bad)
    if (table.named !== file.rows) throw bad(`${table.named} of ${file.rows} rows`)
    return { table, metadata, keyId }
  } finally {
    db.close()
  }
}

/** What every row says of all. */
async function aboutChoice(
  db: DuckDb,
  file: ParquetFile,
  bad: (why: string) => ProxyError,
): Promise<Pick<Choice, 'keyId' | 'metadata'>> {
  const of = (columns: string): string => `SELECT ${columns} FROM ${parquet([file.path], 'file_row_number = true')}`
  const [nothing] = await db.rows(
    `${of('min(file_row_number) AS row')} WHERE key IS NULL OR min_vms IS NULL OR of_vms IS NULL HAVING count(*) > 0`,
  )
  if (nothing !== undefined) throw bad(`row ${nothing.row} has no key (empty where there was none), min_vms or of_vms`)
  const about = await db.rows(`SELECT DISTINCT * FROM (${of(`${KEY}, min_vms, max_bytes, of_vms`)}) LIMIT 2`)
  if (about.length !== 1) throw bad('rows of several choices')
  const { key, min_vms, max_bytes, of_vms } = about[0]!
  const minVms = Number(min_vms)
  const vms = Number(of_vms)
  const maxBytes = max_bytes === null ? undefined : Number(max_bytes)
  if (![minVms, maxBytes ?? 1].every(n => Number.isSafeInteger(n) && n > 0) || !(vms >= minVms && vms <= COUNT_MAX)) {
    throw bad(`a rule that cannot be: min_vms ${min_vms}, max_bytes ${max_bytes}, of_vms ${of_vms}`)
  }
  const keyId = String(key)
  if (!KEY_ID.test(keyId)) throw bad('no key has such an id')
  return { keyId, metadata: { maxBytes, minVms, vms } }
}

async function fill(
  db: DuckDb,
  file: ParquetFile,
  table: ChoiceTable,
  ofVms: number,
  bad: (why: string) => ProxyError,
): Promise<void> {
  const memory = new ArrayBuffer(TAG_LENGTH)
  const tag = new Uint8Array(memory)
  const words = new Uint32Array(memory, 0, TAG_WORDS)
  try {
    const digest = `CASE WHEN octet_length(digest) = ${TAG_LENGTH} THEN digest END`
    const rows = parquet([file.path], 'file_row_number = true')
    const chunks = await db.connection.stream(`SELECT ${digest}, vms, occurrences, file_row_number FROM ${rows}`)
    for (
      let chunk = await chunks.fetchChunk();
      chunk !== null && chunk.rowCount > 0;
      chunk = await chunks.fetchChunk()
    ) {
      db.throwIfInterrupted()
      const [digests = [], vmCounts = [], occurrenceCounts = [], numbers = []] = chunk.getColumns()
      for (let i = 0; i < digests.length; i++) {
        const bytes = (digests[i] as { bytes: Uint8Array } | null)?.bytes
        if (bytes?.length !== TAG_LENGTH) throw bad(`row ${numbers[i]} has no digest of ${TAG_LENGTH} bytes`)
        const vms = Number(vmCounts[i] ?? 0)
        const occurrences = Number(occurrenceCounts[i] ?? 0)
        if (!(vms >= 1 && vms <= ofVms && occurrences >= vms)) {
          throw bad(`row ${numbers[i]}: ${occurrenceCounts[i]} occurrences in ${vmCounts[i]} of ${ofVms} VMs`)
        }
        if (table.named === file.rows) throw bad(`more than ${file.rows} rows`)
        tag.set(bytes)
        table.add(words, 0, vms, occurrences)
      }
    }
  } catch (error) {
    throw db.typed(error)
  }
}
