/**
 * What the thread that encodes shares with those that digest beside it (digest-threads.ts): words of one shared memory. A batch's
 * pages go in chunks, which whoever comes first claims. Nobody waits for anybody: a chunk that was claimed and not done when
 * all are claimed is done once more by who wants it.
 */
import { BATCH_PAGES_MAX } from '../../codec/workspace.ts'
import { PROOF_WORDS } from '../../store/cold-set.ts'

/** Pages that are claimed at once: 11 us of work, the most that is done twice. */
export const CHUNK_PAGES = 4
export const CHUNKS_MAX = Math.ceil(BATCH_PAGES_MAX / CHUNK_PAGES)

/** Words, by index. */
export const WORD = {
  /** Of the batch at work, counted on: threads wait for it to change. */
  BATCH: 0,
  /** The next chunk that nobody has claimed in the low bits, the batch's number above: one step claims and says of which. */
  CLAIM: 1,
  /** Pages of the batch. */
  PAGES: 2,
  /** Which memory the addresses are of: counted on with each that threads are given. */
  MEMORY: 3,
  /** Not 0: threads end by themselves, whatever becomes of the order to terminate them while they start. */
  END: 4,
} as const

/** Bits of CLAIM below the batch's number: chunks, and as many claims beyond them as there can be threads. */
export const CLAIM_BITS = 10
/** Batches that CLAIM can tell apart: a thread that stood still for an hour of batches finds its own number again. */
export const BATCH_MASK = 2 ** (31 - CLAIM_BITS) - 1

/** Where lists begin, in words. */
export const ADDRESSES_AT = 16
const RESULTS_AT = ADDRESSES_AT + BATCH_PAGES_MAX
/** Of one thread: by chunk the number of the batch for which it is done, then its proofs. */
const RESULT_WORDS = CHUNKS_MAX + BATCH_PAGES_MAX * PROOF_WORDS

/** Where a thread's results begin: those of no other, so that one that comes late spoils nothing. */
export function doneAt(thread: number): number {
  return RESULTS_AT + thread * RESULT_WORDS
}

export function proofsAt(thread: number): number {
  return doneAt(thread) + CHUNKS_MAX
}

export function shareBytes(threads: number): number {
  return 4 * doneAt(threads)
}
