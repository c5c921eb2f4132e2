/**
 * The codec without sockets: a channel's bytes to a file that holds what the WAN would carry (docs/protocol.md §8), and
 * back. `estimate` is the same without the file.
 */

import { randomBytes } from 'node:crypto'
import { rmSync, write } from 'node:fs'
import { type FileHandle, open, realpath, rename, rm, stat } from 'node:fs/promises'
import { FlowExpander } from '../codec/expander.ts'
import { FlowEncoder } from '../codec/flow-encoder.ts'
import { PoolRegions } from '../codec/places.ts'
import type { BatchStats } from '../codec/stats.ts'
import type { Effort } from '../compression/effort.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { BATCH_WIRE_BYTES_MAX, CREDIT_INITIAL_BYTES, FRAME_PAYLOAD_BYTES_MAX } from '../limits.ts'
import { CHANNEL_KIND_BYTES_MAX, channelKind } from '../qemu/channel-kind.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { encodeFrame, type Frame, FrameDecoder, writeHead } from '../wan/frames.ts'
import { clientHelloOf, encodeClientHello, HelloDecoder } from '../wan/hello.ts'
import { FLAG_MORE, FRAME, FRAME_HEAD_BYTES, FRAME_OPTIONAL, HELLO_HEAD_BYTES } from '../wan/wire.ts'
import { ChannelBuffer } from './channel-buffer.ts'
import { parserFor } from './channel-parser.ts'
import { Inbound } from './inbound.ts'
import { Outbound } from './outbound.ts'
import { openPool } from './pool.ts'

/** The one flow and migration of a file. */
const FLOW = 1
const MIGRATION = 1

/** Bytes read at once: a batch. The headroom takes the incomplete record before it. */
const READ_BYTES = 512 * 1024
const HEADROOM_BYTES = 16384

export interface EncodeOptions {
  readonly store: TemplateStore | undefined
  /** Digests of the sets to use. */
  readonly sets: readonly string[]
  readonly ringPages: number
  readonly places: number
  readonly effort: Effort
  /** Called with the bytes read so far. */
  readonly progress?: (bytes: number) => void
  readonly signal?: AbortSignal
}

export interface EncodeResult {
  readonly stats: BatchStats
  readonly fileBytes: number
  /** Where the stream was not understood, and why; raw from there. */
  readonly degraded: { readonly position: number; readonly reason: string } | undefined
}

/**
 * Encodes all bytes of `input`. `write` takes the file's bytes in order; views stay as they are.
 * @throws IO, TEMPLATE_*
 */
export async function encodeStream(
  input: AsyncIterable<Uint8Array>,
  write: (bytes: Uint8Array) => Promise<void> | void,
  options: EncodeOptions,
): Promise<EncodeResult> {
  const pool = await openPool({
    role: 'encoder',
    sets: options.sets,
    store: options.store,
    ringPages: options.ringPages,
    places: options.places,
    workspaces: 3,
    slots: 1,
    slotBytes: HEADROOM_BYTES + READ_BYTES + 65536,
    longMatch: options.effort.longMatch,
  })
  await pool.warm()
  const seed = randomBytes(8)
  let sequence = 0
  let fileBytes = 0
  const out: Uint8Array[] = []
  const frame = (type: number, flow: number, payload: Uint8Array): void => {
    out.push(encodeFrame(type, 0, flow, type < FRAME.ACK ? ++sequence : 0, payload))
  }
  const flush = async (): Promise<void> => {
    for (const piece of out.splice(0)) {
      fileBytes += piece.length
      await write(piece)
    }
  }
  out.push(
    encodeClientHello({
      agent: 'pageferry encode',
      session: randomBytes(16).toString('hex'),
      connection: 0,
      connections: 1,
      token: null,
      received: 0,
      credit: CREDIT_INITIAL_BYTES,
      sets: options.sets,
      ring: options.ringPages,
      places: options.places,
      seed: seed.toString('hex'),
    }),
  )
  frame(FRAME.OPEN, FLOW, Buffer.from(JSON.stringify({ target: 'file', migration: MIGRATION, kind: 'file' })))

  let failure: ProxyError | undefined
  const outbound = new Outbound(
    pool,
    [seed.readUInt32BE(4), seed.readUInt32BE(0)],
    (_channel, parts) => {
      sequence = frameBatch(parts, FLOW, sequence, out)
    },
    error => {
      failure = error
    },
  )
  const encoder = new FlowEncoder(MIGRATION, PoolRegions.of(pool.kernel.layout))
  let degraded: EncodeResult['degraded']
  encoder.onDegraded = (position, reason) => {
    degraded = { position, reason }
  }
  const memory = pool.kernel.bytes
  const buffer = new ChannelBuffer(memory, pool.slots[0]!, pool.slotBytes)
  /** Bytes that the next batch takes beside an incomplete record of the one before. */
  let wanted = READ_BYTES
  let classified = false
  let read = 0
  const encode = async (release: boolean): Promise<void> => {
    await outbound.room()
    if (failure) throw failure
    outbound.encode({ encoder, buffer }, options.effort, release)
    if (failure) throw failure
    await flush()
    wanted = READ_BYTES
  }
  try {
    for await (const chunk of withWholeHead(input)) {
      options.signal?.throwIfAborted()
      for (let at = 0; at < chunk.length; ) {
        const take = Math.min(chunk.length - at, wanted)
        buffer.writable(wanted, wanted)!.set(chunk.subarray(at, at + take))
        const address = buffer.filled(take)
        if (!classified) {
          classified = true
          const kind = channelKind(memory, address, take)
          encoder.parser = kind === 'multifd' || kind === 'main' ? parserFor(kind, encoder) : undefined
        }
        encoder.push(memory, address, take)
        at += take
        wanted -= take
        if (wanted === 0) await encode(false)
      }
      read += chunk.length
      options.progress?.(read)
    }
    await encode(true)
    await outbound.idle()
    if (failure) throw failure
    frame(FRAME.FIN, FLOW, new Uint8Array(0))
    frame(FRAME.BYE, 0, new Uint8Array(2))
    await flush()
  } finally {
    await outbound.close()
  }
  return { stats: encoder.stats, fileBytes, degraded }
}

/** The same bytes; the first piece has enough of them to tell what kind of channel it is, unless there are no more. */
async function* withWholeHead(input: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let head: Uint8Array | undefined = new Uint8Array(0)
  for await (const chunk of input) {
    if (head === undefined) {
      yield chunk
      continue
    }
    head = head.length === 0 ? chunk : Buffer.concat([head, chunk])
    if (head.length < CHANNEL_KIND_BYTES_MAX) continue
    yield head
    head = undefined
  }
  if (head && head.length > 0) yield head
}

/** Cuts a batch into BATCH frames. @returns the last sequence number used */
function frameBatch(parts: readonly Uint8Array[], flow: number, sequence: number, out: Uint8Array[]): number {
  let left = 0
  for (const part of parts) left += part.length
  let number = sequence
  let part = 0
  let at = 0
  while (left > 0) {
    const length = Math.min(left, FRAME_PAYLOAD_BYTES_MAX)
    left -= length
    const head = new Uint8Array(FRAME_HEAD_BYTES)
    writeHead(head, 0, FRAME.BATCH, left > 0 ? FLAG_MORE : 0, flow, ++number, length, null)
    out.push(head)
    for (let need = length; need > 0; ) {
      const piece = parts[part]!
      const take = Math.min(need, piece.length - at)
      if (take > 0) out.push(piece.subarray(at, at + take))
      need -= take
      at += take
      if (at === piece.length) {
        part++
        at = 0
      }
    }
  }
  return number
}

export interface DecodeOptions {
  readonly store: TemplateStore | undefined
  /** Name of the input, for errors. */
  readonly name: string
  readonly progress?: (bytes: number) => void
  readonly signal?: AbortSignal
}

/**
 * Decodes a file that `encodeStream` made. `write` takes the channel's bytes in order; a view is valid until its promise
 * settles.
 * @throws BATCH_TRUNCATED, BATCH_FORMAT, BATCH_CHECKSUM, PROTOCOL_*, TEMPLATE_MISSING (a set is not in the store), IO
 */
export async function decodeStream(
  input: AsyncIterable<Uint8Array>,
  write: (bytes: Uint8Array) => Promise<void>,
  options: DecodeOptions,
): Promise<{ bytes: number }> {
  const hello = new HelloDecoder()
  let offset = 0
  const syntax = (
    what: string,
    code: 'PROTOCOL_SYNTAX' | 'BATCH_TRUNCATED' | 'BATCH_FORMAT' = 'PROTOCOL_SYNTAX',
  ): ProxyError =>
    new ProxyError(code, what, { stream: options.name, offset }, 'give a file that `pageferry encode` made, whole')

  let inbound: Inbound | undefined
  let failure: ProxyError | undefined
  let flow: FlowExpander | undefined
  let helloBytes = 0
  let fin = false
  let ended = false
  let bytes = 0
  let writing: Promise<void> = Promise.resolve()
  let parts: Uint8Array[] = []
  let partBytes = 0
  let expected = 0

  const take = (frame: Frame): void => {
    if (ended) throw syntax('a frame behind the end')
    const optional = frame.type >= FRAME_OPTIONAL
    if (frame.type < FRAME.ACK || (optional && frame.sequence > 0)) {
      expected++
      if (frame.sequence !== expected) throw syntax(`frame ${frame.sequence} where ${expected} was due`)
    }
    if (optional) return // of a later version, which keeps its place and does nothing
    if (frame.type < FRAME.ACK && frame.flow !== FLOW) throw syntax(`a frame of flow ${frame.flow}`)
    if (fin && frame.type !== FRAME.BYE) throw syntax('a frame behind FIN')
    switch (frame.type) {
      case FRAME.OPEN:
        if (flow !== undefined) throw syntax('a second flow')
        if (migrationOf(frame.payload) !== MIGRATION) throw syntax('an OPEN that encode does not write')
        flow = new FlowExpander(MIGRATION, PoolRegions.of(inbound!.pool.kernel.layout))
        break
      case FRAME.BATCH:
        if (flow === undefined) throw syntax('a batch before its flow')
        parts.push(frame.payload)
        partBytes += frame.payload.length
        if (partBytes > BATCH_WIRE_BYTES_MAX) throw syntax('a batch that is too long', 'BATCH_FORMAT')
        if ((frame.flags & FLAG_MORE) !== 0) {
          if (frame.payload.length !== FRAME_PAYLOAD_BYTES_MAX) throw syntax('a part of a batch that is too short')
        } else {
          inbound!.push(flow, parts)
          parts = []
          partBytes = 0
        }
        break
      case FRAME.FIN:
        if (flow === undefined || parts.length > 0) throw syntax('FIN within a batch, or before its flow')
        fin = true
        break
      case FRAME.BYE:
        if (!fin || frame.payload[0] !== 0 || frame.payload[1] !== 0)
          throw syntax('the encoder gave up', 'BATCH_TRUNCATED')
        ended = true
        break
      default:
        throw syntax(`frame type ${frame.type}, which a file does not hold`)
    }
  }
  const frames = new FrameDecoder(take)
  try {
    for await (const chunk of input) {
      options.signal?.throwIfAborted()
      let rest: Uint8Array = chunk
      if (inbound === undefined) {
        const got = hello.push(chunk)
        if (got === null) {
          offset += chunk.length
          continue
        }
        helloBytes = offset + chunk.length - got.rest.length
        const terms = clientHelloOf(got.body)
        const pool = await openPool({
          role: 'decoder',
          sets: terms.sets,
          store: requireStore(terms.sets, options.store),
          ringPages: terms.ring,
          places: terms.places,
          workspaces: 1,
          slots: 4,
          slotBytes: 1 << 20,
          longMatch: false,
        })
        const seed = Buffer.from(terms.seed, 'hex')
        inbound = new Inbound(
          pool,
          [seed.readUInt32BE(4), seed.readUInt32BE(0)],
          (_flow, view, release) => {
            bytes += view.length
            writing = writing.then(() => write(view)).then(release)
            writing.catch(() => {})
          },
          error => {
            failure = error
          },
        )
        rest = got.rest
      }
      frames.push(rest)
      offset += chunk.length
      await inbound.idle()
      await writing
      if (failure) throw failure
      options.progress?.(offset)
    }
    if (!ended) throw syntax(offset === 0 ? 'the file is empty' : 'the file ends early', 'BATCH_TRUNCATED')
    if (!frames.atBoundary) throw syntax('bytes behind the end')
    await writing
  } catch (error) {
    throw inFile(error, options.name, helloBytes)
  } finally {
    inbound?.close()
  }
  return { bytes }
}

const WHOLE_FILE = 'give a file that `pageferry encode` made, whole'

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
  const at = (offset: number): { stream: string; offset: number } => ({ stream: name, offset })
  if (where.stream === 'hello') {
    if (code === 'PROTOCOL_VERSION') {
      const action = 'decode it with the Pageferry that made it'
      return new ProxyError(code, 'the file is of another version of the protocol', at(where.offset), action, {
        cause: error,
      })
    }
    const foreign = where.offset < HELLO_HEAD_BYTES
    return new ProxyError(code, foreign ? 'not an encoded file' : what, at(where.offset), WHOLE_FILE, { cause: error })
  }
  if (where.stream === 'connection') {
    return new ProxyError(code, what, at(helloBytes + where.offset), WHOLE_FILE, { cause: error })
  }
  if (code !== 'BATCH_FORMAT' && code !== 'BATCH_CHECKSUM') return error
  return new ProxyError(code, what, where, 'the file is damaged, or another version made it: encode again', {
    cause: error,
  })
}

function requireStore(sets: readonly string[], store: TemplateStore | undefined): TemplateStore | undefined {
  if (sets.length > 0 && store === undefined) {
    throw new ProxyError(
      'TEMPLATE_MISSING',
      `${sets.length} template set${sets.length > 1 ? 's are' : ' is'} needed`,
      undefined,
      `give --store with ${sets.map(digest => digest.slice(0, 12)).join(', ')}`,
    )
  }
  return store
}

/** Reads a file in large pieces, each in memory of its own. `-` is standard input. @throws IO */
export async function* readFile(path: string): AsyncGenerator<Uint8Array> {
  let file: FileHandle | undefined
  try {
    if (path === '-') {
      for await (const chunk of process.stdin) yield chunk as Uint8Array
      return
    }
    file = await open(path, 'r')
    while (true) {
      const chunk = Buffer.allocUnsafe(READ_BYTES)
      const { bytesRead } = await file.read(chunk, 0, chunk.length)
      if (bytesRead === 0) return
      yield chunk.subarray(0, bytesRead)
    }
  } catch (cause) {
    if (cause instanceof ProxyError) throw cause
    throw ioError('cannot read', path, cause as Error)
  } finally {
    await file?.close()
  }
}

/** A batch comes in a dozen pieces, most of them short, and each write is a trip to libuv's pool. */
const GATHER_BYTES = 256 * 1024

/** What is not finished, of all output files. */
const temporaries = new Set<string>()

/**
 * A file that appears under its name only once it is whole. `-` is standard output. What exists and is no regular file
 * (a device, a pipe) is written to as it is.
 */
export class OutputFile {
  private readonly path: string
  /** Where the bytes go until all are there; undefined: to where they belong at once. */
  private temporary: string | undefined
  private target: string
  private file: FileHandle | undefined
  /** Of a file that has no name yet: nobody waits for its pieces. */
  private readonly gathered = new Uint8Array(GATHER_BYTES)
  private gatheredBytes = 0

  constructor(path: string) {
    this.path = path
    this.target = path
  }

  /** @throws IO: no permission, full disk; EPIPE as it is: the reader of standard output has enough */
  async write(bytes: Uint8Array): Promise<void> {
    try {
      if (this.path === '-') {
        await writeStandardOutput(bytes)
        return
      }
      this.file ??= await this.open()
      if (this.gatheredBytes + bytes.length > GATHER_BYTES) await this.writeGathered(this.file)
      if (this.temporary === undefined || bytes.length > GATHER_BYTES) await writeAll(this.file, bytes)
      else {
        this.gathered.set(bytes, this.gatheredBytes)
        this.gatheredBytes += bytes.length
      }
    } catch (cause) {
      if (this.path === '-' && (cause as NodeJS.ErrnoException).code === 'EPIPE') throw cause
      throw ioError('cannot write', this.path, cause as Error)
    }
  }

  /** Removes what is not finished of all of them, at once: the process is about to end. */
  static discardAll(): void {
    for (const path of temporaries) rmSync(path, { force: true })
  }

  /** Puts the file under its name. */
  async finish(): Promise<void> {
    if (this.path === '-') return
    try {
      const file = this.file ?? (await this.open())
      await this.writeGathered(file)
      this.file = undefined
      await file.close()
      if (this.temporary === undefined) return
      await rename(this.temporary, this.target)
      temporaries.delete(this.temporary)
      this.temporary = undefined
    } catch (cause) {
      throw ioError('cannot write', this.path, cause as Error)
    }
  }

  private async writeGathered(file: FileHandle): Promise<void> {
    const bytes = this.gathered.subarray(0, this.gatheredBytes)
    this.gatheredBytes = 0
    await writeAll(file, bytes)
  }

  /** Removes what is not finished. */
  async discard(): Promise<void> {
    await this.file?.close().catch(() => {})
    this.file = undefined
    if (this.temporary === undefined) return
    await rm(this.temporary, { force: true })
    temporaries.delete(this.temporary)
    this.temporary = undefined
  }

  private async open(): Promise<FileHandle> {
    const there = await stat(this.path).catch(() => undefined)
    if (there !== undefined && !there.isFile()) return open(this.path, 'w')
    if (there !== undefined) this.target = await realpath(this.path) // a link goes on leading to the file
    const temporary = `${this.target}.part-${process.pid}-${randomBytes(4).toString('hex')}`
    const file = await open(temporary, 'wx') // what somebody put there under this name is not written to
    this.temporary = temporary
    temporaries.add(temporary)
    if (temporaries.size === 1) process.once('exit', OutputFile.discardAll)
    return file
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await file.write(bytes, at, bytes.length - at)).bytesWritten
}

/** All of it; not through process.stdout, whose errors come twice: to the writer and to whoever listens. */
async function writeStandardOutput(bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    try {
      at += await writeTo(1, bytes, at)
    } catch (error) {
      // a pipe that whoever made it does not want to wait for
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
      await new Promise(done => setTimeout(done, 1))
    }
  }
}

function writeTo(descriptor: number, bytes: Uint8Array, at: number): Promise<number> {
  return new Promise((done, failed) => {
    write(descriptor, bytes, at, bytes.length - at, null, (error, written) => (error ? failed(error) : done(written)))
  })
}

function ioError(what: string, path: string, cause: Error): ProxyError {
  const code = (cause as NodeJS.ErrnoException).code
  const action =
    code === 'ENOENT'
      ? 'check the path'
      : code === 'ENOSPC'
        ? 'free some space; nothing is left behind'
        : 'check the file and its permissions'
  return new ProxyError('IO', `${what} ${path}: ${cause.message}`, undefined, action, { cause })
}
