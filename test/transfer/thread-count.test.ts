/** `--threads`: what people write, and what `auto` makes of the cores. */
import t from 'tap'
import { isProxyError } from '../../src/errors.ts'
import { commandThreads, parseThreads, THREADS_MAX, threadCount } from '../../src/transfer/helpers/thread-count.ts'

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
  t.same(
    [1, 2, 3, 4, 64].map(cores => commandThreads('auto', cores)),
    [1, 2, 3, 4, 4],
    'a command has no QEMU beside it',
  )
  t.equal(commandThreads(7, 2), 7)
  t.ok(threadCount('auto') >= 1)
})
