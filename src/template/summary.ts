/**
 * A summary of a set: a Bloom filter over its pages' digests, some 1.2 bytes a page. A site hands it to another to learn
 * how much of a set the other one holds under other names, without either sending what is in it: digests of pages
 * would tell which known pages a guest has, page by page. To be imported when it is needed: the package takes 100 ms.
 */
import { BloomFilter } from 'bloom-filters'
import { ProxyError } from '../errors.ts'
import type { SetHead } from './format.ts'
import { DIGEST_LENGTH, PAGES_MAX, RECORD_LENGTH } from './wire.ts'

/** Share of pages that the filter takes for its own though they are not. */
const ERROR_RATE = 0.01
const FORMAT = 'pageferry set summary'
const VERSION = 1
/** Bits and hashes that the filter of the largest set has, and room above. */
const BITS_MAX = PAGES_MAX * 16
const HASHES_MAX = 32
/** Longest summary as text: base64 of the largest filter, and the rest. */
export const SUMMARY_LENGTH_MAX = Math.ceil(BITS_MAX / 8 / 3) * 4 + 4096

/** A set in brief, as JSON. */
export interface SetSummary {
  readonly format: string
  readonly version: number
  /** Digest of the set. */
  readonly set: string
  readonly pages: number
  /** As bloom-filters writes it. */
  readonly filter: object
}

/** How much of a set another one holds, by the other's summary. */
export interface SetOverlap {
  /** Digest of the other set. */
  readonly set: string
  /** Pages of the other set. */
  readonly otherPages: number
  /** Pages of ours that the other set has too, the filter's error taken out. */
  readonly pages: number
}

/** The summary of a set. 15 us a page. */
export function summarize(head: SetHead): SetSummary {
  const filter = BloomFilter.create(Math.max(1, head.pageCount), ERROR_RATE)
  for (let page = 0; page < head.pageCount; page++) filter.add(digestOf(head, page))
  const { digest: set, pageCount: pages } = head
  return { format: FORMAT, version: VERSION, set, pages, filter: filter.saveAsJSON() as object }
}

/** How much of the set the summarized one holds. 15 us a page. */
export function overlap(head: SetHead, summary: SetSummary): SetOverlap {
  const filter = BloomFilter.fromJSON(summary.filter as JSON) as BloomFilter
  let found = 0
  for (let page = 0; page < head.pageCount; page++) if (filter.has(digestOf(head, page))) found++
  const error = summary.pages === 0 ? 0 : ERROR_RATE
  const pages = Math.max(0, Math.round((found - head.pageCount * error) / (1 - error)))
  return { set: summary.set, otherPages: summary.pages, pages }
}

/** Reads a summary. @param name what errors call it @throws TEMPLATE_FORMAT */
export function parseSummary(text: string, name: string): SetSummary {
  const bad = (cause?: unknown): ProxyError => {
    const where = { stream: name, offset: 0 }
    const action = 'give a file that `pageferry template inspect --summary` wrote'
    return new ProxyError('TEMPLATE_FORMAT', 'not a summary of a template set', where, action, { cause })
  }
  let value: Record<string, unknown>
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw bad(cause)
  }
  const { format, version, set, pages, filter } = value ?? {}
  if (format !== FORMAT || version !== VERSION || typeof set !== 'string' || !isCount(pages, PAGES_MAX)) throw bad()
  const { type, _size, _nbHashes, _filter } = (filter ?? {}) as Record<string, unknown>
  const { size, content } = (_filter ?? {}) as Record<string, unknown>
  // The package believes what it reads, so sizes are checked against each other here.
  const counts = isCount(_size, BITS_MAX) && isCount(_nbHashes, HASHES_MAX) && _size > 0 && _nbHashes > 0
  if (type !== 'BloomFilter' || !counts || typeof content !== 'string') throw bad()
  if (size !== Math.ceil(_size / 8) * 8 || Buffer.from(content, 'base64').length !== size / 8) throw bad()
  return { format, version, set, pages, filter: filter as object }
}

function isCount(value: unknown, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= max
}

function digestOf(head: SetHead, page: number): Buffer {
  const { buffer, byteOffset } = head.table
  return Buffer.from(buffer, byteOffset + page * RECORD_LENGTH, DIGEST_LENGTH)
}
