/** A thread that digests pages of the batch that is being encoded: digest-share.ts has what is said, digest-threads.ts why. */
import { constants, setPriority } from 'node:os'
import { type MessagePort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { PROOF_WORDS, writeProof } from '../../store/cold-set.ts'
import { PAGE_SIZE } from '../../template/wire.ts'
import { ADDRESSES_AT, BATCH_MASK, CHUNK_PAGES, CLAIM_BITS, doneAt, proofsAt, WORD } from './digest-share.ts'

interface DigestWorkerData {
  readonly share: SharedArrayBuffer
  /** Which thread this is. */
  readonly thread: number
  /** Brings memories, each before the first batch of it. */
  readonly memories: MessagePort
}

const { share, thread, memories } = workerData as DigestWorkerData
const words = new Int32Array(share)
const proofs = new Uint32Array(share)
const ownDone = doneAt(thread)
const ownProofs = proofsAt(thread)
let bytes: Uint8Array = new Uint8Array(0)
/** Memories that came so far. */
let have = 0

try {
  setPriority(0, constants.priority.PRIORITY_BELOW_NORMAL) // of this thread: what helps must not take the place of what it helps
} catch {
  // forbidden by whatever started the process: it helps all the same
}

for (let seen = 0; Atomics.load(words, WORD.END) === 0; ) {
  Atomics.wait(words, WORD.BATCH, seen)
  seen = Atomics.load(words, WORD.BATCH)
  while (Atomics.load(words, WORD.END) === 0) {
    const claim = Atomics.add(words, WORD.CLAIM, 1)
    const batch = claim >>> CLAIM_BITS
    const first = (claim & ((1 << CLAIM_BITS) - 1)) * CHUNK_PAGES
    const end = Math.min(first + CHUNK_PAGES, words[WORD.PAGES]!)
    if (first >= end) break
    takeMemory()
    for (let page = first; page < end; page++) {
      const at = words[ADDRESSES_AT + page]! >>> 0
      // of a batch that is over meanwhile this is any page, or none: its number says that nobody wants it
      writeProof(bytes.subarray(at, at + PAGE_SIZE), proofs, ownProofs + page * PROOF_WORDS)
    }
    Atomics.store(words, ownDone + first / CHUNK_PAGES, batch & BATCH_MASK)
  }
}

/** The memory that the addresses are of, sent before them. */
function takeMemory(): void {
  for (const wanted = Atomics.load(words, WORD.MEMORY); have !== wanted; ) {
    const message = receiveMessageOnPort(memories)
    if (message === undefined) return
    bytes = new Uint8Array(message.message as SharedArrayBuffer)
    have = (have + 1) | 0
  }
}
