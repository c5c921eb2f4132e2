/** What disks' servers say, on its way back: which of it is encoded, and that all of it comes, whatever is cut. */
import fc from 'fast-check'
import t from 'tap'
import { answersCarried, diskOf } from '../codec/disk-harness.ts'
import { Guest, random, type Terms, templatePages } from '../codec/harness.ts'
import { messagesOf, reordered, sideOf } from '../nbd-wire/conversations.ts'
import { recordings } from '../nbd-wire/recordings.ts'
import { conversation, nbdVectors } from '../vectors/nbd/conversations.ts'

t.setTimeout(590_000) // the machine may be busy

const TERMS: Terms = { templates: templatePages(8), ring: 64, places: 256, disks: true }
const ALL_TERMS: readonly Terms[] = [
  TERMS,
  { templates: templatePages(8), ring: 2, places: 16, disks: true },
  { templates: [], ring: 8, places: 1, disks: true },
  { templates: templatePages(8), ring: 0, places: 16, disks: true },
  { templates: [], ring: 16, places: 0, disks: true },
]
const seeds = fc.integer({ min: 0, max: 2 ** 31 })

t.test('what was recorded: a mirror that pushes is not encoded, and what is read is', t => {
  t.ok(recordings.length >= 27)
  const shares = new Map<string, number>()
  for (const { name, connections } of recordings) {
    const wrongs: string[] = []
    let [passed, encoded] = [0, 0]
    for (const steps of connections) {
      const long = sideOf(steps, 'server').length > 50_000
      for (const most of [3000, 70_000]) {
        const rand = random(most)
        const cuts = { rand, most, batchOf: long && most < 10_000 ? 4 : 1, releaseOf: 2, lacksOf: 0 }
        const carried = answersCarried(steps, TERMS, cuts)
        if (carried.wrong) wrongs.push(`pieces of ${most}: ${carried.wrong}`)
        passed += carried.passed
        encoded += carried.encoded
      }
    }
    t.same(wrongs, [], name)
    if (encoded > 0) shares.set(name, encoded / (encoded + passed))
  }
  for (const [name, share] of shares) t.comment(name, share)
  t.same(
    [...shares.keys()].filter(name => name.includes('mirror') && !name.includes('pull')),
    [],
    'of what pushes nothing',
  )
  t.ok([...shares.values()].some(share => share > 0.95))
  t.end()
})

t.test('conversations by hand, byte by byte and as they are', t => {
  t.ok(nbdVectors.length > 0)
  for (const vector of nbdVectors) {
    const { steps } = conversation(vector.steps)
    const wrongs: string[] = []
    for (let run = 0; run < 6; run++) {
      const rand = random(run)
      const most = [1, 7, 2 ** 20][run % 3]!
      const cuts = { rand, most, batchOf: 1 + rand(4), releaseOf: 1 + rand(3), lacksOf: run % 2 ? 3 : 0 }
      const { wrong } = answersCarried(steps, ALL_TERMS[1]!, cuts)
      if (wrong) wrongs.push(`run ${run}: ${wrong}`)
    }
    t.same(wrongs, [], vector.name)
  }
  t.end()
})

t.test('made-up disks: all of it comes, in its order', t => {
  const sum = { passed: 0, encoded: 0, known: 0, same: 0 }
  fc.assert(
    fc.property(seeds, seed => {
      const rand = random(seed)
      const terms = ALL_TERMS[rand(ALL_TERMS.length)]!
      const steps = reordered(rand, messagesOf(rand, rand(40), diskOf(new Guest(terms.templates))))
      const most = [3, 40, 5000, 300_000][rand(4)]!
      const cuts = {
        ...{ rand, most, batchOf: Math.ceil(3000 / most), releaseOf: 1 + rand(12) },
        lacksOf: [0, 0, 3, 40][rand(4)]!,
      }
      const { wrong, passed, encoded, channel } = answersCarried(steps, terms, cuts)
      if (wrong) throw new Error(wrong)
      const { stats } = channel.flow
      sum.passed += passed
      sum.encoded += encoded
      sum.known += stats.templatePages + stats.earlierPages
      sum.same += stats.samePages
      return true
    }),
    { numRuns: 200 }, // of 40 one in six had too few blocks that are the same for what is asked of all below
  )
  t.comment('bytes and blocks', sum)
  t.ok(sum.passed > 5000 && sum.encoded > 500_000 && sum.known > 10 && sum.same > 3)
  t.end()
})
