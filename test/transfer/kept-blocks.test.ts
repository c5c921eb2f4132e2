/** Blocks of disks that a side keeps: what is found and read is what was kept, or nothing. */
import { fstatSync, readdirSync, statfsSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { KEPT_BLOCKS_MIN, KEPT_UNDER_WAY_BLOCKS, KEPT_WAITING_PAGES_MAX } from '../../src/limits.ts'
import { PROOF_WORDS, writeProof } from '../../src/store/cold-set.ts'
import { PAGE_SIZE } from '../../src/template/wire.ts'
import { ColdAnswers } from '../../src/transfer/cold/cold-answers.ts'
import { ColdSets } from '../../src/transfer/cold/cold-sets.ts'
import { KeptBlocks } from '../../src/transfer/cold/kept-blocks.ts'
import { KeptIndex } from '../../src/transfer/cold/kept-index.ts'
import { KeptSpace } from '../../src/transfer/cold/kept-space.ts'
import { EVENT_LOOP } from '../../src/transfer/event-loop.ts'
import { until } from '../helpers/until.ts'
import { page, random, scratch } from '../template/makers.ts'

t.setTimeout(590_000)

const proofOf = (body: Uint8Array): Uint32Array => {
  const proof = new Uint32Array(PROOF_WORDS)
  writeProof(body, proof, 0)
  return proof
}

/** Keeps these pages, which lie somewhere in memory. */
function keep(kept: KeptBlocks, pages: readonly Uint8Array[]): void {
  const memory = new Uint8Array((pages.length + 1) * PAGE_SIZE)
  const addresses = Uint32Array.from(pages, (body, i) => {
    memory.set(body, 100 + i * PAGE_SIZE)
    return 100 + i * PAGE_SIZE
  })
  kept.keep(memory, addresses, pages.length)
  memory.fill(0xdd) // its batch is over
}

const numbers = (from: number, count: number): Buffer[] => Array.from({ length: count }, (_, i) => page(from + i))

async function readBack(kept: KeptBlocks, place: number): Promise<Buffer> {
  const bytes = Buffer.alloc(PAGE_SIZE)
  await kept.read(place, 1, bytes)
  return bytes
}

t.test('what was kept is found and read; when it is written over it is not found any more', async t => {
  const { folder } = scratch(t.teardown)
  const kept = new KeptBlocks({ blocks: 64, space: new KeptSpace(folder, 1e9), indexed: true, loop: EVENT_LOOP })
  t.same(readdirSync(folder), [], 'nothing is taken before there is anything')
  const wrong: string[] = []
  for (let first = 0; first < 160; first += 16) {
    keep(kept, numbers(first + 1, 16))
    t.equal(kept.count, first + 16)
    await until('they are written', () => kept.available === Math.min(64, first + 16))
    for (let number = 0; number < first + 16; number++) {
      const body = page(number + 1)
      const place = kept.find(proofOf(body), 0)
      // batches under way may write over the older half
      const isThere = first + 16 - number <= 64 - 32
      if (place !== (isThere ? number % 64 : -1)) wrong.push(`${first}: ${number} at ${place}`)
      if (place < 0) continue
      if (!(await readBack(kept, place)).equals(body)) wrong.push(`${first}: ${number} reads otherwise`)
      if (!kept.isPage(place, body) || kept.isPage(place, page(999))) wrong.push(`${first}: proof of ${number}`)
    }
  }
  t.same(wrong, [])
  t.equal(kept.find(proofOf(page(5000)), 0), -1)
  t.same(readdirSync(folder), [], 'the file has no name')
  const { fd } = kept
  t.equal(fstatSync(fd!).size, 64 * PAGE_SIZE)
  kept.close()
  await t.rejects(readBack(kept, 0), { code: 'IO' })
  await until('its disk space to be free', () => fstatSync(fd!).size === 0)
})

t.test('of a block that is named as many may follow as can be under way', t => {
  const blocks = KEPT_BLOCKS_MIN
  const space = { folder: '/nowhere', takeRoom: () => false, giveRoom: () => {} }
  const kept = new KeptBlocks({ blocks, space, indexed: true, loop: EVENT_LOOP })
  // as if its disk had it; the others are not taken, and count
  const own = kept as unknown as { proofs: Uint32Array; there: Uint8Array; index: { add(place: number): void } }
  keep(kept, [page(1)])
  own.proofs.set(proofOf(page(1)))
  own.there[0] = 1
  own.index.add(0)
  const follow = (count: number): void => {
    kept.keep(new Uint8Array(0), new Uint32Array(0), count)
  }
  follow(blocks - KEPT_UNDER_WAY_BLOCKS - 1)
  t.equal(kept.find(proofOf(page(1)), 0), 0, 'all that can be under way may follow, and it is still there')
  follow(1)
  t.equal(kept.find(proofOf(page(1)), 0), -1)
  t.end()
})

t.test('for a block that was written over nothing else is sent', async t => {
  const { folder } = scratch(t.teardown)
  const sets = new ColdSets()
  const space = new KeptSpace(folder, 1e9)
  const cold = await sets.open([], undefined, true, { blocks: 8, space })
  const kept = cold.kept!
  keep(kept, numbers(1, 2))
  await until('they are written', () => kept.available === 2)
  const place = kept.find(proofOf(page(1)), 0)
  t.equal(place, 0)
  cold.named.add(place, 1)
  const sent: (Buffer | undefined)[] = []
  const answers = new ColdAnswers(
    cold,
    (_number, bytes) => sent.push(bytes && Buffer.from(bytes)),
    () => {},
  )
  t.ok(answers.answer([place]))
  await until('its answer', () => sent.length === 1)
  // its number is another one's, which the disk does not have yet
  keep(kept, [])
  ;(kept as unknown as { ended: boolean }).ended = true
  keep(kept, numbers(101, 8))
  t.ok(answers.answer([place]))
  await until('the other answer', () => sent.length === 2)
  t.same(sent, [page(1), undefined])
  cold.release()
})

t.test('what the disk does not take in time is counted, and not there', async t => {
  const { folder } = scratch(t.teardown)
  const kept = new KeptBlocks({ blocks: 64, space: new KeptSpace(folder, 1e9), indexed: true, loop: EVENT_LOOP })
  // a quarter may wait: the thread is not there yet
  for (let i = 0; i < 6; i++) keep(kept, numbers(1 + 8 * i, 8))
  t.equal(kept.count, 48)
  await until('two are written', () => kept.available === 16)
  t.same([kept.hasPage(0), kept.hasPage(15), kept.hasPage(16)], [true, true, false])
  t.equal(kept.find(proofOf(page(17)), 0), -1)
  t.ok(kept.isPage(16, page(3)), 'of one that is not here nothing is known')
  keep(kept, numbers(101, 8))
  await until('the next ones', () => kept.available === 24)
  t.equal(kept.find(proofOf(page(101)), 0), 48, 'those have the numbers that the other side has for them')
  kept.close()
})

t.test('all sessions together have so many waiting', t => {
  const space = new KeptSpace('/var/tmp', 1e9, () => 1e12)
  t.ok(space.takeRoom(KEPT_WAITING_PAGES_MAX - 1))
  t.notOk(space.takeRoom(2))
  t.ok(space.takeRoom(1))
  space.giveRoom(2)
  t.ok(space.takeRoom(2))
  t.end()
})

t.test('a block whose number another one has meanwhile is not taken for it', async t => {
  const { folder } = scratch(t.teardown)
  const kept = new KeptBlocks({ blocks: 8, space: new KeptSpace(folder, 1e9), indexed: true, loop: EVENT_LOOP })
  keep(kept, numbers(1, 2)) // wait for the thread
  for (let i = 0; i < 4; i++) keep(kept, numbers(11 + 2 * i, 2)) // have no room: the last ones are numbers 8 and 9
  keep(kept, [])
  await until('the thread', () => (kept as unknown as { waiting: number }).waiting === 0)
  t.equal(kept.available, 0)
  t.equal(kept.find(proofOf(page(1)), 0), -1)
  kept.close()
})

t.test('a disk that fails is told of once, and nothing more is kept', async t => {
  const errors: string[] = []
  const onFailure = ({ code, message }: { code: string; message: string }): void =>
    void errors.push(`${code} ${message}`)
  const kept = new KeptBlocks({
    blocks: 64,
    space: new KeptSpace('/nowhere', 1e9),
    indexed: true,
    loop: EVENT_LOOP,
    onFailure,
  })
  keep(kept, numbers(1, 4))
  keep(kept, numbers(5, 4))
  t.equal(kept.count, 8, 'they count all the same')
  t.equal(errors.length, 1)
  t.match(errors[0], /^IO .*\/nowhere/)
  t.equal(kept.available, 0)
  await t.rejects(readBack(kept, 0), { code: 'IO' })
  kept.close()
})

t.test('a host that has no thread left for it, and a thread that dies', async t => {
  const { folder } = scratch(t.teardown)
  const space = new KeptSpace(folder, 1e9)
  const errors: string[] = []
  const onFailure = ({ code }: { code: string }): void => void errors.push(code)
  const common = { blocks: 64, space, indexed: true, loop: EVENT_LOOP, onFailure }
  const none = (): Worker => {
    throw Object.assign(new Error('no thread'), { code: 'ERR_WORKER_INIT_FAILED' })
  }
  const without = new KeptBlocks({ ...common, start: none })
  keep(without, numbers(1, 4))
  keep(without, numbers(5, 4))
  t.same([without.count, without.available, errors.length], [8, 0, 1])
  without.close()

  const dies = (): Worker => new Worker("throw new Error('dies')", { eval: true })
  const dead = new KeptBlocks({ ...common, start: dies })
  keep(dead, numbers(1, 4))
  await until('its death', () => errors.length === 2)
  t.ok(space.takeRoom(KEPT_WAITING_PAGES_MAX), 'it takes no room from others')
  dead.close()
})

t.test('the index has what was put in and not what was taken out', t => {
  const places = 300
  const proofs = new Uint32Array(places * PROOF_WORDS)
  const rand = random(7)
  const index = new KeptIndex(proofs, 12345)
  const held = new Map<number, number>()
  const wrong: string[] = []
  for (let step = 0; step < 20_000; step++) {
    const place = rand(places)
    if (held.has(place)) {
      index.remove(place)
      held.delete(place)
    } else {
      // few kinds, so that several places have the same block
      const kind = rand(100)
      proofs.fill(kind + 1, place * PROOF_WORDS, (place + 1) * PROOF_WORDS)
      index.add(place)
      held.set(place, kind)
    }
    const kind = rand(100)
    const found = index.find(new Uint32Array(PROOF_WORDS).fill(kind + 1), 0)
    const isThere = [...held.values()].includes(kind)
    if (isThere ? held.get(found) !== kind : found !== -1) wrong.push(`step ${step}: ${kind} at ${found}`)
  }
  t.same(wrong, [])
  t.end()
})

t.test('disk space is shared by halves, and never more than half of what is free', t => {
  let free = 1e12
  const space = new KeptSpace('/var/tmp', 1024 * PAGE_SIZE, () => free, 1)
  const first = space.take(2000)
  const second = space.take(2000)
  const third = space.take(100)
  t.same([first.blocks, second.blocks, third.blocks], [512, 256, 100])
  first.release()
  first.release()
  t.equal(space.take(Number.POSITIVE_INFINITY).blocks, Math.floor((1024 - 356) / 2))
  free = 20 * PAGE_SIZE
  t.equal(space.take(2000).blocks, 10)
  free = 0
  t.equal(space.take(2000).blocks, 0)
  t.equal(new KeptSpace('/nowhere', 1e12, undefined, 1).take(2000).blocks, 0)
  t.end()
})

t.test('so few that batches under way could write over all of them are none', t => {
  const space = new KeptSpace('/var/tmp', 5 * KEPT_BLOCKS_MIN * PAGE_SIZE, () => 1e12)
  t.equal(space.take(KEPT_BLOCKS_MIN - 1).blocks, 0)
  t.equal(space.take(KEPT_BLOCKS_MIN).blocks, KEPT_BLOCKS_MIN)
  t.equal(space.take(Number.POSITIVE_INFINITY).blocks, 2 * KEPT_BLOCKS_MIN)
  t.equal(space.take(Number.POSITIVE_INFINITY).blocks, KEPT_BLOCKS_MIN)
  t.equal(space.take(Number.POSITIVE_INFINITY).blocks, 0, 'half of what is left is too little')
  t.end()
})

const TMPFS = 0x0102_1994
const hasTmpfs = (): boolean => {
  try {
    return statfsSync('/dev/shm').type === TMPFS
  } catch {
    return false
  }
}
t.test('memory is no disk', { skip: !hasTmpfs() && 'no tmpfs at /dev/shm' }, t => {
  t.equal(new KeptSpace('/dev/shm', 1e12, undefined, 1).take(100).blocks, 0)
  t.end()
})
