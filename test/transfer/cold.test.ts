/** Cold sets at work: what finds their pages, what fetches them, and that neither ever gives another page. */
import { closeSync, openSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { FlowEncoder } from '../../src/codec/flow-encoder.ts'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { writeVarint, zigzag } from '../../src/codec/varint.ts'
import { COLUMN } from '../../src/codec/wire.ts'
import { WORKSPACE_BYTES, Workspace } from '../../src/codec/workspace.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { COLD_LATE_MAX, COLD_READ_BYTES_MAX, COLD_READS_MAX } from '../../src/limits.ts'
import { ColdSet, type PageBytes, PROOF_WORDS, writeProof } from '../../src/store/cold-set.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import type { SetOutline } from '../../src/template/format.ts'
import { PAGE_SIZE, setLayout } from '../../src/template/wire.ts'
import { ChannelBuffer } from '../../src/transfer/channel-buffer.ts'
import { parserFor } from '../../src/transfer/channel-parser.ts'
import { ColdAnswers } from '../../src/transfer/cold/cold-answers.ts'
import { type AskForPages, ColdFetcher } from '../../src/transfer/cold/cold-fetcher.ts'
import { ColdFinder } from '../../src/transfer/cold/cold-finder.ts'
import { ColdIndex } from '../../src/transfer/cold/cold-index.ts'
import { ColdList } from '../../src/transfer/cold/cold-list.ts'
import { ColdQuestions } from '../../src/transfer/cold/cold-questions.ts'
import { ColdRation } from '../../src/transfer/cold/cold-ration.ts'
import { ColdSets } from '../../src/transfer/cold/cold-sets.ts'
import { DiskReads } from '../../src/transfer/cold/disk-reads.ts'
import { NamedPages } from '../../src/transfer/cold/named-pages.ts'
import { ReadingThreads, type ReadPages } from '../../src/transfer/cold/reading-threads.ts'
import { EVENT_LOOP, type EventLoop } from '../../src/transfer/event-loop.ts'
import { Outbound } from '../../src/transfer/outbound.ts'
import { Pools } from '../../src/transfer/pool.ts'
import { stopwatch } from '../helpers/own-time.ts'
import { until } from '../helpers/until.ts'
import { migration, page, putPages, random, scratch } from '../template/makers.ts'

t.setTimeout(590_000)

/** What a disk does with one read: gives, or fails. */
type Disk = (into: Uint8Array, at: number, length: number, position: number) => Promise<number>

/** A set that lies nowhere, on a disk that does as it is told. */
function setOf(pages: readonly Uint8Array[], disk?: (sound: Disk) => Disk, name = 'made'): ColdSet {
  const proofs = new Uint32Array(pages.length * PROOF_WORDS)
  for (const [i, body] of pages.entries()) writeProof(body, proofs, i * PROOF_WORDS)
  const layout = setLayout(pages.length, 20)
  const all = Buffer.concat(pages)
  const sound: Disk = async (into, at, length, position) => {
    const from = position - layout.dataAt
    into.set(all.subarray(from, from + length), at)
    return Math.max(0, Math.min(length, all.length - from))
  }
  const read = disk?.(sound) ?? sound
  const bytes: PageBytes = {
    sealed: false,
    read: async (into, at, length, position) => ({ bytesRead: await read(into, at, length, position) }),
    close: async () => {},
  }
  const outline: SetOutline = {
    digest: '0'.repeat(64),
    metadata: { minVms: 1, vms: 1 },
    pageCount: pages.length,
    layout,
  }
  return new ColdSet(`/${name}.pfset`, outline, proofs, bytes)
}

/** A loop in which time goes so much faster. */
const hurried = (ms: number): EventLoop => ({
  ...EVENT_LOOP,
  after: (_, then) => {
    const timer = setTimeout(then, ms)
    return () => clearTimeout(timer)
  },
})

const numbered = (from: number, count: number): Buffer[] => Array.from({ length: count }, (_, i) => page(from + i))

/** A workspace in memory of its own, and a flow. */
function expanding(): { workspace: Workspace; flow: FlowExpander } {
  const bytes = new Uint8Array(new SharedArrayBuffer(WORKSPACE_BYTES))
  return { workspace: new Workspace(bytes, 0), flow: new FlowExpander(1, new PoolRegions([0, 0])) }
}

/** Names these pages in a workspace, as runs. */
function name(workspace: Workspace, flow: FlowExpander, numbers: readonly number[]): void {
  let at = workspace.columnAt[COLUMN.COLD]!
  let next = flow.prediction.cold
  for (let i = 0; i < numbers.length; ) {
    let count = 1
    while (numbers[i + count] === numbers[i]! + count) count++
    at = writeVarint(workspace.bytes, at, zigzag(numbers[i]! - next))
    at = writeVarint(workspace.bytes, at, count - 1)
    next = numbers[i]! + count
    i += count
  }
  workspace.columnLength[COLUMN.COLD] = at - workspace.columnAt[COLUMN.COLD]!
  workspace.fetchedPages = 0
}

/** What was fetched. */
function fetched({ bytes, packedAt, fetchedPages }: Workspace): Buffer[] {
  return Array.from({ length: fetchedPages }, (_, i) =>
    Buffer.from(bytes.subarray(packedAt + i * PAGE_SIZE, packedAt + (i + 1) * PAGE_SIZE)),
  )
}

t.test('a list numbers pages over its sets', t => {
  const list = new ColdList([0, 3, 0, 2, 0].map((count, i) => setOf(numbered(100 * i + 1, count))))
  t.equal(list.pages, 5)
  t.same(
    [0, 1, 2, 3, 4].map(number => list.setOf(number)),
    [1, 1, 1, 3, 3],
  )
  t.equal(new ColdList([]).pages, 0)
  t.end()
})

t.test('the index finds each page, and nothing else', async t => {
  const sets = [setOf(numbered(1, 700)), setOf(numbered(500, 900)), setOf([])]
  const list = new ColdList(sets)
  for (const key of [0, 1, 0xffffffff]) {
    const index = new ColdIndex(list, key)
    t.equal(index.find(sets[0]!.proofs, 0), -1, 'empty')
    await index.fill(EVENT_LOOP)
    const wrong: string[] = []
    for (const [i, set] of sets.entries()) {
      for (let n = 0; n < set.pageCount; n++) {
        // those of the second set that the first has, too, are found there
        const expected = i === 0 ? n : n < 201 ? 499 + n : 700 + n
        const found = index.find(set.proofs, n * PROOF_WORDS)
        if (found !== expected) wrong.push(`page ${n} of set ${i}: ${found}`)
      }
    }
    t.same(wrong, [])
    const other = setOf(numbered(5000, 3000)).proofs
    for (let at = 0; at < other.length; at += PROOF_WORDS) if (index.find(other, at) >= 0) wrong.push(`found ${at}`)
    for (let bit = 0; bit < 128; bit++) {
      const near = sets[0]!.proofs.slice(0, PROOF_WORDS)
      near[bit >> 5]! ^= 1 << (bit & 31)
      if (index.find(near, 0) >= 0) wrong.push(`found with bit ${bit} changed`)
    }
    t.same(wrong, [], 'no other proof')
    t.ok(index.bytes <= 6.3 * list.pages + 10, `${index.bytes} bytes for ${list.pages} pages`)
  }
  const none = new ColdIndex(new ColdList([]), 7)
  await none.fill(EVENT_LOOP)
  t.equal(none.find(sets[0]!.proofs, 0), -1)
})

t.test('proofs that were chosen to crowd take no longer', async t => {
  // alike in all words but one: no SHA-256 of anything
  const count = 20_000
  const proofs = new Uint32Array(count * PROOF_WORDS)
  for (let i = 0; i < count; i++) proofs[i * PROOF_WORDS + 1] = i << 12
  const crowded = new ColdSet('/crowded', setOf(numbered(1, 1)).outline, proofs, undefined as unknown as PageBytes)
  const outline = { ...crowded.outline, pageCount: count }
  const index = new ColdIndex(new ColdList([new ColdSet('/crowded', outline, proofs, undefined as never)]), 12345)
  const ownMs = stopwatch()
  await index.fill(EVENT_LOOP)
  t.ok(ownMs() < 3000, 'as fast as others: they stand everywhere')
  t.equal(index.find(proofs, PROOF_WORDS * (count - 1)), count - 1)
})

t.test('an index may be asked while it is filled', async t => {
  const count = 20_000
  const proofs = new Uint32Array(count * PROOF_WORDS)
  for (let i = 0; i < proofs.length; i++) proofs[i] = Math.imul(i + 1, 0x9e3779b1)
  const outline = { ...setOf(numbered(1, 1)).outline, pageCount: count }
  const index = new ColdIndex(new ColdList([new ColdSet('/large', outline, proofs, undefined as never)]), 3)
  const turns: string[] = []
  const loop = {
    ...EVENT_LOOP,
    soon: (then: () => void) => {
      const [first, last] = [0, count - 1].map(page => index.find(proofs, page * PROOF_WORDS))
      turns.push(`${first} ${last} ${index.isFilled}`)
      setImmediate(then)
    },
  }
  await Promise.all([index.fill(loop), index.fill(loop)])
  t.same(turns, ['0 -1 false', '0 -1 false'], 'what it has is found, and it is filled once')
  t.same([index.find(proofs, (count - 1) * PROOF_WORDS), index.isFilled], [count - 1, true])
})

/** Of a batch of one page. @returns -1 where it is none, or is not looked for */
function findOne(finder: ColdFinder, bytes: Uint8Array, at = 0): number {
  const numbers = new Uint32Array(1)
  return finder.find(bytes, Uint32Array.of(at), Uint8Array.of(1), numbers, 1) ? numbers[0]! : -1
}

t.test('where nothing is found, little is looked for', async t => {
  const known = numbered(1, 100)
  const index = new ColdIndex(new ColdList([setOf(known)]), 1)
  await index.fill(EVENT_LOOP)
  const finder = new ColdFinder(index)
  const others = numbered(1000, 64)
  const give = (pages: readonly Buffer[], times: number): number[] =>
    Array.from({ length: times }, (_, i) => findOne(finder, pages[i % pages.length]!))
  t.same(give(known, 100), [...known.keys()], 'all are found')
  t.equal(finder.looked, 100)
  give(others, 20_000)
  t.ok(finder.looked < 3000, `${finder.looked} looks for 20,000 pages that are not there`)
  const found = give(known, 100)
  const first = found.findIndex(number => number >= 0)
  t.ok(first < 16, 'one of the next sixteen is looked at')
  t.same(found.slice(first), [...known.keys()].slice(first), 'and brings all others back')
  // any alignment
  const bytes = new Uint8Array(PAGE_SIZE + 3)
  bytes.set(known[40]!, 3)
  t.equal(findOne(finder, bytes, 3), 40)
})

t.test('what follows in a set is named so, though another set has it, too', async t => {
  const shared = numbered(5, 1)
  const list = new ColdList([
    setOf([...shared, ...numbered(100, 3)]),
    setOf([...numbered(200, 2), ...shared, ...numbered(300, 1)]),
  ])
  const index = new ColdIndex(list, 1)
  await index.fill(EVENT_LOOP)
  const finder = new ColdFinder(index)
  const guest = [
    ...numbered(201, 1),
    ...shared,
    ...numbered(300, 1),
    ...shared,
    ...numbered(100, 1),
    ...numbered(900, 1),
  ]
  t.same(
    guest.map(bytes => findOne(finder, bytes)),
    [5, 6, 7, 0, 1, -1],
    'the run of the second set, and behind its last page the first set that has it',
  )
  t.notOk(index.has(list.pages, list.sets[0]!.proofs, 0), 'no page of that number')
})

t.test('whatever is named is fetched: byte for byte, in few reads', async t => {
  const sets = [numbered(1, 90), numbered(1000, 1), numbered(2000, 300)]
  const all = sets.flat()
  let reads: { first: number; bytes: number }[] = []
  const list = new ColdList(
    sets.map(pages =>
      setOf(pages, sound => (into, at, length, position) => {
        reads.push({ first: position, bytes: length })
        return sound(into, at, length, position)
      }),
    ),
  )
  const { workspace, flow } = expanding()
  const fetcher = new ColdFetcher({ list, reads: new DiskReads() })
  const run = fc.tuple(fc.nat(all.length - 1), fc.integer({ min: 1, max: 40 }))
  await fc.assert(
    fc.asyncProperty(fc.array(run, { minLength: 1, maxLength: 30 }), async runs => {
      const numbers = runs.flatMap(([first, count]) =>
        Array.from({ length: Math.min(count, all.length - first) }, (_, i) => first + i),
      )
      numbers.length = Math.min(numbers.length, 256)
      reads = []
      name(workspace, flow, numbers)
      await fetcher.fetch(flow, workspace, 1 << 20)
      const got = fetched(workspace)
      if (got.length !== numbers.length) throw new Error('another number of pages')
      for (const [i, body] of got.entries()) if (!body.equals(all[numbers[i]!]!)) throw new Error(`page ${i} differs`)
      const bytes = reads.reduce((sum, read) => sum + read.bytes, 0)
      if (bytes > 4 * numbers.length * PAGE_SIZE) throw new Error(`${bytes} bytes read for ${numbers.length} pages`)
      if (reads.some(read => read.bytes > COLD_READ_BYTES_MAX)) throw new Error('a read that is too large')
    }),
    { numRuns: 200 },
  )
  name(workspace, flow, [...Array(64).keys()])
  reads = []
  await fetcher.fetch(flow, workspace, 1 << 20)
  t.equal(reads.length, 4, 'a run of 256 KiB in reads of 64')
  name(workspace, flow, [80, 84, 88, 82, 86])
  reads = []
  await fetcher.fetch(flow, workspace, 1 << 20)
  t.equal(reads.length, 1, 'neighbours in any order in one')
  name(workspace, flow, [])
  t.equal(fetcher.fetch(flow, workspace, 1 << 20), undefined, 'nothing')
})

/** Disks that fail in every way, and what they are told for. */
const DISKS: readonly { name: string; disk: (sound: Disk) => Disk; code: string; late?: true }[] = [
  {
    name: 'EIO',
    disk: () => async () => {
      throw Object.assign(new Error('i/o error, read'), { code: 'EIO' })
    },
    code: 'IO',
  },
  {
    name: 'a bit that fell over',
    disk: sound => async (into, at, length, position) => {
      const got = await sound(into, at, length, position)
      into[at + Math.floor(length / 2)]! ^= 4
      return got
    },
    code: 'TEMPLATE_DAMAGED',
  },
  {
    name: 'zeros',
    disk: () => async (into, at, length) => {
      into.fill(0, at, at + length)
      return length
    },
    code: 'TEMPLATE_DAMAGED',
  },
  {
    name: 'the page behind',
    disk: sound => (into, at, length, position) => sound(into, at, length, position + PAGE_SIZE),
    code: 'TEMPLATE_DAMAGED',
  },
  { name: 'no more bytes', disk: () => async () => 0, code: 'TEMPLATE_TRUNCATED' },
  { name: 'silence', disk: () => () => new Promise(() => {}), code: 'IO', late: true },
  {
    name: 'an answer that is late',
    disk: sound => async (into, at, length, position) => {
      await new Promise(done => setTimeout(done, 200))
      return sound(into, at, length, position)
    },
    code: 'IO',
    late: true,
  },
]

t.test('a disk that fails never gives a wrong page', async t => {
  const good = numbered(1, 50)
  const bad = numbered(1000, 50)
  const all = [...good, ...bad]
  for (const { name: how, disk, code, late } of DISKS) {
    const list = new ColdList([setOf(good, undefined, 'good'), setOf(bad, disk, 'bad')])
    const { workspace, flow } = expanding()
    const reads = new DiskReads(hurried(60))
    const named = [3, 4, 5, 60, 61, 90, 7]

    const alone = new ColdFetcher({ list, reads })
    name(workspace, flow, named)
    const error = await alone.fetch(flow, workspace, 1 << 20)!.catch(thrown => thrown)
    t.match(error, { code, where: { stream: '/bad.pfset' } }, `${how}: nobody to ask`)
    t.equal(workspace.fetchedPages, 0, 'nothing is handed out')

    const told: string[] = []
    const asked: number[] = []
    const ask: AskForPages = async numbers => {
      asked.push(...numbers)
      return numbers.map(number => all[number]!)
    }
    const fetcher = new ColdFetcher({
      list,
      reads: new DiskReads(hurried(60)),
      ask,
      onFailure: (set, { code }) => told.push(`${set.path} ${code}`),
    })
    for (let again = 0; again < 2; again++) {
      name(workspace, flow, named)
      await fetcher.fetch(flow, workspace, 1 << 20)
      t.same(
        fetched(workspace),
        named.map(number => all[number]!),
        `${how}: asked for, all are right`,
      )
    }
    t.same(told, late ? [] : [`/bad.pfset ${code}`], 'told once; a disk that is slow for once is not told')
    t.ok(
      (late || asked.every(number => number >= 50)) && asked.length <= 2 * new Set(asked).size,
      'nothing is asked for that the disk has, nothing twice for one batch',
    )
    // who is asked has it not, or something else
    for (const answer of [good[0]!, Buffer.alloc(0), all[60]!.subarray(0, -1)]) {
      const lied = new ColdFetcher({
        list,
        reads: new DiskReads(hurried(60)),
        ask: async numbers => numbers.map(() => answer),
      })
      name(workspace, flow, named)
      t.match(await lied.fetch(flow, workspace, 1 << 20)!.catch(thrown => thrown), { code }, 'an answer is proven, too')
      t.equal(workspace.fetchedPages, 0)
    }
  }
})

t.test('a late answer touches nothing', async t => {
  const pages = numbered(1, 40)
  const waiting: (() => void)[] = []
  const list = new ColdList([
    setOf(pages, sound => async (into, at, length, position) => {
      await new Promise<void>(done => waiting.push(done))
      return sound(into, at, length, position)
    }),
  ])
  const reads = new DiskReads(hurried(30))
  const { workspace, flow } = expanding()
  const fetcher = new ColdFetcher({ list, reads })
  name(workspace, flow, [0, 10, 20, 30, 39])
  t.match(await fetcher.fetch(flow, workspace, 1 << 20)!.catch(thrown => thrown), {
    code: 'IO',
    what: /does not answer/,
  })
  t.equal(waiting.length, COLD_READS_MAX, 'so many reads are under way, and no more')
  workspace.bytes.fill(0xee, workspace.packedAt, workspace.packedAt + 5 * PAGE_SIZE)
  // they answer at last, and who waited behind them has gone
  while (waiting.length > 0) {
    for (const answer of waiting.splice(0)) answer()
    await new Promise(done => setImmediate(done))
  }
  t.ok(fetched({ ...workspace, fetchedPages: 5 } as Workspace).every(body => body.every(byte => byte === 0xee)))
  const again = new ColdFetcher({ list: new ColdList([setOf(pages)]), reads })
  name(workspace, flow, [1, 2])
  await again.fetch(flow, workspace, 1 << 20)
  t.same(fetched(workspace), [pages[1], pages[2]], 'and whoever comes next finds the disk free')
})

t.test('a batch that was read leaves no timer behind', async t => {
  const pages = numbered(1, 40)
  let timers = 0
  const counting: EventLoop = {
    ...EVENT_LOOP,
    after: () => {
      timers++
      return () => void timers--
    },
  }
  const broken = async (): Promise<number> => {
    throw Object.assign(new Error('i/o error, read'), { code: 'EIO' })
  }
  const { workspace, flow } = expanding()
  for (const [disk, code] of [
    [undefined, undefined],
    [() => broken, 'IO'],
  ] as const) {
    const fetcher = new ColdFetcher({ list: new ColdList([setOf(pages, disk)]), reads: new DiskReads(counting) })
    name(workspace, flow, [0, 10, 20])
    const error = await fetcher.fetch(flow, workspace, 1 << 20)!.catch(thrown => thrown)
    t.equal(error?.code, code)
    t.equal(timers, 0)
  }
})

t.test('a disk that is silent for good is not asked for ever', async t => {
  const pages = numbered(1, 40)
  let reads = 0
  const list = new ColdList([
    setOf(pages, () => () => {
      reads++
      return new Promise(() => {})
    }),
  ])
  const told: string[] = []
  const { workspace, flow } = expanding()
  const fetcher = new ColdFetcher({
    list,
    reads: new DiskReads(hurried(10)),
    ask: async numbers => numbers.map(number => pages[number]!),
    onFailure: (_, { code }) => told.push(code),
  })
  for (let batch = 0; batch < 20; batch++) {
    name(workspace, flow, [batch, batch + 10])
    await fetcher.fetch(flow, workspace, 1 << 20)
    t.same(fetched(workspace), [pages[batch], pages[batch + 10]])
    t.equal(told.length, batch < COLD_LATE_MAX - 1 ? 0 : 1, `batch ${batch}`)
  }
  t.equal(reads, COLD_READS_MAX, 'so many reads hang, and no more were begun')
})

t.test('who asks for what he was named is named less', t => {
  const ration = new ColdRation()
  const named = (fromMs: number, batches: number): number =>
    Array.from({ length: batches }, (_, i) => ration.next(fromMs + i)).filter(Boolean).length
  t.equal(named(0, 100), 100, 'all')
  ration.asked(1000)
  ration.asked(1010) // of the same time
  t.equal(ration.share(1000), 0.5)
  const half = named(1000, 100)
  t.ok(half >= 50 && half <= 52, `${half} of 100`)
  for (let ms = 2000; ms < 12_000; ms += 300) ration.asked(ms)
  t.ok(ration.share(12_000) < 0.2 && named(12_000, 160) >= 10, 'few, but some')
  t.equal(ration.share(20_000), 1, 'all again after a while without a question')
  t.equal(named(20_000, 100), 100)
  t.end()
})

t.test('sets of a process are opened once', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const digests = [await putPages(store, numbered(1, 20)), await putPages(store, numbered(100, 30))]
  const sets = new ColdSets()
  const [a, b] = await Promise.all([sets.open(digests, store, true), sets.open(digests, store, false)])
  const c = await sets.open(digests.toReversed(), store, true)
  t.equal(a.list.sets[0], b.list.sets[0])
  t.equal(a.list.sets[0], c.list.sets[1])
  t.ok(a.index !== undefined && b.index === undefined && c.index !== a.index)
  const d = await sets.open(digests, store, true)
  t.equal(d.index, a.index, 'one index a list')
  t.equal(await sets.forget(Number.POSITIVE_INFINITY), false, 'all are used')
  t.equal(sets.setCount, 2)

  await t.rejects(sets.open([digests[0]!, 'f'.repeat(64)], store, true), { code: 'TEMPLATE_MISSING' })
  const path = store.pathOf(digests[1]!)
  const fd = openSync(path, 'r+')
  writeSync(fd, Buffer.of(1), 0, 1, 40)
  closeSync(fd)
  sets.forgetSet(digests[1]!)
  await t.rejects(sets.open(digests, store, true), { code: 'TEMPLATE_DAMAGED' }, 'read anew')
  truncateSync(path, 10)
  await t.rejects(sets.open(digests, store, true), { code: 'TEMPLATE_TRUNCATED' })
  const body = Buffer.alloc(PAGE_SIZE)
  await a.list.sets[0]!.read(3, 1, body)
  t.same(body, page(4), 'who has a set keeps it')
  for (const lease of [a, b, c, d]) lease.release()
  t.equal(await sets.forget(Number.NEGATIVE_INFINITY), true, 'kept for a while')
  await sets.forget(Number.POSITIVE_INFINITY)
  t.equal(sets.setCount, 0)
})

t.test('a set is not to be had by asking', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const pages = numbered(1, 50)
  const cold = await new ColdSets().open([await putPages(store, pages)], store, true)
  await cold.index!.fill(EVENT_LOOP)
  const finder = new ColdFinder(cold.index!, cold.named)
  for (const number of [3, 4, 40]) t.equal(findOne(finder, pages[number]!), number)
  const sent = new Map<number, Buffer | undefined>()
  const failed: string[] = []
  const answers = new ColdAnswers(
    cold,
    (number, bytes) => sent.set(number, bytes && Buffer.from(bytes)),
    (_set, error) => failed.push(error.code),
  )
  const all = (count: number) => until('all answers', () => sent.size === count)
  t.ok(answers.answer([40, 3]))
  await all(2)
  t.same(
    [...sent],
    [
      [40, pages[40]],
      [3, pages[3]],
    ],
  )
  sent.clear()
  for (const numbers of [[5], [3, 5], [-1], [50], [2 ** 60], [Number.NaN]])
    t.notOk(answers.answer(numbers), `${numbers}`)

  truncateSync(store.pathOf(cold.list.sets[0]!.digest), 0)
  t.ok(answers.answer([3, 4]))
  await all(2)
  t.same([...sent.values()], [undefined, undefined], 'what cannot be had is said')
  t.same(failed, ['TEMPLATE_TRUNCATED', 'TEMPLATE_TRUNCATED'])
})

t.test('questions are answered once', async t => {
  const sent: number[][] = []
  const questions = new ColdQuestions(numbers => sent.push([...numbers]))
  t.notOk(questions.answered(1, page(1)), 'nobody asked')
  const first = questions.ask([7, 9])
  t.same(sent, [[7, 9]])
  t.notOk(questions.answered(8, page(8)))
  t.ok(questions.answered(9, page(9)))
  t.notOk(questions.answered(9, page(9)), 'twice')
  t.ok(questions.answered(7, undefined))
  t.same(await first, [undefined, page(9)], 'in the order of the question')
  t.notOk(questions.answered(7, page(7)), 'it is over')
  const second = questions.ask([1])
  questions.close()
  t.same(await second, [undefined], 'the session ended')
})

t.test('pages that were named', t => {
  const named = new NamedPages()
  const numbers = [0, 7, 8, 1023, 1024, 2 ** 25 - 1]
  for (const [i, number] of numbers.entries()) named.add(number, i + 1)
  for (const [i, number] of numbers.entries()) {
    t.equal(named.namedBy(number), i + 1)
    for (const other of [number - 1, number + 1]) {
      if (!numbers.includes(other)) t.equal(named.namedBy(other), undefined)
    }
  }
  named.add(7, 99)
  t.equal(named.namedBy(7), 99, 'for whom it was named last')
  t.end()
})

t.test('nothing is named where nothing may be', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const pages = numbered(1, 50)
  const cold = [await putPages(store, pages)]
  const pools = new Pools()
  const shape = { role: 'encoder', workspaces: 2, slots: 1, slotBytes: 1 << 20, longMatch: true } as const
  const pool = await pools.open({ ...shape, sets: [], cold, store, ringPages: 64, places: 64 })
  const outbound = new Outbound(
    pool,
    [1, 2],
    () => {},
    error => t.fail(error.message),
  )
  const named = async (useCold: boolean): Promise<number> => {
    const encoder = new FlowEncoder(1, PoolRegions.of(pool.kernel.layout))
    encoder.parser = parserFor('main', encoder)
    const buffer = new ChannelBuffer(pool.kernel.bytes, pool.slots[0]!, pool.slotBytes)
    const bytes = migration(pages)
    buffer.writable(bytes.length, bytes.length)!.set(bytes)
    encoder.push(pool.kernel.bytes, buffer.filled(bytes.length), bytes.length)
    outbound.encode({ encoder, buffer }, EFFORTS[1]!, true, useCold)
    await outbound.idle()
    return encoder.stats.coldPages
  }
  t.equal(await named(true), 50)
  t.equal(await named(false), 0)
  await outbound.close()
  await pool.close()
  const fresh = await pools.open({ ...shape, sets: [], cold, store, ringPages: 64, places: 64 })
  t.equal(fresh.cold!.list.sets[0], pool.cold!.list.sets[0], 'the next session finds the set open')
  t.notSame(fresh.cold!.named, pool.cold!.named, 'and knows nothing of what was named before')
  await fresh.close()
})

t.test('threads read files: all at once, each what it was asked for', async t => {
  const { folder } = scratch(t.teardown)
  const path = join(folder, 'file')
  const pages = numbered(1, 400)
  writeFileSync(path, Buffer.concat([...pages, Buffer.alloc(100)]))
  const fd = openSync(path, 'r')
  t.teardown(() => closeSync(fd))
  const threads = new ReadingThreads()
  t.teardown(() => threads.rest())
  const reads = new DiskReads()
  const rand = random(5)
  const wrong: string[] = []
  const one = async (): Promise<void> => {
    const runs = Array.from({ length: 1 + rand(60) }, () => {
      const first = rand(380)
      const count = 1 + rand(16)
      return { fd, position: first * PAGE_SIZE, length: count * PAGE_SIZE, first, wanted: [0, count - 1, rand(count)] }
    })
    const use = ({ bytes, digests, runs: read }: ReadPages): void => {
      for (const [i, { first, wanted }] of runs.entries()) {
        const { at, digestsAt, failure } = read[i]!
        if (failure) wrong.push(failure.message)
        for (const [k, page] of wanted.entries()) {
          const body = pages[first + page]!
          if (!body.equals(bytes.subarray(at + page * PAGE_SIZE, at + (page + 1) * PAGE_SIZE)))
            wrong.push('other bytes')
          const proof = new Uint32Array(PROOF_WORDS)
          writeProof(body, proof, 0)
          for (let word = 0; word < PROOF_WORDS; word++)
            if (digests[digestsAt + 8 * k + word] !== proof[word]) wrong.push('another digest')
        }
      }
    }
    const came = await reads.within(60_000, deadline => threads.read(runs, deadline, use))
    if (!came) wrong.push('late')
  }
  await Promise.all(Array.from({ length: 60 }, one))
  t.same(wrong, [])

  const failures: (string | undefined)[] = []
  const run = { fd, position: 0, length: PAGE_SIZE, wanted: [0] }
  const bad = [run, { ...run, fd: 999_999 }, { ...run, position: 400 * PAGE_SIZE }, run]
  t.ok(
    await reads.within(60_000, deadline =>
      threads.read(bad, deadline, ({ runs, bytes }) => {
        failures.push(...runs.map(({ failure }) => failure?.code))
        t.ok(pages[0]!.equals(bytes.subarray(runs[3]!.at, runs[3]!.at + PAGE_SIZE)), 'the others are read')
      }),
    ),
  )
  t.same(failures, [undefined, 'EBADF', '', undefined])

  const never = (): void => void t.fail('it came too late')
  const past = { isPast: true, passed: Promise.resolve() }
  t.notOk(await threads.read([run], past, never), 'time is over')
  threads.rest()
  let again = false
  t.ok(
    await reads.within(60_000, deadline =>
      threads.read([run], deadline, () => {
        again = true
      }),
    ),
  )
  t.ok(again, 'others come after those that ended')
})

t.test('a set in a file, and what becomes of it', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const pages = numbered(1, 300)
  const set = await store.openCold(await putPages(store, pages))
  t.teardown(() => set.close())
  const list = new ColdList([setOf(numbered(9000, 10)), set])
  const all = [...numbered(9000, 10), ...pages]
  const reads = new DiskReads()
  t.teardown(() => reads.threads.rest())
  const { workspace, flow } = expanding()
  const fetcher = new ColdFetcher({ list, reads })
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat(all.length - 1), { minLength: 1, maxLength: 256 }), async numbers => {
      name(workspace, flow, numbers)
      await fetcher.fetch(flow, workspace, 1 << 20)
      const got = fetched(workspace)
      if (got.length !== numbers.length || got.some((body, i) => !body.equals(all[numbers[i]!]!)))
        throw new Error('other pages')
    }),
    { numRuns: 60 },
  )
  // one page of it changes, then it ends early
  const fd = openSync(set.path, 'r+')
  writeSync(fd, Buffer.of(1, 2, 3), 0, 3, set.positionOf(100) + 9)
  closeSync(fd)
  const asked: number[] = []
  const asking = (): ColdFetcher =>
    new ColdFetcher({
      list,
      reads,
      ask: async numbers => {
        asked.push(...numbers)
        return numbers.map(number => all[number]!)
      },
    })
  const named = [3, 109, 110, 111, 250]
  for (const expected of [[110], [250]]) {
    name(workspace, flow, named)
    await asking().fetch(flow, workspace, 1 << 20)
    t.same(
      fetched(workspace),
      named.map(number => all[number]!),
    )
    t.ok(expected.every(number => asked.includes(number)) && !asked.includes(3), `asked for ${asked.splice(0)}`)
    truncateSync(set.path, set.positionOf(200))
  }
})
