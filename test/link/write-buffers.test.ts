/** Memory of writes that comes back: what is under way is never in it. */
import t from 'tap'
import { WriteBuffers } from '../../src/link/write-buffers.ts'

const POISON = 0xdd

t.test('pieces lie one behind the other, and what is under way stays as it is while others come and go', t => {
  const buffers = new WriteBuffers()
  const underWay: { joined: Uint8Array; expected: Buffer }[] = []
  for (let i = 0; i < 200; i++) {
    const pieces = Array.from({ length: 1 + (i % 40) }, (_, k) =>
      new Uint8Array((i * 977 + k * 4093) % 16384).fill(i + k),
    )
    const expected = Buffer.concat(pieces)
    underWay.push({ joined: buffers.join(pieces, expected.length), expected })
    if (i % 3 === 0) continue
    const done = underWay.splice((i * 7) % underWay.length, 1)[0]!
    t.ok(expected.length === 0 || Buffer.compare(done.joined, done.expected) === 0, `write ${i}`)
    new Uint8Array(done.joined.buffer).fill(POISON) // its next owner writes whatever it likes
    buffers.give(done.joined)
  }
  for (const { joined, expected } of underWay) t.ok(expected.equals(joined), 'what is still under way')
  t.end()
})

t.test('few are kept, and a write that is larger than any gets memory of its own, once', t => {
  const buffers = new WriteBuffers()
  const lent = Array.from({ length: 10 }, (_, i) => buffers.join([new Uint8Array(i)], i))
  for (const joined of lent) buffers.give(joined)
  t.equal(buffers.kept, 3)
  const large = new Uint8Array(600_000).fill(7)
  const joined = buffers.join([large.subarray(0, 1), large.subarray(1)], large.length)
  t.ok(Buffer.from(large).equals(joined))
  buffers.give(joined)
  t.equal(buffers.kept, 3)
  t.end()
})
