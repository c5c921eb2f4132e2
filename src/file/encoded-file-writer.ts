/**
 * Writes a file that holds what the WAN would carry of a channel's bytes (docs/protocol.md, section 8). `estimate` is the
 * same without the file.
 */

import { randomBytes } from 'node:crypto'
import { copyRange } from '../bytes/copy.ts'
import { DiskConnection } from '../codec/disk-connection.ts'
import { FlowEncoder } from '../codec/flow-encoder.ts'
import { PoolRegions } from '../codec/places.ts'
import type { BatchStats } from '../codec/stats.ts'
import type { Effort } from '../compression/effort.ts'
import type { ProxyError } from '../errors.ts'
import { CREDIT_INITIAL_BYTES, FRAME_PAYLOAD_BYTES_MAX } from '../limits.ts'
import { CHANNEL_KIND_BYTES_MAX, channelKind } from '../qemu/channel-kind.ts'
import { MainStreamParser } from '../qemu/main-stream.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { ChannelBuffer } from '../transfer/channel-buffer.ts'
import { parserFor } from '../transfer/channel-parser.ts'
import { Outbound } from '../transfer/outbound.ts'
import { openPool, type Pool } from '../transfer/pool.ts'
import { encodeFrame, writeHead } from '../wan/frames.ts'
import { encodeClientHello, seedWords } from '../wan/hello.ts'
import { FEATURE, FLAG_MORE, FRAME, FRAME_HEAD_BYTES } from '../wan/wire.ts'
import { FILE_FLOW, FILE_MIGRATION } from './encoded-file.ts'

/** Bytes read at once: a batch. The headroom takes the incomplete record before it. */
const READ_BYTES = 512 * 1024
/** With helpers, which each batch costs more: as many as one may have, the incomplete record before it counted. */
const HELPED_READ_BYTES = 960 * 1024
const HEADROOM_BYTES = 16384
/** Batches under way with helpers: what they have to pack waits while they look for parts of pages. */
const HELPED_WORKSPACES = 8

export interface EncodeOptions {
  readonly store: TemplateStore | undefined
  /** Digests of the sets to use. */
  readonly sets: readonly string[]
  /** Digests of those whose pages stay on the disk. */
  readonly cold?: readonly string[] | undefined
  readonly ringPages: number
  readonly places: number
  readonly effort: Effort
  /** Threads that match and pack, this one counted. Default: this one alone. */
  readonly threads?: number
  /**
   * The input is what a client of a disk says, and this is what its server says: asked for before the first piece and behind
   * each of them. Only for estimates: no file says that it holds such a connection.
   */
  readonly server?: (() => Uint8Array) | undefined
  /** The ring's memory is taken before anything is read, as a source proxy does it; default: as it is needed. */
  readonly ringInAdvance?: boolean
  /** Called with the bytes read so far. */
  readonly progress?: (bytes: number) => void
  readonly signal?: AbortSignal
}

export interface EncodeResult {
  readonly stats: BatchStats
  readonly fileBytes: number
  /** Where the stream was not understood, and why; raw from there. */
  readonly degraded: { readonly position: number; readonly reason: string } | undefined
  /** A main stream that was understood, and ends before all of RAM was there: cancelled, or not all of a capture. */
  readonly endsEarly: boolean
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
  const isHelped = (options.threads ?? 1) > 1
  const pool = await openPool({
    role: 'encoder',
    sets: options.sets,
    cold: options.cold,
    store: options.store,
    ringPages: options.ringPages,
    places: options.places,
    workspaces: isHelped ? HELPED_WORKSPACES : 3,
    slots: 1,
    // of helpers: one that is begun, one that comes, and room to turn around
    slotBytes: isHelped ? (HEADROOM_BYTES + HELPED_READ_BYTES + 65536) * 3 : HEADROOM_BYTES + READ_BYTES + 65536,
    threads: options.threads ?? 1,
    longMatch: options.effort.longMatch > 0,
    ringInAdvance: options.ringInAdvance ? 'always' : 'never',
    tablesInAdvance: true,
  })
  try {
    await pool.ready
    await pool.warm()
    return await encodeInto(pool, input, write, options)
  } finally {
    await pool.close()
  }
}

async function encodeInto(
  pool: Pool,
  input: AsyncIterable<Uint8Array>,
  write: (bytes: Uint8Array) => Promise<void> | void,
  options: EncodeOptions,
): Promise<EncodeResult> {
  const seed = randomBytes(8)
  const file = new FileFrames(write)
  file.begin(options, seed)

  let failure: ProxyError | undefined
  const outbound = new Outbound(
    pool,
    seedWords(seed),
    (_channel, parts) => file.batch(parts),
    error => {
      failure = error
    },
  )
  let degraded: EncodeResult['degraded']
  const encoder = new FlowEncoder(FILE_MIGRATION, PoolRegions.of(pool.kernel.layout), {
    degraded: (position, reason) => {
      degraded = { position, reason }
    },
  })
  const disk =
    options.server &&
    diskOf(encoder, options.server, (position, reason) => {
      degraded = { position, reason }
    })
  const memory = pool.kernel.bytes
  const buffer = new ChannelBuffer(memory, pool.slots[0]!, pool.slotBytes)
  const channel = { encoder, buffer }
  const isHelped = pool.encoding !== undefined
  /** Bytes that the next batch takes beside an incomplete record of the one before. */
  const readBytes = isHelped && disk === undefined ? HELPED_READ_BYTES : READ_BYTES
  let wanted = readBytes
  let classified = disk !== undefined
  let read = 0
  const encode = async (release: boolean): Promise<void> => {
    await outbound.room()
    if (failure) throw failure
    if (release || disk !== undefined || !isHelped) outbound.encode(channel, options.effort, release)
    else outbound.encodeAhead(channel, options.effort)
    if (failure) throw failure
    await file.flush()
    wanted = readBytes
  }
  try {
    disk?.()
    for await (const chunk of disk ? input : withWholeHead(input)) {
      options.signal?.throwIfAborted()
      for (let at = 0; at < chunk.length; ) {
        const take = Math.min(chunk.length - at, wanted)
        copyRange(chunk, at, at + take, buffer.writable(wanted, wanted)!, 0)
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
      disk?.()
      read += chunk.length
      options.progress?.(read)
    }
    await encode(true)
    await outbound.idle()
    if (failure) throw failure
    file.end()
    await file.flush()
  } finally {
    await outbound.close()
  }
  return { stats: encoder.stats, fileBytes: file.bytes, degraded, endsEarly: endsEarly(encoder.parser) }
}

/** Has the encoder take its channel for a disk's. @returns what has it hear the server */
function diskOf(
  encoder: FlowEncoder,
  server: () => Uint8Array,
  raw: (position: number, reason: string) => void,
): () => void {
  const connection = new DiskConnection(encoder, 'client', {
    raw: (direction, position, reason) => {
      if (direction === 'client') raw(position, reason)
    },
  })
  return () => {
    const said = server()
    connection.listen(said, 0, said.length)
  }
}

function endsEarly(parser: FlowEncoder['parser']): boolean {
  if (!(parser instanceof MainStreamParser)) return false
  const { cut, ramComplete, degradedAt } = parser.finish()
  return degradedAt === undefined && (cut || !ramComplete)
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

/** The file as it grows: a hello, then frames in their order. */
class FileFrames {
  /** Bytes written so far. */
  bytes = 0
  private readonly write: (bytes: Uint8Array) => Promise<void> | void
  /** What waits to be written. Parts of batches are not written again. */
  private readonly out: Uint8Array[] = []
  /** Of the last frame that has one. */
  private sequence = 0

  constructor(write: (bytes: Uint8Array) => Promise<void> | void) {
    this.write = write
  }

  begin({ sets, cold = [], ringPages, places }: EncodeOptions, seed: Buffer): void {
    this.out.push(
      encodeClientHello({
        agent: 'pageferry encode',
        session: randomBytes(16).toString('hex'),
        connection: 0,
        connections: 1,
        token: null,
        received: 0,
        credit: CREDIT_INITIAL_BYTES,
        sets,
        ...(cold.length > 0 && { features: [FEATURE.COLD_SETS], cold }),
        ring: ringPages,
        places,
        seed: seed.toString('hex'),
      }),
    )
    const open = JSON.stringify({ target: 'file', migration: FILE_MIGRATION, kind: 'file' })
    this.out.push(encodeFrame(FRAME.OPEN, 0, FILE_FLOW, ++this.sequence, Buffer.from(open)))
  }

  /** A batch, in BATCH frames; its parts go out as they are. */
  batch(parts: readonly Uint8Array[]): void {
    let left = 0
    for (const part of parts) left += part.length
    let part = 0
    let at = 0
    while (left > 0) {
      const length = Math.min(left, FRAME_PAYLOAD_BYTES_MAX)
      left -= length
      const head = new Uint8Array(FRAME_HEAD_BYTES)
      writeHead(head, 0, FRAME.BATCH, left > 0 ? FLAG_MORE : 0, FILE_FLOW, ++this.sequence, length, null)
      this.out.push(head)
      for (let need = length; need > 0; ) {
        const piece = parts[part]!
        const take = Math.min(need, piece.length - at)
        if (take > 0) this.out.push(piece.subarray(at, at + take))
        need -= take
        at += take
        if (at === piece.length) {
          part++
          at = 0
        }
      }
    }
  }

  end(): void {
    this.out.push(encodeFrame(FRAME.FIN, 0, FILE_FLOW, ++this.sequence, new Uint8Array(0)))
    this.out.push(encodeFrame(FRAME.BYE, 0, 0, 0, new Uint8Array(2)))
  }

  async flush(): Promise<void> {
    for (const piece of this.out.splice(0)) {
      this.bytes += piece.length
      const written = this.write(piece)
      if (written !== undefined) await written // a turn for each of a dozen pieces a batch adds up
    }
  }
}
