/**
 * What the thread that expands and those that unpack ahead of it say to each other (unpack-threads.ts). Messages go one way in
 * their order, and each counts as a job; how many are done stands in shared words, so that who finds its own among them need
 * not wait for a turn of the event loop. A message comes back only where somebody waits, or something is damaged.
 */
import type { WrongBatch } from './wrong-batch.ts'

/** Words shared with one thread, by index. */
export const WORD = {
  /** Jobs that are done. */
  DONE: 0,
  /** 1: somebody waits, and is to be told when the next job is done. */
  AWAITED: 1,
  /** Answers that say what was wrong, each counted before its job is done. */
  WRONG: 2,
} as const
export const WORDS_BYTES = 4 * 4

/** A session's streams begin; what is said of it later lies in this memory. */
export interface OpenStreams {
  readonly kind: 'open'
  readonly streams: number
  readonly memory: SharedArrayBuffer
}

/** They are over. Behind it nothing is written to the session's memory. */
export interface CloseStreams {
  readonly kind: 'close'
  readonly streams: number
}

/** Columns of a batch. */
export interface UnpackColumns {
  readonly kind: 'unpack'
  readonly streams: number
  /** Of this batch, and of those before it that had nothing to unpack. */
  readonly rawLength: number
  /** COLUMN_WORDS each, in the order of columns. */
  readonly columns: Uint32Array
}

/** Pages that the system is to commit. */
export interface CommitPages {
  readonly kind: 'commit'
  readonly streams: number
  readonly at: number
  readonly length: number
}

export type ThreadMessage = OpenStreams | CloseStreams | UnpackColumns | CommitPages

/** Words of a column in a message, by index: addresses and lengths are bytes of the session's memory. */
export const COLUMN_WORD = { COLUMN: 0, METHOD: 1, PACKED_AT: 2, PACKED_LENGTH: 3, AT: 4, LENGTH: 5 } as const
export const COLUMN_WORDS = 6

/** A job that failed: no later one of its streams does anything. */
export interface WrongAnswer {
  readonly streams: number
  readonly job: number
  readonly wrong: WrongBatch
}

/** What a thread is started with. */
export interface UnpackWorkerData {
  readonly words: SharedArrayBuffer
}
