/**
 * The memory of an ELF core of a guest (QEMU's `dump-guest-memory`, `virsh dump --memory-only`): its PT_LOAD segments, in
 * the order of the file. 32 and 64 bits, either byte order. Source: System V ABI; QEMU dump/dump.c.
 */
import { PAGE_SIZE } from '../bytes/page-size.ts'
import { ProxyError } from '../errors.ts'
import { CORE_SEGMENTS_MAX, CORE_TABLE_AT_MAX } from './limits.ts'

/** Takes a guest's memory: runs of it that begin at a page each. */
export interface MemorySink {
  /** The bytes that come now begin a page: what is left of the page before is none. */
  beginRun(): void
  /** The next bytes of the run, until return. */
  memory(chunk: Buffer, at: number, length: number): void
}

const IDENT = { CLASS: 4, DATA: 5 } as const
const CLASS_64 = 2
const LITTLE_ENDIAN = 1
const TYPE_AT = 16
const TYPE_CORE = 4
const SEGMENT_LOAD = 1
/** Where fields stand, in files of 64 and of 32 bits. */
const LAYOUT = {
  wide: { header: 64, tableAt: 32, entryLength: 54, count: 56, entry: 56, offset: 8, address: 24, length: 32 },
  narrow: { header: 52, tableAt: 28, entryLength: 42, count: 44, entry: 32, offset: 4, address: 12, length: 16 },
} as const
/** The count of segments where there are more than the field holds. */
const COUNT_ELSEWHERE = 0xffff

/** True where the head is that of a core, not of a program. */
export function isElfCore(head: Uint8Array): boolean {
  if (head.length < TYPE_AT + 2 || head[0] !== 0x7f || Buffer.from(head.subarray(1, 4)).toString() !== 'ELF')
    return false
  const little = head[IDENT.DATA] === LITTLE_ENDIAN
  return head[little ? TYPE_AT : TYPE_AT + 1] === TYPE_CORE && head[little ? TYPE_AT + 1 : TYPE_AT] === 0
}

interface Segment {
  readonly from: number
  readonly to: number
}

/** Takes a core's bytes, cut anywhere. */
export class ElfCoreReader {
  private readonly name: string
  private readonly sink: MemorySink
  /** Header and table of segments, as long as they are not there. */
  private head: Buffer | undefined = Buffer.alloc(0)
  private segments: Segment[] = []
  private position = 0

  /** @param name what errors call the file */
  constructor(name: string, sink: MemorySink) {
    this.name = name
    this.sink = sink
  }

  /** @throws CAPTURE_FORMAT */
  push(chunk: Buffer): void {
    if (this.head === undefined) {
      this.take(chunk)
      return
    }
    this.head = Buffer.concat([this.head, chunk])
    const segments = this.readTable(this.head)
    if (segments === undefined) return
    this.segments = segments
    const { head } = this
    this.head = undefined
    this.take(head)
  }

  /** @throws QEMU_TRUNCATED */
  end(): void {
    if (this.head === undefined && this.segments.length === 0) return
    const where = { stream: this.name, offset: this.position }
    throw new ProxyError('QEMU_TRUNCATED', 'the core ends early', where, 'give a whole one')
  }

  private take(chunk: Buffer): void {
    const end = this.position + chunk.length
    for (let [segment] = this.segments; segment !== undefined && segment.from < end; [segment] = this.segments) {
      if (segment.from >= this.position) this.sink.beginRun()
      const from = Math.max(segment.from, this.position)
      const to = Math.min(segment.to, end)
      this.sink.memory(chunk, from - this.position, to - from)
      if (to < segment.to) break
      this.segments.shift()
    }
    this.position = end
  }

  /** @returns undefined where not all of it is there */
  private readTable(head: Buffer): Segment[] | undefined {
    const wide = head[IDENT.CLASS] === CLASS_64
    const little = head[IDENT.DATA] === LITTLE_ENDIAN
    const layout = wide ? LAYOUT.wide : LAYOUT.narrow
    if (head.length < layout.header) return undefined
    const u16 = (at: number): number => (little ? head.readUInt16LE(at) : head.readUInt16BE(at))
    const u32 = (at: number): number => (little ? head.readUInt32LE(at) : head.readUInt32BE(at))
    const word = (at: number): number => {
      if (!wide) return u32(at)
      return Number(little ? head.readBigUInt64LE(at) : head.readBigUInt64BE(at))
    }
    const tableAt = word(layout.tableAt)
    const entryLength = u16(layout.entryLength)
    const count = u16(layout.count)
    if (count === COUNT_ELSEWHERE || count > CORE_SEGMENTS_MAX) throw this.bad('too many segments', layout.count)
    if (entryLength < layout.entry || tableAt < layout.header || tableAt > CORE_TABLE_AT_MAX) {
      throw this.bad('no table of segments where it should be', layout.tableAt)
    }
    if (head.length < tableAt + count * entryLength) return undefined
    const segments: Segment[] = []
    for (let at = tableAt; at < tableAt + count * entryLength; at += entryLength) {
      if (u32(at) !== SEGMENT_LOAD) continue
      const from = word(at + layout.offset)
      const to = from + word(at + layout.length)
      const early = word(at + layout.address) % PAGE_SIZE
      if (!Number.isSafeInteger(to)) throw this.bad('a segment of impossible length', at)
      // A segment that begins within a page has no use for the rest of that page.
      const aligned = early === 0 ? from : from + PAGE_SIZE - early
      if (aligned < to) segments.push({ from: aligned, to })
    }
    segments.sort((a, b) => a.from - b.from)
    for (const [i, { from }] of segments.entries()) {
      const before = segments[i - 1]
      if (from < (before?.to ?? tableAt + count * entryLength)) throw this.bad('segments that overlap', tableAt)
    }
    return segments
  }

  private bad(what: string, offset: number): ProxyError {
    const action = 'give a core that QEMU wrote: (qemu) dump-guest-memory FILE, virsh dump --memory-only'
    return new ProxyError('CAPTURE_FORMAT', what, { stream: this.name, offset }, action)
  }
}
