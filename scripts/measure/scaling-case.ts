/**
 * One measurement of scaling.ts in a process of its own, so that CPU time and memory are those of this case alone.
 *
 *   scaling-case.ts encode STREAM STORE|- EFFORT OUT      prints an EncodeCase; with another argument writes it there
 *   scaling-case.ts decode FILE STORE|-                   prints a DecodeCase; the same
 *   scaling-case.ts emit MEMORY RESULT STREAM...          a guest of so many bytes (synthetic-guest.ts) to standard output
 *   scaling-case.ts send HOST PORT STREAM...              each over a connection of its own, all at once
 *   scaling-case.ts send-large HOST PORT MEMORY RESULT STREAM...   what emit gives, over one
 *   scaling-case.ts receive HOST PORT COUNT               says that it listens, and a ReceiveCase at the end
 */

import { once } from 'node:events'
import { createReadStream, writeFileSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { pipeline } from 'node:stream/promises'
import { crc32 } from 'node:zlib'
import { InputFile } from '../../src/capture/input-file.ts'
import { PAGE_SIZE } from '../../src/codec/wire.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { decodeStream } from '../../src/file/encoded-file-reader.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import { OutputFile } from '../../src/file/output-file.ts'
import { parseSize } from '../../src/quantity.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { PLACES, POOL_MEMORY_DEFAULT } from '../../src/transfer/pool.ts'
import { memoryOf, partsFor, syntheticGuest } from './synthetic-guest.ts'

interface Cost {
  /** From the first byte on: the pool is there by then. */
  readonly seconds: number
  /** User and system, all threads, in the same time. */
  readonly cpuSeconds: number
  /** Loading the template sets, and all else before the first byte. */
  readonly openSeconds: number
  readonly openCpuSeconds: number
  /** Most memory that the process had. */
  readonly peakBytes: number
}

export interface EncodeCase extends Cost {
  readonly rawBytes: number
  readonly wanBytes: number
}

export interface DecodeCase extends Cost {
  readonly rawBytes: number
  /** CRC-32 of all of them. */
  readonly sum: number
}

/** What was emitted. */
export interface EmitCase {
  readonly memoryBytes: number
  readonly rawBytes: number
  readonly sum: number
}

export interface ReceiveCase {
  readonly bytes: number
  /** CRC-32 of all bytes, in the order in which they came: of one connection a check. */
  readonly sum: number
  /** From the first byte of the first connection to the last of the last. */
  readonly seconds: number
}

const cpuSeconds = (): number => {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e6
}

/** Tells when the first byte is asked for, which is when the pool is open. */
class Clock {
  private readonly startMs = performance.now()
  private readonly startCpu = cpuSeconds()
  private openMs = 0
  private openCpu = 0

  async *from(input: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    this.open()
    yield* input
  }

  open(): void {
    if (this.openMs > 0) return
    this.openMs = performance.now()
    this.openCpu = cpuSeconds()
  }

  cost(): Cost {
    return {
      seconds: (performance.now() - this.openMs) / 1000,
      cpuSeconds: cpuSeconds() - this.openCpu,
      openSeconds: (this.openMs - this.startMs) / 1000,
      openCpuSeconds: this.openCpu - this.startCpu,
      peakBytes: process.resourceUsage().maxRSS * 1024,
    }
  }
}

const storeOf = (folder: string): TemplateStore | undefined => (folder === '-' ? undefined : new TemplateStore(folder))

async function encode(stream: string, folder: string, level: string, out: string): Promise<EncodeCase> {
  const store = storeOf(folder)
  const sets = store ? await store.digests() : []
  const output = new OutputFile(out)
  const clock = new Clock()
  const { stats, fileBytes } = await encodeStream(
    clock.from((await InputFile.open(stream)).chunks()),
    bytes => output.write(bytes),
    {
      store,
      sets,
      ringPages: parseSize(POOL_MEMORY_DEFAULT, 'default') / PAGE_SIZE,
      places: PLACES,
      effort: EFFORTS[Number(level)]!,
    },
  )
  const cost = clock.cost()
  await output.finish()
  return { ...cost, rawBytes: stats.rawBytes, wanBytes: fileBytes }
}

async function decode(file: string, folder: string): Promise<DecodeCase> {
  const clock = new Clock()
  let rawBytes = 0
  let sum = 0
  await decodeStream(
    (await InputFile.open(file)).chunks(),
    async bytes => {
      clock.open()
      rawBytes += bytes.length
      sum = crc32(bytes, sum)
    },
    { store: storeOf(folder), name: file },
  )
  return { ...clock.cost(), rawBytes, sum }
}

/** All of a large guest, piece by piece. @returns what it was, at the end */
function emitted(memory: string, streams: readonly string[]): { bytes: () => Generator<Buffer>; said: () => EmitCase } {
  const parts = partsFor(Number(memory), streams)
  let rawBytes = 0
  let sum = 0
  function* bytes(): Generator<Buffer> {
    for (const piece of syntheticGuest(parts)) {
      rawBytes += piece.length
      sum = crc32(piece, sum)
      yield piece
    }
  }
  return { bytes, said: () => ({ memoryBytes: memoryOf(parts), rawBytes, sum }) }
}

async function emit(memory: string, result: string, streams: readonly string[]): Promise<void> {
  const { bytes, said } = emitted(memory, streams)
  await pipeline(bytes, process.stdout)
  writeFileSync(result, JSON.stringify(said()))
}

async function sendLarge(
  host: string,
  port: string,
  memory: string,
  result: string,
  streams: readonly string[],
): Promise<void> {
  const { bytes, said } = emitted(memory, streams)
  // a proxy refuses who says nothing for 5 s, and on a busy machine the first piece takes so long
  const pieces = bytes()
  const first = pieces.next()
  function* all(): Generator<Buffer> {
    if (!first.done) yield first.value
    yield* pieces
  }
  const socket = connect({ host, port: Number(port), allowHalfOpen: true })
  await once(socket, 'connect')
  const ended = once(socket.resume(), 'end')
  await pipeline(all, socket)
  await ended
  writeFileSync(result, JSON.stringify(said()))
}

async function send(host: string, port: string, streams: readonly string[]): Promise<void> {
  const one = async (stream: string): Promise<void> => {
    const socket = connect({ host, port: Number(port), allowHalfOpen: true })
    await once(socket, 'connect')
    const ended = once(socket.resume(), 'end') // the other side has closed too
    await pipeline(createReadStream(stream), socket)
    await ended
  }
  await Promise.all(streams.map(one))
}

async function receive(host: string, port: string, count: string): Promise<void> {
  let bytes = 0
  let sum = 0
  let firstMs = 0
  let left = Number(count)
  const server = createServer((socket: Socket) => {
    socket.on('data', chunk => {
      if (firstMs === 0) firstMs = performance.now()
      bytes += chunk.length
      sum = crc32(chunk, sum)
    })
    socket.on('error', error => {
      console.error(error.message)
      process.exit(1)
    })
    socket.on('end', () => {
      left--
      if (left > 0) return
      console.log(JSON.stringify({ bytes, sum, seconds: (performance.now() - firstMs) / 1000 } satisfies ReceiveCase))
      server.close()
    })
  })
  server.listen(Number(port), host)
  await once(server, 'listening')
  console.log('listening')
}

const [kind, ...args] = process.argv.slice(2) as [string, ...string[]]
function tell(result: object, path: string | undefined): void {
  const text = JSON.stringify(result)
  if (path === undefined) console.log(text)
  else writeFileSync(path, text)
}

if (kind === 'encode') tell(await encode(...(args as [string, string, string, string])), args[4])
else if (kind === 'decode') tell(await decode(...(args as [string, string])), args[2])
else if (kind === 'emit') await emit(args[0]!, args[1]!, args.slice(2))
else if (kind === 'send-large') await sendLarge(args[0]!, args[1]!, args[2]!, args[3]!, args.slice(4))
else if (kind === 'send') await send(args[0]!, args[1]!, args.slice(2))
else if (kind === 'receive') await receive(args[0]!, args[1]!, args[2]!)
