/**
 * What the main thread and a helper say to each other. Messages to a helper are jobs, done in their order; how many are done
 * stands in shared words, so that who finds its own among them need not wait for a turn of the event loop. A message comes back
 * where a job has something to tell, or where somebody waits.
 */
import type { ZstdSettings } from '../../compression/effort.ts'
import type { SessionLayout } from '../../kernel/kernel.ts'
import type { WrongBatch } from './wrong-batch.ts'

/** Words shared with one helper, by index. */
export const WORD = {
  /** Jobs that are done. */
  DONE: 0,
  /** 1: somebody waits, and is to be told when the next job is done. */
  AWAITED: 1,
  /** Answers that say what was wrong, each counted before its job is done. */
  WRONG: 2,
  /** Jobs that were given, and those among them that pack: which of them wait is what a helper decides by. */
  POSTED: 3,
  PACKS_POSTED: 4,
  /** Not 0: the helper ends by itself, whatever becomes of the order to terminate it while it starts. */
  END: 5,
} as const
export const WORDS_BYTES = 4 * 6

/** What a helper begins with. */
export interface HelperData {
  readonly board: SharedArrayBuffer
  readonly words: SharedArrayBuffer
  /** Its place: counted from 0, the main thread left out. */
  readonly place: number
}

/** A session begins; what is said of it later lies in this memory. */
export interface OpenSession {
  readonly kind: 'open'
  readonly session: number
  readonly memory: WebAssembly.Memory
  /** To look for parts of pages; undefined: it does not encode. */
  readonly parts: { readonly module: WebAssembly.Module; readonly layout: SessionLayout } | undefined
}

/** Of a column: so many bytes at an address, the next of a stream. */
export interface Piece {
  readonly stream: number
  readonly at: number
  readonly length: number
}

/** Columns of a batch to be unpacked. */
export interface UnpackColumns {
  readonly kind: 'unpack'
  readonly session: number
  /** Of this batch, and of those before it that had nothing to unpack. */
  readonly rawLength: number
  /** COLUMN_WORDS each, in the order of columns. */
  readonly columns: Uint32Array
}

/** Words of a column in a message, by index: addresses and lengths are bytes of the session's memory. */
export const COLUMN_WORD = { COLUMN: 0, METHOD: 1, PACKED_AT: 2, PACKED_LENGTH: 3, AT: 4, LENGTH: 5 } as const
export const COLUMN_WORDS = 6

export type ToHelper =
  | OpenSession
  | { readonly kind: 'stream'; readonly session: number; readonly stream: number; readonly settings: ZstdSettings }
  /** Answered by `packed`, with as many pieces, or by `failed`. */
  | { readonly kind: 'pack'; readonly session: number; readonly pieces: readonly Piece[] }
  | { readonly kind: 'close stream'; readonly session: number; readonly stream: number }
  | UnpackColumns
  /** Has the system commit a stretch of the session's memory. */
  | { readonly kind: 'commit'; readonly session: number; readonly at: number; readonly length: number }
  /** Once it is done nothing of the session's memory is touched. */
  | { readonly kind: 'close'; readonly session: number }
  /** Collects garbage, with flags that allow it: memories of sessions that are closed. */
  | { readonly kind: 'collect' }

export type FromHelper =
  | { readonly kind: 'ready' }
  | { readonly kind: 'packed'; readonly pieces: readonly Uint8Array[] }
  | { readonly kind: 'failed'; readonly reason: string }
  /** A batch could not be unpacked: no later one of its session is. */
  | { readonly kind: 'wrong'; readonly session: number; readonly job: number; readonly wrong: WrongBatch }
  /** Somebody waited. */
  | { readonly kind: 'done' }
