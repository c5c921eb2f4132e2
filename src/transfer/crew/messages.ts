/** What the main thread and a helper say to each other; each message of a helper answers the oldest that wants an answer. */
import type { ZstdSettings } from '../../compression/effort.ts'
import type { SessionLayout } from '../../kernel/kernel.ts'

/** What a helper begins with. */
export interface HelperData {
  readonly board: SharedArrayBuffer
  /** Counted from 0, the main thread left out. */
  readonly helper: number
}

/** Of a column: so many bytes at an address, the next of a stream. */
export interface Piece {
  readonly stream: number
  readonly at: number
  readonly length: number
}

export type ToHelper =
  | {
      readonly kind: 'session'
      readonly session: number
      readonly memory: WebAssembly.Memory
      readonly module: WebAssembly.Module
      readonly layout: SessionLayout
    }
  | { readonly kind: 'stream'; readonly session: number; readonly stream: number; readonly settings: ZstdSettings }
  /** Answered by `packed`, with as many pieces. */
  | { readonly kind: 'pack'; readonly pieces: readonly Piece[] }
  | { readonly kind: 'close stream'; readonly stream: number }
  /** Has the system commit a stretch of the session's memory. Answered by `committed`. */
  | { readonly kind: 'commit'; readonly session: number; readonly at: number; readonly length: number }
  /** Nothing of the session's memory is touched behind its answer, `closed`. */
  | { readonly kind: 'close'; readonly session: number }
  /** Collects garbage, with flags that allow it: memories of sessions that are closed. Answered by `collected`. */
  | { readonly kind: 'collect' }

export type FromHelper =
  | { readonly kind: 'ready' }
  | { readonly kind: 'packed'; readonly pieces: readonly Uint8Array[] }
  | { readonly kind: 'failed'; readonly reason: string }
  | { readonly kind: 'committed' }
  | { readonly kind: 'closed' }
  | { readonly kind: 'collected' }
