/** Guests of other keys: what the first migration's bench compares. */
import t from 'tap'
import { otherGuest } from '../../scripts/measure/other-guest.ts'
import { madeUpGuest } from '../../src/daemon/made-up-guest.ts'

t.test('a guest of another key is a copy, also of a Buffer, whose keys do not add up', t => {
  const stream = Buffer.from(madeUpGuest(1))
  const before = Buffer.from(stream)
  const guests = [0, 1, 2, 3].map(key => otherGuest(stream, key))
  t.ok(stream.equals(before), 'the stream is as it was')
  t.ok(before.equals(guests[0]!), 'key 0 is the guest itself')
  // 1 ^ 2 ^ 3 is 0: the fourth was the first again, which the ring knows
  t.equal(new Set(guests.map(guest => Buffer.from(guest).toString('latin1'))).size, guests.length)
  t.ok(before.equals(otherGuest(guests[3]!, 3)))
  t.end()
})
