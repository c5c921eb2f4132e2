/** Threads that digest beside the one that encodes: whatever they do, each page has its own proof. */
import { EventEmitter, once } from 'node:events'
import type { Worker } from 'node:worker_threads'
import t from 'tap'
import { Random } from '../../scripts/harness/random.ts'
import { BATCH_PAGES_MAX } from '../../src/codec/workspace.ts'
import { PROOF_WORDS, writeProof } from '../../src/store/cold-set.ts'
import { BATCH_MASK, CHUNK_PAGES, CHUNKS_MAX, doneAt, WORD } from '../../src/transfer/cold/digest-share.ts'
import { DigestThreads } from '../../src/transfer/cold/digest-threads.ts'

t.setTimeout(590_000) // the machine may be busy

const PAGE_SIZE = 4096
/** The patience is for a hang, not for a slow machine. */
const HELP_MS = 180_000
const random = new Random(7)

/** A memory with pages at no multiples of a page, and where these are. */
function memoryOf(pages: number): { readonly bytes: Uint8Array; readonly at: Uint32Array } {
  const bytes = new Uint8Array(new SharedArrayBuffer(pages * PAGE_SIZE + 100))
  const at = Uint32Array.from({ length: pages }, (_, i) => 100 + i * PAGE_SIZE)
  return { bytes, at }
}

function expected(bytes: Uint8Array, at: Uint32Array): Uint32Array {
  const proofs = new Uint32Array(at.length * PROOF_WORDS)
  for (const [i, from] of at.entries()) writeProof(bytes.subarray(from, from + PAGE_SIZE), proofs, i * PROOF_WORDS)
  return proofs
}

type Shared = {
  readonly words: Int32Array
  batch: number
  readonly threads: { worker: Worker }[]
}
const insides = (threads: DigestThreads): Shared => threads as unknown as Shared

/**
 * Has a batch digested that is unlike all before.
 * @param pages what is read in place of the memory's addresses
 * @returns pages whose proof is another's
 */
function wrongIn(
  threads: DigestThreads,
  { bytes, at }: ReturnType<typeof memoryOf>,
  count: number,
  pages = at,
): number[] {
  for (let i = 0; i < count; i++) new DataView(bytes.buffer).setUint32(at[i]!, random.below(2 ** 32))
  const proofs = new Uint32Array(BATCH_PAGES_MAX * PROOF_WORDS)
  threads.digest(bytes, pages, count, proofs)
  const wanted = expected(bytes, at.subarray(0, count))
  const wrong: number[] = []
  for (let i = 0; i < count * PROOF_WORDS; i++) if (proofs[i] !== wanted[i]) wrong.push(Math.floor(i / PROOF_WORDS))
  return [...new Set(wrong)]
}

/** Addresses that this thread is not told to digest until another has done a chunk of the batch. */
function onceHelped(threads: DigestThreads, at: Uint32Array, count: number): Uint32Array {
  let reads = 0
  return new Proxy(at, {
    get: (target, name) => {
      // what comes behind the list for the others is for this thread
      if (reads++ === count) waitForHelp(threads, count)
      return Reflect.get(target, name)
    },
  })
}

/** Of a thread that never comes this one, which stands still meanwhile and hears no timeout, would wait for ever. */
function waitForHelp(threads: DigestThreads, count: number): void {
  const endMs = performance.now() + HELP_MS
  while (!isHelped(threads)) {
    if (performance.now() > endMs) throw new Error('no thread has helped')
    Atomics.wait(insides(threads).words, WORD.PAGES, count, 1)
  }
}

function isHelped(threads: DigestThreads): boolean {
  const { words, batch } = insides(threads)
  return [0, 1].some(thread => Array.from({ length: CHUNKS_MAX }, (_, i) => words[doneAt(thread) + i]).includes(batch))
}

t.test('batch for batch, whoever does which page', t => {
  const threads = new DigestThreads(2)
  t.teardown(() => threads.rest())
  const memory = memoryOf(BATCH_PAGES_MAX)
  const other = memoryOf(BATCH_PAGES_MAX)
  const wrong: number[] = []
  for (const what of ['threads', 'others, later']) {
    const before = threads.helped
    for (let batch = 0; batch < 100; batch++) {
      const count = [BATCH_PAGES_MAX, 1 + random.below(BATCH_PAGES_MAX), 33][batch % 3]!
      const where = batch % 7 === 0 ? other : memory
      const isHelped = batch % 10 === 0 // at the least: where no core is free, they come late
      wrong.push(...wrongIn(threads, where, count, isHelped ? onceHelped(threads, where.at, count) : where.at))
    }
    t.same(wrong, [], what)
    t.ok(threads.helped - before >= 10 * CHUNK_PAGES, `${threads.helped - before} pages`)
    threads.rest()
  }
  t.end()
})

t.test('a thread that stands still is not waited for', t => {
  const threads = new DigestThreads(1)
  t.teardown(() => threads.rest())
  const { bytes, at } = memoryOf(BATCH_PAGES_MAX)
  const { words } = insides(threads)
  t.equal(words.length, 0, 'nothing is shared before it is wanted')
  let claimed = 0
  // while pages are read, chunks are claimed by somebody who does nothing about them
  const pages = new Proxy(at, {
    get: (target, name) => {
      const shared = insides(threads).words
      const isOurs = typeof name === 'string' && Number(name) % (8 * CHUNK_PAGES) === 1
      if (isOurs && claimed++ % 2 === 1) Atomics.add(shared, WORD.CLAIM, 1)
      return Reflect.get(target, name)
    },
  })
  const proofs = new Uint32Array(BATCH_PAGES_MAX * PROOF_WORDS)
  for (let i = 0; i < 50; i++) threads.digest(bytes, pages, BATCH_PAGES_MAX, proofs.fill(0))
  t.ok(claimed > 50)
  t.same(proofs, expected(bytes, at))
  t.end()
})

t.test('what was done under a number is not taken for what has it again', t => {
  const never = Object.assign(new EventEmitter(), { unref() {}, terminate: async () => 0 })
  const threads = new DigestThreads(1, () => never as unknown as Worker)
  const { bytes, at } = memoryOf(BATCH_PAGES_MAX)
  const proofs = new Uint32Array(BATCH_PAGES_MAX * PROOF_WORDS)
  t.ok(threads.start())
  const inside = insides(threads)
  // all chunks of the first batch were done by the thread, and none since: two million batches were small
  for (let chunk = 0; chunk < CHUNKS_MAX; chunk++) inside.words[doneAt(0) + chunk] = 1
  inside.batch = BATCH_MASK
  // and now all but the first are claimed by it, and not done
  const pages = new Proxy(at, {
    get: (target, name) => {
      if (name === '0') Atomics.add(inside.words, WORD.CLAIM, CHUNKS_MAX)
      return Reflect.get(target, name)
    },
  })
  threads.digest(bytes, pages, BATCH_PAGES_MAX, proofs)
  t.equal(inside.batch, 1, 'numbers begin again')
  t.equal(threads.helped, 0)
  t.same(proofs, expected(bytes, at))
  t.end()
})

t.test('without threads', t => {
  const memory = memoryOf(BATCH_PAGES_MAX)
  t.same(wrongIn(new DigestThreads(0), memory, BATCH_PAGES_MAX), [], 'where there is one core')
  const threads = new DigestThreads(2)
  t.teardown(() => threads.rest())
  const own = new Uint8Array(40 * PAGE_SIZE)
  const proofs = new Uint32Array(BATCH_PAGES_MAX * PROOF_WORDS)
  threads.digest(
    own,
    memory.at.map((_, i) => i * PAGE_SIZE),
    40,
    proofs,
  )
  t.same(
    proofs.subarray(0, 40 * PROOF_WORDS),
    expected(
      own,
      Uint32Array.from({ length: 40 }, (_, i) => i * PAGE_SIZE),
    ),
    'a memory that is not shared',
  )
  t.equal(insides(threads).threads.length, 0, 'none was started for that')
  t.end()
})

t.test('threads that are started ahead are those that help', t => {
  const threads = new DigestThreads(2)
  t.teardown(() => threads.rest())
  const memory = memoryOf(BATCH_PAGES_MAX)
  threads.start()
  const { threads: started, words } = insides(threads)
  t.equal(started.length, 2)
  threads.start()
  t.same(wrongIn(threads, memory, BATCH_PAGES_MAX, onceHelped(threads, memory.at, BATCH_PAGES_MAX)), [])
  t.equal(started.length, 2, 'none was started beside them')
  t.equal(insides(threads).words, words, 'nor in their place')
  t.end()
})

t.test('threads end by themselves when they rest', async t => {
  const threads = new DigestThreads(2)
  const memory = memoryOf(BATCH_PAGES_MAX)
  t.same(wrongIn(threads, memory, BATCH_PAGES_MAX, onceHelped(threads, memory.at, BATCH_PAGES_MAX)), [])
  const ends = insides(threads).threads.map(({ worker }) => {
    Object.assign(worker, { terminate: () => Promise.resolve(0) })
    worker.ref()
    return once(worker, 'exit')
  })
  threads.rest()
  t.same(await Promise.all(ends), [[0], [0]], 'with no order to terminate')
})

t.test('where the system gives no more threads', t => {
  let asked = 0
  const threads = new DigestThreads(2, () => {
    asked++
    throw new Error('ERR_WORKER_INIT_FAILED')
  })
  t.notOk(threads.start(), 'a session opens all the same')
  t.same(wrongIn(threads, memoryOf(BATCH_PAGES_MAX), BATCH_PAGES_MAX), [])
  t.equal(asked, 1, 'and it is not tried again')
  t.end()
})

t.test('threads that fail are not tried again', t => {
  const threads = new DigestThreads(2)
  const memory = memoryOf(BATCH_PAGES_MAX)
  t.same(wrongIn(threads, memory, BATCH_PAGES_MAX, onceHelped(threads, memory.at, BATCH_PAGES_MAX)), [])
  const { threads: started } = insides(threads)
  t.equal(started.length, 2)
  started[1]!.worker.emit('error', new Error('out of memory'))
  t.same(wrongIn(threads, memory, BATCH_PAGES_MAX), [])
  t.equal(started.length, 0)
  t.end()
})
