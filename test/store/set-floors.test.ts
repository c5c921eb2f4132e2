/** Which sets are held in memory, and which stay on the disk. */
import t from 'tap'
import { COLD_PAGES_MAX, HELLO_SETS_MAX } from '../../src/limits.ts'
import { floorsOf } from '../../src/store/set-floors.ts'

/** Sets by their pages, the newest first; their names are their places. */
const sets = (...pages: number[]) =>
  pages.map((count, i) => ({ digest: `${i}`, pages: count, modified: new Date(1e12 - i) })).reverse()

t.test('the newest that fit are in memory', t => {
  t.same(floorsOf(sets(3, 5, 2), 10), { hot: ['0', '1', '2'], hotPages: 10, cold: [], others: [] })
  t.same(
    floorsOf(sets(3, 5, 2), 5),
    { hot: ['0', '2'], hotPages: 5, cold: ['1'], others: [] },
    'an older one beside it',
  )
  t.same(floorsOf(sets(3, 5, 2), 0), { hot: [], hotPages: 0, cold: ['0', '1', '2'], others: [] })
  t.same(floorsOf([], 5), { hot: [], hotPages: 0, cold: [], others: [] })
  t.end()
})

t.test('what a session may have is bounded', t => {
  const half = COLD_PAGES_MAX / 2
  t.same(
    floorsOf(sets(half, half, 1, half), half),
    { hot: ['0'], hotPages: half, cold: ['1'], others: ['2', '3'] },
    'those in memory count, as they may stay on the other side’s disk',
  )
  t.same(floorsOf(sets(COLD_PAGES_MAX + 1, 7), 0).others, ['0'], 'one too large for any session')
  const many = floorsOf(sets(...new Array<number>(3 * HELLO_SETS_MAX).fill(1)), 1e6)
  t.equal(many.hot.length, HELLO_SETS_MAX)
  t.equal(many.cold.length, HELLO_SETS_MAX, 'as many as a hello can name')
  t.equal(many.others.length, HELLO_SETS_MAX)
  t.same(floorsOf(sets(1, 1, 1), 10, 2), { hot: ['0', '1'], hotPages: 2, cold: ['2'], others: [] }, 'places taken')
  t.end()
})
