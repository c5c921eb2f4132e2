/**
 * How far a disk's clients are with what they write: from the places of their requests alone, some numbers a connection.
 * Which blocks of an export have been written at all nobody counts. Pure: times come in.
 *
 * A mirror, and whoever copies, goes through the disk from its first block to its last, some requests at once and not in
 * their exact order; then QEMU begins anew with what its guest wrote meanwhile. So where the last requests of a connection
 * go up, the place in their middle says how far its pass is. What a guest writes in between (`write-blocking`) lies
 * anywhere, and moves that middle by little as long as it is less than half of the requests.
 */
import { EXPORT_TOLD_LENGTH_MAX, EXPORTS_TOLD_MAX } from '../limits.ts'

/** Requests that are looked at for whether they go up: QEMU's mirror has 16 under way, nbdcopy 64 on four connections. */
const LOOKED = 64
/** Each is compared with the one so many before it ... */
const APART = LOOKED / 2
/**
 * ... and so many of these have to lie higher before they are in order: where places are random, 16 do, and so many once in
 * some 4,000 looks. And so many as long as they are: a guest's writes are in between.
 */
const HIGHER_FIRST = 26
const HIGHER_LATER = 21
/** The middle of so many is the place. */
const LAST = 16
/** So many requests come between two looks. */
const EVERY = 8
/** Of less of a disk nothing is said of the rest of it. */
const SHARE_MIN = 0.02

export interface ExportStatus {
  /** As its client asked for it. */
  readonly name: string
  readonly bytes: number
  /** Of requests to write, to zero and to trim: what was written twice counts twice. */
  readonly bytesWritten: number
  /** From 1; left out with `share`: its requests do not go up in order, or are too few. */
  readonly pass?: number
  /** Of that pass, 0 to 1: what lies before the place where its client is, written or passed over. */
  readonly share?: number
  /** To the end of the pass, as fast as it went so far. */
  readonly passSeconds?: number
}

/** The places of one connection's requests. */
export class WriteOrder {
  /** From 1. */
  pass = 1
  /** undefined: its requests are not in order just now. */
  place: number | undefined
  /** When this pass was first seen, and where it was then. */
  sinceMs: number | undefined
  sincePlace = 0
  private count = 0
  /** Where the last requests end, in a ring. */
  private readonly ends = new Float64Array(LOOKED)
  private readonly last = new Float64Array(LAST)
  private placeBefore = 0
  private timedPass = 0

  /** Enough has come for a place to be known. */
  get isKnown(): boolean {
    return this.count >= LOOKED
  }

  /** A request that ends there. */
  wrote(end: number): void {
    this.ends[this.count % LOOKED] = end
    this.count++
    if (this.count >= LOOKED && this.count % EVERY === 0) this.look()
  }

  /** What came so far had come by now. */
  seen(nowMs: number): void {
    if (this.place === undefined || this.timedPass === this.pass) return
    this.timedPass = this.pass
    this.sinceMs = nowMs
    this.sincePlace = this.place
  }

  private look(): void {
    const { count, ends, last } = this
    let higher = 0
    for (let i = count - APART; i < count; i++) if (ends[i % LOOKED]! > ends[(i - APART) % LOOKED]!) higher++
    const wasKnown = this.place !== undefined
    if (higher < (wasKnown ? HIGHER_LATER : HIGHER_FIRST)) {
      this.place = undefined
      return
    }
    for (let i = 0; i < LAST; i++) last[i] = ends[(count - LAST + i) % LOOKED]!
    last.sort()
    this.place = last[LAST / 2]!
    // a new pass is seen when the last one has left the ring: meanwhile they are not in order
    if (!wasKnown && this.place < this.placeBefore) this.pass++
    this.placeBefore = this.place
  }
}

/** One export, over all of the connections of a disk transfer. */
class ExportProgress {
  readonly orders = new Set<WriteOrder>()
  bytesWritten = 0
  private readonly name: string
  private readonly bytes: number

  constructor(name: string, bytes: number) {
    this.name = name
    this.bytes = bytes
  }

  status(nowMs: number): ExportStatus {
    const { name, bytes, bytesWritten } = this
    return { name, bytes, bytesWritten, ...this.passStatus(nowMs) }
  }

  /** That of the connection that is least far: several of one client share the disk among them. */
  private passStatus(nowMs: number): Pick<ExportStatus, 'pass' | 'share' | 'passSeconds'> {
    let least: WriteOrder | undefined
    for (const order of this.orders) {
      if (!order.isKnown) continue // one that asks for little says nothing of the others
      if (order.place === undefined) return {}
      const isLess = !least || order.pass < least.pass || (order.pass === least.pass && order.place < least.place!)
      if (isLess) least = order
    }
    if (!least || this.bytes === 0) return {}
    const { pass, sinceMs, sincePlace } = least
    const place = Math.min(least.place!, this.bytes)
    const share = Math.floor((10_000 * place) / this.bytes) / 10_000
    const went = place - sincePlace
    if (sinceMs === undefined || went < SHARE_MIN * this.bytes) return { pass, share }
    const left = ((nowMs - sinceMs) / 1000) * ((this.bytes - place) / went)
    return { pass, share, passSeconds: Math.round(left * 10) / 10 }
  }
}

/** @typeParam C - a connection */
export class DiskProgress<C extends object> {
  private readonly exports = new Map<string, ExportProgress>()
  private readonly connections = new Map<C, { readonly of: ExportProgress; readonly order: WriteOrder }>()

  /** A connection has got an export. @returns its name, where that is to be told: each once, as far as there is room */
  exported(connection: C, name: string, bytes: number): string | undefined {
    const told = name.slice(0, EXPORT_TOLD_LENGTH_MAX)
    let of = this.exports.get(told)
    const isNew = of === undefined
    if (!of) {
      if (this.exports.size >= EXPORTS_TOLD_MAX) return undefined
      of = new ExportProgress(told, bytes)
      this.exports.set(told, of)
    }
    const order = new WriteOrder()
    of.orders.add(order)
    this.connections.set(connection, { of, order })
    return isNew ? told : undefined
  }

  /** It is asked to change so much from `offset` on. */
  wrote(connection: C, offset: number, lengthBytes: number): void {
    const known = this.connections.get(connection)
    if (!known) return
    known.of.bytesWritten += lengthBytes
    known.order.wrote(offset + lengthBytes)
  }

  /** What came of it so far had come by now. */
  seen(connection: C, nowMs: number): void {
    this.connections.get(connection)?.order.seen(nowMs)
  }

  /** It has ended, or is not understood any more. */
  forget(connection: C): void {
    const known = this.connections.get(connection)
    known?.of.orders.delete(known.order)
    this.connections.delete(connection)
  }

  get names(): string[] {
    return [...this.exports.keys()]
  }

  status(nowMs: number): ExportStatus[] {
    return Array.from(this.exports.values(), one => one.status(nowMs))
  }
}
