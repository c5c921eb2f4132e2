/** The pages that learning remembers, without what decides over them: found again, forgotten, and paid for. */
import t from 'tap'
import { IN_A_SET, KnownPages, LEARN_ENTRY_LENGTH, NO_CONTENT } from '../../src/learning/known-pages.ts'

const FIRST = 1 << 14

/** Adds a page by its hash, as a learner does. */
function add(known: KnownPages, lo: number, hi: number, slot: number, page: number): number {
  if (known.isCrowded && !known.grow()) throw new Error('no memory')
  return known.add(lo, hi, slot, page)
}

const hash = (i: number): [number, number] => [Math.imul(i, 0x9e3779b1) >>> 0, Math.imul(i, 0x85ebca77) >>> 0]

t.test('a page is found again under its whole hash, however many there are', async t => {
  for (const key of [undefined, [0x12345678, 0x9abcdef1]] as const) {
    const known = new KnownPages(1 << 20, undefined, key)
    for (let i = 0; i < 3 * FIRST; i++) add(known, ...hash(i), i % 32, i)
    t.equal(known.count, 3 * FIRST)
    let found = 0
    for (let i = 0; i < 3 * FIRST; i++) if (known.find(...hash(i)) === i && known.lastSlot(i) === i % 32) found++
    t.equal(found, 3 * FIRST)
    const [lo, hi] = hash(5)
    t.same([known.find(lo, hi ^ 1), known.find(lo ^ 1, hi)], [-1, -1])
  }
})

t.test('who had it last, and where', async t => {
  const known = new KnownPages(100)
  const entry = add(known, 1, 2, 31, 9)
  t.same([known.vmBits[entry], known.contents[entry]], [2 ** 31, NO_CONTENT])
  t.same([known.lastSlot(entry), known.wasAt(entry, 9), known.wasAt(entry, 8)], [31, true, false])
  known.passed(entry, 3, 2 ** 27 + 4)
  t.equal(known.vmBits[entry], 2 ** 31 + 8)
  t.same([known.lastSlot(entry), known.wasAt(entry, 2 ** 27 + 4), known.wasAt(entry, 9)], [3, true, false])
})

t.test('a migration that is forgotten takes along what it alone had', async t => {
  const known = new KnownPages(1 << 20)
  for (let i = 0; i < 12; i++) add(known, ...hash(i), 7, i)
  known.contents[0] = 100 // goes: its place is free
  known.contents[1] = IN_A_SET // goes, and the spool has it no more
  known.contents[3] = 103 // stays
  for (const i of [3, 5]) known.passed(i, 2, i + 1)
  known.passed(6, 2, 6)
  known.passed(6, 7, 6) // and was the last to have it
  const freed: number[] = []
  known.forget(7, place => freed.push(place))
  t.same(freed, [100])
  t.equal(known.count, 3)
  t.same(
    [3, 5, 6, 0, 1, 11].map(i => known.find(...hash(i))),
    [0, 1, 2, -1, -1, -1],
    'those that are left keep their order',
  )
  t.same([...known.vmBits.subarray(0, 3)], [4, 4, 4])
  t.same([...known.contents.subarray(0, 3)], [103, NO_CONTENT, NO_CONTENT])
  t.same([known.lastSlot(0), known.wasAt(0, 4)], [2, true])
  t.same([known.lastSlot(2), known.wasAt(2, 6)], [2, false], 'where it was last is lost with who had it last')
})

t.test('bounds: pages, and memory', async t => {
  const few = new KnownPages(3)
  for (let i = 0; i < 3; i++) {
    t.notOk(few.isFull)
    add(few, i, i, 0, i)
  }
  t.ok(few.isFull)
  t.equal(few.memoryBytes, FIRST * LEARN_ENTRY_LENGTH)
  const taken: number[] = []
  const poor = new KnownPages(1 << 20, { take: bytes => taken.push(bytes) < 2 })
  for (let i = 0; i < 2 * FIRST; i++) add(poor, ...hash(i), 0, i)
  t.ok(poor.isCrowded)
  t.notOk(poor.grow())
  t.same(taken, [FIRST * LEARN_ENTRY_LENGTH, 2 * FIRST * LEARN_ENTRY_LENGTH])
  t.equal(poor.memoryBytes, 2 * FIRST * LEARN_ENTRY_LENGTH, 'nothing has changed')
  t.equal(poor.find(...hash(2 * FIRST - 1)), 2 * FIRST - 1)
})
