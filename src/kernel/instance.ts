/** An instance of the built kernel, and no more of it than a helping thread needs, which is to start soon. */
import type { KernelFunctions } from './functions.ts'
import { PAGE_BYTES, type SessionLayout } from './layout.ts'

type Exports = {
  [K in keyof KernelFunctions]: (...args: number[]) => number
} & { configure(state: number, scratch: number): void }

/** Its functions over a memory whose keys and configuration are written. @param scratch address of this thread's area */
export function instantiate(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
  { state }: Pick<SessionLayout, 'state'>,
  scratch: number,
): KernelFunctions {
  const e = new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as Exports
  e.configure(state, scratch)
  // WebAssembly answers with signed words and 0 or 1
  return {
    indexTemplates: (from, to) => e.indexTemplates(from, to) >>> 0,
    rememberTemplates: e.rememberTemplates,
    hashPages: e.hashPages,
    samePage: (a, b) => e.samePage(a, b) !== 0,
    fillOf: e.fillOf,
    isDense: at => e.isDense(at) !== 0,
    unknownPages: e.unknownPages,
    matchPages: e.matchPages,
    matchParts: e.matchParts,
    settlePages: e.settlePages,
    checksum: e.checksum,
    expandZeros: e.expandZeros,
    expandFill: e.expandFill,
    expandPages: e.expandPages,
    expandRuns: (list, n) => e.expandRuns(list, n) >>> 0,
    expandNew: e.expandNew,
    expandPatch: e.expandPatch,
    joinWords: e.joinWords,
    insertPage: (at, place) => e.insertPage(at, place) >>> 0,
    copyOut: (out, poolOffset, length) => e.copyOut(out, poolOffset, length) !== 0,
  } as KernelFunctions
}

/** Has the system commit a stretch of memory, without changing it. */
export function commitMemory(bytes: Uint8Array, at: number, length: number): void {
  // one write a page, which changes nothing. V8 makes a load of Atomics.add first: the system then maps its page of zeros, and
  // replaces it in a second fault, for which it has to interrupt all other cores that this process runs on
  for (let p = at, to = at + length; p < to; p += PAGE_BYTES) Atomics.compareExchange(bytes, p, 0, 0)
}
