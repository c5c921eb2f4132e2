/** Counts the pages of inputs into a file that other hosts' counts can be put beside. docs/adr/0011-fleet-counts.md. */
import type { DuckDBAppender } from '@duckdb/node-api'
import { type BuildOptions, InputReader, type TemplateInput, taggedBatches } from '../store/build.ts'
import { PageTagger, TAG_LENGTH } from '../template/page-tag.ts'
import { rangesOf } from './digest-ranges.ts'
import { DuckDb, quoted, type Share } from './duckdb.ts'
import { writeWhole } from './write-whole.ts'

/** What an input is: a guest's memory, or a disk. */
export type SourceKind = 'memory' | 'disk'

export interface CountInput extends TemplateInput {
  /** Which VM it is, all over the fleet and every day: two inputs of the same are one VM. */
  readonly vm: string
  readonly kind: SourceKind
}

/** The key that tags are made with, and how it is known in files. */
export interface CountKey {
  readonly bytes: Uint8Array
  /** Hexadecimal digits. */
  readonly id: string
}

export interface CountFileOptions extends BuildOptions {
  readonly memoryBytes: number
  readonly spill?: string | undefined
  readonly key?: CountKey | undefined
  /** In how many parts pages are sorted; undefined: as many as the memory asks for. */
  readonly parts?: number | undefined
  /** Is told how far sorting is, once the inputs are read: of how many pages, and 0 to 1. */
  readonly sorting?: ((pages: number, share: number) => void) | undefined
}

export interface CountReport {
  readonly path: string
  /** Pages of all inputs. */
  readonly pages: number
  /** Of these: pages of one repeated byte, which are not counted. */
  readonly uniformPages: number
  /** Rows of the file: those of pages, and one for each VM and kind. */
  readonly rows: number
  readonly vms: number
  readonly fileBytes: number
}

/**
 * Columns of a count. docs/operations.md has the table. A VM of which no page is counted was counted all the same, and a
 * choice says of how many VMs it is: so each VM has a row without a page, empty digest and occurrences 0.
 */
export const COUNT_COLUMNS = {
  digest: 'BLOB',
  vm: 'VARCHAR',
  kind: 'VARCHAR',
  occurrences: 'BIGINT',
  first: 'BIGINT',
  key: 'VARCHAR',
} as const

/**
 * Bytes of DuckDB's limit that grouping and sorting may take a page. At once, 20 million pages of other digests end with the
 * limit of `--memory 128MiB` used up, 100 million with that of 1GiB. docs/adr/0011-fleet-counts.md.
 */
const SORT_BYTES_PER_ROW = 16
/** Rows of a group: what a reader holds at once of a column. */
const ROW_GROUP = 122_880

/** @throws USAGE, IO, LIMIT_EXCEEDED, whatever an input throws, the signal's reason */
export async function countPages(
  inputs: readonly CountInput[],
  path: string,
  options: CountFileOptions,
): Promise<CountReport> {
  const { memoryBytes, spill, signal, key } = options
  const db = await DuckDb.open({ memoryBytes, spill, signal })
  try {
    const { written, fileBytes } = await writeWhole(path, async temporary => {
      await nameSources(db, inputs)
      await db.run('CREATE TABLE pages (digest BLOB, input INTEGER, first DOUBLE)')
      const read = await readPages(db, inputs, options)
      const { parts = Math.ceil(((read.pages - read.uniformPages) * SORT_BYTES_PER_ROW) / db.roomBytes) } = options
      await group(db, rangesOf(parts), share => options.sorting?.(read.pages, share))
      // rows come out as `counted` has them: it is what the few sources are looked up for, never the other way round
      await db.run(
        "DROP TABLE pages; SET preserve_insertion_order = true; SET disabled_optimizers = 'join_order,build_side_probe_side'",
      )
      const sql = copySql(countSql(key?.id ?? ''), temporary, 'page count')
      const [{ Count = 0 } = {}] = await db.rows(sql)
      return { ...read, rows: Number(Count) }
    })
    const vms = new Set(inputs.map(({ vm }) => vm)).size
    return { path, ...written, vms, fileBytes }
  } finally {
    db.close()
  }
}

/** A number for each VM and kind, in the order of a count's rows. */
async function nameSources(db: DuckDb, inputs: readonly CountInput[]): Promise<void> {
  await db.run('CREATE TABLE inputs (input INTEGER, vm VARCHAR, kind VARCHAR)')
  for (const [input, { vm, kind }] of inputs.entries()) {
    await db.run('INSERT INTO inputs VALUES (?, ?, ?)', [input, vm, kind])
  }
  await db.run(`CREATE TABLE sources AS SELECT (row_number() OVER (ORDER BY vm, kind))::INTEGER AS source, vm, kind
    FROM (SELECT DISTINCT vm, kind FROM inputs)`)
}

/**
 * Fills `counted` with the rows of a count in their order: VMs first, then pages by digest. Of so many pages at a time as
 * sorting has memory for, range by range of their digests, which are as good as random.
 */
async function group(db: DuckDb, ranges: readonly string[], share: Share): Promise<void> {
  await db.run('CREATE TABLE counted (digest UUID, source INTEGER, occurrences BIGINT, first BIGINT)')
  await db.run('INSERT INTO counted SELECT NULL, source, 0, 0 FROM sources ORDER BY source')
  for (const [i, range] of ranges.entries()) {
    share(i / ranges.length)
    const ofRange = `SELECT digest::UUID AS digest, source, count(*)::BIGINT AS occurrences, min(first)::BIGINT AS first
      FROM pages JOIN inputs USING (input) JOIN sources USING (vm, kind) WHERE ${range} GROUP BY ALL`
    await db.run(`INSERT INTO counted ${ofRange} ORDER BY digest, source`, [], of => share((i + of) / ranges.length))
  }
}

/** Rows of a count. */
function countSql(key: string): string {
  return `SELECT coalesce(digest::BLOB, ''::BLOB) AS digest, vm, kind, occurrences, first, ${quoted(key)} AS key
    FROM counted JOIN sources USING (source)`
}

/** Writes what a query gives to a file that exists: DuckDB's own temporary file beside it would be anybody's to read. */
export function copySql(query: string, path: string, format: string): string {
  return `COPY (${query}) TO ${quoted(path)} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE ${ROW_GROUP},
    USE_TMP_FILE false, KV_METADATA {pageferry: ${quoted(JSON.stringify({ format, version: 1 }))}})`
}

async function readPages(
  db: DuckDb,
  inputs: readonly CountInput[],
  options: CountFileOptions,
): Promise<{ pages: number; uniformPages: number }> {
  const reader = new InputReader(inputs, options)
  const tagger = new PageTagger(options.key?.bytes)
  let pages = 0
  let uniformPages = 0
  reader.beginPass('count')
  let appender: DuckDBAppender | undefined
  try {
    appender = await db.connection.createAppender('pages')
    for (let input = 0; input < inputs.length; input++) {
      for await (const { count, uniform, tags } of taggedBatches(reader, input, tagger)) {
        for (let i = 0; i < count; i++) {
          if (uniform[i] === 1) {
            uniformPages++
            continue
          }
          appender.appendBlob(tags.subarray(i * TAG_LENGTH, (i + 1) * TAG_LENGTH))
          appender.appendInteger(input)
          appender.appendDouble(pages + i)
          appender.endRow()
        }
        pages += count
      }
    }
    appender.closeSync()
  } catch (error) {
    try {
      appender?.closeSync()
    } catch {
      // it tries to write again what could not be written: that is told already
    }
    throw db.typed(error)
  }
  return { pages, uniformPages }
}
