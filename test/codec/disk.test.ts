/** Connections of NBD through a session's pool: every byte as it was, whatever is cut, and blocks found among pages. */
import fc from 'fast-check'
import t from 'tap'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { DiskConnection } from '../../src/codec/disk-connection.ts'
import { COLUMN } from '../../src/codec/wire.ts'
import { isProxyError } from '../../src/errors.ts'
import type { Direction } from '../../src/nbd/sink.ts'
import { messagesOf, reordered, sideOf } from '../nbd-wire/conversations.ts'
import type { Step } from '../nbd-wire/harness.ts'
import { recordings } from '../nbd-wire/recordings.ts'
import { conversation, nbdVectors } from '../vectors/nbd/conversations.ts'
import { carried, diskOf, openDisk, through } from './disk-harness.ts'
import { Guest, NATURE, PAGE, poolOf, Receiver, random, Sender, SIMD, type Terms, templatePages } from './harness.ts'

t.setTimeout(600_000) // the machine may be busy

const TERMS: Terms = { templates: templatePages(8), ring: 64, places: 256, disks: true }
const SMALL: Terms = { templates: templatePages(8), ring: 2, places: 16, disks: true }
const ALL_TERMS: readonly Terms[] = [
  TERMS,
  SMALL,
  { templates: [], ring: 8, places: 1, disks: true },
  { templates: templatePages(8), ring: 0, places: 16, disks: true },
  { templates: [], ring: 16, places: 0, disks: true },
  { templates: templatePages(4), ring: 8, places: 64, cold: templatePages(16), disks: true },
  { templates: templatePages(4), ring: 4, places: 64, cold: templatePages(16), disks: true, kept: 24 },
  { templates: [], ring: 2, places: 16, disks: true, kept: 4096 },
]

const DIRECTIONS: readonly Direction[] = ['client', 'server']
const seeds = fc.integer({ min: 0, max: 2 ** 31 })

/** Pieces are as long as they may be, and what happens once in many times does not. */
const atEnds = (below: number): number => below - 1

t.test('what was recorded, both directions, byte by byte and cut anywhere', t => {
  t.ok(recordings.length >= 27)
  for (const { name, connections } of recordings) {
    const wrongs: string[] = []
    for (const steps of connections) {
      for (const encoded of DIRECTIONS) {
        const rand = random(sideOf(steps, encoded).length)
        const long = sideOf(steps, encoded).length > 50_000
        const cuts = [
          { rand, most: 1, batchOf: long ? 3000 : 3, releaseOf: 2, bytewise: 70_000 },
          { rand, most: 3000, batchOf: long ? 4 : 1, releaseOf: 2 },
          { rand, most: 200_000, batchOf: 2, releaseOf: 1000 },
        ]
        for (const [i, cut] of cuts.entries()) {
          const { wrong } = carried(steps, encoded, TERMS, cut, { longMatch: i > 0, second: i > 0 })
          if (wrong) wrongs.push(`${encoded}, cut ${i}: ${wrong}`)
        }
      }
    }
    t.same(wrongs, [], name)
  }
  t.end()
})

t.test('conversations by hand, cut once at every byte, released there or not', t => {
  t.ok(nbdVectors.length > 0)
  for (const vector of nbdVectors) {
    const { steps } = conversation(vector.steps)
    const wrongs: string[] = []
    for (const encoded of DIRECTIONS) {
      const length = sideOf(steps, encoded).length
      for (let cut = 0; cut <= length; cut++) {
        const parts = cutAt(steps, encoded, cut)
        for (const releaseOf of [1, 2 ** 30]) {
          // a batch behind each piece, and pieces are as they come
          const cuts = { rand: atEnds, most: 2 ** 20, batchOf: 1, releaseOf }
          const { wrong } = carried(parts, encoded, SMALL, cuts, { second: cut % 16 === 0 })
          if (wrong) wrongs.push(`${encoded} cut at ${cut}: ${wrong}`)
        }
      }
    }
    t.same(wrongs, [], vector.name)
  }
  t.end()
})

/** The steps, of which one is cut at this byte of a direction. */
function cutAt(steps: readonly Step[], side: Direction, cut: number): Step[] {
  let at = 0
  return steps.flatMap(step => {
    if (step.from !== side) return [step]
    const within = cut - at
    at += step.bytes.length
    if (within <= 0 || within >= step.bytes.length) return [step]
    return [
      { from: side, bytes: step.bytes.subarray(0, within) },
      { from: side, bytes: step.bytes.subarray(within) },
    ]
  })
}

t.test('made-up disks: expand(encode(x)) = x, and the second decoder says the same', t => {
  let known = 0
  let patched = 0
  let same = 0
  let kept = 0
  let fromKept = 0
  fc.assert(
    fc.property(seeds, fc.boolean(), fc.boolean(), (seed, longMatch, twin) => {
      const rand = random(seed)
      const terms = ALL_TERMS[rand(ALL_TERMS.length)]!
      const steps = reordered(rand, messagesOf(rand, rand(40), diskOf(new Guest(terms.templates))))
      for (const encoded of DIRECTIONS) {
        const most = [1, 40, 5000, 300_000][rand(4)]!
        const cuts = { rand, most, batchOf: Math.ceil(3000 / most), releaseOf: 1 + rand(12) }
        const { wrong, channel, kept: keptBlocks } = carried(steps, encoded, terms, cuts, { longMatch, twin })
        if (wrong) throw new Error(`${encoded}: ${wrong}`)
        const { stats } = channel.flow
        known += stats.templatePages + stats.earlierPages
        patched += stats.patchPages
        same += stats.samePages
        kept += keptBlocks
        if (terms.ring < 3) fromKept += stats.earlierPages
      }
      return true
    }),
    { numRuns: 80 },
  )
  t.ok(known > 60 && patched > 60 && same > 20, `${known} blocks known, ${patched} patched, ${same} the same`)
  t.ok(kept > 60 && fromKept > 0, `${kept} blocks kept, ${fromKept} found among them`)
  t.end()
})

// ---- what it says

/** A connection in which QEMU 10 writes: extended headers. */
const OPENING = [
  'S "NBDMAGIC" "IHAVEOPT" 0003',
  'C 00000003 "IHAVEOPT" 0000000b 00000000',
  'S 0003e889045565a9 0000000b 00000001 00000000',
  'C "IHAVEOPT" 00000007 00000007 00000001 "d" 0000',
  'S 0003e889045565a9 00000007 00000003 0000000c 0000 0000000040000000 0ded',
  'S 0003e889045565a9 00000007 00000001 00000000',
]

/** A WRITE as QEMU 10 has it. */
function write(cookie: number, offset: number, data: Uint8Array): Step {
  const head = Buffer.alloc(32)
  head.writeUInt32BE(0x21e41c71)
  head.writeUInt16BE(1, 6)
  head.writeUInt32BE(cookie, 12)
  head.writeBigUInt64BE(BigInt(offset), 16)
  head.writeUInt32BE(data.length, 28)
  return { from: 'client', bytes: Buffer.concat([head, data]) }
}

/** The answer to it. */
function answered(cookie: number, offset: number): Step {
  const bytes = Buffer.alloc(32)
  bytes.writeUInt32BE(0x6e8a278c)
  bytes.writeUInt16BE(1, 4)
  bytes.writeUInt32BE(cookie, 12)
  bytes.writeBigUInt64BE(BigInt(offset), 16)
  return { from: 'server', bytes }
}

const pagesOf = (from: number, count: number) =>
  Array.from({ length: count }, (_, i) =>
    new Guest([]).body({ block: 0, page: 0, nature: NATURE.DENSE, a: from + i, b: i }),
  )
const packing = { method: 'as they are', longMatch: true } as const

t.test('a mirror that goes on where it was costs two bytes a head, and one a run of zero blocks', t => {
  const sender = new Sender(poolOf('encoder', SIMD, TERMS), packing, false, TERMS)
  const receiver = new Receiver(poolOf('decoder', SIMD, TERMS), false, TERMS)
  const { channel, connection } = openDisk(sender, 'client')
  const begin = conversation(OPENING).steps
  const all = (steps: readonly Step[]) =>
    through(
      { channel, connection },
      steps,
      'client',
      { rand: atEnds, most: 2 ** 19, batchOf: 2, releaseOf: 2 },
      sender,
      receiver,
    )
  all(begin)
  const zeroes = new Uint8Array(65536)
  const columns = () =>
    [COLUMN.OPS, COLUMN.NUMBERS, COLUMN.OTHER].map(column =>
      Buffer.from(sender.pool.workspaces[0]!.column(column)).toString('hex'),
    )
  all([write(1, 0, zeroes)])
  // EXPORT 2, the CRC-32 of "d" halved; t = 1, l = 65536
  t.same(columns(), ['010201031000', '02e6cabae304' + '2102808008', ''])
  all([write(2, 65536, zeroes), write(3, 131072, zeroes)])
  t.same(columns(), ['0103100001031000', '0000', ''])
  all([answered(1, 0), answered(2, 65536), answered(3, 131072)])
  const pages = pagesOf(1, 16)
  all([write(1, 262144, Buffer.concat(pages))])
  t.same(columns(), ['01035000', '0a05808008', ''], 'cookie and offset')
  all([answered(1, 262144), write(2, 262144, Buffer.concat(pages)), write(3, 1 << 28, Buffer.concat(pages))])
  t.same(columns(), ['01033000' + '01032000', '08ffff07' + '088080d8ff01' + '01', ''], 'the same again, and moved')
  t.end()
})

t.test('pages of RAM are found among the blocks of a disk, and the other way round', t => {
  const pages = pagesOf(500, 48)
  const disk = [...conversation(OPENING).steps, write(1, 8192, Buffer.concat(pages.slice(0, 32)))]
  const ram = (some: readonly Uint8Array[]) => {
    const out = new StreamEmitter()
      .header()
      .ramStart(2, [{ idstr: 'pc.ram', lengthBytes: 2 ** 30 }])
      .eos()
      .footer(2)
      .sectionPart(2)
    for (const [i, page] of some.entries()) out.page(i * PAGE, page, i === 0 ? 'pc.ram' : undefined)
    return out.eos().footer(2).eof().bytes()
  }
  const cuts = { rand: atEnds, most: 2 ** 19, batchOf: 2, releaseOf: 2 }
  for (const first of ['the disk', 'RAM']) {
    const sender = new Sender(poolOf('encoder', SIMD, TERMS), packing, false, TERMS)
    const receiver = new Receiver(poolOf('decoder', SIMD, TERMS), false, TERMS)
    const one = openDisk(sender, 'client')
    const main = sender.open('main')
    const sendDisk = () => {
      t.ok(through(one, disk, 'client', cuts, sender, receiver).equals(sideOf(disk, 'client')))
      return one.channel.flow.stats
    }
    const sendRam = () => {
      const bytes = ram(pages.slice(16))
      main.push(bytes)
      t.ok(receiver.receiveNow(sender.sendNow(main, true)!).equals(bytes))
      return main.flow.stats
    }
    const stats = first === 'RAM' ? [sendRam(), sendDisk()] : [sendDisk(), sendRam()]
    t.same(
      stats.map(({ earlierPages, densePages }) => ({ earlierPages, densePages })),
      [
        { earlierPages: 0, densePages: 32 },
        { earlierPages: 16, densePages: 16 },
      ],
      `${first} first`,
    )
  }
  t.end()
})

t.test('two connections to one export have the places of its blocks in common, and not those of another', t => {
  const page = pagesOf(900, 1)[0]!
  const opening = (name: string) => conversation(OPENING.map(step => step.replace('"d"', `"${name}"`))).steps
  const changed = page.slice()
  changed[77]! ^= 1
  const sender = new Sender(poolOf('encoder', SIMD, TERMS), packing, false, TERMS)
  const receiver = new Receiver(poolOf('decoder', SIMD, TERMS), false, TERMS)
  const cuts = { rand: atEnds, most: 2 ** 19, batchOf: 2, releaseOf: 2 }
  const stats = [
    ['d', page],
    ['d', page],
    ['e', page],
    ['d', changed],
  ].map(([name, body]) => {
    const disk = openDisk(sender, 'client')
    through(disk, [...opening(name as string), write(1, 4096, body as Uint8Array)], 'client', cuts, sender, receiver)
    const { densePages, samePages, earlierPages, patchPages } = disk.channel.flow.stats
    return { densePages, samePages, earlierPages, patchPages }
  })
  const none = { densePages: 0, samePages: 0, earlierPages: 0, patchPages: 0 }
  t.same(stats, [
    { ...none, densePages: 1 },
    { ...none, samePages: 1 },
    { ...none, earlierPages: 1 },
    { ...none, patchPages: 1 },
  ])
  t.end()
})

t.test('what is incomplete waits, and nothing else does', t => {
  const sender = new Sender(poolOf('encoder', SIMD, TERMS), packing, false, TERMS)
  const receiver = new Receiver(poolOf('decoder', SIMD, TERMS), false, TERMS)
  const disk = openDisk(sender, 'client')
  const { channel, connection } = disk
  /** Pushes bytes, and says how many of all that wait would go into a batch. */
  const push = (bytes: Uint8Array): number => {
    channel.push(bytes)
    return channel.flow.ready
  }
  connection.listen(conversation(OPENING.slice(0, 1)).steps[0]!.bytes, 0, 18)
  t.equal(push(Buffer.from('00000003', 'hex')), 4, 'the handshake goes as it comes')
  t.equal(push(Buffer.from('IHAVEO')), 10, 'in the middle of an option, too')
  push(Buffer.concat([Buffer.from('PT'), Buffer.from('0000000b00000000', 'hex')]))
  for (const { from, bytes } of conversation(OPENING.slice(2)).steps) {
    if (from === 'client') push(bytes)
    else connection.listen(bytes, 0, bytes.length)
  }
  receiver.receiveNow(sender.sendNow(channel, false)!)
  t.equal(channel.flow.waiting, 0)
  const { bytes } = write(1, 4000, new Uint8Array(96 + 4096 + 50))
  let at = 0
  const upTo = (end: number): number => {
    const ready = push(bytes.subarray(at, end))
    at = end
    return ready
  }
  t.equal(upTo(31), 0, 'of a head')
  t.equal(upTo(32), 32)
  t.equal(upTo(32 + 96), 32 + 96, 'bytes before the first whole block')
  t.equal(upTo(32 + 96 + 1), 32 + 96, 'a byte of a block')
  t.equal(upTo(32 + 96 + 4095), 32 + 96)
  t.equal(upTo(32 + 96 + 4096), 32 + 96 + 4096)
  t.equal(upTo(bytes.length), bytes.length, 'bytes behind the last')
  t.end()
})

t.test('what begins, and what is not understood, is told once', t => {
  const told = (name: string): string[] => {
    const lines: string[] = []
    const sender = new Sender(poolOf('encoder', SIMD, TERMS), packing, false, TERMS)
    const { channel } = openDisk(sender, 'client')
    const connection = new DiskConnection(channel.flow, 'client', {
      exported: exported => lines.push(`export '${exported.name}'`),
      raw: (direction, position, reason) => lines.push(`${direction} ${position} ${reason}`),
    })
    for (const { from, bytes } of recordings.find(recording => recording.name === name)!.connections[0]!) {
      if (from === 'client') channel.flow.push(bytes, 0, bytes.length)
      else connection.listen(bytes, 0, bytes.length)
    }
    t.equal(channel.flow.ready, channel.flow.waiting, 'nothing is held back')
    return lines
  }
  t.same(told('tls'), ['server 38 TLS', 'client 20 the server is not understood'])
  t.same(told('export-name'), ["export 'name'"])
  t.end()
})

t.test('a session without disks refuses what says them', t => {
  const sender = new Sender(poolOf('encoder', SIMD, TERMS), packing, false, TERMS)
  const disk = openDisk(sender, 'client')
  for (const { from, bytes } of [...conversation(OPENING).steps, write(1, 0, new Uint8Array(4096))]) {
    if (from === 'client') disk.channel.push(bytes)
    else disk.connection.listen(bytes, 0, bytes.length)
  }
  const sent = sender.sendNow(disk.channel, true)!
  const receiver = new Receiver(poolOf('decoder', SIMD, TERMS), false, { ...TERMS, disks: false })
  let error: unknown
  try {
    receiver.receiveNow(sent)
  } catch (thrown) {
    error = thrown
  }
  t.ok(isProxyError(error, 'BATCH_FORMAT'))
  t.end()
})

t.test('blocks that have left the ring are found where they are kept, and a side that keeps none refuses them', t => {
  const terms: Terms = { templates: [], ring: 4, places: 0, disks: true, kept: 64 }
  const pages = pagesOf(2000, 32)
  const cuts = { rand: atEnds, most: 2 ** 19, batchOf: 2, releaseOf: 2 }
  const sender = new Sender(poolOf('encoder', SIMD, terms), packing, false, terms)
  const receiver = new Receiver(poolOf('decoder', SIMD, terms), false, terms)
  const first = openDisk(sender, 'client')
  const all = [...conversation(OPENING).steps, write(1, 0, Buffer.concat(pages))]
  t.ok(through(first, all, 'client', cuts, sender, receiver).equals(sideOf(all, 'client')))
  t.equal(receiver.kept.blocks.length, 32)
  const again = openDisk(sender, 'client', 2)
  const some = [...conversation(OPENING).steps, write(1, 4096, Buffer.concat(pages.slice(3, 20)))]
  t.ok(through(again, some, 'client', cuts, sender, receiver).equals(sideOf(some, 'client')))
  t.match(again.channel.flow.stats, { earlierPages: 17, densePages: 0 })
  t.equal(receiver.kept.blocks.length, 32, 'what is found is not kept again')
  const other = new Receiver(poolOf('decoder', SIMD, terms), false, { ...terms, kept: 0 })
  let error: unknown
  try {
    for (const sent of sender.sent) other.receiveNow(sent)
  } catch (thrown) {
    error = thrown
  }
  t.ok(isProxyError(error, 'BATCH_FORMAT'))
  t.end()
})
