/**
 * Fuzzing by the clock: `npm run fuzz`. FUZZ_SECONDS (600), FUZZ_SEED (the time), FUZZ_WORKERS (2); FUZZ_CASE runs one
 * case again, FUZZ_ONLY one kind of cases ('nbd'). THREADS (1,2,4): with so many by turns, in cases that have them. Finds go to .cache/fuzz/ with their inputs, and make the exit status 1.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { THREAD_COUNTS, threadsAsked } from '../helpers/threads.ts'
import { Fuzzer } from './cases.ts'
import type { Find } from './mutated.ts'

const THREADS = threadsAsked(THREAD_COUNTS)

/** A case that takes longer hangs: the slowest take some 100 ms, with threads 1 s, and on a busy machine 30 s. What a worker begins with does not count. */
const CASE_MAX_MS = 120_000
/** Memory that all cases together may take on top of what the first of each worker took. */
const GROWTH_MAX_BYTES = 400 << 20
/** Until then heaps and shared memories grow to what they stay at: by 10,000 to a third, by 50,000 to nine tenths. */
const SETTLED_CASES = 100_000
/** Different finds after which there is enough to do. */
const FINDS_MAX = 10

interface Task {
  readonly seed: number
  /** The worker runs the cases `first`, `first` + `step`, and so on. */
  readonly first: number
  readonly step: number
  /** Cases done, and the number of the one at work; one of each a worker. */
  readonly shared: SharedArrayBuffer
}

async function work({ seed, first, step, shared }: Task): Promise<void> {
  const [done, current] = [new Int32Array(shared, first * 8, 1), new Int32Array(shared, first * 8 + 4, 1)]
  const fuzzer = new Fuzzer(seed, process.env.FUZZ_ONLY, THREADS)
  for (let number = first; ; number += step) {
    Atomics.store(current, 0, number)
    const find = await fuzzer.run(number)
    if (find) parentPort!.postMessage({ number, find })
    Atomics.add(done, 0, 1)
    if ((number / step) % 256 < 1) await new Promise(setImmediate) // rejections that nobody took come out here
  }
}

function keep(seed: number, number: number, find: Find): string {
  const folder = fileURLToPath(new URL('../../.cache/fuzz/', import.meta.url))
  mkdirSync(folder, { recursive: true })
  const path = `${folder}${seed}-${number}`
  const files = Object.entries(find.inputs).map(([name, bytes], i) => {
    const file = `${path}.${i}-${name.replaceAll(/\W+/g, '-')}`
    writeFileSync(file, bytes)
    return file
  })
  writeFileSync(
    `${path}.txt`,
    `FUZZ_SEED=${seed} FUZZ_CASE=${number}\n${find.kind}: ${find.text}\n${files.join('\n')}\n`,
  )
  return `${path}.txt`
}

async function main(): Promise<number> {
  const environment = (name: string, otherwise: number): number => Number(process.env[name] ?? otherwise)
  const seed = environment('FUZZ_SEED', Date.now() % 1e9)
  const one = process.env.FUZZ_CASE
  if (one !== undefined) {
    const find = await new Fuzzer(seed, process.env.FUZZ_ONLY, THREADS).run(Number(one))
    console.log(find ? `${find.kind}: ${find.text}\n${keep(seed, Number(one), find)}` : 'nothing found')
    return find ? 1 : 0
  }
  const seconds = environment('FUZZ_SECONDS', 600)
  const workers = environment('FUZZ_WORKERS', 2)
  console.log(`seed ${seed}, ${seconds} s, ${workers} workers`)
  const shared = new SharedArrayBuffer(workers * 8)
  const counters = new Int32Array(shared).fill(-1)
  for (let i = 0; i < workers; i++) counters[i * 2] = 0
  const texts = new Set<string>()
  let finds = 0
  const found = (number: number, find: Find): void => {
    finds++
    const text = `${find.kind}: ${find.text.split('\n').slice(0, 3).join(' ')}`.replaceAll(/\d+/g, 'n')
    if (texts.has(text)) return
    texts.add(text)
    console.log(`\nfind in case ${number}: ${find.kind}: ${find.text}\n${keep(seed, number, find)}`)
  }
  const threads = Array.from({ length: workers }, (_, first) => {
    const task: Task = { seed, first, step: workers, shared }
    const thread = new Worker(new URL(import.meta.url), { workerData: { fuzz: task } })
    thread.on('message', ({ number, find }: { number: number; find: Find }) => found(number, find))
    thread.on('error', error => {
      const number = counters[first * 2 + 1]!
      found(number, { kind: 'the worker died', text: error.stack ?? error.message, inputs: {} })
      dead++
    })
    return thread
  })
  let dead = 0
  const startMs = performance.now()
  const moved = Array.from(threads, () => ({ done: -1, ms: startMs }))
  let settled = 0
  let saidMs = startMs
  let most = 0
  for (;;) {
    await new Promise(resolve => setTimeout(resolve, 500))
    const nowMs = performance.now()
    const done = threads.reduce((sum, _, i) => sum + counters[i * 2]!, 0)
    const { rss } = process.memoryUsage()
    most = Math.max(most, rss)
    if (settled === 0 && done > SETTLED_CASES * workers) settled = rss
    const rate = done / ((nowMs - startMs) / 1000)
    const line = `${((nowMs - startMs) / 1000).toFixed(0)} s  ${done} cases  ${rate.toFixed(0)}/s  ${(rss / 2 ** 20).toFixed(0)} MiB  ${finds} finds`
    if (process.stdout.isTTY) process.stdout.write(`\r${line}`)
    else if (nowMs - saidMs > 60_000) {
      saidMs = nowMs
      console.log(line)
    }
    for (const [i, last] of moved.entries()) {
      const count = counters[i * 2]!
      if (count !== last.done || counters[i * 2 + 1]! < 0) moved[i] = { done: count, ms: nowMs }
      else if (nowMs - last.ms > CASE_MAX_MS) {
        found(counters[i * 2 + 1]!, { kind: 'hang', text: `no end after ${CASE_MAX_MS} ms`, inputs: {} })
        dead = workers
      }
    }
    if (settled > 0 && rss > settled + GROWTH_MAX_BYTES) {
      found(counters[1]!, { kind: 'memory', text: `${rss} bytes, ${settled} after the first cases`, inputs: {} })
      dead = workers
    }
    if (nowMs - startMs < seconds * 1000 && dead < workers && texts.size < FINDS_MAX) continue
    console.log(`\n${line}, at most ${(most / 2 ** 20).toFixed(0)} MiB`)
    await Promise.all(threads.map(thread => thread.terminate()))
    return finds > 0 ? 1 : 0
  }
}

const task = (workerData as { fuzz?: Task } | null)?.fuzz
if (!isMainThread && task) await work(task)
else if (import.meta.main) process.exitCode = await main()
