/**
 * Cases of the fuzzer in which threads help: what they make of damaged bytes is what one thread makes, to the byte, and what
 * fails of them costs a session and nothing else.
 */
import { CHUNKS } from '../../src/bytes/chunks.ts'
import { rawLengthOf } from '../../src/codec/batch-head.ts'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { EFFORTS, type Effort, LZ4, RAW } from '../../src/compression/effort.ts'
import { isProxyError, type ProxyError } from '../../src/errors.ts'
import { BATCH_RAW_BYTES_MAX } from '../../src/limits.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import { PROOF_WORDS, writeProof } from '../../src/store/cold-set.ts'
import { DigestThreads } from '../../src/transfer/cold/digest-threads.ts'
import { EVENT_LOOP, nextTurn } from '../../src/transfer/event-loop.ts'
import { Inbound } from '../../src/transfer/inbound.ts'
import { Outbound } from '../../src/transfer/outbound.ts'
import { type OpenPool, type PoolRequest, Pools } from '../../src/transfer/pool.ts'
import {
  Channel,
  Guest,
  mainStream,
  multifdStream,
  NATURES,
  PAGE,
  PAGE_NATURES,
  type PageSpec,
  random,
  SEED_WORDS,
} from '../codec/harness.ts'
import { HandTimers } from '../helpers/hand-timers.ts'
import type { Fault } from '../transfer/faulty-helper.ts'
import { FaultyHelpers } from '../transfer/faulty-helpers.ts'
import { Wire } from '../transfer/wire.ts'
import { mutated, type Rand } from './mutated.ts'

type Inputs = Record<string, Uint8Array>

/** Cases among a thousand others: each takes as long as fifty of them. */
export const THREADED_SHARE = 100

/** Longest stream of a channel: a few batches. */
const STREAM_MAX = 1_500_000
/** Bytes that a channel is given at once, at most: of its buffer of a batch, part of which is lent. */
const PUSH_MAX = 300_000

/** A channel on its way through a session. */
interface Guided {
  readonly kind: ChannelKind
  readonly migration: number
  readonly bytes: Buffer
}

interface Terms {
  readonly ringPages: number
  readonly places: number
}

/** Rings without an end, that wrap, shorter than a batch, and none. */
const ALL_TERMS: readonly Terms[] = [
  { ringPages: 1024, places: 1024 },
  { ringPages: 1024, places: 1024 },
  { ringPages: 300, places: 64 },
  { ringPages: 50, places: 16 },
  { ringPages: 1, places: 1 },
  { ringPages: 0, places: 0 },
]

/** Sessions whose batches are damaged. */
const SESSIONS = 18

/** A batch, and whose. */
interface Sent {
  readonly channel: number
  readonly bytes: Buffer
}

/** Batches of a session, and what they stand for. */
interface Session {
  readonly terms: Terms
  readonly channels: readonly Guided[]
  readonly batches: readonly Sent[]
}

/** What a decoder gave: bytes by channel, and the error that ended it, as an operator has it. */
interface Decoded {
  readonly got: readonly Buffer[]
  readonly error: ProxyError | undefined
}

function specs(rand: Rand, count: number, natures: number): PageSpec[] {
  return Array.from({ length: count }, () => ({
    block: rand(10) < 8 ? 0 : rand(4),
    page: rand(400),
    nature: rand(natures),
    a: rand(60),
    b: rand(999),
  }))
}

export class ThreadCases {
  private readonly threads: number
  private readonly alone: Pools
  private readonly helped: Pools
  private readonly sessions = new Map<number, Session>()
  private digesters: DigestThreads | undefined

  /** @param threads the main one counted */
  constructor(threads: number) {
    this.threads = threads
    this.alone = new Pools({ threads: 1 })
    this.helped = new Pools({ threads })
    CHUNKS.poison = 0xdd
  }

  /** Each by its name; of THREADED_SHARE so many. */
  readonly cases: readonly [string, number, (rand: Rand, inputs: Inputs) => Promise<string | undefined>][] = [
    ['threads, batches', 60, (rand, inputs) => this.batches(rand, inputs)],
    ['threads, streams', 30, (rand, inputs) => this.streams(rand, inputs)],
    ['threads, digests', 6, async rand => this.digests(rand)],
    ['threads, faults', 4, (rand, inputs) => this.faults(rand, inputs)],
  ]

  /** Ends what helps. */
  close(): void {
    this.digesters?.rest()
  }

  // ---- sessions

  private channels(rand: Rand, isMutated: boolean): Guided[] {
    const guest = new Guest([])
    const kinds = (
      [['main'], ['main'], ['main', 'multifd'], ['multifd', 'multifd', 'main'], ['main', 'main']] as const
    )[rand(5)]!
    return kinds.map((kind, i) => {
      const pages = [8, 60, 250][rand(3)]!
      const made =
        kind === 'main'
          ? mainStream(guest, [specs(rand, pages, NATURES), specs(rand, rand(60), NATURES)])
          : multifdStream(
              guest,
              i,
              [1, 2, 3].map(() => specs(rand, 1 + rand(pages >> 1), PAGE_NATURES)),
            )
      let bytes: Buffer = Buffer.from(made).subarray(0, STREAM_MAX)
      if (isMutated && rand(6) > 0) bytes = mutated(rand, { bytes }, bytes, STREAM_MAX)
      // a stream of one kind in the parser of another
      const asKind = isMutated && rand(30) === 0 ? (['main', 'multifd', 'preempt', 'unknown'] as const)[rand(4)]! : kind
      return { kind: asKind, migration: kind === 'main' && i > 0 ? 2 : 1, bytes }
    })
  }

  /** Encodes channels, whose pieces, batches and efforts are at random. */
  private async encode(rand: Rand, pools: Pools, terms: Terms, channels: readonly Guided[]): Promise<Sent[]> {
    const request: PoolRequest = {
      ...{ sets: [], store: undefined, slotBytes: BATCH_RAW_BYTES_MAX, role: 'encoder', longMatch: true },
      ...{ threads: pools.threads, workspaces: 2 + rand(2), slots: channels.length },
      ...terms,
      ringInAdvance: 'always',
    }
    const pool = await pools.open(request)
    try {
      if (rand(4) > 0) await pool.ready
      return await this.encodeAll(rand, pool, channels)
    } finally {
      await pool.close()
    }
  }

  private async encodeAll(rand: Rand, pool: OpenPool, channels: readonly Guided[]): Promise<Sent[]> {
    const batches: Sent[] = []
    const flows = channels.map(({ kind, migration }, i) => new Channel(pool, i, kind, migration, {}))
    let failure: unknown
    const outbound = new Outbound<Channel>(
      pool,
      SEED_WORDS,
      ({ number }, parts, _, release) => {
        batches.push({ channel: number, bytes: Buffer.concat(parts) })
        release?.()
      },
      error => {
        failure = error
      },
    )
    const efforts: readonly Effort[] = [EFFORTS[0]!, LZ4, EFFORTS[1]!, EFFORTS[2]!, EFFORTS[3]!, RAW]
    let effort = efforts[rand(efforts.length)]!
    const encode = async (channel: Channel, release: boolean): Promise<void> => {
      if (rand(4) === 0) effort = efforts[rand(efforts.length)]!
      await outbound.room()
      if (failure !== undefined) throw failure
      const isAhead = !release && pool.encoding !== undefined && effort.longMatch > 0 && rand(3) > 0
      if (isAhead) outbound.encodeAhead(channel, effort)
      else outbound.encode(channel, effort, release)
      if (failure !== undefined) throw failure
    }
    const left = channels.map((_, i) => i)
    const at = channels.map(() => 0)
    try {
      while (left.length > 0) {
        const turn = rand(left.length)
        const i = left[turn]!
        const { bytes } = channels[i]!
        const flow = flows[i]!
        const most = [300, 9000, PUSH_MAX, PUSH_MAX][rand(4)]!
        const take = Math.min(1 + rand(most), bytes.length - at[i]!)
        while (take > 0 && flow.buffer.writable(take, take) === undefined) {
          outbound.finishBegun()
          await encode(flow, true)
        }
        flow.push(bytes.subarray(at[i]!, at[i]! + take))
        at[i]! += take
        const isLast = at[i] === bytes.length
        if (isLast) left.splice(turn, 1)
        if (isLast || rand(3) > 0) await encode(flow, isLast || rand(4) === 0)
        if (rand(8) === 0) outbound.finishBegun()
        if (rand(8) === 0) await nextTurn(EVENT_LOOP)
      }
      outbound.finishBegun()
      await outbound.idle()
      if (failure !== undefined) throw failure
      return batches
    } finally {
      await outbound.close()
    }
  }

  /**
   * Decodes batches, each in the pieces that frames would bring, in memory that is written over once it has come back.
   * @param pace how many are given before they are waited for
   */
  private async decode(
    rand: Rand,
    pools: Pools,
    { terms, channels }: Pick<Session, 'terms' | 'channels'>,
    batches: readonly Sent[],
    pace: number,
  ): Promise<Decoded> {
    const pool = await pools.open({
      ...{ sets: [], store: undefined, slotBytes: BATCH_RAW_BYTES_MAX, role: 'decoder', longMatch: false },
      ...{ workspaces: 1, slots: 2 + rand(3), ahead: pools.aheadSlots, ...terms },
    })
    const got: Buffer[][] = channels.map(() => [])
    let error: ProxyError | undefined
    const held: (() => void)[] = []
    const flows = channels.map(({ migration }, i) => ({
      expander: new FlowExpander(migration, PoolRegions.of(pool.kernel.layout)),
      expanded: (bytes: Uint8Array, release: () => void): void => {
        got[i]!.push(Buffer.from(bytes))
        if (rand(3) === 0) held.push(release)
        else release()
        if (rand(2) === 0) for (const free of held.splice(0)) free()
      },
    }))
    const inbound = new Inbound(pool, SEED_WORDS, cause => {
      error = cause
    })
    const wire = new Wire()
    try {
      let given = 0
      for (const { channel, bytes } of batches) {
        const parts = wire.parts(bytes)
        const rawLength = rawLengthOf(parts)
        if (rawLength < 1 || rawLength > BATCH_RAW_BYTES_MAX) break // the session refuses it
        inbound.push(flows[channel]!, parts)
        if (++given % pace === 0) await inbound.idle()
        else if (rand(4) === 0) await nextTurn(EVENT_LOOP)
        if (error !== undefined) break
      }
      await inbound.idle()
    } finally {
      inbound.close()
      wire.close()
      await pool.close()
    }
    return { got: got.map(parts => Buffer.concat(parts)), error }
  }

  /** One of a few, each made when it is first wanted: a case alone has the same as among others. */
  private async session(rand: Rand): Promise<Session> {
    const number = rand(SESSIONS)
    let session = this.sessions.get(number)
    if (session === undefined) {
      const own = random(number)
      const [terms, channels] = [ALL_TERMS[number % ALL_TERMS.length]!, this.channels(own, false)]
      const pools = number % 3 === 0 ? this.helped : this.alone
      session = { terms, channels, batches: await this.encode(own, pools, terms, channels) }
      this.sessions.set(number, session)
    }
    return session
  }

  // ---- cases

  /** Damaged batches in a decoder that threads help: bytes and error are those of one thread. */
  private async batches(rand: Rand, inputs: Inputs): Promise<string | undefined> {
    const session = await this.session(rand)
    const batches = damaged(rand, session.batches)
    inputs.batches = Buffer.concat(batches.map(({ bytes }) => bytes))
    const wanted = await this.decode(rand, this.alone, session, batches, 1)
    const given = await this.decode(rand, this.helped, session, batches, [1, 3, 1000, 1000][rand(4)]!)
    // how much waits is a matter of time
    if ([wanted, given].some(({ error }) => error?.code === 'LIMIT_EXCEEDED')) return undefined
    const told = (error: ProxyError | undefined): string =>
      error === undefined ? 'no error' : `${error.message} ${JSON.stringify(error.where)}`
    if (told(given.error) !== told(wanted.error))
      return `${this.threads} threads: ${told(given.error)}; one: ${told(wanted.error)}`
    if (wanted.error && !/^BATCH_(FORMAT|CHECKSUM)$/.test(wanted.error.code)) return told(wanted.error)
    for (const [i, bytes] of wanted.got.entries())
      if (!given.got[i]!.equals(bytes)) return `channel ${i}: other bytes than one thread gives`
    return undefined
  }

  /** Damaged streams in an encoder that threads help: the same bytes at the far side, whoever decodes. */
  private async streams(rand: Rand, inputs: Inputs): Promise<string | undefined> {
    const terms = ALL_TERMS[rand(ALL_TERMS.length)]!
    const channels = this.channels(rand, true)
    for (const [i, { kind, bytes }] of channels.entries()) inputs[`${i} ${kind}`] = bytes
    const batches = await this.encode(rand, this.helped, terms, channels)
    const decoder = rand(3) ? this.alone : this.helped
    const { got, error } = await this.decode(rand, decoder, { terms, channels }, batches, 1000)
    if (error) return `${error.message} ${JSON.stringify(error.where)}`
    for (const [i, { bytes }] of channels.entries())
      if (!got[i]!.equals(bytes)) return `channel ${i}: other bytes, ${got[i]!.length} of ${bytes.length}`
    return undefined
  }

  /** Helpers that end, hang or are late somewhere: all of it, or a typed error behind bytes that are right. */
  private async faults(rand: Rand, inputs: Inputs): Promise<string | undefined> {
    if (this.threads === 1) return undefined
    const isNear = rand(2) === 0
    const at = (isNear ? ['pack', 'stream', 'open', 'start', 'commit', 'close'] : ['unpack', 'open', 'start', 'close'])[
      rand(isNear ? 6 : 4)
    ]! as Fault['at']
    const what = (['exit', 'throw', 'hang', 'late', 'late', 'idle'] as const)[rand(6)]!
    const loop = new HandTimers()
    const side = new FaultyHelpers({ at, what, after: rand(4) })
    const pools = new Pools({ threads: this.threads, unusedMs: 0, loop, startHelper: side.start })
    const [terms, channels] = [ALL_TERMS[rand(2)]!, this.channels(rand, false)]
    for (const [i, { kind, bytes }] of channels.entries()) inputs[`${i} ${kind}`] = bytes
    const run = isNear
      ? this.encode(rand, pools, terms, channels).then(batches => ({ batches, from: this.alone }))
      : this.encode(rand, this.alone, terms, channels).then(batches => ({ batches, from: pools }))
    const name = `${isNear ? 'near' : 'far'}, ${what} at ${at}, ${this.threads} threads`
    const ran = run.then(({ batches, from }) => this.decode(rand, from, { terms, channels }, batches, 1000))
    const { decoded, error } = await this.withTime(side, loop, what, ran)
    if (side.live > 0) return `${name}: ${side.live} helpers are left`
    const told = error ?? decoded?.error
    if (told !== undefined) {
      if (!isProxyError(told, 'INTERNAL') || !/a helping thread/.test((told as Error).message)) throw told // of another kind than a helper's end is told by
      if (what === 'late' || what === 'idle') return `${name}: ${(told as Error).message}`
    }
    for (const [i, bytes] of decoded?.got.entries() ?? []) {
      const { bytes: all } = channels[i]!
      if (!bytes.equals(told === undefined ? all : all.subarray(0, bytes.length))) return `${name}: other bytes`
    }
    return undefined
  }

  /** Lets time pass where a helper hangs, and opens the gate for those that are late. */
  private async withTime(
    side: FaultyHelpers,
    loop: HandTimers,
    what: Fault['what'],
    ran: Promise<Decoded>,
  ): Promise<{ decoded?: Decoded; error?: unknown }> {
    let isOver = false
    const outcome = ran
      .then(
        decoded => ({ decoded }),
        (error: unknown) => ({ error }),
      )
      .finally(() => {
        isOver = true
      })
    for (let turn = 0; !isOver; turn++) {
      await nextTurn(EVENT_LOOP)
      if (side.faults === 0 || turn % 20 > 0) continue
      if (what === 'hang') loop.passNow()
      if (what === 'late') {
        Atomics.store(side.gate, 0, 1)
        Atomics.notify(side.gate, 0)
      }
    }
    return outcome
  }

  /** Threads that digest: each page has its own proof, whatever was before, and whoever has ended. */
  private digests(rand: Rand): string | undefined {
    this.digesters ??= new DigestThreads(this.threads - 1)
    const { digesters } = this
    for (let round = 0; round < 8; round++) {
      const count = [1, 31, 32, 33, 100, 256][rand(6)]!
      const bytes = new Uint8Array(new SharedArrayBuffer((1 + rand(40)) * PAGE + 64))
      for (let i = 0; i < bytes.length; i += 1 + rand(900)) bytes[i] = rand(256)
      const pages = Uint32Array.from({ length: count }, () => rand(bytes.length - PAGE + 1))
      const [proofs, wanted] = [1, 2].map(() => new Uint32Array(count * PROOF_WORDS)) as [Uint32Array, Uint32Array]
      for (const [i, at] of pages.entries()) writeProof(bytes.subarray(at, at + PAGE), wanted, i * PROOF_WORDS)
      for (let again = rand(4); again >= 0; again--) {
        digesters.digest(bytes, pages, count, proofs.fill(0))
        const wrong = proofs.findIndex((word, i) => word !== wanted[i])
        if (wrong >= 0) return `another proof of page ${Math.floor(wrong / PROOF_WORDS)} of ${count}`
      }
      if (rand(30) === 0) digesters.rest()
    }
    return undefined
  }
}

/** Batches with changes: most in one of them, some in their order. */
function damaged(rand: Rand, from: readonly Sent[]): Sent[] {
  const batches = [...from]
  const at = rand(batches.length)
  const one = batches[at]!
  const other = batches[rand(batches.length)]!
  const turn = rand(12)
  if (turn === 0) batches.splice(at, 1)
  else if (turn === 1) batches.splice(rand(batches.length), 0, one)
  else if (turn === 2) batches.splice(at, 2, ...batches.slice(at, at + 2).reverse())
  else if (turn === 3) batches[at] = { channel: other.channel, bytes: one.bytes }
  else if (turn < 11) {
    const head = Int32Array.from({ length: Math.min(60, one.bytes.length) }, (_, i) => i)
    const hot = rand(2) ? head : new Int32Array(0)
    batches[at] = { ...one, bytes: mutated(rand, { bytes: one.bytes, hot }, other.bytes, BATCH_RAW_BYTES_MAX) }
    if (rand(4) === 0) {
      const next = rand(batches.length)
      const { channel, bytes } = batches[next]!
      batches[next] = { channel, bytes: mutated(rand, { bytes, hot: head }, one.bytes, BATCH_RAW_BYTES_MAX) }
    }
  }
  return batches.filter(({ bytes }) => bytes.length > 0)
}
