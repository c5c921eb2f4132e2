/** Answers of a destination QEMU over fresh pairs of daemons: a few here, as many as one likes with return-path.ts. */
import t from 'tap'
import { Share } from '../../src/fair-shares.ts'
import { answerOnce } from './return-path.ts'

t.setTimeout(590_000) // the machine may be busy

t.test('answers of 1 B to 8 MiB come back over fresh pairs, plain and TLS, 0 and 40 ms', async t => {
  let bytes = 0
  for (let seed = 1; seed <= 20; seed++) bytes += await answerOnce(seed)
  t.ok(bytes > 10e6, `${bytes} bytes came back`)
})

t.test('and so they do while others have taken all memory', async t => {
  const { takeUpTo } = Share.prototype
  t.teardown(() => {
    Share.prototype.takeUpTo = takeUpTo
  })
  Share.prototype.takeUpTo = () => 0
  let bytes = 0
  for (let seed = 1; seed <= 10; seed++) bytes += await answerOnce(seed)
  t.ok(bytes > 3e6, `${bytes} bytes came back`)
})
