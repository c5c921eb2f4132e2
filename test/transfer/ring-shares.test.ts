/** Shares of the memory for passed pages: what is left to a session beside one that was left to its disks. */
import t from 'tap'
import { RingShares } from '../../src/transfer/ring-shares.ts'

t.test('a source with disks keeps an eighth for a further session', t => {
  const shares = new RingShares(800, false)
  shares.expect('peer', true)
  const first = shares.take('peer', 800)
  t.equal(first.bytes, 700)
  const beside = shares.take('peer', 800)
  t.equal(beside.bytes, 100)
  t.equal(shares.take('peer', 800).bytes, 0, 'never more than there is')
  first.release()
  beside.release()
  const without = new RingShares(800, false)
  without.expect('peer')
  t.equal(without.take('peer', 800).bytes, 800, 'one without disks has all of it')
  t.end()
})
