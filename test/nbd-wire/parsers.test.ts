import t from 'tap'
import { conversation, nbdVectors } from '../vectors/nbd/conversations.ts'
import { wireTrace } from '../vectors/qemu/notation.ts'
import { cutsThatDiffer, lengthOf, type Step, traceOf } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

/** Steps cut off behind so many bytes of all. */
function beginning(steps: readonly Step[], length: number): Step[] {
  const out: Step[] = []
  for (const { from, bytes } of steps) {
    if (length === 0) break
    const take = Math.min(length, bytes.length)
    out.push({ from, bytes: bytes.subarray(0, take) })
    length -= take
  }
  return out
}

t.test('conversations', t => {
  t.ok(nbdVectors.length > 0, 'there are vectors')
  for (const vector of nbdVectors) {
    const { steps, marks } = conversation(vector.steps)
    const trace = wireTrace(vector.trace, marks)
    t.same(traceOf(steps).lines, trace, vector.name)
    t.same(cutsThatDiffer(steps, trace), [], 'the same trace wherever it is cut')
  }
  t.end()
})

t.test('every conversation, cut off at every byte, starts as the whole one', t => {
  const differ: string[] = []
  for (const vector of nbdVectors) {
    const { steps } = conversation(vector.steps)
    const whole = traceOf(steps).lines
    for (let length = 0; length < lengthOf(steps); length++) {
      const { lines } = traceOf(beginning(steps, length))
      if (lines.some((line, i) => line !== whole[i])) differ.push(`${vector.name} at ${length}`)
    }
  }
  t.same(differ, [])
  t.end()
})
