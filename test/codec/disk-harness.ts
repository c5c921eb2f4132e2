/** Connections of disks through both ends of a session: what the tests of disks share. */
import { DiskConnection } from '../../src/codec/disk-connection.ts'
import type { Direction } from '../../src/nbd/sink.ts'
import { DiskAnswers } from '../../src/transfer/disk-answers.ts'
import type { SendingChannel } from '../../src/transfer/sending-channel.ts'
import { type Subject, sideOf } from '../nbd-wire/conversations.ts'
import type { Step } from '../nbd-wire/harness.ts'
import {
  type Channel,
  type Guest,
  NATURE,
  PAGE,
  type PageSpec,
  poolOf,
  poolState,
  poolsAlike,
  Receiver,
  Sender,
  SIMD,
  secondState,
  secondTerms,
  stateDifference,
  type Terms,
} from './harness.ts'
import { decodeSession, type SentBatch } from './second-decoder.ts'

type Rand = (below: number) => number

/** One direction of a connection on its way out. */
export interface DiskChannel {
  readonly channel: Channel
  readonly connection: DiskConnection
}

export function openDisk(sender: Sender, encoded: Direction, migration = 1): DiskChannel {
  const channel = sender.open('unknown', migration)
  return { channel, connection: new DiskConnection(channel.flow, encoded) }
}

/** How a conversation is cut: by chance, or at one byte of the direction that is encoded. */
export interface Cuts {
  readonly rand: Rand
  /** Most bytes of a piece. */
  readonly most: number
  /** Behind so many bytes of the direction it is PAGE instead. */
  readonly bytewise?: number
  /** One piece in so many makes a batch. */
  readonly batchOf: number
  /** One batch in so many takes what is incomplete, too. */
  readonly releaseOf: number
}

/**
 * Gives the connection what both sides say, in pieces. Bytes of the direction that is encoded go through the session.
 * @returns what came out
 */
export function through(
  { channel, connection }: DiskChannel,
  steps: readonly Step[],
  encoded: Direction,
  { rand, most: first, bytewise = Number.POSITIVE_INFINITY, batchOf, releaseOf }: Cuts,
  sender: Sender,
  receiver: Receiver,
): Buffer {
  const outputs: Buffer[] = []
  const send = (release: boolean): void => {
    const sent = sender.sendNow(channel, release)
    if (sent) outputs.push(receiver.receiveNow(sent))
  }
  for (const { from, bytes } of steps) {
    for (let at = 0; at < bytes.length; ) {
      const most = channel.flow.position < bytewise ? first : PAGE
      const take = Math.min(1 + rand(most), bytes.length - at, channel.room)
      const piece = bytes.subarray(at, at + take)
      at += take
      if (from !== encoded) {
        const heard = Buffer.concat([Buffer.of(9), piece])
        connection.listen(heard, 1, piece.length)
        heard.fill(0xdd)
        continue
      }
      channel.push(piece)
      if (channel.room < most || rand(batchOf) === 0) send(rand(releaseOf) === 0)
    }
  }
  send(true)
  return Buffer.concat(outputs)
}

/** What became of a conversation: '' or what is wrong, and its batches. */
export interface Carried {
  readonly wrong: string
  readonly sent: readonly SentBatch[]
  readonly channel: Channel
  /** Blocks that both sides have kept. */
  readonly kept: number
}

/** One direction of a conversation through a session of its own, and its batches through the second decoder. */
export function carried(
  steps: readonly Step[],
  encoded: Direction,
  terms: Terms,
  cuts: Cuts,
  { longMatch = true, twin = false, second = true } = {},
): Carried {
  const implementation = twin ? 'twin' : SIMD
  const packing = { method: 'as they are', longMatch } as const
  const sender = new Sender(poolOf('encoder', implementation, terms), packing, true, terms)
  const receiver = new Receiver(poolOf('decoder', twin ? SIMD : implementation, terms), true, terms)
  const disk = openDisk(sender, encoded)
  const got = through(disk, steps, encoded, cuts, sender, receiver)
  const { sent } = sender
  const wrongs: string[] = []
  if (!got.equals(sideOf(steps, encoded))) wrongs.push('other bytes')
  if (!poolsAlike(sender.pool, receiver.pool)) wrongs.push('other pools')
  const keptAlike = (other: readonly Uint8Array[]): boolean =>
    Buffer.concat(sender.kept.blocks).equals(Buffer.concat(other))
  if (!keptAlike(receiver.kept.blocks)) wrongs.push('other blocks kept')
  if (sender.observed.lines.join() !== receiver.observed.lines.join()) wrongs.push('observers saw different blocks')
  if (second) {
    const other = decodeSession(secondTerms(terms), sent)
    if (!Buffer.concat(other.outputs).equals(got)) wrongs.push('other bytes in the second decoder')
    const difference = stateDifference(poolState(receiver.pool), secondState(other.pool))
    if (difference) wrongs.push(`another pool in the second decoder: ${difference}`)
    if (!keptAlike(other.pool.kept)) wrongs.push('other blocks kept by the second decoder')
  }
  return { wrong: wrongs.join('; '), sent, channel: disk.channel, kept: sender.kept.blocks.length }
}

/** How what a server says is read, encoded and credited: by chance. */
export interface AnswerCuts {
  readonly rand: Rand
  /** Most bytes of a piece. */
  readonly most: number
  /** One piece in so many makes a batch, one batch in so many takes what is incomplete, too. */
  readonly batchOf: number
  readonly releaseOf: number
  /** One time in so many there is no pool, or no credit; 0: never. */
  readonly lacksOf: number
}

/** What became of what a server said: '' or what is wrong; bytes that went as they are, and those that were encoded. */
export interface AnswersCarried {
  readonly wrong: string
  readonly passed: number
  readonly encoded: number
  readonly channel: Channel
}

/**
 * What a server says, as its proxy sends it: some of it as it is, some as batches, in one order. Batches come out of the
 * packer a while after they were made.
 */
export function answersCarried(steps: readonly Step[], terms: Terms, cuts: AnswerCuts): AnswersCarried {
  const { rand, most, batchOf, releaseOf, lacksOf } = cuts
  const packing = { method: 'as they are', longMatch: rand(2) > 0 } as const
  const sender = new Sender(poolOf('encoder', SIMD, terms), packing, false, terms)
  const receiver = new Receiver(poolOf('decoder', SIMD, terms), false, terms)
  const channel = sender.open('unknown')
  const packed: SentBatch[] = []
  const outputs: Buffer[] = []
  let [passed, encoded] = [0, 0]
  const lacks = (): boolean => lacksOf > 0 && rand(lacksOf) === 0
  const sending = {
    encoder: channel.flow,
    slot: { at: 0, bytes: channel.room },
    pumped: {
      get underWay() {
        return packed.length
      },
    },
    room: () => (channel.room < 64 || lacks() ? undefined : channel.buffer.writable(channel.room, 1)),
    filled: (count: number) => {
      channel.flow.push(sender.pool.kernel.bytes, channel.buffer.filled(count), count)
    },
    begins: (bytes: Uint8Array) => channel.push(bytes),
  } as unknown as SendingChannel
  const answers = new DiskAnswers({
    channel: () => (lacks() ? undefined : sending),
    credit: () => (lacks() ? rand(50) : 2 ** 20),
  })
  const comeOut = (): void => {
    for (const sent of packed.splice(0)) outputs.push(receiver.receiveNow(sent))
  }
  const encode = (release: boolean): void => {
    const sent = sender.sendNow(channel, release)
    if (!sent) return
    packed.push(sent)
    if (rand(3)) comeOut()
  }
  const own = new Uint8Array(2 ** 20)
  // sockets ask ahead where the next bytes may land
  let landing = answers.room()
  for (const { from, bytes } of steps) {
    for (let at = 0; at < bytes.length; ) {
      const take = Math.min(1 + rand(most), bytes.length - at)
      if (from === 'client') {
        answers.hears(bytes.slice(at, at + take))
        at += take
        continue
      }
      while (landing === undefined) {
        encode(true)
        comeOut()
        landing = answers.room()
      }
      const memory = landing === 'elsewhere' ? own : landing
      const count = Math.min(take, memory.length)
      memory.set(bytes.subarray(at, at + count))
      at += count
      const passes = answers.arrived(memory, count, 0)
      if (passes) {
        outputs.push(Buffer.from(passes))
        passed += count
        if (memory !== own) memory.fill(0xdd, 0, count)
      } else encoded += count
      if (memory === own) own.fill(0xee, 0, count)
      landing = answers.room()
      if (rand(batchOf) === 0) encode(rand(releaseOf) === 0)
    }
  }
  encode(true)
  comeOut()
  const wrongs: string[] = []
  if (!Buffer.concat(outputs).equals(sideOf(steps, 'server'))) wrongs.push('other bytes')
  if (!poolsAlike(sender.pool, receiver.pool)) wrongs.push('other pools')
  const other = rand(8) === 0 && decodeSession(secondTerms(terms), sender.sent)
  const difference = other && stateDifference(poolState(receiver.pool), secondState(other.pool))
  if (difference) wrongs.push(`another pool in the second decoder: ${difference}`)
  return { wrong: wrongs.join('; '), passed, encoded, channel }
}

/** A disk that conversations are made up about: blocks as guests have pages, at few places, mostly some at once. */
export function diskOf(guest: Guest): Subject {
  const data: Subject['data'] = (rand, length, offset) => {
    const out = new Uint8Array(length)
    for (let at = 0; at < length; ) {
      const block = Math.floor((offset + at) / PAGE)
      const within = (offset + at) % PAGE
      const spec: PageSpec = {
        block: 0,
        page: block % 48,
        nature: rand(3) ? rand(12) : NATURE.AGAIN,
        a: rand(60),
        b: rand(999),
      }
      const body = spec.nature === NATURE.ZERO ? new Uint8Array(PAGE) : guest.body(spec)
      const part = body.subarray(within, within + length - at)
      out.set(part, at)
      at += part.length
    }
    return out
  }
  return {
    offsets: 24,
    types: [0, 0, 0, 1, 1, 1, 1, 3, 4, 6],
    length: rand => (rand(5) ? rand(40_000) : rand(200)),
    data,
  }
}
