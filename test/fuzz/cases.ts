/**
 * Cases of the fuzzer. A case is a number: all it does comes out of the seed and that. It gives nothing, or what is wrong:
 * other bytes, other pools, an error that is not one of those that the input may end in.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { zstdDecompressSync } from 'node:zlib'
import { ChannelReader } from '../../src/capture/channels.ts'
import { ElfCoreReader } from '../../src/capture/elf-core.ts'
import { hasChannels, recognize } from '../../src/capture/formats.ts'
import { KdumpFile } from '../../src/capture/kdump.ts'
import { HEAD_LENGTH, PLACED_JUMP_LENGTH } from '../../src/capture/limits.ts'
import { MendedBytes } from '../../src/capture/mended-bytes.ts'
import type { PlacedBytes } from '../../src/capture/placed-bytes.ts'
import { COLUMN, COLUMN_COUNT } from '../../src/codec/wire.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { loadLz4 } from '../../src/compression/lz4.ts'
import { isProxyError } from '../../src/errors.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { MultifdParser } from '../../src/qemu/multifd-channel.ts'
import { ReturnPathParser } from '../../src/qemu/return-path.ts'
import { encodeHead, HeadDecoder, isPage, type SetRecords } from '../../src/template/format.ts'
import { answersCarried, carried, diskOf, openDisk } from '../codec/disk-harness.ts'
import { handBatch } from '../codec/hand-batch.ts'
import {
  type Channel,
  Guest,
  inRuns,
  mainStream,
  multifdStream,
  NATURES,
  PAGE,
  PAGE_NATURES,
  type PageSpec,
  poolOf,
  poolsAlike,
  preemptStream,
  Receiver,
  random,
  SEED,
  Sender,
  SIMD,
  secondTerms,
  type Terms,
  templatePages,
} from '../codec/harness.ts'
import { checksum, decodeSession, type SentBatch } from '../codec/second-decoder.ts'
import { messagesOf, reordered, sideOf } from '../nbd-wire/conversations.ts'
import { lengthOf, type Step, traceOf } from '../nbd-wire/harness.ts'
import { simpleNbd } from '../nbd-wire/simple-decoder.ts'
import { doctored } from '../qemu-wire/doctored.ts'
import { flattened, kdump } from '../template/dumps.ts'
import {
  connection,
  elfCore,
  inVxlan,
  migration,
  multifdChannel,
  packetBytes,
  page,
  pcap,
  pcapng,
  pcapOf,
  sha256,
} from '../template/makers.ts'
import { conversation, nbdVectors } from '../vectors/nbd/conversations.ts'
import { mainVectors } from '../vectors/qemu/main-stream.ts'
import { wireBytes } from '../vectors/qemu/notation.ts'
import { multifdVectors, preemptVectors, returnPathVectors } from '../vectors/qemu/other-channels.ts'
import { type Find, mutated, type Rand, SAMPLE_MAX } from './mutated.ts'
import { THREADED_SHARE, ThreadCases } from './threads.ts'

/** Header, the header behind it, bitmaps and descriptors of a kdump file; the first pieces of a flattened one. */
const DUMP_HOT = Int32Array.from(
  [
    [0, 16],
    [408, 448],
    [4096, 4128],
    [3 * 4096, 3 * 4096 + 8],
    [4 * 4096, 4 * 4096 + 24 * 12],
  ].flatMap(([from, to]) => Array.from({ length: to! - from! }, (_, i) => from! + i)),
)

// ---- what is mutated

/** Bytes, and the places in them where a change is more than another page. */
interface Sample {
  readonly kind: ChannelKind
  readonly bytes: Buffer
  readonly hot: Int32Array
}

function sample(kind: ChannelKind, input: Uint8Array): Sample {
  const bytes = Buffer.from(input.subarray(0, SAMPLE_MAX))
  const body = new Uint8Array(bytes.length)
  // the first and last bytes of a page are worth a change
  const cold = (end: number): void => {
    body.fill(1, end - PAGE + 3, end - 3)
  }
  const nothing = (): void => {}
  const sink = {
    block: nothing,
    zeroRecord: nothing,
    pageRecord: (_start: number, end: number) => cold(end),
    opaquePage: nothing,
    phase: nothing,
    degraded: nothing,
    hello: nothing,
    packet: nothing,
    zeroPage: nothing,
    pageBody: (_start: number, end: number) => cold(end),
    compressed: nothing,
  }
  if (kind === 'main') new MainStreamParser(sink).push(bytes, 0, bytes.length)
  else if (kind === 'multifd') new MultifdParser(sink).push(bytes, 0, bytes.length)
  const hot = Array.from(body.keys()).filter(at => body[at] === 0)
  return { kind, bytes, hot: Int32Array.from(hot) }
}

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url))
const real = (path: string) => zstdDecompressSync(readFileSync(here(path)))

const ALL_TERMS: readonly Terms[] = [
  { templates: templatePages(8), ring: 8, places: 64 },
  { templates: templatePages(8), ring: 2, places: 16 },
  { templates: [], ring: 8, places: 64 },
  { templates: [], ring: 1, places: 1 },
  { templates: templatePages(8), ring: 0, places: 16 },
  { templates: [], ring: 2, places: 0 },
  // pages on the disk, some of which are templates too
  { templates: templatePages(4), ring: 8, places: 64, cold: templatePages(16) },
  { templates: [], ring: 0, places: 16, cold: templatePages(8) },
  // disks
  { templates: templatePages(8), ring: 8, places: 64, disks: true },
  { templates: templatePages(8), ring: 2, places: 64, disks: true, kept: 12 },
  { templates: templatePages(4), ring: 2, places: 0, cold: templatePages(16), disks: true },
]

function specs(rand: Rand, count: number, natures: number): PageSpec[] {
  return inRuns(
    Array.from({ length: rand(count + 1) }, () => ({
      block: rand(10) < 7 ? 0 : rand(4),
      page: rand(5) ? rand(12) : rand(300),
      nature: rand(3) ? rand(natures) : [2, 3, 8, 10][rand(4)]!,
      a: rand(60),
      b: rand(999),
    })),
  )
}

/** A set file of three pages. */
function setFile(): Buffer {
  const pages = [1, 2, 3].map(id => page(id))
  const records: SetRecords = {
    count: pages.length,
    vms: () => 2,
    occurrences: () => 5,
    copyDigest: (place, into, at) => into.set(Buffer.from(sha256(pages[place]!), 'hex'), at),
  }
  return Buffer.concat([...encodeHead({ minVms: 2, vms: 3 }, records), ...pages])
}

/** One batch of a session, its columns apart. */
interface SampleBatch {
  readonly sent: SentBatch
  readonly output: Buffer
  readonly columns: readonly Buffer[]
}

interface SampleSession {
  readonly terms: Terms
  readonly batches: readonly SampleBatch[]
}

export class Fuzzer {
  private readonly seed: number
  private readonly only: string | undefined
  private readonly samples: Record<'main' | 'multifd' | 'preempt', Sample[]>
  private readonly sessions: SampleSession[]
  private readonly returns: Buffer[]
  private readonly set: Buffer
  private readonly setDigest: string
  private readonly captures: Buffer[]
  private readonly cores: Buffer[]
  private readonly dumps: Buffer[]

  /** By turns; empty: no case has threads that help. */
  private readonly threaded: readonly ThreadCases[]

  /**
   * @param only the one kind of cases to run
   * @param threads counts of them, the main one among them, for cases in which threads help. Default: there are no such cases
   */
  constructor(seed: number, only?: string, threads: readonly number[] = []) {
    this.seed = seed
    this.only = only
    this.threaded = threads.map(count => new ThreadCases(count))
    const rand = random(seed)
    const main: Sample[] = []
    const multifd: Sample[] = []
    const preempt: Sample[] = []
    const guest = new Guest(templatePages(8))
    for (let i = 0; i < 12; i++) {
      main.push(sample('main', mainStream(guest, [specs(rand, 5, NATURES), specs(rand, 3, NATURES)])))
      multifd.push(
        sample('multifd', multifdStream(guest, i, [specs(rand, 3, PAGE_NATURES), specs(rand, 2, PAGE_NATURES)])),
      )
      const parts = [1, 2, 3, 2].map(count => specs(rand, count, NATURES))
      main.push(sample('main', doctored(mainStream(guest, parts), rand, i % 2 > 0)))
      preempt.push(sample('preempt', preemptStream(guest, specs(rand, 3, NATURES))))
    }
    for (const { input, recovery } of mainVectors) if (!recovery) main.push(sample('main', wireBytes(input).bytes))
    for (const { input } of multifdVectors) multifd.push(sample('multifd', wireBytes(input).bytes))
    for (const { input } of preemptVectors) preempt.push(sample('preempt', wireBytes(input).bytes))
    for (const name of ['qemu-10-return-path', 'qemu-10-xbzrle', 'qemu-7.2-precopy', 'qemu-10-postcopy-preempt']) {
      const stream = real(`../../pcap-fixtures/streams/${name}.main.zst`)
      main.push(sample('main', stream.subarray(0, 16_000)))
      // the end of RAM: a head, and the last records
      main.push(sample('main', Buffer.concat([stream.subarray(0, 211), stream.subarray(-120_000, -95_000)])))
    }
    multifd.push(sample('multifd', real('../../pcap-fixtures/streams/qemu-10-multifd.2-multifd.zst')))
    multifd.push(sample('multifd', real('../../pcap-fixtures/streams/qemu-7.2-multifd.1-multifd.zst')))
    multifd.push(sample('multifd', real('../vectors/qemu/streams/10-multifd-zstd.1-multifd.zst')))
    preempt.push(sample('preempt', real('../../pcap-fixtures/streams/qemu-10-postcopy-preempt.preempt.zst')))
    this.samples = { main, multifd, preempt }
    this.returns = returnPathVectors.map(({ input }) => Buffer.from(wireBytes(input).bytes))
    this.sessions = ALL_TERMS.flatMap((terms, i) => [0, 1].map(k => this.session(terms, random(seed + 10 * i + k))))
    this.set = setFile()
    const sealAt = 32 + this.set.readUInt32BE(24) + 3 * 40
    this.setDigest = this.set.subarray(sealAt, sealAt + 32).toString('hex')
    const stream = migration([page(1), page(2)])
    const packets = [
      ...connection(stream, { lengths: [1448, 100] }),
      ...connection(multifdChannel(1, [page(3)]), { from: 50001 }),
    ]
    const runs = [[page(1), page(2)], [page(3)], [page(4), page(5)]]
    const dumped = [...runs.flat(), page(0), page(0)]
    const dump = kdump(dumped)
    this.dumps = [dump, kdump(dumped, { wide: false, little: false }), flattened(dump)]
    this.cores = [elfCore(runs), elfCore(runs, { wide: false, little: false }), elfCore(runs, { address: 100 })]
    this.captures = [
      pcap(packets),
      pcapng(packets),
      pcap(packets, { link: 'sll2', ipv6: true, littleEndian: false }),
      pcapOf(
        1,
        packets.map(packet => inVxlan(packetBytes(packet, { link: 'raw' }))),
      ),
      pcap(packets.filter((_, i) => i % 9 !== 5)),
    ]
  }

  /** A session in small batches, every kind of channel in it. */
  private session(terms: Terms, rand: Rand): SampleSession {
    const guest = new Guest(terms.cold ?? terms.templates)
    const packing = { method: 'as they are', longMatch: true } as const
    const sender = new Sender(poolOf('encoder', SIMD, terms), packing, false, terms)
    sender.isRaw = () => rand(5) === 0
    const receiver = new Receiver(poolOf('decoder', SIMD, terms), false, terms)
    const batches: SampleBatch[] = []
    const send = (channel: Channel, input: Uint8Array): void => {
      for (let at = 0; at < input.length; ) {
        const take = Math.min(200 + rand(9000), input.length - at)
        channel.push(input.subarray(at, at + take))
        at += take
        const sent = sender.sendNow(channel, at === input.length || rand(4) === 0)
        if (sent === undefined) continue
        const columns = Array.from({ length: COLUMN_COUNT }, (_, i) =>
          Buffer.from(sender.pool.workspaces[0]!.column(i)),
        )
        batches.push({ sent, output: receiver.receiveNow(sent), columns })
      }
    }
    send(sender.open('main'), mainStream(guest, [specs(rand, 6, NATURES)]))
    send(sender.open('multifd'), multifdStream(guest, 0, [specs(rand, 4, PAGE_NATURES), specs(rand, 2, PAGE_NATURES)]))
    send(sender.open('main', 2), mainStream(guest, [specs(rand, 4, NATURES)]))
    for (const encoded of terms.disks ? (['client', 'server'] as const) : []) {
      const { channel, connection } = openDisk(sender, encoded)
      for (const { from, bytes } of messagesOf(rand, 12, diskOf(guest))) {
        if (from === encoded) send(channel, bytes)
        else connection.listen(bytes, 0, bytes.length)
      }
    }
    return { terms, batches }
  }

  /** Runs a case. Throws nothing. */
  async run(number: number): Promise<Find | undefined> {
    const rand = random((Math.imul(this.seed, 0x9e3779b1) + number) | 0)
    const threaded = this.threaded[number % this.threaded.length]
    let turn = rand(threaded ? 1000 + THREADED_SHARE : 1000)
    const inputs: Record<string, Uint8Array> = {}
    let kind = ''
    /** Of a thousand cases so many, where none has threads. */
    const cases: (readonly [string, number, () => string | undefined | Promise<string | undefined>])[] = [
      ['streams', 490, () => this.streams(rand, inputs)],
      ['nbd', 60, () => this.nbd(rand, inputs)],
      ['disks', 30, () => this.disks(rand, inputs)],
      ['answers', 20, () => this.answers(rand, inputs)],
      ['batch bytes', 140, () => this.batchBytes(rand, inputs)],
      ['batch columns', 160, () => this.batchColumns(rand, inputs)],
      ['packed batch', 12, () => this.packedBatch(rand, inputs)],
      ['streams packed', 8, () => this.streamsPacked(rand, inputs)],
      ['set', 30, () => this.setBytes(rand, inputs)],
      ['capture', 35, () => this.capture(rand, inputs)],
      ['return path', 15, () => this.returnPath(rand, inputs)],
      ...(threaded?.cases.map(([name, share, one]) => [name, share, () => one(rand, inputs)] as const) ?? []),
    ]
    try {
      let text: string | undefined
      for (const [name, share, one] of cases) {
        if (this.only === undefined ? turn < share : name === this.only) {
          kind = name
          text = await one()
          break
        }
        turn -= share
      }
      return text === undefined ? undefined : { kind, text, inputs }
    } catch (error) {
      return { kind, text: error instanceof Error ? (error.stack ?? error.message) : String(error), inputs }
    }
  }

  /** Ends threads that help. */
  close(): void {
    for (const threaded of this.threaded) threaded.close()
  }

  private pick(rand: Rand, kind: 'main' | 'multifd' | 'preempt'): Sample {
    const list = this.samples[kind]
    return list[rand(list.length)]!
  }

  /** Channels of one or two migrations: some mutated, some as they were made. */
  private channels(rand: Rand): { kind: ChannelKind; migration: number; bytes: Buffer }[] {
    const layouts = [
      ['main'],
      ['multifd'],
      ['main', 'multifd'],
      ['preempt', 'main'],
      ['main', 'main'],
      ['multifd', 'main', 'multifd'],
    ] as const
    const layout = layouts[rand(3) ? rand(2) : rand(layouts.length)]!
    return layout.map((kind, i) => {
      const one = this.pick(rand, kind)
      const other = this.pick(rand, (['main', 'multifd', 'preempt'] as const)[rand(3)]!)
      const bytes = rand(8) === 0 ? one.bytes : mutated(rand, one, other.bytes)
      // a stream of one kind in the parser of another: what a proxy does that takes the first bytes for something else
      const asKind = rand(40) === 0 ? (['main', 'multifd', 'preempt', 'unknown'] as const)[rand(4)]! : kind
      return { kind: asKind, migration: kind === 'main' && i > 0 ? 2 : 1, bytes }
    })
  }

  private streams(rand: Rand, inputs: Record<string, Uint8Array>): string | undefined {
    const terms = ALL_TERMS[rand(ALL_TERMS.length)]!
    const made = this.channels(rand)
    for (const [i, { kind, bytes }] of made.entries()) inputs[`${i} ${kind}`] = bytes
    const sender = new Sender(poolOf('encoder', rand(4) ? SIMD : 'twin', terms), {
      method: 'as they are',
      longMatch: rand(3) > 0,
    })
    const rawOneIn = rand(4)
    sender.isRaw = () => rawOneIn > 0 && rand(rawOneIn) === 0
    const receiver = new Receiver(poolOf('decoder', rand(4) ? SIMD : 'twin', terms))
    const channels = made.map(({ kind, migration }) => sender.open(kind, migration))
    const pushed = made.map(() => 0)
    const given = made.map(() => 0)
    const most = [20, 400, 9000, 60_000][rand(4)]!
    for (let left = made.length, pushes = 0; left > 0; pushes++) {
      const i = rand(made.length)
      const { bytes } = made[i]!
      if (pushed[i]! > bytes.length) continue
      const channel = channels[i]!
      const take = Math.min(pushes > 60 ? bytes.length : 1 + rand(most), bytes.length - pushed[i]!)
      channel.push(bytes.subarray(pushed[i]!, pushed[i]! + take))
      pushed[i]! += take
      const end = pushed[i] === bytes.length
      if (!end && rand(3) > 0) continue
      const sent = sender.sendNow(channel, end || rand(3) === 0)
      if (sent) {
        const got = receiver.receiveNow(sent)
        const at = given[i]!
        if (!got.equals(bytes.subarray(at, at + got.length))) return `channel ${i}: other bytes from ${at} on`
        given[i]! += got.length
      }
      if (end) {
        if (given[i] !== bytes.length) return `channel ${i}: ${given[i]} of ${bytes.length} bytes`
        pushed[i]! += 1
        left--
      }
    }
    return poolsAlike(sender.pool, receiver.pool) ? undefined : 'the pools differ'
  }

  /** As `streams`, one channel at a real effort: zstd, LZ4. */
  private async streamsPacked(rand: Rand, inputs: Record<string, Uint8Array>): Promise<string | undefined> {
    const terms = ALL_TERMS[rand(ALL_TERMS.length)]!
    const { kind, bytes } = this.channels(rand)[0]!
    inputs[kind] = bytes
    const sender = new Sender(poolOf('encoder', SIMD, terms), EFFORTS[2 + rand(2)]!)
    const receiver = new Receiver(poolOf('decoder', SIMD, terms))
    try {
      const channel = sender.open(kind)
      let at = 0
      for (let pushed = 0; pushed < bytes.length; ) {
        const take = Math.min(1 + rand(20_000), bytes.length - pushed)
        channel.push(bytes.subarray(pushed, pushed + take))
        pushed += take
        const sent = await sender.send(channel, pushed === bytes.length)
        if (!sent) continue
        const got = await receiver.receive(sent)
        if (!got.equals(bytes.subarray(at, at + got.length))) return `other bytes from ${at} on`
        at += got.length
      }
      return at === bytes.length ? undefined : `${at} of ${bytes.length} bytes`
    } finally {
      await sender.close()
      receiver.close()
    }
  }

  /** A session, a batch of it near its beginning, and a receiver that has all before that. */
  private context(rand: Rand): { session: SampleSession; at: number; receiver: Receiver } {
    const session = this.sessions[rand(this.sessions.length)]!
    const at = rand(rand(2) ? Math.min(3, session.batches.length) : session.batches.length)
    const { terms } = session
    const receiver = new Receiver(poolOf('decoder', rand(4) ? SIMD : 'twin', terms), false, terms)
    for (const { sent } of session.batches.slice(0, at)) receiver.receiveNow(sent)
    return { session, at, receiver }
  }

  private async batchBytes(rand: Rand, inputs: Record<string, Uint8Array>): Promise<string | undefined> {
    const { session, at, receiver } = this.context(rand)
    const { sent, output } = session.batches[at]!
    const head = Int32Array.from({ length: Math.min(60, sent.bytes.length) }, (_, i) => i)
    const other = session.batches[rand(session.batches.length)]!.sent.bytes
    const bytes = mutated(
      rand,
      { bytes: Buffer.from(sent.bytes), hot: rand(2) ? head : new Int32Array(0) },
      Buffer.from(other),
    )
    inputs.batch = bytes
    if (bytes.equals(other)) return undefined // another batch, and a good one
    let got: Buffer
    try {
      got = await receiver.receive({ ...sent, bytes })
    } catch (error) {
      return refusal(error)
    } finally {
      receiver.close()
    }
    return got.equals(output) ? undefined : 'a mutated batch gives other bytes'
  }

  /** Other operations over the same pool: both decoders must take or refuse them alike. */
  private batchColumns(rand: Rand, inputs: Record<string, Uint8Array>): string | undefined {
    const { session, at, receiver } = this.context(rand)
    const { sent, output, columns } = session.batches[at]!
    const other = session.batches[rand(session.batches.length)]!.columns
    const made = columns.map((bytes, i) => {
      const from = rand(6) === 0 ? other[i]! : bytes
      if (rand(3) > 0) return from
      if (i === 0 || i === 1 || (i >= 5 && i <= 7) || i === COLUMN.COLD) return mutatedColumn(rand, from, i)
      return mutated(rand, { bytes: from }, other[i]!)
    })
    let rawLength = output.length
    if (rand(6) === 0) rawLength = Math.max(1, rawLength + rand(9000) - 4500)
    const stored = made.flatMap((packed, column) =>
      packed.length === 0 ? [] : [{ column, method: 0, rawLength: packed.length, packed }],
    )
    let batch = handBatch(rawLength, 0n, stored)
    inputs.batch = batch
    const before = session.batches.slice(0, at).map(one => one.sent)
    let expected: Buffer | undefined
    try {
      expected = decodeSession(secondTerms(session.terms), [...before, { ...sent, bytes: batch }], false).outputs.at(
        -1,
      )!
      batch = handBatch(rawLength, checksum(expected, SEED), stored)
    } catch {
      // refused by the second decoder: so must we
    }
    let got: Buffer
    try {
      got = receiver.receiveNow({ ...sent, bytes: batch })
    } catch (error) {
      const text = refusal(error)
      if (text) return text
      return expected ? `the second decoder takes what ours refuses: ${(error as Error).message}` : undefined
    }
    if (!expected) return 'we take what the second decoder refuses'
    return got.equals(expected) ? undefined : 'the decoders give different bytes'
  }

  /** LZ4 and zstd columns with changes. */
  private async packedBatch(rand: Rand, inputs: Record<string, Uint8Array>): Promise<string | undefined> {
    const { session, at, receiver } = this.context(rand)
    const { sent, output, columns } = session.batches[at]!
    const lz4 = loadLz4()
    const made = columns.flatMap((raw, column) => {
      if (raw.length === 0) return []
      const method = [0, 1, 3][rand(3)]!
      let packed: Buffer = raw
      if (method === 1) {
        packed = Buffer.alloc(raw.length + 64 + Math.ceil(raw.length / 100))
        packed = packed.subarray(0, lz4.encodeBlock(Buffer.from(raw), packed))
      } else if (method === 3) {
        // raw blocks, RLE blocks, whatever comes out of them
        const block = (type: number, size: number) => Buffer.of((size << 3) | (type << 1), size >> 5, size >> 13)
        packed = Buffer.concat([Buffer.from('28b52ffd0040', 'hex'), block(0, raw.length), raw])
      }
      if (method !== 0 && rand(2)) packed = mutated(rand, { bytes: packed }, raw)
      return { column, method, rawLength: raw.length, packed }
    })
    const batch = handBatch(output.length, checksum(output, SEED), made)
    inputs.batch = batch
    try {
      const got = await receiver.receive({ ...sent, bytes: batch })
      return got.equals(output) ? undefined : 'a mutated column gives other bytes'
    } catch (error) {
      return refusal(error)
    } finally {
      receiver.close()
    }
  }

  private setBytes(rand: Rand, inputs: Record<string, Uint8Array>): string | undefined {
    const head = Int32Array.from({ length: 320 }, (_, i) => i)
    const bytes = mutated(rand, { bytes: this.set, hot: head }, this.set)
    // sealed again, so that what stands behind the seal is looked at
    const sealed = rand(2) === 0 && seal(bytes)
    inputs.set = bytes
    try {
      const decoder = new HeadDecoder('set', rand(2) ? bytes.length : undefined)
      let at = 0
      while (at < bytes.length && decoder.head === undefined)
        at += decoder.push(bytes.subarray(at, at + 1 + rand(5000)))
      if (decoder.head === undefined) {
        decoder.end()
        return 'no head, and no error'
      }
      const { head } = decoder
      for (let i = 0; i < head.pageCount; i++) {
        const body = bytes.subarray(head.layout.dataAt + i * PAGE, head.layout.dataAt + (i + 1) * PAGE)
        const known = body.length === PAGE && isPage(head, i, body)
        if (!sealed && known && !body.equals(page(i + 1))) return 'a page that is not in the set'
      }
      if (!sealed && head.digest !== this.setDigest) return 'a mutated set has a digest of its own'
    } catch (error) {
      if (!isProxyError(error) || !/^TEMPLATE_(FORMAT|DAMAGED|TRUNCATED)$/.test(error.code)) throw error
    }
    return undefined
  }

  private async capture(rand: Rand, inputs: Record<string, Uint8Array>): Promise<string | undefined> {
    const turn = rand(15)
    if (turn === 0) return this.dump(rand, inputs)
    return turn < 4 ? this.core(rand, inputs) : this.packets(rand, inputs)
  }

  /** A mutated kdump file: as many pages as it says, or a typed error, with reading that its bytes are worth. */
  private async dump(rand: Rand, inputs: Record<string, Uint8Array>): Promise<string | undefined> {
    const from = this.dumps[rand(this.dumps.length)]!
    const bytes = mutated(rand, { bytes: from, hot: DUMP_HOT }, this.dumps[rand(this.dumps.length)]!)
    inputs.dump = bytes
    let read = 0
    const source: PlacedBytes = {
      read: async (into, at) => {
        const length = Math.max(0, Math.min(into.length, bytes.length - at))
        into.set(bytes.subarray(at, at + length))
        read += length
        return length
      },
    }
    let memory = 0
    try {
      const file = await KdumpFile.over('dump', source)
      for await (const chunk of file.chunks(() => {})) memory += chunk.length
      if (memory !== file.lengthBytes) return `${memory} bytes of memory, and not ${file.lengthBytes}`
    } catch (error) {
      if (!isProxyError(error) || !/^(CAPTURE_FORMAT|QEMU_TRUNCATED)$/.test(error.code)) throw error
    }
    // A descriptor takes 24 bytes, and may jump, and its data may.
    const most = 8 * bytes.length + (bytes.length / 24) * 2 * PLACED_JUMP_LENGTH
    return read > most ? `${read} bytes read of a file of ${bytes.length}` : undefined
  }

  /** A mutated core: its memory, or a typed error; never more memory than the file has. */
  private core(rand: Rand, inputs: Record<string, Uint8Array>): string | undefined {
    const from = this.cores[rand(this.cores.length)]!
    const head = Int32Array.from({ length: 64 + 5 * 56 }, (_, i) => i)
    const bytes = mutated(rand, { bytes: from, hot: head }, this.cores[0]!)
    inputs.core = bytes
    let memory = 0
    const reader = new ElfCoreReader('core', {
      beginRun: () => {},
      memory: (_chunk, _at, length) => {
        if (length < 0) throw new Error('memory of a negative length')
        memory += length
      },
    })
    try {
      for (let at = 0; at < bytes.length; ) {
        const take = 1 + rand(9000)
        reader.push(Buffer.from(bytes.subarray(at, at + take)))
        at += take
      }
      reader.end()
    } catch (error) {
      if (!isProxyError(error) || !/^(CAPTURE_FORMAT|QEMU_TRUNCATED)$/.test(error.code)) throw error
    }
    return memory > bytes.length ? `${memory} bytes of memory in a core of ${bytes.length}` : undefined
  }

  private packets(rand: Rand, inputs: Record<string, Uint8Array>): string | undefined {
    const from = this.captures[rand(this.captures.length)]!
    const bytes = mutated(rand, { bytes: from }, this.captures[0]!)
    inputs.capture = bytes
    const positions = new Map<number, number>()
    // What is read on behind gaps, and how much of it comes out.
    const mended = new Map<number, MendedBytes>()
    const out = new Map<number, number>()
    const { format } = recognize(bytes.subarray(0, HEAD_LENGTH))
    if (format === undefined || !hasChannels(format)) return undefined
    try {
      const reader = new ChannelReader('capture', format, {
        open: (channel, kind) => {
          positions.set(channel, 0)
          out.set(channel, 0)
          mended.set(channel, new MendedBytes(kind, ({ length }) => out.set(channel, out.get(channel)! + length)))
        },
        bytes: (channel, chunk, at, length) => {
          positions.set(channel, positions.get(channel)! + length)
          mended.get(channel)!.push(chunk, at, length)
        },
        gap: (channel, position, lengthBytes, reason) => {
          mended.get(channel)!.gap(lengthBytes, reason)
          if (position !== positions.get(channel) || lengthBytes <= 0) throw new Error('a gap that is none')
          positions.set(channel, position + lengthBytes)
        },
        end: (channel, position) => {
          if (position !== positions.get(channel)) throw new Error('an end that is not there')
          positions.delete(channel)
          const { missing } = mended.get(channel)!
          mended.get(channel)!.end()
          const outBytes = out.get(channel)!
          if (missing.gaps === 0 && outBytes < position) throw new Error('bytes without a gap that are gone')
          if (outBytes > position) throw new Error('bytes that were not there')
        },
      })
      for (let at = 0; at < bytes.length; ) {
        const take = 1 + rand(6000)
        reader.push(Buffer.from(bytes.subarray(at, at + take)))
        at += take
      }
      reader.end()
      if (positions.size > 0) return 'channels without an end'
    } catch (error) {
      if (!isProxyError(error) || !/^CAPTURE_(FORMAT|GAP)$/.test(error.code)) throw error
    }
    return undefined
  }

  /** Makes changes to a conversation of NBD, and notes it. */
  private changed(rand: Rand, steps: Step[], inputs: Record<string, Uint8Array>): void {
    for (let changes = rand(4); changes > 0 && steps.length > 0; changes--) {
      const at = rand(2) ? rand(steps.length) : rand(Math.min(12, steps.length))
      const { from, bytes } = steps[at]!
      const other = Buffer.from(steps[rand(steps.length)]!.bytes)
      const turn = rand(10)
      if (turn === 0) steps.splice(at, 1)
      else if (turn === 1) steps.splice(rand(steps.length), 0, steps[at]!)
      else if (turn === 2) steps.splice(at, 2, ...steps.slice(at, at + 2).reverse())
      else steps[at] = { from, bytes: mutated(rand, { bytes: Buffer.from(bytes) }, other) }
    }
    // as a vector says it
    const text = steps.map(
      ({ from, bytes }) => `${from === 'client' ? 'C' : 'S'} ${Buffer.from(bytes).toString('hex')}`,
    )
    inputs.conversation = Buffer.from(text.join('\n'))
  }

  /** A conversation of NBD with changes, as it goes through a session's pool. */
  private disks(rand: Rand, inputs: Record<string, Uint8Array>): string | undefined {
    const terms = ALL_TERMS.filter(({ disks }) => disks)[rand(2)]!
    const steps: Step[] = rand(8)
      ? reordered(rand, messagesOf(rand, rand(12), diskOf(new Guest(terms.templates))))
      : conversation(nbdVectors[rand(nbdVectors.length)]!.steps).steps
    this.changed(rand, steps, inputs)
    const most = Math.max([1, 40, 5000, 100_000][rand(4)]!, lengthOf(steps) >> 10)
    const cuts = { rand, most, batchOf: 1 + rand(Math.ceil(9000 / most)), releaseOf: 1 + rand(9) }
    const options = { longMatch: rand(3) > 0, twin: rand(4) === 0, second: rand(4) === 0 }
    return carried(steps, rand(2) ? 'client' : 'server', terms, cuts, options).wrong || undefined
  }

  /** What a server says, with changes, partly encoded and partly as it is: the same bytes at the far side. */
  private answers(rand: Rand, inputs: Record<string, Uint8Array>): string | undefined {
    const terms = ALL_TERMS.filter(({ disks, cold }) => disks && !cold)[0]!
    const steps: Step[] = rand(8)
      ? reordered(rand, messagesOf(rand, rand(12), diskOf(new Guest(terms.templates))))
      : conversation(nbdVectors[rand(nbdVectors.length)]!.steps).steps
    this.changed(rand, steps, inputs)
    const most = Math.max([1, 40, 5000, 100_000][rand(4)]!, lengthOf(steps) >> 10)
    const cuts = { rand, most, batchOf: 1 + rand(Math.ceil(9000 / most)), releaseOf: 1 + rand(9) }
    return answersCarried(steps, terms, { ...cuts, lacksOf: [0, 2, 40][rand(3)]! }).wrong || undefined
  }

  /** A conversation of NBD with changes: the same events however it is cut, and those of the other decoder. */
  private nbd(rand: Rand, inputs: Record<string, Uint8Array>): string | undefined {
    const steps: Step[] = rand(4)
      ? reordered(rand, messagesOf(rand, rand(12)))
      : conversation(nbdVectors[rand(nbdVectors.length)]!.steps).steps
    this.changed(rand, steps, inputs)
    const whole = traceOf(steps)
    const most = Math.max([1, 9, 300, 5000][rand(4)]!, lengthOf(steps) >> 8) // byte by byte where that is soon done
    const cuts: number[] = []
    for (let at = 1 + rand(most); at < lengthOf(steps); at += 1 + rand(most)) cuts.push(at)
    if (traceOf(steps, cuts).lines.join('\n') !== whole.lines.join('\n')) return 'other events where it is cut'
    const simple = simpleNbd(sideOf(steps, 'client'), sideOf(steps, 'server'))
    for (const side of ['client', 'server'] as const) {
      // Neither gives up for all of the other's reasons, but both say the same until one does.
      const told = whole[side].filter(line => !line.startsWith('raw'))
      const both = Math.min(told.length, simple[side].length)
      const at = told.findIndex((line, i) => i < both && line !== simple[side][i])
      if (at >= 0) return `the decoders differ: ${told[at]} | ${simple[side][at]}`
    }
    return undefined
  }

  private returnPath(rand: Rand, inputs: Record<string, Uint8Array>): string | undefined {
    const list = this.returns
    const bytes = mutated(rand, { bytes: list[rand(list.length)]! }, list[rand(list.length)]!)
    inputs['return path'] = bytes
    let last = 0
    const told = (_start: number, end: number): void => {
      if (end < last) throw new Error('messages out of order')
      last = end
    }
    const parser = new ReturnPathParser({
      shut: (_status, start, end) => told(start, end),
      pong: (_value, start, end) => told(start, end),
      requestPages: (_idstr, _offset, _length, start, end) => told(start, end),
      message: (_type, start, end) => told(start, end),
      degraded: () => {},
    })
    for (let at = 0; at < bytes.length; ) {
      const take = Math.min(1 + rand(40), bytes.length - at)
      parser.push(bytes, at, take)
      at += take
    }
    return parser.position === bytes.length ? undefined : 'a position that is not the end'
  }
}

/** Puts the right seal where the header says. @returns whether there is room for it */
function seal(set: Buffer): boolean {
  if (set.length < 32) return false
  const sealAt = 32 + set.readUInt32BE(24) + Number(set.readBigUInt64BE(16) & 0xffffn) * 40
  if (sealAt + 32 > set.length) return false
  set.set(Buffer.from(sha256(set.subarray(0, sealAt)), 'hex'), sealAt)
  return true
}

/** Undefined where the error is one that a batch may end in. */
function refusal(error: unknown): string | undefined {
  if (isProxyError(error, 'BATCH_FORMAT') || isProxyError(error, 'BATCH_CHECKSUM')) return undefined
  throw error
}

/** Operations or varints with changes that mostly make sense. */
function mutatedColumn(rand: Rand, from: Buffer, column: number): Buffer {
  const out = [...from]
  for (let changes = 1 + rand(3); changes > 0; changes--) {
    const at = rand(out.length + 1)
    const value = column === 0 ? (rand(9) ? rand(16) * 16 + 1 + rand(3) : 0) : rand(4) ? rand(16) : rand(256)
    switch (rand(column === 0 ? 5 : 4)) {
      case 0:
        out.splice(at, 1)
        break
      case 4:
        out.splice(at, 0, 1 + rand(3), rand(5)) // extended operations
        break
      case 1:
        out.splice(at, 0, value)
        break
      case 2:
        out.splice(at, 0, ...(rand(2) ? [0x80 + rand(128), rand(64)] : [0xff, 0xff, 0xff, 0x0f]))
        break
      default:
        if (at < out.length) out[at] = value
    }
  }
  return Buffer.from(out)
}
