/** Reads a file that holds what the WAN would carry (docs/protocol.md, section 8): the channel's bytes come out. */
import { copyOf } from '../bytes/copy.ts'
import { FlowExpander } from '../codec/flow-expander.ts'
import { PoolRegions } from '../codec/places.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { BATCH_RAW_BYTES_MAX, BATCH_WIRE_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, UNPACK_SLOTS } from '../limits.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { Inbound, type InboundChannel } from '../transfer/inbound.ts'
import { type OpenPool, openPool, type PoolRequest } from '../transfer/pool.ts'
import { type Frame, FrameDecoder } from '../wan/frames.ts'
import { clientHelloOf, HelloDecoder, seedWords } from '../wan/hello.ts'
import { FEATURE, FEATURES, FLAG_MORE, FRAME, FRAME_OPTIONAL, HELLO_HEAD_BYTES } from '../wan/wire.ts'
import { FILE_FLOW, FILE_MIGRATION } from './encoded-file.ts'

export interface DecodeOptions {
  readonly store: TemplateStore | undefined
  /** Name of the input, for errors. */
  readonly name: string
  /** Threads that unpack, this one counted. Default: this one alone. */
  readonly threads?: number
  readonly progress?: (bytes: number) => void
  readonly signal?: AbortSignal
}

/**
 * Decodes a file that `encodeStream` made. `write` takes the channel's bytes in order, and more of them before it has
 * written; a view is valid until its promise settles. Chunks of the input may be used again once the next one is asked for.
 * @throws BATCH_TRUNCATED, BATCH_FORMAT, BATCH_CHECKSUM, PROTOCOL_*, TEMPLATE_MISSING (a set is not in the store), IO
 */
export async function decodeStream(
  input: AsyncIterable<Uint8Array>,
  write: (bytes: Uint8Array) => Promise<void> | void,
  options: DecodeOptions,
): Promise<{ bytes: number }> {
  const reader = new EncodedFileReader(write, options)
  try {
    for await (const chunk of input) {
      options.signal?.throwIfAborted()
      await reader.push(chunk)
      options.progress?.(reader.position)
    }
    await reader.end()
    return { bytes: reader.bytesOut }
  } finally {
    await reader.close()
  }
}

/** How far a file is: what of it has come. */
export type FilePlace = 'start' | 'open' | 'within a batch' | 'closed' | 'ended'
/** Frames as their order goes: a batch is PARTs and its LAST. */
export type FilePiece = 'OPEN' | 'PART' | 'LAST' | 'FIN' | 'BYE'

interface Misplaced {
  readonly what: string
  readonly code: 'PROTOCOL_SYNTAX' | 'BATCH_TRUNCATED'
}
const misplaced = (what: string): Misplaced => ({ what, code: 'PROTOCOL_SYNTAX' })
/** A BYE before FIN: whoever encoded ended for another reason than the input's end. */
const GAVE_UP: Misplaced = { what: 'the encoder gave up', code: 'BATCH_TRUNCATED' }
const BEHIND_FIN = misplaced('a frame behind FIN')
const BEHIND_END = misplaced('a frame behind the end')

/** What may follow what: the place behind a frame, or what is wrong with it there. */
export const FILE_ORDER: Readonly<Record<FilePlace, Readonly<Record<FilePiece, FilePlace | Misplaced>>>> = {
  start: {
    OPEN: 'open',
    PART: misplaced('a batch before its flow'),
    LAST: misplaced('a batch before its flow'),
    FIN: misplaced('FIN before its flow'),
    BYE: GAVE_UP,
  },
  open: {
    OPEN: misplaced('a second flow'),
    PART: 'within a batch',
    LAST: 'open',
    FIN: 'closed',
    BYE: GAVE_UP,
  },
  'within a batch': {
    OPEN: misplaced('a second flow'),
    PART: 'within a batch',
    LAST: 'open',
    FIN: misplaced('FIN within a batch'),
    BYE: GAVE_UP,
  },
  closed: { OPEN: BEHIND_FIN, PART: BEHIND_FIN, LAST: BEHIND_FIN, FIN: BEHIND_FIN, BYE: 'ended' },
  ended: { OPEN: BEHIND_END, PART: BEHIND_END, LAST: BEHIND_END, FIN: BEHIND_END, BYE: BEHIND_END },
}

/** Threads that one file has work for: this one, one that unpacks, one that commits memory. */
const THREADS_MAX = 3
/** Bytes that may wait to be written while what is behind them is expanded: who has more waits until half of it is. */
const UNWRITTEN_MAX = 4 << 20
/**
 * Bytes of the file that are expanded before it is looked whether too much is unwritten. They give some four batches: with
 * what is unwritten and what threads unpack meanwhile no more than OUTPUT_SLOTS. Batches beyond that are copied, into memory
 * that is mapped and given back each time, which costs more than all else.
 */
const PIECE_BYTES = 256 << 10
/** Expanded batches that `write` has, before they are copied: all that may wait, and as many that are expanded meanwhile. */
const OUTPUT_SLOTS = 16

/** What of the ring is made ready until threads have started: 50 ms in which there is nothing else to do. */
const COMMIT_AHEAD_BYTES = 64 << 20

const WHOLE_FILE = 'give a file that `pageferry encode` made, whole'

class EncodedFileReader {
  /** Bytes of the file taken so far. */
  position = 0
  /** Bytes of the channel handed out so far. */
  bytesOut = 0
  private readonly write: (bytes: Uint8Array) => Promise<void> | void
  private readonly options: DecodeOptions
  private readonly hello = new HelloDecoder()
  private readonly frames = new FrameDecoder(frame => this.take(frame))
  private helloBytes = 0
  private place: FilePlace = 'start'
  /** Sequence number of the frame before. */
  private sequence = 0
  private readonly threads: number
  private pool: OpenPool | undefined
  private inbound: Inbound | undefined
  private flow: InboundChannel | undefined
  /** Parts of the batch under way. */
  private parts: Uint8Array[] = []
  private partBytes = 0
  private failure: ProxyError | undefined
  private writing: Promise<void> = Promise.resolve()
  private unwritten = 0
  private hasDrained: () => void = () => {}

  constructor(write: (bytes: Uint8Array) => Promise<void> | void, options: DecodeOptions) {
    this.write = write
    this.options = options
    this.threads = Math.min(options.threads ?? 1, THREADS_MAX)
  }

  /** Takes the next bytes; settles when they are needed no more, and little of what they gave is still to be written. */
  async push(chunk: Uint8Array): Promise<void> {
    try {
      const frames = this.inbound === undefined ? await this.takeHello(chunk) : chunk
      for (let at = 0; frames !== undefined && at < frames.length; at += PIECE_BYTES) {
        await this.inOrder(() => this.frames.push(frames.subarray(at, at + PIECE_BYTES)))
        await this.inbound?.taken()
        if (this.unwritten > UNWRITTEN_MAX) await this.drained()
        if (this.failure) throw this.failure
      }
      this.position += chunk.length
    } catch (error) {
      throw inFile(error, this.options.name, this.helloBytes)
    }
    // The chunk is lent.
    this.parts = this.parts.map(copyOf)
  }

  /** The file ended: settles when all is written. @throws as `decodeStream` */
  async end(): Promise<void> {
    try {
      await this.inOrder(() => this.checkEnd())
      await this.settled()
    } catch (error) {
      throw inFile(error, this.options.name, this.helloBytes)
    }
  }

  /** What is wrong with a batch comes before what is wrong behind it. */
  private async inOrder(take: () => void): Promise<void> {
    try {
      take()
    } catch (error) {
      await this.settled()
      throw error
    }
  }

  /** All that came is expanded and written. @throws what was wrong with it */
  private async settled(): Promise<void> {
    await this.inbound?.idle()
    await this.writing
    if (this.failure) throw this.failure
  }

  private checkEnd(): void {
    if (this.place !== 'ended') {
      throw this.error(this.position === 0 ? 'the file is empty' : 'the file ends early', 'BATCH_TRUNCATED')
    }
    if (!this.frames.atBoundary) throw this.error('bytes behind the end')
  }

  async close(): Promise<void> {
    this.inbound?.close()
    await this.pool?.close()
  }

  /** @returns what follows the hello, undefined as long as that is not complete */
  private async takeHello(chunk: Uint8Array): Promise<Uint8Array | undefined> {
    const got = this.hello.push(chunk)
    if (got === null) return undefined
    this.helloBytes = this.position + chunk.length - got.rest.length
    const terms = clientHelloOf(got.body)
    const unknown = terms.features?.find(name => !FEATURES.includes(name))
    if (unknown !== undefined) throw this.error(`the file needs ${unknown}`, 'PROTOCOL_VERSION')
    const request: PoolRequest = {
      role: 'decoder',
      sets: terms.sets,
      cold: terms.cold,
      store: requireStore([...terms.sets, ...(terms.cold ?? [])], this.options.store),
      ringPages: terms.ring,
      places: terms.places,
      workspaces: 1,
      slots: OUTPUT_SLOTS,
      slotBytes: BATCH_RAW_BYTES_MAX,
      longMatch: false,
      tablesInAdvance: true,
      threads: this.threads,
      ...(this.threads > 1 && { ahead: UNPACK_SLOTS, commitAheadBytes: COMMIT_AHEAD_BYTES }),
    }
    this.pool = await openPool(request)
    this.inbound = new Inbound(this.pool, seedWords(Buffer.from(terms.seed, 'hex')), error => {
      this.failure = error
    })
    this.inbound.disks = terms.features?.includes(FEATURE.DISKS) === true
    return got.rest
  }

  private take(frame: Frame): void {
    if (this.place === 'ended') throw this.error(BEHIND_END.what)
    const optional = frame.type >= FRAME_OPTIONAL
    if (frame.type < FRAME.ACK || (optional && frame.sequence > 0)) {
      this.sequence++
      if (frame.sequence !== this.sequence) {
        throw this.error(`frame ${frame.sequence} where ${this.sequence} was due`)
      }
    }
    if (optional) return // of a later version, which keeps its place and does nothing
    if (frame.type < FRAME.ACK && frame.flow !== FILE_FLOW) throw this.error(`a frame of flow ${frame.flow}`)
    const next = FILE_ORDER[this.place][this.pieceOf(frame)]
    if (typeof next !== 'string') throw this.error(next.what, next.code)
    this.place = next
    if (frame.type === FRAME.OPEN) this.takeOpen(frame.payload)
    else if (frame.type === FRAME.BATCH) this.takeBatch(frame.payload, next === 'within a batch')
    else if (frame.type === FRAME.BYE && (frame.payload[0] !== 0 || frame.payload[1] !== 0)) {
      throw this.error(GAVE_UP.what, GAVE_UP.code)
    }
  }

  private pieceOf({ type, flags }: Frame): FilePiece {
    switch (type) {
      case FRAME.OPEN:
        return 'OPEN'
      case FRAME.BATCH:
        return (flags & FLAG_MORE) === 0 ? 'LAST' : 'PART'
      case FRAME.FIN:
        return 'FIN'
      case FRAME.BYE:
        return 'BYE'
      default:
        throw this.error(`frame type ${type}, which a file does not hold`)
    }
  }

  private takeOpen(payload: Uint8Array): void {
    if (migrationOf(payload) !== FILE_MIGRATION) throw this.error('an OPEN that encode does not write')
    this.flow = {
      expander: new FlowExpander(FILE_MIGRATION, PoolRegions.of(this.inbound!.pool.kernel.layout)),
      expanded: (bytes, release) => {
        this.bytesOut += bytes.length
        this.unwritten += bytes.length
        const written = this.writeOut(bytes, release)
        this.writing = this.writing.then(() => written)
        for (const promise of [written, this.writing]) promise.catch(() => {}) // who waits for all of it is told
      },
    }
  }

  private async writeOut(bytes: Uint8Array, release: () => void): Promise<void> {
    await this.write(bytes)
    this.unwritten -= bytes.length
    release()
    if (this.unwritten <= UNWRITTEN_MAX / 2) this.hasDrained()
  }

  /** Settles when little waits to be written. @throws what went wrong as it was written */
  private drained(): Promise<void> {
    const little = new Promise<void>(done => {
      this.hasDrained = done
    })
    return Promise.race([little, this.writing])
  }

  private takeBatch(payload: Uint8Array, more: boolean): void {
    this.parts.push(payload)
    this.partBytes += payload.length
    if (this.partBytes > BATCH_WIRE_BYTES_MAX) throw this.error('a batch that is too long', 'BATCH_FORMAT')
    if (more) {
      if (payload.length !== FRAME_PAYLOAD_BYTES_MAX) throw this.error('a part of a batch that is too short')
      return
    }
    this.inbound!.push(this.flow!, this.parts)
    this.parts = []
    this.partBytes = 0
  }

  private error(
    what: string,
    code: 'PROTOCOL_SYNTAX' | 'PROTOCOL_VERSION' | 'BATCH_TRUNCATED' | 'BATCH_FORMAT' = 'PROTOCOL_SYNTAX',
  ): ProxyError {
    return new ProxyError(code, what, { stream: this.options.name, offset: this.position }, WHOLE_FILE)
  }
}

/** The migration that an OPEN names; undefined where it is no such thing. */
function migrationOf(payload: Uint8Array): unknown {
  try {
    return (JSON.parse(Buffer.from(payload).toString()) as { migration?: unknown } | null)?.migration
  } catch {
    return undefined
  }
}

/** Errors of hello, frames and batches speak of peers and connections: the same of a file. */
function inFile(error: unknown, name: string, helloBytes: number): unknown {
  if (!isProxyError(error) || error.where === undefined) return error
  const { code, what, where } = error
  const { offset: at = 0 } = where
  const again = (text: string, offset: number, action: string): ProxyError =>
    new ProxyError(code, text, { stream: name, offset }, action, { cause: error })
  if (where.stream === 'hello') {
    if (code === 'PROTOCOL_VERSION') {
      const text = 'the file is of another version of the protocol'
      return again(text, at, 'decode it with the Pageferry that made it')
    }
    return again(at < HELLO_HEAD_BYTES ? 'not an encoded file' : what, at, WHOLE_FILE)
  }
  if (where.stream === 'connection') return again(what, helloBytes + at, WHOLE_FILE)
  if (code !== 'BATCH_FORMAT' && code !== 'BATCH_CHECKSUM') return error
  const action = 'the file is damaged, or another version made it: encode again'
  return new ProxyError(code, what, where, action, { cause: error })
}

function requireStore(sets: readonly string[], store: TemplateStore | undefined): TemplateStore | undefined {
  if (sets.length > 0 && store === undefined) {
    const what = `${sets.length} template set${sets.length > 1 ? 's are' : ' is'} needed`
    const action = `give --store with ${sets.map(digest => digest.slice(0, 12)).join(', ')}`
    throw new ProxyError('TEMPLATE_MISSING', what, undefined, action)
  }
  return store
}
