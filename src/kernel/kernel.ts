/**
 * The kernel: hash, look up, compare, copy, over whole runs of pages in one shared memory. Two implementations that
 * answer alike and leave the same bytes: WebAssembly SIMD (assembly/, built by scripts/build-kernel.sh) and plain
 * TypeScript (twin.ts: reference, and fallback where WebAssembly SIMD or the built file is not there).
 *
 * All addresses are bytes in the kernel's memory (0 to 2^32 - 1). Nothing is allocated per page. Encoder and decoder
 * keep the same ring, marks and places by making the same calls in the same order.
 */
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { assert } from '../errors.ts'
import {
  createMemory,
  type MemoryLayout,
  NONE,
  PAGE_BYTES,
  RESULT_WORD,
  SCRATCH_BYTES,
  STATE,
  writeConfig,
} from './layout.ts'
import { makeTwin } from './twin.ts'

export {
  createMemory,
  type LayoutRequest,
  layoutMemory,
  longEntriesFor,
  type MemoryLayout,
  NONE,
  PAGE_BYTES,
} from './layout.ts'

/** What a page became. The slot word that goes with it: */
export const KIND = {
  /** 4096 equal bytes; slot: the byte. Its place keeps what it had. */
  FILL: 0,
  /** The page that its place last received; slot: where that is. */
  SAME: 1,
  /** A page of the pool; slot: which. */
  REF: 2,
  /** Not known: 4096 bytes appended to `literals`; slot: where the ring has it now, NONE without a ring. */
  NEW: 3,
  /** As NEW, but looks incompressible: 4096 bytes appended to `dense` instead. */
  NEW_DENSE: 4,
  /** Parts of the pool: tokens appended to `tokens`, bytes between them to `literals`; slot: how many tokens. */
  PATCH: 5,
} as const

/** Bits of `matchPages`' options. */
export const MATCH = {
  /** Looks for parts of pages where there is no whole one. Needs `longEntries` in the layout. */
  LONG: 1,
} as const

/** Bits of the flags of the `expand` functions. */
export const EXPAND = {
  /** Pages without record heads (multifd). */
  BARE: 1,
  /** `expandPages`: each page is what its place last received; the slot argument is not used. */
  FROM_PLACE: 2,
} as const

/** Index into `Kernel.result`, which tells about the last `matchPages`. */
export const RESULT = {
  /** Bytes appended to literals, dense and tokens. */
  LITERAL_BYTES: 0,
  DENSE_BYTES: 1,
  TOKEN_BYTES: 2,
  /** Copies in those tokens. */
  COPIES: 3,
  /** Pages of each kind: KIND_COUNT + kind. */
  KIND_COUNT: 4,
} as const

/** Bytes of a token: u16 literal length, u16 copy length, u32 byte offset in the pool. */
export const TOKEN_BYTES = 8
/** An expand function's answer where the run refers to what is not there. */
export const FAILED = -1

/** What both implementations do. Lists and areas are the caller's, in the kernel's memory. */
export interface KernelFunctions {
  /**
   * Makes template slots `from` to `to` - 1 findable. Their pages must be in the pool and no page may have passed yet.
   * @returns how many differ from those indexed before
   */
  indexTemplates(from: number, to: number): number
  /** Hashes n pages, whose addresses (u32) stand at `list`, under the page key: u32 lo, u32 hi each, at `out`. */
  hashPages(list: number, n: number, out: number): void
  /** Whether two pages are equal. */
  samePage(a: number, b: number): boolean
  /** The byte that fills a page, or -1. */
  fillOf(at: number): number
  /** Whether a compressor would probably gain nothing from this page: under 100 ns, by 128 of its bytes. */
  isDense(at: number): boolean
  /**
   * Decides what each of n pages becomes, in order, and remembers them as they pass.
   * @param list u32 address of each page; any alignment
   * @param places u32 index into the place table of each page; NONE (or one beyond the table): no place
   * @param kinds u8 KIND of each page (written)
   * @param slots u32 of each page (written): see KIND
   * @param tokens area for tokens, room for n * 4096 bytes with MATCH.LONG (written)
   * @param literals area for bytes of NEW and PATCH pages, room for n * 4096 bytes (written)
   * @param dense area for pages NEW_DENSE, room for n * 4096 bytes (written)
   * @param options bits of MATCH
   */
  matchPages(
    list: number,
    places: number,
    n: number,
    kinds: number,
    slots: number,
    tokens: number,
    literals: number,
    dense: number,
    options: number,
  ): void
  /** Hashes any bytes under the fixed key (HASH.md) and two seed words: u32 lo, u32 hi at `out`. */
  checksum(at: number, length: number, seedLo: number, seedHi: number, out: number): void

  /** n records of a zero page: be64(address | 0x22), 0x00. Returns the bytes written, as all expand functions. */
  expandZeros(out: number, addressHi: number, addressLo: number, n: number): number
  /** n records of pages filled with one byte. */
  expandFill(out: number, addressHi: number, addressLo: number, byte: number, n: number, flags: number): number
  /**
   * n records be64(address | 0x28) + page, from slots `slot`, `slot` + 1, and so on; their places receive them.
   * @param placeFirst place of the first page, the others follow it; NONE: no places
   * @param flags bits of EXPAND
   * @returns bytes written, or FAILED where a slot is outside the pool or a place has none
   */
  expandPages(
    out: number,
    addressHi: number,
    addressLo: number,
    slot: number,
    n: number,
    placeFirst: number,
    flags: number,
  ): number
  /** n records of pages that stand one after the other at `literals`; the ring and their places receive them. */
  expandNew(
    out: number,
    addressHi: number,
    addressLo: number,
    literals: number,
    n: number,
    placeFirst: number,
    flags: number,
  ): number
  /**
   * One record of a page out of `count` tokens; the ring and its place receive it. `out` grows by one record.
   * @returns literal bytes used, or FAILED where the tokens do not make exactly one page out of the pool
   */
  expandPatch(
    out: number,
    addressHi: number,
    addressLo: number,
    tokens: number,
    count: number,
    literals: number,
    place: number,
    flags: number,
  ): number
  /** The page at `at` passed at `place`: what expandNew does after it wrote. Returns its slot or NONE. */
  insertPage(at: number, place: number): number
  /** Copies a part of the pool and marks its slot as used. False where it is not inside the pool. */
  copyOut(out: number, poolOffset: number, length: number): boolean
}

/** A kernel over its memory. */
export interface Kernel extends KernelFunctions {
  readonly implementation: 'simd' | 'twin'
  readonly layout: MemoryLayout
  readonly memory: WebAssembly.Memory
  /** All of the memory. */
  readonly bytes: Uint8Array
  /** 16 words about the last matchPages: RESULT. */
  readonly result: Uint32Array
  /** Address of a slot's page. */
  slotAddress(slot: number): number
  /** Slot that a place last received, or NONE. */
  placeOf(place: number): number
  /** Forgets what `n` places received, from `first` on: their guest memory belongs to another guest now. */
  clearPlaces(first: number, n: number): void
  /**
   * Has the system commit `length` bytes from `at` on, without changing them. A first touch costs 3 us a page in a
   * virtual machine, more than all else done to a page: do it to the ring while nothing else is to do.
   */
  commit(at: number, length: number): void
  /** Forgets ring and places, keeps templates and their tables: a new session. Both sides must do it at the same point. */
  reset(): void
}

/** How to load. */
export interface LoadOptions {
  /** `twin` for the reference; without it the faster one that works here. `simd` throws where it cannot be had. */
  readonly implementation?: 'simd' | 'twin'
  /** Memory of the same layout that another thread's kernel made; without it a new one. */
  readonly memory?: WebAssembly.Memory
  /** Which scratch area to use, 0 to layout.threads - 1: one kernel for each thread. */
  readonly thread?: number
  /** 256 random bytes that key the page hash of this process, so that no guest can choose pages that collide. */
  readonly key?: Uint8Array
  /** The compiled module, where the caller has it. */
  readonly module?: WebAssembly.Module
}

let compiled: WebAssembly.Module | undefined

/** The built module, compiled once; undefined where it was not built or this machine has no WebAssembly SIMD. */
export function kernelModule(): WebAssembly.Module | undefined {
  if (compiled) return compiled
  const file = fileURLToPath(new URL('./kernel.wasm', import.meta.url))
  if (typeof WebAssembly === 'undefined' || !existsSync(file)) return undefined
  const bytes = readFileSync(file)
  if (!WebAssembly.validate(bytes)) return undefined
  compiled = new WebAssembly.Module(bytes)
  return compiled
}

/**
 * A kernel over a new memory, or over one that another thread made (then nothing in it changes).
 * @throws INTERNAL where `simd` is asked for and cannot be had; LIMIT_EXCEEDED where the memory cannot be reserved
 */
export function loadKernel(layout: MemoryLayout, options: LoadOptions = {}): Kernel {
  const memory = options.memory ?? createMemory(layout)
  const thread = options.thread ?? 0
  assert(memory.buffer.byteLength >= layout.memoryPages * 65536, 'the memory is smaller than its layout')
  assert(thread >= 0 && thread < layout.threads, `thread ${thread} has no scratch area`)
  const scratch = layout.scratch + thread * SCRATCH_BYTES
  const bytes = new Uint8Array(memory.buffer)
  if (!options.memory) writeConfig(memory.buffer, layout)
  if (options.key) {
    assert(options.key.length === 256, 'a page key has 256 bytes')
    bytes.set(options.key, layout.pageKey)
  }
  const module = options.implementation === 'twin' ? undefined : (options.module ?? kernelModule())
  assert(
    module || options.implementation !== 'simd',
    'kernel.wasm is not built, or this machine has no WebAssembly SIMD',
  )
  const functions = module ? instantiate(module, memory, layout, scratch) : makeTwin(memory.buffer, layout, scratch)

  const state = new Uint32Array(memory.buffer, layout.state, 64)
  const placeTable = new Uint32Array(memory.buffer, layout.placeTable, layout.places)
  return {
    ...functions,
    implementation: module ? 'simd' : 'twin',
    layout,
    memory,
    bytes,
    result: state.subarray(RESULT_WORD, RESULT_WORD + 16),
    slotAddress: slot => layout.pool + slot * PAGE_BYTES,
    placeOf: place => (place < layout.places ? (placeTable[place]! - 1) >>> 0 : NONE),
    clearPlaces(first, n) {
      placeTable.fill(0, first, first + n)
    },
    commit(at, length) {
      for (let p = at, to = at + length; p < to; p += PAGE_BYTES) Atomics.add(bytes, p, 0)
    },
    reset() {
      const used = state[STATE.USED]!
      const ring = layout.pool + layout.templatePages * PAGE_BYTES
      if (layout.role === 'encoder') functions.dropRing(used)
      // only what was written, since zeroing the rest would commit its memory; zero: long matches may run into it
      bytes.fill(0, ring, ring + used * PAGE_BYTES)
      bytes.fill(0, layout.ringMark, layout.ringMark + used)
      state[STATE.CURSOR] = 0
      state[STATE.USED] = 0
      placeTable.fill(0)
    },
  }
}

/** What an implementation gives besides. */
export interface Implementation extends KernelFunctions {
  /** Takes the pages of ring slots 0 to `used` - 1 out of the tables. */
  dropRing(used: number): void
}

type Exports = {
  [K in keyof KernelFunctions]: (...args: number[]) => number
} & { configure(state: number, scratch: number): void; dropRing(used: number): void }

function instantiate(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
  layout: MemoryLayout,
  scratch: number,
): Implementation {
  const e = new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as Exports
  e.configure(layout.state, scratch)
  // WebAssembly answers with signed words and 0 or 1
  return {
    indexTemplates: (from, to) => e.indexTemplates(from, to) >>> 0,
    hashPages: e.hashPages,
    samePage: (a, b) => e.samePage(a, b) !== 0,
    fillOf: e.fillOf,
    isDense: at => e.isDense(at) !== 0,
    matchPages: e.matchPages,
    checksum: e.checksum,
    expandZeros: e.expandZeros,
    expandFill: e.expandFill,
    expandPages: e.expandPages,
    expandNew: e.expandNew,
    expandPatch: e.expandPatch,
    insertPage: (at, place) => e.insertPage(at, place) >>> 0,
    copyOut: (out, poolOffset, length) => e.copyOut(out, poolOffset, length) !== 0,
    dropRing: e.dropRing,
  } as Implementation
}
