/** Runs a parser over bytes cut anywhere, writes its events as lines, and checks what holds for every stream. */
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import type { ReturnPathSink } from '../../src/qemu/return-path.ts'
import type { StreamPhase, StreamSink } from '../../src/qemu/stream-sink.ts'

const hex = (offset: number) => `0x${offset.toString(16)}`
/** Longest record of which a caller may have to keep all but the last byte: word, idstr, page. */
const RECORD_LENGTH_MAX = 8 + 1 + 255 + 4096

function fail(message: string): never {
  throw new Error(message)
}

/** Writes events as lines, and throws where one breaks what stream-sink.ts promises. */
export class TraceSink implements StreamSink, ReturnPathSink {
  readonly lines: string[] = []
  /** The input, where record bytes are to be compared with what the event says. */
  private readonly input: Uint8Array | undefined
  private readonly idstrs: string[] = []
  private readonly lengths: number[] = []
  private readonly phases = new Set<string>()
  private lastEnd = 0
  private degradedSeen = false
  /** Where the caller's memory starts, were it to keep only what `pending` said. */
  keptFrom = 0
  /** Bytes pushed so far, the chunk under way included. */
  pushedTo = 0

  constructor(input?: Uint8Array) {
    this.input = input
  }

  block(block: number, idstr: string, lengthBytes: number): void {
    this.idstrs[block] === undefined || fail(`block ${block} told twice`)
    this.idstrs[block] = idstr
    this.lengths[block] = lengthBytes
    this.lines.push(`block ${block} ${idstr} ${lengthBytes}`)
  }

  zeroRecord(start: number, end: number, block: number, offset: number, named: boolean): void {
    this.span(start, end)
    this.page(block, offset)
    const length = named ? 10 + this.idstrs[block]!.length : 9
    end - start === length || fail(`ZERO record of ${end - start} bytes`)
    if (this.input) {
      const record = new StreamEmitter().zero(offset, named ? this.idstrs[block]! : undefined).bytes()
      Buffer.compare(record, this.input.subarray(start, end)) === 0 || fail(`ZERO at ${start} is another`)
    }
    this.lines.push(`zero ${start}-${end} ${block} ${hex(offset)}${named ? ' named' : ''}`)
  }

  pageRecord(start: number, end: number, block: number, offset: number, named: boolean): void {
    this.span(start, end)
    this.page(block, offset)
    if (this.input) {
      const body = this.input.subarray(end - 4096, end)
      const record = new StreamEmitter().page(offset, body, named ? this.idstrs[block]! : undefined).bytes()
      Buffer.compare(record, this.input.subarray(start, end)) === 0 || fail(`PAGE at ${start} is another`)
    }
    this.lines.push(`page ${start}-${end} ${block} ${hex(offset)}${named ? ' named' : ''}`)
  }

  opaquePage(block: number, offset: number): void {
    this.page(block, offset)
    this.lines.push(`opaque ${block} ${hex(offset)}`)
  }

  phase(phase: StreamPhase, position: number): void {
    this.phases.has(phase) && fail(`phase ${phase} told twice`)
    this.phases.add(phase)
    this.lines.push(`phase ${phase} ${position}`)
  }

  strayed(position: number, reason: string): void {
    this.degradedSeen && fail('strayed behind degraded')
    ;(position >= this.lastEnd && position <= this.pushedTo) || fail(`strayed at ${position} of ${this.pushedTo}`)
    this.lines.push(`strayed ${position} ${reason}`)
  }

  degraded(position: number, reason: string): void {
    this.degradedSeen && fail('degraded twice')
    ;(position >= this.lastEnd && position <= this.pushedTo) || fail(`degraded at ${position} of ${this.pushedTo}`)
    this.degradedSeen = true
    this.lines.push(`degraded ${position} ${reason}`)
  }

  hello(channel: number, end: number): void {
    this.span(0, end)
    this.lines.push(`hello ${channel} ${end}`)
  }

  packet(start: number, headerEnd: number, normalPages: number, zeroPages: number, flags: number, block: number): void {
    this.span(start, headerEnd)
    this.lines.push(`packet ${start}-${headerEnd} n=${normalPages} z=${zeroPages} flags=${hex(flags)} ${block}`)
  }

  zeroPage(block: number, offset: number): void {
    this.page(block, offset)
    this.lines.push(`zero page ${block} ${hex(offset)}`)
  }

  pageBody(start: number, end: number, block: number, offset: number): void {
    this.span(start, end)
    this.page(block, offset)
    this.lines.push(`page ${start}-${end} ${block} ${hex(offset)}`)
  }

  compressed(method: string, position: number): void {
    this.lines.push(`compressed ${method} ${position}`)
  }

  shut(status: number, start: number, end: number): void {
    this.message1(`shut ${status}`, start, end)
  }

  pong(value: number, start: number, end: number): void {
    this.message1(`pong ${value}`, start, end)
  }

  requestPages(idstr: string, offset: number, lengthBytes: number, start: number, end: number): void {
    this.message1(`request ${idstr} ${hex(offset)} ${lengthBytes}`, start, end)
  }

  message(type: number, start: number, end: number): void {
    this.message1(`message ${type}`, start, end)
  }

  /** Return path messages are told, not kept. */
  private message1(what: string, start: number, end: number): void {
    ;(start >= this.lastEnd && end <= this.pushedTo) || fail(`message ${start}-${end}`)
    this.lastEnd = end
    this.lines.push(`${what} ${start}-${end}`)
  }

  private span(start: number, end: number): void {
    this.degradedSeen && fail('an event behind degraded')
    ;(start >= this.lastEnd && end > start) || fail(`${start}-${end} overlaps ${this.lastEnd}`)
    end <= this.pushedTo || fail(`${start}-${end} before its bytes came`)
    start >= this.keptFrom || fail(`${start}-${end} starts before what pending kept, ${this.keptFrom}`)
    this.lastEnd = end
  }

  private page(block: number, offset: number): void {
    this.degradedSeen && fail('an event behind degraded')
    this.idstrs[block] !== undefined || fail(`block ${block} was never told`)
    ;(Number.isSafeInteger(offset) && offset >= 0 && offset % 4096 === 0) || fail(`offset ${offset}`)
    this.lengths[block] === 0 || offset < this.lengths[block]! || fail(`offset ${offset} beyond its RAMBlock`)
  }
}

/** What all parsers have in common. */
export interface AnyParser {
  readonly position: number
  readonly pending?: number
  readonly raw: boolean
  push(chunk: Uint8Array, at: number, length: number): void
}

/**
 * Pushes `input` cut at these positions and returns the trace. Chunks are overwritten after each push, and lie at
 * changing places in memory, so that a parser which keeps a reference is found.
 *
 * @param compare compare the bytes of records with what their events say; off for long inputs
 */
export function traceOf(
  input: Uint8Array,
  cuts: readonly number[],
  make: (sink: TraceSink) => AnyParser,
  compare = false,
): string[] {
  const sink = new TraceSink(compare ? input : undefined)
  const parser = make(sink)
  let at = 0
  for (const cut of [...cuts, input.length]) {
    const front = at % 3
    const chunk = new Uint8Array(front + cut - at + 2).fill(0xee)
    chunk.set(input.subarray(at, cut), front)
    sink.keptFrom = at - (parser.pending ?? 0)
    sink.pushedTo = cut
    parser.push(chunk, front, cut - at)
    chunk.fill(0xdd)
    at = cut
    const pending = parser.pending ?? 0
    parser.position === at || fail(`position ${parser.position} after ${at} bytes`)
    ;(pending >= 0 && pending <= at && pending < RECORD_LENGTH_MAX) || fail(`${pending} bytes pending at ${at}`)
    parser.raw && pending > 0 && fail(`${pending} bytes pending in a raw stretch`)
  }
  return sink.lines
}

/** Cuts before every byte. */
export function everyByte(input: Uint8Array): number[] {
  return Array.from({ length: Math.max(0, input.length - 1) }, (_, i) => i + 1)
}

/** Positions at which a cut changes the trace; 'bytes' where bytes one by one do. */
export function cutsThatDiffer(
  input: Uint8Array,
  expected: readonly string[],
  make: (sink: TraceSink) => AnyParser,
): (number | 'bytes')[] {
  const wanted = expected.join('\n')
  const differs: (number | 'bytes')[] = []
  for (const cut of everyByte(input)) if (traceOf(input, [cut], make).join('\n') !== wanted) differs.push(cut)
  if (traceOf(input, everyByte(input), make).join('\n') !== wanted) differs.push('bytes')
  return differs
}
