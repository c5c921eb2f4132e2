/** `--threads`: what people write, and what `auto` makes of the cores. */
import t from 'tap'
import { isProxyError } from '../../src/errors.ts'
import { parseThreads, shareThreads, THREADS_MAX, threadCount } from '../../src/transfer/threads.ts'

t.test('a count from 1 to the most, or auto', async t => {
  t.equal(parseThreads('auto'), 'auto')
  t.equal(parseThreads('1'), 1)
  t.equal(parseThreads(String(THREADS_MAX)), THREADS_MAX)
  for (const wrong of ['0', '', '-1', '1.5', 'all', String(THREADS_MAX + 1)]) {
    try {
      parseThreads(wrong, 'threads')
      t.fail(`${wrong} was taken`)
    } catch (error) {
      t.ok(isProxyError(error, 'USAGE'), wrong)
      t.match((error as Error).message, `threads ${wrong}`)
    }
  }
})

t.test('auto leaves a core to others, within bounds; a count is taken as it is', async t => {
  t.same(
    [0, 1, 2, 3, 4, 5, 64].map(cores => threadCount('auto', cores)),
    [1, 1, 1, 2, 3, 4, 4],
  )
  t.equal(threadCount(7, 2), 7)
  t.ok(threadCount('auto') >= 1)
})

t.test('both kinds of proxies in one process have no more threads together than it may have', async t => {
  const counts = [1, 2, 3, 4, 5, 8, 16]
  const shared = (sends: boolean, receives: boolean): number[][] =>
    counts.map(threads => {
      const { encoding, unpacking } = shareThreads(threads, sends, receives)
      t.ok(1 + (encoding - 1) + (unpacking - 1) <= threads, `${threads}: ${encoding} and ${unpacking}`)
      return [encoding, unpacking]
    })
  t.same(
    shared(true, false),
    [
      [1, 1],
      [2, 1],
      [3, 1],
      [4, 1],
      [5, 1],
      [8, 1],
      [16, 1],
    ],
    'a source proxy',
  )
  t.same(
    shared(false, true),
    [
      [1, 1],
      [1, 2],
      [1, 3],
      [1, 4],
      [1, 4],
      [1, 4],
      [1, 4],
    ],
    'a destination proxy',
  )
  t.same(
    shared(true, true),
    [
      [1, 1],
      [2, 1],
      [2, 2],
      [3, 2],
      [3, 3],
      [5, 4],
      [13, 4],
    ],
    'both',
  )
})
