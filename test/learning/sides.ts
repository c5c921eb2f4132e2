/** Both sides of a session with learning, without sockets: batches go from Outbound to Inbound, ENDs come back late. */

import { createHash } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { FlowEncoder } from '../../src/codec/flow-encoder.ts'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { Learning, type LearningOptions, type SessionLearning } from '../../src/learning/learning.ts'
import { channelKind } from '../../src/qemu/channel-kind.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { ChannelBuffer } from '../../src/transfer/channel-buffer.ts'
import { parserFor } from '../../src/transfer/channel-parser.ts'
import { EVENT_LOOP, nextTurn } from '../../src/transfer/event-loop.ts'
import { Inbound, type InboundChannel } from '../../src/transfer/inbound.ts'
import { Outbound } from '../../src/transfer/outbound.ts'
import { openPool } from '../../src/transfer/pool.ts'

/** Bytes that wait, at most: a batch. */
const SLOT = 1 << 20
const CHANNELS_MAX = 16

/** One proxy's part. */
export class Side {
  readonly store: TemplateStore
  readonly learning: Learning
  readonly warnings: string[] = []
  session: SessionLearning | undefined

  constructor(folder: string, name: string, options: Partial<LearningOptions> = {}) {
    const path = join(folder, name)
    mkdirSync(path)
    this.store = new TemplateStore(path)
    const log = {
      info: () => {},
      warn: (event: string, fields?: object) => void this.warnings.push(`${event} ${JSON.stringify(fields)}`),
      error: () => {},
    }
    this.learning = new Learning({ mode: 'shared', store: this.store, maxBytes: 1e9, maxAgeMs: 1e12, log, ...options })
  }
}

export interface Guest {
  readonly migration: number
  /** Bytes of each channel, the main one first. */
  readonly channels: readonly Buffer[]
}

export interface SessionReport {
  /** Digests of sets that both sides had. */
  readonly sets: readonly string[]
  /** The counts of the session before went on. */
  readonly resumed: boolean
  readonly rawBytes: number
  readonly wanBytes: number
  /** Every channel came out as it went in. */
  readonly equal: boolean
}

/** A channel on its way. */
interface Sending extends InboundChannel {
  readonly encoder: FlowEncoder
  readonly buffer: ChannelBuffer
}

/** Runs the migrations at the same time, channels interleaved by chance. */
export async function runSession(
  source: Side,
  destination: Side,
  guests: readonly Guest[],
  next: (below: number) => number,
  options: { effort?: number; breakOff?: boolean; cutPages?: boolean; identity?: string } = {},
): Promise<SessionReport> {
  const effort = EFFORTS[options.effort ?? 1]!
  const held = new Set([...(await destination.store.digests()), ...destination.learning.states])
  const states = source.learning.states
  const agreed = [...(await source.store.digests()), ...states].filter(digest => held.has(digest))
  const sets = agreed.filter(digest => !states.includes(digest))
  const terms = { sets, ringPages: 200, places: 1 << 12, longMatch: effort.longMatch > 0, slotBytes: 1 << 20 }
  const seed = [next(2 ** 32), next(2 ** 32)] as const
  const encoders = await openPool({
    ...terms,
    role: 'encoder',
    store: source.store,
    workspaces: 3,
    slots: CHANNELS_MAX,
  })
  const decoders = await openPool({ ...terms, role: 'decoder', store: destination.store, workspaces: 1, slots: 4 })
  await encoders.warm()
  source.session = source.learning.begin(agreed, seed, encoders, '')
  destination.session = destination.learning.begin(agreed, seed, decoders, options.identity ?? 'a peer')

  let failure: Error | undefined
  let wanBytes = 0
  const regions = PoolRegions.of(encoders.kernel.layout)
  const inbound = new Inbound(decoders, seed, error => {
    failure = error
  })
  const outbound = new Outbound(
    encoders,
    seed,
    (channel: Sending, parts, { packedLength }) => {
      wanBytes += packedLength
      inbound.push(
        channel,
        parts.map(part => part.slice()),
      )
    },
    error => {
      failure = error
    },
  )
  outbound.observer = source.session
  inbound.observer = destination.session

  const channels = guests.flatMap(({ migration, channels }) =>
    channels.map(bytes => ({ migration, bytes, at: 0, done: false })),
  )
  const open = channels.map((channel, i) => {
    const encoder = new FlowEncoder(channel.migration, regions)
    const kind = channelKind(channel.bytes, 0, Math.min(channel.bytes.length, 4096))
    if (kind === 'main' || kind === 'multifd') encoder.parser = parserFor(kind, encoder)
    const buffer = new ChannelBuffer(encoders.kernel.bytes, encoders.slots[i]!, SLOT)
    const expander = new FlowExpander(channel.migration, regions)
    const out = createHash('sha256')
    const expanded = (bytes: Uint8Array, release: () => void): void => {
      out.update(bytes)
      release()
    }
    return { ...channel, encoder, buffer, expander, expanded, out }
  })
  /** ENDs on their way back to the source, in order. */
  const ends: number[] = []
  const memory = encoders.kernel.bytes
  while (open.some(channel => !channel.done)) {
    if (failure) throw failure
    if (next(3) === 0 && ends.length > 0) source.session.migrationEnded(ends.shift()!)
    const left = open.filter(channel => !channel.done)
    const channel = left[next(left.length)]!
    const { encoder, buffer, bytes } = channel
    const take = Math.min(bytes.length - channel.at, SLOT - buffer.waiting, 1 + next(200_000))
    if (take > 0) {
      buffer.writable(take, take)!.set(bytes.subarray(channel.at, channel.at + take))
      encoder.push(memory, buffer.filled(take), take)
      channel.at += take
    }
    const over = channel.at === bytes.length
    if (!over && buffer.waiting < SLOT && next(3) > 0) continue
    await outbound.room()
    await nextTurn(EVENT_LOOP) // as between reads of sockets: files have their turn, whatever is packed on the spot
    outbound.encode(channel, effort, over || (options.cutPages === true && next(10) === 0))
    if (!over || buffer.waiting > 0) continue
    channel.done = true
    if (options.breakOff || open.some(other => other.migration === channel.migration && !other.done)) continue
    // FIN follows the channel's last batch; the answer comes when everything before it was expanded
    await outbound.idle()
    const { migration } = channel
    inbound.mark(() => {
      destination.session!.migrationEnded(migration)
      ends.push(migration)
    })
  }
  await outbound.idle()
  await inbound.idle()
  if (failure) throw failure
  for (const migration of ends) source.session.migrationEnded(migration)
  source.session.end()
  destination.session.end()
  await Promise.all([source.learning.settled(), destination.learning.settled(), outbound.close()])
  inbound.close()
  return {
    sets,
    resumed: agreed.length > sets.length,
    rawBytes: open.reduce((sum, { bytes }) => sum + bytes.length, 0),
    wanBytes,
    equal: open.every(({ out, bytes }) => out.digest('hex') === createHash('sha256').update(bytes).digest('hex')),
  }
}
