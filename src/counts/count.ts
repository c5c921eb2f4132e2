/** Counts the pages of inputs into a file that other hosts' counts can be put beside. docs/adr/0011-fleet-counts.md. */
import type { DuckDBAppender } from '@duckdb/node-api'
import { type BuildOptions, InputReader, type TemplateInput, taggedBatches } from '../store/build.ts'
import { PageTagger, TAG_LENGTH } from '../template/page-tag.ts'
import { DuckDb, quoted } from './duckdb.ts'
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
  /** Is told when the inputs are read and rows are sorted. */
  readonly sorting?: (() => void) | undefined
}

export interface CountReport {
  readonly path: string
  /** Pages of all inputs. */
  readonly pages: number
  /** Of these: pages of one repeated byte, which are not counted. */
  readonly uniformPages: number
  /** Rows of the file. */
  readonly rows: number
  readonly vms: number
  readonly fileBytes: number
}

/** Columns of a count. docs/operations.md has the table. */
export const COUNT_COLUMNS = {
  digest: 'BLOB',
  vm: 'VARCHAR',
  kind: 'VARCHAR',
  occurrences: 'BIGINT',
  first: 'BIGINT',
  key: 'VARCHAR',
} as const

/** Rows of a group: what a reader holds at once of a column. */
export const ROW_GROUP = 122_880

/** @throws USAGE, IO, LIMIT_EXCEEDED, whatever an input throws, the signal's reason */
export async function countPages(
  inputs: readonly CountInput[],
  path: string,
  options: CountFileOptions,
): Promise<CountReport> {
  const { memoryBytes, spill, signal, key } = options
  const db = await DuckDb.open({ memoryBytes, spill, signal })
  try {
    await db.run('CREATE TABLE inputs (input INTEGER, vm VARCHAR, kind VARCHAR)')
    for (const [input, { vm, kind }] of inputs.entries()) {
      await db.run('INSERT INTO inputs VALUES (?, ?, ?)', [input, vm, kind])
    }
    await db.run('CREATE TABLE pages (digest BLOB, input INTEGER, first DOUBLE)')
    const read = await readPages(db, inputs, options)
    options.sorting?.()
    const columns = `p.digest::BLOB AS digest, vm, kind, occurrences, first, ${quoted(key?.id ?? '')} AS key`
    let rows = 0
    const fileBytes = await writeWhole(path, async temporary => {
      const [{ Count = 0 } = {}] = await db.rows(`COPY (
        SELECT ${columns} FROM (
          SELECT digest::UUID AS digest, vm, kind, count(*)::BIGINT AS occurrences, min(first)::BIGINT AS first
          FROM pages JOIN inputs USING (input) GROUP BY ALL
        ) p ORDER BY p.digest, vm, kind
      ) TO ${quoted(temporary)} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE ${ROW_GROUP},
        KV_METADATA {pageferry: ${quoted(JSON.stringify({ format: 'page count', version: 1 }))}})`)
      rows = Number(Count)
    })
    const vms = new Set(inputs.map(({ vm }) => vm)).size
    return { path, ...read, rows, vms, fileBytes }
  } finally {
    db.close()
  }
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
    appender.flushSync()
  } catch (error) {
    throw db.typed(error)
  } finally {
    appender?.closeSync()
  }
  return { pages, uniformPages }
}
