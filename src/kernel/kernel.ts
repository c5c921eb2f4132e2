/**
 * The kernel: hash, look up, compare, copy, over whole runs of pages in one shared memory. Two implementations that
 * answer alike and leave the same bytes: WebAssembly SIMD (assembly/, built by scripts/build-kernel.sh) and plain
 * TypeScript (twin/: reference, and fallback where WebAssembly SIMD or the built file is not there).
 *
 * All addresses are bytes in the kernel's memory (0 to 2^32 - 1). Nothing is allocated per page. Encoder and decoder
 * keep the same ring, marks and places by making the same calls in the same order.
 */
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { assert } from '../errors.ts'
import { ENTRY_BYTES } from './constants.ts'
import type { KernelFunctions } from './functions.ts'
import { commitMemory, instantiate } from './instance.ts'
import {
  createMemory,
  type MemoryLayout,
  NONE,
  PAGE_BYTES,
  RESULT_WORD,
  SCRATCH_BYTES,
  type SessionLayout,
  STATE,
  writeConfig,
  writeKeys,
} from './layout.ts'
import { makeTwin } from './twin/index.ts'

export {
  EXPAND,
  FAILED,
  type KernelFunctions,
  KIND,
  LATER,
  MATCH,
  RESULT,
  RUN,
  STAGED,
  TOKEN_BYTES,
} from './functions.ts'
export {
  type BlockLayout,
  createMemory,
  type KeyLayout,
  type LayoutRequest,
  layoutBlock,
  layoutKeys,
  layoutMemory,
  layoutTemplates,
  longEntriesFor,
  MEMORY_PAGES_MAX,
  type MemoryLayout,
  NONE,
  PAGE_BYTES,
  type SessionLayout,
  SLACK_BYTES,
  type TemplateLayout,
  WASM_PAGE_BYTES,
  writeConfig,
  writeKeys,
} from './layout.ts'

/** A kernel over its memory. */
export interface Kernel extends KernelFunctions {
  readonly implementation: 'simd' | 'twin'
  readonly layout: SessionLayout
  readonly memory: WebAssembly.Memory
  /** All of the memory. */
  readonly bytes: Uint8Array
  /** 16 words about the last matchPages: RESULT. */
  readonly result: Uint32Array
  /** Address of a slot's page. */
  slotAddress(slot: number): number
  /** Ring slots that a page was ever written to: the first so many. */
  readonly ringUsed: number
  /** Ring slot that is next. */
  readonly ringCursor: number
  /** Slot that a place last received, or NONE. */
  placeOf(place: number): number
  /** Forgets what `n` places received, from `first` on: their guest memory belongs to another guest now. */
  clearPlaces(first: number, n: number): void
  /**
   * Has the system commit `length` bytes from `at` on, without changing them. A first touch costs 3 us a page in a
   * virtual machine, more than all else done to a page: do it to the ring while nothing else is to do.
   */
  commit(at: number, length: number): void
  /** Forgets ring and places, keeps templates and what is known of them: as a new session. For tests and measurements. */
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

/** What scripts/build-kernel.sh enables beyond the first version of WebAssembly. */
const FEATURES = ['simd', 'bulk-memory', 'threads'] as const
/** Digits of a build's name. */
const BUILD_DIGITS = 12

let compiled: WebAssembly.Module | undefined

const modulePath = (): string => fileURLToPath(new URL('./kernel.wasm', import.meta.url))

/** Which kernel works here: the module by the first digits of its SHA-256, or the twin. */
export function kernelBuild(): {
  readonly implementation: 'simd' | 'twin'
  readonly build?: string
  readonly features: readonly string[]
} {
  if (!kernelModule()) return { implementation: 'twin', features: [] }
  const build = createHash('sha256').update(readFileSync(modulePath())).digest('hex').slice(0, BUILD_DIGITS)
  return { implementation: 'simd', build, features: FEATURES }
}

/** The built module, compiled once; undefined where it was not built or this machine has no WebAssembly SIMD. */
export function kernelModule(): WebAssembly.Module | undefined {
  if (compiled) return compiled
  const path = modulePath()
  if (typeof WebAssembly === 'undefined' || !existsSync(path)) return undefined
  const bytes = readFileSync(path)
  if (!WebAssembly.validate(bytes)) return undefined
  assertNewerThanSources(path)
  compiled = new WebAssembly.Module(bytes)
  return compiled
}

/**
 * In a checkout: a kernel that is older than its sources takes addresses for others, and may search without end. The
 * same files as in scripts/build-kernel.sh; what is installed has none of them.
 */
function assertNewerThanSources(file: string): void {
  const folder = fileURLToPath(new URL('./assembly/', import.meta.url))
  if (!existsSync(folder)) return
  const sources = readdirSync(folder).map(name => join(folder, name))
  sources.push(fileURLToPath(new URL('./constants.ts', import.meta.url)))
  const builtMs = statSync(file).mtimeMs
  const newer = sources.find(source => statSync(source).mtimeMs > builtMs)
  assert(newer === undefined, `kernel.wasm is older than ${newer}: npm run kernel`)
}

/**
 * A kernel for a session that has a memory for itself: a new one, or one that another thread made (then nothing in it
 * changes).
 * @throws INTERNAL where `simd` is asked for and cannot be had; LIMIT_EXCEEDED where the memory cannot be reserved
 */
export function loadKernel(layout: MemoryLayout, options: LoadOptions = {}): Kernel {
  const memory = options.memory ?? createMemory(layout.memoryPages)
  assert(memory.buffer.byteLength >= layout.memoryPages * 65536, 'the memory is smaller than its layout')
  assert(!options.key || options.key.length === 256, 'a page key has 256 bytes')
  if (!options.memory) {
    writeKeys(memory.buffer, layout, options.key)
    writeConfig(memory.buffer, layout)
  }
  return kernelOver(memory, layout, options)
}

/**
 * A kernel over a memory whose keys are written, for the session whose configuration is.
 * @throws INTERNAL where `simd` is asked for and cannot be had
 */
export function kernelOver(
  memory: WebAssembly.Memory,
  layout: SessionLayout,
  options: Omit<LoadOptions, 'memory' | 'key'> = {},
): Kernel {
  const thread = options.thread ?? 0
  assert(thread >= 0 && thread < layout.threads, `thread ${thread} has no scratch area`)
  const scratch = layout.scratch + thread * SCRATCH_BYTES
  const { buffer } = memory
  const bytes = new Uint8Array(buffer)
  const module = options.implementation === 'twin' ? undefined : (options.module ?? kernelModule())
  assert(
    module || options.implementation !== 'simd',
    'kernel.wasm is not built, or this machine has no WebAssembly SIMD',
  )
  const functions = module ? instantiate(module, memory, layout, scratch) : makeTwin(buffer, layout)

  const state = new Uint32Array(buffer, layout.state, 64)
  const placeTable = new Uint32Array(buffer, layout.placeTable, layout.places)
  const templateMap = new Uint32Array(buffer, layout.templateMap, layout.templateMap === 0 ? 0 : layout.templatePages)
  const { ring, templatePages, templatesAt } = layout
  return {
    ...functions,
    implementation: module ? 'simd' : 'twin',
    layout,
    memory,
    bytes,
    result: state.subarray(RESULT_WORD, RESULT_WORD + 16),
    slotAddress: slot =>
      slot >= templatePages
        ? ring + (slot - templatePages) * PAGE_BYTES
        : templatesAt !== 0
          ? templatesAt + slot * PAGE_BYTES
          : templateMap[slot]!,
    get ringUsed() {
      return state[STATE.USED]!
    },
    get ringCursor() {
      return state[STATE.CURSOR]!
    },
    placeOf: place => (place < layout.places ? (placeTable[place]! - 1) >>> 0 : NONE),
    clearPlaces(first, n) {
      placeTable.fill(0, first, first + n)
    },
    commit(at, length) {
      commitMemory(bytes, at, length)
    },
    reset() {
      const { ringPages, longEntries, ringTableEntries } = layout
      const used = state[STATE.USED]!
      // only what was written, since zeroing the rest would commit its memory; zero: long matches may run into it
      bytes.fill(0, ring, ring + used * PAGE_BYTES)
      // all marks: a reference or a long match may touch slots that nothing was ever written to
      bytes.fill(0, layout.ringMark, layout.ringMark + ringPages)
      if (layout.role === 'encoder' && used > 0) {
        bytes.fill(0, layout.ringHash, layout.ringHash + ringPages * 8)
        bytes.fill(0, layout.ringTable, layout.ringTable + ringTableEntries * ENTRY_BYTES)
        // what passed has taken the place of much that the templates have
        bytes.fill(0, layout.longTable, layout.longTable + longEntries * 8)
        functions.rememberTemplates(0, templatePages)
      }
      state[STATE.CURSOR] = 0
      state[STATE.USED] = 0
      placeTable.fill(0)
    },
  }
}
