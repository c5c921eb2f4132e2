/** Models of machines, links and memory on which the pump that ships runs in virtual time: docs/adr/0006-effort.md. */
import type { Effort } from '../../src/compression/effort.ts'
import { QUEUE_TARGET_MS } from '../../src/limits.ts'
import { type EffortController, RUNGS } from '../../src/transfer/effort-controller.ts'
import { BATCH_BYTES_MAX, Pump, PumpedChannel } from '../../src/transfer/pump.ts'

export interface Machine {
  /** By rung: what packing leaves; MB/s of the packer, and of the thread that encodes. */
  readonly share: readonly number[]
  readonly pack: readonly number[]
  readonly own: readonly number[]
  /** Raw MB/s that the far side gives to its QEMU. */
  readonly take?: number
}

/**
 * By rung of `auto`. Level 1 beside level 2 as on a captured guest: 4 % more bytes, two thirds of the time that encoding takes, nearly
 * as much for packing.
 */
export const MACHINES: Readonly<Record<string, Machine>> = {
  'TLS and copies weigh most': {
    share: [1, 0.9, 0.4, 0.29, 0.28, 0.26, 0.25],
    pack: [50000, 5000, 600, 270, 250, 200, 50],
    own: [150, 110, 190, 170, 140, 140, 140],
  },
  'the packer weighs most': {
    share: [1, 0.9, 0.4, 0.29, 0.28, 0.26, 0.25],
    pack: [90000, 9000, 900, 430, 400, 300, 80],
    own: [1200, 900, 900, 750, 500, 500, 500],
  },
  'the far side takes 150 MB/s': {
    share: [1, 0.9, 0.4, 0.29, 0.28, 0.26, 0.25],
    pack: [90000, 9000, 900, 270, 250, 200, 50],
    own: [1200, 900, 900, 300, 200, 200, 200],
    take: 150,
  },
  'nothing can be saved': {
    share: [1, 1, 1, 0.99, 0.99, 0.99, 0.99],
    pack: [90000, 9000, 1500, 270, 250, 150, 60],
    own: [1200, 900, 900, 450, 300, 300, 300],
    take: 300,
  },
  'a quarter of a core': {
    share: [1, 0.9, 0.4, 0.29, 0.28, 0.26, 0.25],
    pack: [20000, 2000, 150, 86, 80, 60, 15],
    own: [200, 150, 150, 135, 90, 90, 90],
  },
}

/** What a stretch of memory is like. */
interface Stretch {
  /** How much of a new page's work and bytes a page of it is: 0.05, all known. */
  readonly weight: number
  /** Nothing of it can be saved. */
  readonly random?: boolean
}

/** Memory by the share of the migration that is over, and the raw bytes that are. */
export type Content = (share: number, bytes: number) => Stretch

const NEW: Stretch = { weight: 1 }
const KNOWN: Stretch = { weight: 0.05 }
const RANDOM: Stretch = { weight: 1, random: true }

function turns(mb: number, stretches: readonly Stretch[]): Content {
  return (_share, bytes) => stretches[Math.floor(bytes / (mb * 1e6)) % stretches.length]!
}

const MIXED: readonly Stretch[] = [1, 1, 0.2, 0.05, 1, 0.4].map(weight => ({ weight }))

export const CONTENTS: Readonly<Record<string, Content>> = {
  'all the same': () => NEW,
  'known pages': () => ({ weight: 0.15 }),
  'random memory': () => RANDOM,
  'new and known, 2 MB': turns(2, MIXED),
  'new and known, 15 MB': turns(15, MIXED),
  'new and known, 60 MB': turns(60, MIXED),
  'new and random, 2 MB': turns(2, [NEW, RANDOM]),
  'new and random, 15 MB': turns(15, [NEW, RANDOM]),
  'new and random, 60 MB': turns(60, [NEW, RANDOM]),
  'random, then new': share => (share < 0.5 ? RANDOM : NEW),
  'new, then random': share => (share < 0.5 ? NEW : RANDOM),
  'known, then new': share => (share < 0.5 ? KNOWN : NEW),
}

/** MB/s: 8 and 20 Mbit/s to 10 Gbit/s. */
export const LINKS: readonly number[] = [1, 2.5, 12.5, 40, 125, 400, 1250]

export interface Case {
  readonly machine: Machine
  readonly content: Content
  readonly wan: number
  readonly bytes: number
  readonly channels: number
  /** MB/s that the session believes the link takes. Default: it knows nothing. */
  readonly known?: number
}

/** Of a migration that is long enough to be worth a choice: its raw bytes on a link of so many MB/s. */
export function migrationBytes(wan: number): number {
  return Math.min(800e6, wan * 60e6)
}

/** A source that is never empty before its end: what waits is one batch. */
class Source {
  ready = 0
  left: number

  constructor(bytes: number) {
    this.left = bytes
  }

  get waiting(): number {
    return this.ready
  }
}

/** What lies between batches and the far side's QEMU. */
class Link {
  nowMs = 0
  /** Bytes that were handed in and have not arrived. */
  waitingBytes = 0
  /** When the far side's QEMU has taken all that arrived. */
  takenMs = 0
  /** Its first item is under way. */
  private readonly items: { raw: number; left: number }[] = []
  private readonly wan: number
  private readonly take: number
  readonly knownRate: number
  private last = -1

  constructor({ wan, machine, known = Number.POSITIVE_INFINITY }: Case) {
    this.wan = wan
    this.take = machine.take ?? Number.POSITIVE_INFINITY
    this.knownRate = known * 1000
  }

  get isEmpty(): boolean {
    return this.items.length === 0
  }

  add(raw: number, packed: number): void {
    this.items.push({ raw, left: packed })
    this.waitingBytes += packed
  }

  advance(ms: number): void {
    this.nowMs += ms
    // what has arrived waits until the far side's QEMU has taken what came before it
    for (let room = this.wan * 1000 * ms; room > 0 && this.items.length > 0 && this.nowMs >= this.takenMs; ) {
      const [item] = this.items
      const part = Math.min(room, item!.left)
      item!.left -= part
      this.waitingBytes -= part
      room -= part
      if (item!.left > 0) continue
      this.items.shift()
      this.takenMs = Math.max(this.takenMs, this.nowMs - ms) + item!.raw / (this.take * 1e3)
    }
  }

  // as Session: the windows hold the queue target, some frames lie ready, a part of the target may come late
  bulkRoom(): number {
    return Math.max(0, this.window - this.waitingBytes)
  }

  bulkQuantum(): number {
    return Math.min(this.wan * 1000 * QUEUE_TARGET_MS * 0.2, this.window / 2)
  }

  credit(): number {
    return Number.POSITIVE_INFINITY
  }

  pickFlow(candidates: readonly number[]): number {
    this.last = candidates.find(number => number > this.last) ?? candidates[0]!
    return this.last
  }

  private get window(): number {
    return Math.max(32_768, this.wan * 1000 * QUEUE_TARGET_MS) + 32_768
  }
}

/** Seconds of a migration: the pump that ships, in virtual time. */
export function simulate(controller: EffortController, of: Case, rttMs = 0): number {
  const { machine, content, wan, bytes, channels } = of
  const link = new Link(of)
  controller.begin(rttMs, link.knownRate)
  let random = 1
  const wavering = (): number => {
    random = (random * 48271) % 2147483647
    return 0.85 + (0.3 * random) / 2147483647
  }
  // a thin link's batches take tens of milliseconds: finer steps would only cost
  const stepMs = wan < 20 ? 1 : 0.25
  let packerFreeMs = 0
  /** Raw bytes that have been encoded: QEMU deals pages out to its channels as they come. */
  let over = 0
  const packing: { flow: Flow; effort: Effort; doneMs: number; raw: number; fresh: number; packed: number }[] = []
  const packer = {
    get underWay() {
      return packing.length
    },
    get hasRoom() {
      return packing.length < 4
    },
  }
  const pump = new Pump(link, packer, controller)
  const flows = Array.from({ length: channels }, (_, i): Flow => {
    const source = new Source(bytes / channels)
    return { source, channel: new PumpedChannel(i + 1, source, BATCH_BYTES_MAX) }
  })
  for (const { channel } of flows) pump.add(channel)
  const fill = ({ source, channel }: Flow): void => {
    const more = Math.min(source.left, pump.roomFor(channel))
    if (more <= 0) return
    pump.arrives(channel, link.nowMs)
    source.ready += more
    source.left -= more
  }
  const encode = (flow: Flow, rung: number): void => {
    const { source, channel } = flow
    const raw = source.ready
    const isRaw = rung === 0 // all is alike
    const { weight, random } = isRaw ? RANDOM : content(over / bytes, over)
    over += raw
    link.advance(((weight * raw) / (machine.own[rung]! * 1e3)) * wavering())
    packerFreeMs = Math.max(packerFreeMs, link.nowMs) + ((weight * raw) / (machine.pack[rung]! * 1e3)) * wavering()
    packing.push({
      flow,
      effort: RUNGS[rung]!,
      doneMs: packerFreeMs,
      raw,
      fresh: raw * Math.max(0, (weight - 0.15) / 0.85),
      packed: weight * raw * (random ? 1 : machine.share[rung]! * wavering()),
    })
    source.ready = 0
    pump.encoded(channel, raw)
    fill(flow)
  }
  while (packing.length > 0 || !link.isEmpty || flows.some(({ source }) => source.left + source.ready > 0)) {
    link.advance(stepMs)
    while (packing[0] && packing[0].doneMs <= link.nowMs) {
      const { flow, effort, raw, packed, fresh } = packing.shift()!
      link.add(raw, packed)
      pump.packed(flow.channel, raw, packed, fresh, effort)
    }
    pump.nextTurn()
    for (const flow of flows) fill(flow)
    for (let job = pump.next(link.nowMs); job; job = pump.next(link.nowMs)) {
      encode(flows[job.channel.number - 1]!, RUNGS.indexOf(job.effort))
    }
  }
  return Math.max(link.nowMs, link.takenMs) / 1000
}

interface Flow {
  readonly source: Source
  readonly channel: PumpedChannel
}
