/**
 * Where everything lies in the one shared memory of a link direction. Addresses are bytes from its start. The memory is
 * created with all it needs and never grows, because growing would detach every view that sockets write to.
 */
import { ProxyError } from '../errors.ts'

/** Bytes in one guest page: TARGET_PAGE_SIZE on x86-64. */
export const PAGE_BYTES = 4096
/** Bytes in one page of WebAssembly.Memory. */
export const WASM_PAGE_BYTES = 65536
/** No slot, no place. */
export const NONE = 0xffffffff

/** Scratch of one thread: the padded block of a checksum, samples and hashes of the pages at hand. */
export const SCRATCH_BYTES = 16384

/** Words of the state block that tell an instance where everything is (u32 each). assembly/state.ts reads the same. */
export const CONFIG = {
  TABLE_HASH: 0,
  TABLE_SLOT: 1,
  TABLE_MASK: 2,
  RING_HASH: 3,
  RING_MARK: 4,
  PLACE_TABLE: 5,
  PLACES: 6,
  POOL: 7,
  TEMPLATE_PAGES: 8,
  RING_PAGES: 9,
  PAGE_KEY: 10,
  CHECKSUM_KEY: 11,
  LONG_TABLE: 12,
  LONG_SHIFT: 13,
} as const

/** Words of the state block that outlive a call: the ring slot that is next, and the ring slots ever written. */
export const STATE = { CURSOR: 32, USED: 33 } as const

/** First of 16 words in the state block that tell about the last `matchPages`: see `RESULT` in kernel.ts. */
export const RESULT_WORD = 48
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
  /** Scratch areas: one for each thread that has an instance over this memory. */
  readonly threads?: number
}

/** Addresses (bytes) and counts. Plain numbers, so that it can be posted to a worker. */
export interface MemoryLayout {
  readonly role: 'encoder' | 'decoder'
  readonly templatePages: number
  readonly ringPages: number
  readonly places: number
  readonly state: number
  readonly checksumKey: number
  readonly pageKey: number
  readonly scratch: number
  readonly threads: number
  /** The caller's area, on a 4096-byte boundary. */
  readonly io: number
  readonly ioBytes: number
  readonly placeTable: number
  readonly ringMark: number
  readonly ringHash: number
  readonly tableHash: number
  readonly tableSlot: number
  /** Entries of the exact table, a power of two, at least twice the pages; 0 on a decoder. */
  readonly tableEntries: number
  readonly longTable: number
  readonly longEntries: number
  /** Slot s is at pool + s * 4096: templates first, then the ring. */
  readonly pool: number
  /** Size of the memory in pages of 64 KiB: initial and maximum. */
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

/**
 * Lays everything out.
 * @throws LIMIT_EXCEEDED where it does not fit in the 4 GiB that 32-bit addresses reach
 */
export function layoutMemory(request: LayoutRequest): MemoryLayout {
  const { role, templatePages, ringPages, places, ioBytes, threads = 1 } = request
  const encoder = role === 'encoder'
  const longEntries = encoder ? (request.longEntries ?? 0) : 0
  for (const [name, n] of Object.entries({ templatePages, ringPages, places, ioBytes, threads, longEntries })) {
    if (!Number.isInteger(n) || n < 0 || n > NONE) throw bad(`${name} is ${n}`, 'give a count from 0 to 2^32 - 1')
  }
  if (longEntries !== 0 && (longEntries < 256 || longEntries !== powerOfTwo(longEntries)))
    throw bad(`longEntries is ${longEntries}`, 'give 0 or a power of two of 256 or more')
  const pages = templatePages + ringPages
  let at = 64 // address 0 means nothing, as elsewhere
  const take = (bytes: number, align = 64): number => {
    const start = Math.ceil(at / align) * align
    at = start + bytes
    return start
  }
  // small and often used first, so that JavaScript sees most addresses as small integers
  const state = take(STATE_BYTES)
  const checksumKey = take(KEY_BYTES)
  const pageKey = take(KEY_BYTES)
  const scratch = take(SCRATCH_BYTES * threads)
  const io = take(ioBytes, PAGE_BYTES)
  const placeTable = take(places * 4)
  const ringMark = take(ringPages)
  const tableEntries = encoder ? powerOfTwo(Math.max(16, pages * 2)) : 0
  const ringHash = take(encoder ? ringPages * 8 : 0)
  const tableHash = take(tableEntries * 8)
  const tableSlot = take(tableEntries * 4)
  const longTable = take(longEntries * 8)
  const pool = take(pages * PAGE_BYTES, PAGE_BYTES)
  const memoryPages = Math.ceil((at + 64) / WASM_PAGE_BYTES) // + 64: no area ends at 2^32, which would be address 0
  if (memoryPages > 65536) {
    const mib = (bytes: number) => Math.ceil(bytes / 1048576)
    throw bad(
      `${mib(at)} MiB of memory are needed (templates ${mib(templatePages * PAGE_BYTES)}, ring ` +
        `${mib(ringPages * PAGE_BYTES)}, tables ${mib(pool - placeTable)}, buffers ${mib(ioBytes)}), 4096 can be addressed`,
      'use fewer template sets, a smaller ring or smaller guests per link',
    )
  }
  return {
    role,
    templatePages,
    ringPages,
    places,
    state,
    checksumKey,
    pageKey,
    scratch,
    threads,
    io,
    ioBytes,
    placeTable,
    ringMark,
    ringHash,
    tableHash,
    tableSlot,
    tableEntries,
    longTable,
    longEntries,
    pool,
    memoryPages,
  }
}

/** The memory that a layout describes: shared, fixed in size, zero, and committed by the system as it is touched. */
export function createMemory(layout: MemoryLayout): WebAssembly.Memory {
  try {
    return new WebAssembly.Memory({ initial: layout.memoryPages, maximum: layout.memoryPages, shared: true })
  } catch (cause) {
    throw new ProxyError(
      'LIMIT_EXCEEDED',
      `${layout.memoryPages / 16} MiB of memory could not be reserved`,
      undefined,
      'use fewer template sets or a smaller ring, or raise the limit on address space (ulimit -v)',
      { cause },
    )
  }
}

/** Writes the configuration words and the fixed checksum key. `memory` must be new or laid out alike. */
export function writeConfig(buffer: ArrayBufferLike, layout: MemoryLayout): void {
  const words = new Uint32Array(buffer, layout.state, STATE_BYTES / 4)
  words[CONFIG.TABLE_HASH] = layout.tableHash
  words[CONFIG.TABLE_SLOT] = layout.tableSlot
  words[CONFIG.TABLE_MASK] = Math.max(0, layout.tableEntries - 1)
  words[CONFIG.RING_HASH] = layout.ringHash
  words[CONFIG.RING_MARK] = layout.ringMark
  words[CONFIG.PLACE_TABLE] = layout.placeTable
  words[CONFIG.PLACES] = layout.places
  words[CONFIG.POOL] = layout.pool
  words[CONFIG.TEMPLATE_PAGES] = layout.templatePages
  words[CONFIG.RING_PAGES] = layout.ringPages
  words[CONFIG.PAGE_KEY] = layout.pageKey
  words[CONFIG.CHECKSUM_KEY] = layout.checksumKey
  words[CONFIG.LONG_TABLE] = layout.longTable
  words[CONFIG.LONG_SHIFT] = layout.longEntries === 0 ? 0 : 32 - Math.log2(layout.longEntries)
  const fixed = checksumKeyWords()
  new Uint32Array(buffer, layout.checksumKey, KEY_BYTES / 4).set(fixed)
  new Uint32Array(buffer, layout.pageKey, KEY_BYTES / 4).set(fixed)
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
