/** Fuzzing with threads that help, a moment of it at each count: `make fuzz` has more. */
import t from 'tap'
import { THREAD_COUNTS, threadsAsked } from '../helpers/threads.ts'
import { Fuzzer } from './cases.ts'

t.setTimeout(590_000) // the machine may be busy

const SEED = 20261201

for (const threads of threadsAsked(THREAD_COUNTS)) {
  // where nobody helps nothing of a helper fails
  const kinds = ['batches', 'streams', ...(threads > 1 ? ['faults', 'digests'] : [])]
  for (const kind of kinds.map(name => `threads, ${name}`))
    t.test(`${threads} threads: ${kind}`, async t => {
      const fuzzer = new Fuzzer(SEED, kind, [threads])
      t.teardown(() => fuzzer.close())
      const beganMs = performance.now()
      let cases = 0
      for (; cases < 40 && (cases < 4 || performance.now() - beganMs < 1500); cases++) {
        const find = await fuzzer.run(cases)
        const again = `THREADS=${threads} FUZZ_SEED=${SEED} FUZZ_ONLY='${kind}' FUZZ_CASE=${cases} node test/fuzz/fuzz.ts`
        t.equal(find && `${find.kind}: ${find.text}`, undefined, again)
      }
    })
}
