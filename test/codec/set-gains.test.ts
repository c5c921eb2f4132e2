/** What sets bring, counted by runs: against a count page by page and byte by byte. */
import t from 'tap'
import { random } from '../../scripts/harness/random.ts'
import { type NumberedSets, SetGains } from '../../src/codec/set-gains.ts'
import { BatchCounts } from '../../src/codec/stats.ts'
import { KIND } from '../../src/kernel/kernel.ts'

const PAGE = 4096

function numbered(name: string, sizes: readonly number[]): NumberedSets {
  let pages = 0
  const starts = sizes.map(size => {
    pages += size
    return pages - size
  })
  return { digests: sizes.map((_, i) => `${name}${i}`), starts, pages }
}

/** The set of a page, looked for one by one. */
function setOf({ digests, starts, pages }: NumberedSets, number: number): string {
  for (let i = digests.length - 1; i >= 0; i--) {
    const end = starts[i + 1] ?? pages
    if (number >= starts[i]! && number < end) return digests[i]!
  }
  throw new RangeError(`${number} of ${pages}`)
}

/** Counts as plainly as can be. */
class Oracle {
  readonly gains = new Map<string, { pages: number; bytes: number }>()
  add(set: string, pages: number, bytes: number): void {
    const gain = this.gains.get(set) ?? { pages: 0, bytes: 0 }
    this.gains.set(set, { pages: gain.pages + pages, bytes: gain.bytes + bytes })
  }
  get sorted() {
    return Array.from(this.gains, ([set, gain]) => ({ set, ...gain })).sort(bySet)
  }
}

const bySet = (a: { set: string }, b: { set: string }): number => (a.set < b.set ? -1 : 1)

interface Token {
  readonly literal: number
  readonly copy: number
  readonly source: number
}

/** As the kernel writes them. */
function tokenBytes(tokens: readonly Token[]): Buffer {
  const bytes = Buffer.alloc(8 * tokens.length)
  for (const [i, { literal, copy, source }] of tokens.entries()) {
    bytes.writeUInt16LE(literal, 8 * i)
    bytes.writeUInt16LE(copy, 8 * i + 2)
    bytes.writeUInt32LE(source, 8 * i + 4)
  }
  return bytes
}

t.test('batches of all kinds, as the encoder has them and as the expander does', t => {
  const rand = random(31)
  for (let round = 0; round < 300; round++) {
    // sets without pages too, at the start, between and at the end
    const sizes = Array.from({ length: 1 + rand(5) }, () => (rand(4) === 0 ? 0 : 1 + rand(40)))
    const hot = numbered('hot', sizes)
    const cold = round % 3 === 0 ? undefined : numbered('cold', [1 + rand(30), rand(2) * rand(20), 1 + rand(30)])
    const encoder = new SetGains(hot, cold)
    const expander = new SetGains(hot, cold)
    const oracle = new Oracle()
    for (const gains of [encoder, expander]) gains.open(7)
    for (let batch = 0; batch < 3; batch++) {
      const counts = new BatchCounts()
      const pages = rand(256)
      const kinds = new Uint8Array(pages)
      const answers = new Uint32Array(pages)
      const coldNumbers = new Uint32Array(pages)
      const tokens: Token[] = []
      for (const gains of [encoder, expander]) gains.begin(7)
      let next = rand(Math.max(1, hot.pages))
      for (let i = 0; i < pages; i++) {
        const kind = [KIND.REF, KIND.REF, KIND.REF, KIND.COLD, KIND.PATCH, KIND.SAME, KIND.NEW][rand(7)]!
        kinds[i] = kind
        if (kind === KIND.REF) {
          if (rand(4) === 0) next = rand(hot.pages + 20) // of the ring too
          answers[i] = next
          if (next < hot.pages) {
            counts.templatePages++
            oracle.add(setOf(hot, next), 1, PAGE)
            expander.references(next, 1)
          } else counts.earlierPages++
          next++
        } else if (kind === KIND.COLD && cold) {
          coldNumbers[i] = rand(cold.pages)
          counts.coldPages++
          oracle.add(setOf(cold, coldNumbers[i]!), 1, PAGE)
          expander.coldPages(coldNumbers[i]!, 1)
        } else if (kind === KIND.COLD) kinds[i] = KIND.NEW
        else if (kind === KIND.PATCH) {
          counts.patchPages++
          const own: Token[] = []
          for (let n = 1 + rand(5); n > 0; n--) {
            const token = { literal: rand(9), copy: rand(3) * rand(900), source: rand((hot.pages + 8) * PAGE) }
            own.push(token)
            if (token.copy > 0 && token.source < hot.pages * PAGE)
              oracle.add(setOf(hot, Math.floor(token.source / PAGE)), 0, token.copy)
          }
          answers[i] = own.length
          expander.parts(tokenBytes(own), 0, own.length)
          tokens.push(...own)
        }
      }
      const bytes = Buffer.concat([Buffer.alloc(16), tokenBytes(tokens)])
      encoder.encoded(counts, kinds, answers, coldNumbers, bytes, 16)
    }
    t.same(encoder.take(7).toSorted(bySet), oracle.sorted, `round ${round}`)
    t.same(expander.take(7).toSorted(bySet), oracle.sorted)
  }
  t.end()
})

t.test('runs that go over the end of a set', t => {
  const gains = new SetGains(numbered('hot', [3, 0, 2, 5]), numbered('cold', [4, 4]))
  gains.open(1)
  gains.begin(1)
  gains.references(1, 7)
  gains.coldPages(2, 5)
  t.same(gains.take(1), [
    { set: 'hot3', pages: 3, bytes: 3 * PAGE },
    { set: 'cold1', pages: 3, bytes: 3 * PAGE },
    { set: 'hot0', pages: 2, bytes: 2 * PAGE },
    { set: 'hot2', pages: 2, bytes: 2 * PAGE },
    { set: 'cold0', pages: 2, bytes: 2 * PAGE },
  ])
  t.end()
})

t.test('each migration has its own, and nobody what is of none', t => {
  const gains = new SetGains(numbered('hot', [10]), undefined)
  for (const migration of [1, 2]) gains.open(migration)
  for (const migration of [1, 2, 3, 1]) {
    gains.begin(migration)
    gains.references(0, migration)
  }
  t.same(gains.take(1), [{ set: 'hot0', pages: 2, bytes: 2 * PAGE }])
  gains.references(0, 5) // the migration that the batch was of is over
  gains.begin(1)
  gains.references(0, 5)
  t.same(gains.take(1), [])
  t.same(gains.take(2), [{ set: 'hot0', pages: 2, bytes: 2 * PAGE }])
  t.same(gains.take(3), [], 'which was never told of')
  gains.open(4)
  gains.open(4)
  gains.coldPages(0, 4)
  t.same(gains.take(4), [], 'nothing is on the disk')
  t.end()
})
