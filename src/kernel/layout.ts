/**
 * Where everything lies in a kernel's memory. Addresses are bytes from its start. One memory holds template sets, what finds
 * their pages, and the blocks of the sessions that use them; it may grow, which moves nothing and leaves the views that
 * sockets write to as they are, because it is shared.
 */
import { ProxyError } from '../errors.ts'
import {
  CONFIG_CHECKSUM_KEY,
  CONFIG_LONG_SHIFT,
  CONFIG_LONG_TABLE,
  CONFIG_PAGE_KEY,
  CONFIG_PLACE_TABLE,
  CONFIG_PLACES,
  CONFIG_RING,
  CONFIG_RING_HASH,
  CONFIG_RING_MARK,
  CONFIG_RING_PAGES,
  CONFIG_RING_TABLE,
  CONFIG_RING_TABLE_MASK,
  CONFIG_TEMPLATE_MAP,
  CONFIG_TEMPLATE_MASK,
  CONFIG_TEMPLATE_PAGES,
  CONFIG_TEMPLATE_TABLE,
  CONFIG_TEMPLATES_AT,
  ENTRY_BYTES,
  NONE,
  PAGE_BYTES,
  STAGING_BYTES,
  STATE_CURSOR,
  STATE_USED,
} from './constants.ts'

export { NONE, PAGE_BYTES, RESULT_WORD } from './constants.ts'

/** Bytes in one page of WebAssembly.Memory. */
export const WASM_PAGE_BYTES = 65536
/** Most that a memory may have: 4 GiB less one, so that no area ends at 2^32, which would be address 0. */
export const MEMORY_PAGES_MAX = 65535
/** Bytes behind the last area: vectors are loaded a little beyond what is looked at. */
export const SLACK_BYTES = 64
/** Scratch of one thread: the padded block of a checksum, samples and hashes of the pages at hand. */
export const SCRATCH_BYTES = 16384

/** Bytes at the start of a memory that stay zero: an empty table for whoever has none. */
const NOTHING_BYTES = 64

/** Words of the state block that outlive a call: the ring slot that is next, and the ring slots ever written. */
export const STATE = { CURSOR: STATE_CURSOR, USED: STATE_USED } as const

const STATE_BYTES = 256
const KEY_BYTES = 256

/** What a side needs room for. */
export interface LayoutRequest {
  /** `encoder` has the tables that find pages; `decoder` only what both must update alike. */
  readonly role: 'encoder' | 'decoder'
  /** Pages of all agreed template sets, one after the other. */
  readonly templatePages: number
  /** Pages that passed and can be referenced; 0: none. Must be the same on both sides. */
  readonly ringPages: number
  /** Places of guest memory whose last page is remembered; 0: none. Must be the same on both sides. */
  readonly places: number
  /** Bytes that the caller uses as it likes: socket slots, lists, literals. */
  readonly ioBytes: number
  /** Entries of the table of long matches, a power of two: longEntriesFor; 0: no long matches. Encoder only. */
  readonly longEntries?: number
  /** Scratch areas: one for each thread that has an instance over this memory; of several each has a staging area, too. */
  readonly threads?: number
}

/** The keys of a memory. */
export interface KeyLayout {
  readonly checksumKey: number
  readonly pageKey: number
}

/** What finds the pages of a list of template sets. Made once, then only read: sessions with the same list share it. */
export interface TemplateLayout {
  readonly templatePages: number
  /** Address of each slot's page, u32 each; 0: not needed, as all follow each other at `templatesAt`. */
  readonly templateMap: number
  /** Address of the first page where each follows the one before; 0: see `templateMap`. */
  readonly templatesAt: number
  /** The exact table: u64 hash, u32 slot and u32 address, an entry. */
  readonly templateTable: number
  /** Entries of the table, a power of two, at least twice the pages; 0 where only a decoder needs the pages. */
  readonly templateEntries: number
}

/** A session's own part: nothing in it is another's to read or write. */
export interface BlockLayout {
  readonly role: 'encoder' | 'decoder'
  readonly ringPages: number
  readonly places: number
  /** Where the block begins, on a page boundary. */
  readonly block: number
  readonly blockBytes: number
  readonly state: number
  readonly scratch: number
  readonly threads: number
  /** Staging areas of threads that look for parts of pages, one behind the other; 0: there is one thread. */
  readonly staging: number
  /** The caller's area, on a 4096-byte boundary. */
  readonly io: number
  readonly ioBytes: number
  readonly placeTable: number
  readonly ringMark: number
  readonly ringHash: number
  /** The ring's exact table: u64 hash, u32 slot and nothing, an entry. */
  readonly ringTable: number
  /** Entries of the ring's exact table, a power of two, at least twice its pages; 0 on a decoder and without a ring. */
  readonly ringTableEntries: number
  readonly longTable: number
  readonly longEntries: number
  /** Ring slots, one behind the other. In the numbers of slots they follow the templates. */
  readonly ring: number
}

/** Addresses (bytes) and counts of one session. Plain numbers, so that they can be posted to a worker. */
export interface SessionLayout extends KeyLayout, TemplateLayout, BlockLayout {}

/** A session that has a memory for itself. */
export interface MemoryLayout extends SessionLayout {
  /** Size of the memory in pages of 64 KiB. */
  readonly memoryPages: number
}

/**
 * Entries that the table of long matches should have: a page brings about 64 windows. Measured on nginx-k2 with four
 * guests' pages, in bytes saved: 60 entries a page 100 %, 30 98 %, 15 91 %, 7 73 %, 4 60 % (LONG-MATCH.md). 8 bytes each.
 */
export function longEntriesFor(poolPages: number): number {
  return Math.min(1 << 25, Math.max(4096, powerOfTwo(poolPages * 32 + 1) / 2))
}

function powerOfTwo(least: number): number {
  let n = 1
  while (n < least) n *= 2
  return n
}

/** Hands out addresses, one area behind the other. */
function areas(from: number): { take(bytes: number, align?: number): number; readonly end: number } {
  let at = from
  return {
    take(bytes, align = 64) {
      const start = Math.ceil(at / align) * align
      at = start + bytes
      return start
    },
    get end() {
      return at
    },
  }
}

/** Where the keys of a memory lie, and where what follows them may begin. */
export function layoutKeys(): { keys: KeyLayout; end: number } {
  const { take } = areas(NOTHING_BYTES) // address 0 means nothing, as elsewhere
  const keys = { checksumKey: take(KEY_BYTES), pageKey: take(KEY_BYTES) }
  return { keys, end: PAGE_BYTES }
}

/**
 * What finds template pages, from `at` on.
 * @param templatesAt address of the first page where each follows the one before; 0: a map is needed
 */
export function layoutTemplates(
  role: 'encoder' | 'decoder',
  templatePages: number,
  templatesAt: number,
  at: number,
): { templates: TemplateLayout; end: number } {
  const area = areas(at)
  const templateEntries = role === 'encoder' && templatePages > 0 ? powerOfTwo(Math.max(16, templatePages * 2)) : 0
  const templateMap = templatesAt === 0 && templatePages > 0 ? area.take(templatePages * 4) : 0
  const templateTable = templateEntries === 0 ? 0 : area.take(templateEntries * ENTRY_BYTES)
  const templates = { templatePages, templateMap, templatesAt, templateTable, templateEntries }
  return { templates, end: area.end }
}

/**
 * A session's own block, from `at` (a page boundary) on.
 * @throws LIMIT_EXCEEDED where a count is out of bounds
 */
export function layoutBlock(request: LayoutRequest, at: number): BlockLayout {
  const { role, templatePages, ringPages, places, ioBytes, threads = 1 } = request
  const encoder = role === 'encoder'
  const longEntries = encoder ? (request.longEntries ?? 0) : 0
  for (const [name, n] of Object.entries({ templatePages, ringPages, places, ioBytes, threads, longEntries })) {
    if (!Number.isInteger(n) || n < 0 || n > NONE) throw bad(`${name} is ${n}`, 'give a count from 0 to 2^32 - 1')
  }
  if (longEntries !== 0 && (longEntries < 256 || longEntries !== powerOfTwo(longEntries)))
    throw bad(`longEntries is ${longEntries}`, 'give 0 or a power of two of 256 or more')
  const area = areas(at)
  // small and often used first, so that JavaScript sees most addresses as small integers
  const state = area.take(STATE_BYTES)
  const scratch = area.take(SCRATCH_BYTES * threads)
  const io = area.take(ioBytes, PAGE_BYTES)
  const placeTable = area.take(places * 4)
  const ringMark = area.take(ringPages)
  const ringTableEntries = encoder && ringPages > 0 ? powerOfTwo(Math.max(16, ringPages * 2)) : 0
  const ringHash = area.take(encoder ? ringPages * 8 : 0)
  const ringTable = ringTableEntries === 0 ? 0 : area.take(ringTableEntries * ENTRY_BYTES)
  const longTable = area.take(longEntries * 8)
  const staging = threads > 1 ? area.take(STAGING_BYTES * threads, PAGE_BYTES) : 0
  const ring = area.take(ringPages * PAGE_BYTES, PAGE_BYTES)
  const blockBytes = Math.ceil((area.end - at) / PAGE_BYTES) * PAGE_BYTES
  return {
    role,
    ringPages,
    places,
    block: at,
    blockBytes,
    state,
    scratch,
    threads,
    staging,
    io,
    ioBytes,
    placeTable,
    ringMark,
    ringHash,
    ringTable,
    ringTableEntries,
    longTable,
    longEntries,
    ring,
  }
}

/**
 * Lays out one session that has a memory for itself: its template pages are at `templatesAt`, and the caller's to fill.
 * @throws LIMIT_EXCEEDED where it does not fit in what 32-bit addresses reach
 */
export function layoutMemory(request: LayoutRequest): MemoryLayout {
  const { role, templatePages, ringPages, ioBytes } = request
  const { keys, end } = layoutKeys()
  const block = layoutBlock(request, end)
  const templatesAt = block.block + block.blockBytes
  const pagesEnd = templatesAt + templatePages * PAGE_BYTES
  const found = layoutTemplates(role, templatePages, templatesAt, pagesEnd)
  const memoryPages = Math.ceil((found.end + SLACK_BYTES) / WASM_PAGE_BYTES)
  if (memoryPages > MEMORY_PAGES_MAX) {
    const mib = (bytes: number) => Math.ceil(bytes / 1048576)
    const pages = (templatePages + ringPages) * PAGE_BYTES
    throw bad(
      `${mib(found.end)} MiB of memory are needed (templates ${mib(templatePages * PAGE_BYTES)}, ring ` +
        `${mib(ringPages * PAGE_BYTES)}, tables ${mib(found.end - pages - ioBytes)}, buffers ${mib(ioBytes)}), 4095 can be addressed`,
      'use fewer template sets, a smaller ring or smaller guests per link',
    )
  }
  return { ...keys, ...found.templates, ...block, memoryPages }
}

/**
 * A memory: shared, zero, and committed by the system as it is touched.
 * @param pages to begin with, of 64 KiB
 * @param pagesMax that it may grow to; only addresses are taken for them
 * @throws LIMIT_EXCEEDED where it cannot be had
 */
export function createMemory(pages: number, pagesMax = pages): WebAssembly.Memory {
  try {
    return new WebAssembly.Memory({ initial: pages, maximum: pagesMax, shared: true })
  } catch (cause) {
    throw new ProxyError(
      'LIMIT_EXCEEDED',
      `${pagesMax / 16} MiB of memory could not be reserved`,
      undefined,
      'use fewer template sets or a smaller ring, or raise the limit on address space (ulimit -v)',
      { cause },
    )
  }
}

/** Writes the keys of a new memory. @param pageKey 256 random bytes; without it the fixed ones */
export function writeKeys(buffer: ArrayBufferLike, keys: KeyLayout, pageKey?: Uint8Array): void {
  const fixed = checksumKeyWords()
  new Uint32Array(buffer, keys.checksumKey, KEY_BYTES / 4).set(fixed)
  new Uint32Array(buffer, keys.pageKey, KEY_BYTES / 4).set(fixed)
  if (pageKey) new Uint8Array(buffer, keys.pageKey, KEY_BYTES).set(pageKey)
}

/** Writes the configuration words of a session whose block is zero. */
export function writeConfig(buffer: ArrayBufferLike, layout: SessionLayout): void {
  const words = new Uint32Array(buffer, layout.state, STATE_BYTES / 4)
  words[CONFIG_TEMPLATE_TABLE] = layout.templateTable
  words[CONFIG_TEMPLATE_MASK] = Math.max(0, layout.templateEntries - 1)
  words[CONFIG_RING_HASH] = layout.ringHash
  words[CONFIG_RING_MARK] = layout.ringMark
  words[CONFIG_PLACE_TABLE] = layout.placeTable
  words[CONFIG_PLACES] = layout.places
  words[CONFIG_RING] = layout.ring
  words[CONFIG_TEMPLATE_PAGES] = layout.templatePages
  words[CONFIG_RING_PAGES] = layout.ringPages
  words[CONFIG_PAGE_KEY] = layout.pageKey
  words[CONFIG_CHECKSUM_KEY] = layout.checksumKey
  words[CONFIG_LONG_TABLE] = layout.longTable
  words[CONFIG_LONG_SHIFT] = layout.longEntries === 0 ? 0 : 32 - Math.log2(layout.longEntries)
  words[CONFIG_TEMPLATE_MAP] = layout.templateMap
  words[CONFIG_TEMPLATES_AT] = layout.templatesAt
  words[CONFIG_RING_TABLE] = layout.ringTable
  words[CONFIG_RING_TABLE_MASK] = Math.max(0, layout.ringTableEntries - 1)
}

/** The 64 words of the fixed key of `checksum`. Definition: HASH.md, fixed key. */
export function checksumKeyWords(): Uint32Array {
  const words = new Uint32Array(KEY_BYTES / 4)
  for (let i = 0; i < words.length; i++) {
    let x = Math.imul(i + 1, 0x9e3779b1)
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
    words[i] = x ^ (x >>> 16)
  }
  return words
}

function bad(what: string, action: string): ProxyError {
  return new ProxyError('LIMIT_EXCEEDED', what, undefined, action)
}
