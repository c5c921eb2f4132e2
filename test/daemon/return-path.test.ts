/** Answers of a destination QEMU over fresh pairs of daemons: a few here, as many as one likes with return-path.ts. */
import t from 'tap'
import { Random } from '../session/simulation.ts'
import { answerOnce } from './return-path.ts'

t.test('answers of 1 B to 8 MiB come back over fresh pairs', async t => {
  let bytes = 0
  for (let seed = 1; seed <= 20; seed++) bytes += await answerOnce(new Random(seed))
  t.ok(bytes > 10e6, `${bytes} bytes came back`)
})
