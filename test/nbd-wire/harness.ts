/** Runs both parsers of a connection over a conversation cut anywhere, writes their events as lines, and checks what holds for every one. */
import { ClientParser } from '../../src/nbd/client-stream.ts'
import { Dialogue } from '../../src/nbd/dialogue.ts'
import { ServerParser } from '../../src/nbd/server-stream.ts'
import type { Direction, NbdExport, NbdRequest, NbdSink } from '../../src/nbd/sink.ts'

/** What one party says before the other one does. */
export interface Step {
  readonly from: Direction
  readonly bytes: Uint8Array
}

/** Longest head that a caller may have to keep in front of what comes next: a request's or a chunk's, in transmission. */
const PENDING_MAX = { client: 31, server: 43 }

const hex = (value: number) => `0x${value.toString(16)}`

function fail(message: string): never {
  throw new Error(message)
}

/** The 16 digits of a cookie. */
export function cookieText({ cookieHigh, cookieLow }: NbdRequest): string {
  return cookieHigh.toString(16).padStart(8, '0') + cookieLow.toString(16).padStart(8, '0')
}

/** Writes events as lines, each direction's own and all together, and throws where one breaks what sink.ts promises. */
export class TraceSink implements NbdSink {
  readonly lines: string[] = []
  readonly client: string[] = []
  readonly server: string[] = []
  private readonly lastEnd = { client: 0, server: 0 }
  private readonly raws = { client: false, server: false }
  private exported: NbdExport | undefined
  /** Cookies of requests without an answer; a Set in place of the table that is tested. */
  private readonly underWay = new Map<string, string>()
  /** Where the caller's memory starts, were it to keep only what `pending` said, and bytes pushed so far. */
  readonly keptFrom = { client: 0, server: 0 }
  readonly pushedTo = { client: 0, server: 0 }

  option(start: number, end: number, option: number): void {
    this.exported && fail('an option in transmission')
    this.span('client', start, end, false)
    this.line('client', `option ${option} ${start}-${end}`)
  }

  optionReply(start: number, end: number, option: number, type: number, final: boolean): void {
    this.exported && fail('a reply to an option in transmission')
    this.span('server', start, end, false)
    this.line('server', `answer ${option} ${hex(type)}${final ? ' final' : ''} ${start}-${end}`)
  }

  begins(exported: NbdExport): void {
    this.exported && fail('transmission begins twice')
    this.exported = exported
    const { name, sizeBytes, transmissionFlags, minimumBlockBytes, preferredBlockBytes, maximumPayloadBytes } = exported
    const kind = exported.extended ? 'extended' : exported.structured ? 'structured' : 'simple'
    const blocks = `${minimumBlockBytes}/${preferredBlockBytes}/${maximumPayloadBytes}`
    const contexts = exported.contexts.map(context => ` ${context.id}=${context.name}`).join('')
    this.line('server', `begins ${kind} '${name}' ${sizeBytes} ${hex(transmissionFlags)} ${blocks}${contexts}`)
  }

  request(start: number, headEnd: number, request: NbdRequest): void {
    this.exported || fail('a request before transmission')
    headEnd - start === (this.exported!.extended ? 32 : 28) || fail(`a request of ${headEnd - start} bytes`)
    this.span('client', start, headEnd, true)
    const cookie = cookieText(request)
    if (request.type !== 2 && !this.raws.server) {
      this.underWay.has(cookie) && fail(`cookie ${cookie} twice`)
      this.underWay.set(cookie, this.text(request))
    }
    this.line('client', `request ${cookie} ${this.text(request)} ${start}-${headEnd}`)
    this.payload('client', headEnd + request.payloadBytes)
  }

  writeData(start: number, end: number, request: NbdRequest): void {
    request.type === 1 || fail('written by no WRITE')
    end - start === request.lengthBytes || fail(`${end - start} bytes in a WRITE of ${request.lengthBytes}`)
    this.line('client', `write ${cookieText(request)} ${start}-${end} ${request.offset}`)
  }

  reply(start: number, headEnd: number, request: NbdRequest, error: number): void {
    this.answers(request, true)
    headEnd - start === 16 || fail(`a reply of ${headEnd - start} bytes`)
    this.span('server', start, headEnd, true)
    this.line('server', `reply ${cookieText(request)} ${error} ${start}-${headEnd}`)
  }

  chunk(
    start: number,
    headEnd: number,
    request: NbdRequest,
    type: number,
    payloadBytes: number,
    error: number,
    done: boolean,
  ): void {
    this.answers(request, done)
    this.span('server', start, headEnd, true)
    const rest = `${error === 0 ? '' : ` error ${error}`}${done ? ' done' : ''}`
    this.line('server', `chunk ${cookieText(request)} ${hex(type)} +${payloadBytes}${rest} ${start}-${headEnd}`)
    this.payload('server', headEnd + payloadBytes)
  }

  readData(start: number, end: number, request: NbdRequest, offset: number): void {
    this.within(request, offset, end - start)
    if (start === this.lastEnd.server) this.payload('server', end)
    end === this.lastEnd.server || fail('data that is not behind its head')
    this.line('server', `read ${cookieText(request)} ${start}-${end} ${offset}`)
  }

  readHole(request: NbdRequest, offset: number, lengthBytes: number): void {
    this.within(request, offset, lengthBytes)
    this.line('server', `hole ${cookieText(request)} ${offset} ${lengthBytes}`)
  }

  raw(direction: Direction, position: number, reason: string): void {
    this.raws[direction] && fail(`${direction} raw twice`)
    const right = position <= this.pushedTo[direction] && (position >= this.lastEnd[direction] || position === 0)
    right || fail(`raw at ${position} of ${this.pushedTo[direction]}`)
    this.line(direction, `raw ${direction} ${position} ${reason}`)
    this.raws[direction] = true
    if (direction === 'server') this.underWay.clear()
  }

  private text({ type, flags, offset, lengthBytes, payloadBytes }: NbdRequest): string {
    return `${type} flags=${hex(flags)} ${offset} ${lengthBytes}+${payloadBytes}`
  }

  /** A reply brings the request as it was told. */
  private answers(request: NbdRequest, done: boolean): void {
    const cookie = cookieText(request)
    this.underWay.get(cookie) === this.text(request) || fail(`the request of cookie ${cookie} is another`)
    if (done) this.underWay.delete(cookie)
  }

  private within(request: NbdRequest, offset: number, length: number): void {
    const end = request.offset + request.lengthBytes
    ;(request.type === 0 && offset >= request.offset && offset + length <= end) || fail('data that was not asked for')
  }

  private span(direction: Direction, start: number, end: number, kept: boolean): void {
    ;(start >= this.lastEnd[direction] && end > start) || fail(`${start}-${end} overlaps ${this.lastEnd[direction]}`)
    end <= this.pushedTo[direction] || fail(`${start}-${end} before its bytes came`)
    if (kept) start >= this.keptFrom[direction] || fail(`${start}-${end} starts before what pending kept`)
    this.lastEnd[direction] = end
  }

  /** The direction's next message comes behind this. */
  private payload(direction: Direction, end: number): void {
    Number.isSafeInteger(end) || fail(`a payload to ${end}`)
    this.lastEnd[direction] = end
  }

  private line(direction: Direction, line: string): void {
    this.raws[direction] && fail('an event behind raw')
    this.lines.push(line)
    this[direction].push(line)
  }
}

/**
 * Pushes a conversation, cut at these positions of all its bytes, and returns its trace. Chunks are overwritten after each
 * push, and lie at changing places in memory, so that a parser which keeps a reference is found.
 */
export function traceOf(steps: readonly Step[], cuts: readonly number[] = []): TraceSink {
  const sink = new TraceSink()
  const dialogue = new Dialogue()
  const parsers = { client: new ClientParser(sink, dialogue), server: new ServerParser(sink, dialogue) }
  let began = 0
  let cut = 0
  for (const { from, bytes } of steps) {
    const parser = parsers[from]
    for (let at = 0; at < bytes.length; ) {
      while (cut < cuts.length && cuts[cut]! <= began + at) cut++
      const end = cut < cuts.length ? Math.min(bytes.length, cuts[cut]! - began) : bytes.length
      const front = at % 3
      const chunk = new Uint8Array(front + end - at + 2).fill(0xee)
      chunk.set(bytes.subarray(at, end), front)
      sink.keptFrom[from] = parser.position - parser.pending
      sink.pushedTo[from] = parser.position + end - at
      parser.push(chunk, front, end - at)
      chunk.fill(0xdd)
      parser.position === sink.pushedTo[from] || fail(`position ${parser.position}, not ${sink.pushedTo[from]}`)
      if (dialogue.exported) parser.pending <= PENDING_MAX[from] || fail(`${parser.pending} bytes pending`)
      parser.raw && (parser.midMessage || parser.passable > 0) && fail('in a message, and raw')
      at = end
    }
    began += bytes.length
  }
  return sink
}

/** Bytes of a conversation, both directions together. */
export function lengthOf(steps: readonly Step[]): number {
  return steps.reduce((sum, { bytes }) => sum + bytes.length, 0)
}

/** Cuts before every byte. */
export function everyByte(steps: readonly Step[]): number[] {
  return Array.from({ length: Math.max(0, lengthOf(steps) - 1) }, (_, i) => i + 1)
}

/** Positions at which a cut changes the trace; 'bytes' where bytes one by one do. */
export function cutsThatDiffer(steps: readonly Step[], expected: readonly string[]): (number | 'bytes')[] {
  const wanted = expected.join('\n')
  const differs: (number | 'bytes')[] = []
  for (const cut of everyByte(steps)) if (traceOf(steps, [cut]).lines.join('\n') !== wanted) differs.push(cut)
  if (traceOf(steps, everyByte(steps)).lines.join('\n') !== wanted) differs.push('bytes')
  return differs
}
