/** When long matches are looked for in a disk at the effort for speed. */
import t from 'tap'
import { LongGain } from '../../src/transfer/long-gain.ts'

const BYTES = 400_000

/** So many batches, which leave these parts of their bytes with long matches and without. @returns which were looked at */
function run(gain: LongGain, count: number, looked: number, not: number): boolean[] {
  return Array.from({ length: count }, () => {
    const looks = gain.next()
    gain.packed(looks, BYTES, BYTES * (looks ? looked : not))
    return looks
  })
}

t.test('where they leave little less one batch in eight has them, where they leave much less all but one', t => {
  const gain = new LongGain()
  const first = run(gain, 80, 0.27, 0.295)
  t.same(first.slice(0, 6), [false, true, false, true, false, true], 'both ways at first')
  t.equal(first.slice(-40).filter(Boolean).length, 5)
  const again = run(gain, 400, 0.02, 0.25)
  t.equal(again.slice(-40).filter(Boolean).length, 35, 'it is found out when that changes')
  const back = run(gain, 400, 0.3, 0.3)
  t.equal(back.slice(-40).filter(Boolean).length, 5)
  t.end()
})

t.test('batches of known blocks say nothing', t => {
  const gain = new LongGain()
  for (let i = 1; i <= 100; i++) {
    t.equal(gain.next(), i % 2 === 0)
    gain.packed(i % 2 === 0, 0, 100)
  }
  t.end()
})
