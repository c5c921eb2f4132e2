/**
 * A thread that helps: does jobs of sessions in their order (helper-messages.ts), and looks for parts of pages whenever there is
 * none, since the main thread does that itself where nobody helps. It comes back to its event loop only where a job needs it.
 */
import { runInNewContext } from 'node:vm'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import type { ArrivedColumn } from '../../codec/batch.ts'
import { COLUMN_COUNT, type Method } from '../../codec/wire.ts'
import { ColumnUnpacker, type UnpackedColumns } from '../../compression/column-unpacker.ts'
import { ZstdPacker } from '../../compression/zstd-stream.ts'
import { type KernelFunctions, STAGED } from '../../kernel/functions.ts'
import { commitMemory, instantiate } from '../../kernel/instance.ts'
import { SCRATCH_BYTES } from '../../kernel/layout.ts'
import { EVENT_LOOP, nextTurn } from '../event-loop.ts'
import {
  COLUMN_WORD,
  COLUMN_WORDS,
  type FromHelper,
  type HelperData,
  type OpenSession,
  type Piece,
  type ToHelper,
  type UnpackColumns,
  WORD,
} from './helper-messages.ts'
import type { EarlyStart } from './helper-thread.ts'
import { type Claim, PartsBoard } from './parts-board.ts'
import { wrongBatchOf } from './wrong-batch.ts'

const port = parentPort!
const { board: boardBuffer, words: wordsBuffer, place } = begin(workerData as HelperData | EarlyStart)
const board = new PartsBoard(boardBuffer)
/**
 * Batches that may wait to be packed while this thread looks for parts of pages. The main thread needs those at once and
 * nothing of what is packed, as long as it has workspaces.
 */
const PACKS_WAITING_MAX = 3
const words = new Int32Array(wordsBuffer)

function begin(data: HelperData | EarlyStart): HelperData {
  if (!('gate' in data)) return data
  Atomics.wait(new Int32Array(data.gate), 0, 0)
  return (receiveMessageOnPort(port) as { readonly message: HelperData }).message
}

class Session implements UnpackedColumns {
  readonly memory: WebAssembly.Memory
  /** The memory as it was when the session opened: its block is in it. */
  readonly bytes: Uint8Array
  /** Looks for parts of pages, with a staging area of this thread; undefined: it does not encode. */
  readonly parts: { readonly kernel: KernelFunctions; readonly staging: number } | undefined
  readonly packers = new Map<number, ZstdPacker>()
  readonly unpacker = new ColumnUnpacker()
  readonly columnAt: number[] = new Array(COLUMN_COUNT).fill(0)
  readonly columnLength = new Int32Array(COLUMN_COUNT)
  /** A batch could not be unpacked. */
  isWrong = false

  constructor({ memory, parts }: OpenSession) {
    this.memory = memory
    this.bytes = new Uint8Array(memory.buffer)
    if (parts === undefined) return
    const thread = place + 1
    const { module, layout } = parts
    const kernel = instantiate(module, memory, layout, layout.scratch + thread * SCRATCH_BYTES)
    this.parts = { kernel, staging: layout.staging + thread * STAGED.BYTES }
  }

  clear(): void {
    this.columnLength.fill(0)
  }

  close(): void {
    for (const packer of this.packers.values()) packer.close()
    this.unpacker.close()
  }
}

const sessions = new Map<number, Session>()
/** That of the claim at hand: while it is prepared no other one is put up. */
let claimed: Session | undefined
/** The job at hand. */
let job = 0

function say(message: FromHelper, transfer: ArrayBuffer[] = []): void {
  port.postMessage(message, transfer)
}

/** @returns undefined where it is done already */
function take(message: ToHelper): Promise<unknown> | undefined {
  if (message.kind === 'collect') return collectGarbage()
  if (message.kind === 'open') {
    sessions.set(message.session, new Session(message))
    return undefined
  }
  if (message.kind === 'close stream' && !sessions.has(message.session)) return undefined // it went with its session
  const session = sessions.get(message.session)!
  switch (message.kind) {
    case 'stream':
      session.packers.set(message.stream, new ZstdPacker(message.settings, true))
      return undefined
    case 'pack':
      return pack(session, message.pieces)
    case 'close stream':
      session.packers.get(message.stream)?.close()
      session.packers.delete(message.stream)
      return nextTurn(EVENT_LOOP) // in which a stream that was closed is let go of
    case 'unpack':
      return session.isWrong ? undefined : unpack(session, message)
    case 'commit':
      commitMemory(session.bytes, message.at, message.length)
      return undefined
    case 'close':
      if (claimed === session) claimed = undefined
      sessions.delete(message.session)
      session.close()
      return nextTurn(EVENT_LOOP)
  }
}

/** The main thread has set the flags. A memory that only this thread's garbage knows is resident as long as that. */
function collectGarbage(): undefined {
  const collect = runInNewContext('typeof gc === "function" ? gc : undefined') as (() => void) | undefined
  collect?.()
}

async function pack({ packers, memory }: Session, pieces: readonly Piece[]): Promise<void> {
  const packed: Uint8Array<ArrayBuffer>[] = []
  try {
    for (const { stream, at, length } of pieces) {
      // the memory may have grown since
      const packing = packers.get(stream)!.pack(new Uint8Array(memory.buffer, at, length))
      // on the spot it has given one part, in a buffer of its own
      const piece = Array.isArray(packing) ? packing[0]! : new Uint8Array(Buffer.concat(await packing))
      packed.push(piece as Uint8Array<ArrayBuffer>)
    }
  } catch (error) {
    say({ kind: 'failed', reason: (error as Error).message })
    return
  }
  say(
    { kind: 'packed', pieces: packed },
    packed.map(({ buffer }) => buffer),
  )
}

/** @returns undefined where it is over already */
function unpack(session: Session, { session: number, rawLength, columns: table }: UnpackColumns) {
  const of = job
  const tell = (error: unknown): void => {
    session.isWrong = true
    say({ kind: 'wrong', session: number, job: of, wrong: wrongBatchOf(error) })
    Atomics.add(words, WORD.WRONG, 1)
  }
  const columns: ArrivedColumn[] = []
  for (let at = 0; at < table.length; at += COLUMN_WORDS) {
    const column = table[at + COLUMN_WORD.COLUMN]!
    const packedAt = table[at + COLUMN_WORD.PACKED_AT]!
    session.columnAt[column] = table[at + COLUMN_WORD.AT]!
    columns.push({
      column,
      method: table[at + COLUMN_WORD.METHOD]! as Method,
      rawLength: table[at + COLUMN_WORD.LENGTH]!,
      packed: [session.bytes.subarray(packedAt, packedAt + table[at + COLUMN_WORD.PACKED_LENGTH]!)],
    })
  }
  try {
    return session.unpacker.unpack({ rawLength, columns }, session)?.catch(tell)
  } catch (error) {
    tell(error)
    return undefined
  }
}

function prepare({ session, parts: from, first, count }: Claim): boolean {
  claimed = sessions.get(session)
  if (claimed === undefined) return false // what opens it is on its way
  const at = from + first * STAGED.PART
  claimed.bytes.copyWithin(claimed.parts!.staging, at, at + count * STAGED.PART)
  return true
}

/** @returns whether there was anything to do */
function lookForParts(): boolean {
  const claim = board.claim(prepare)
  if (claim === undefined) return false
  const { kernel, staging } = claimed!.parts!
  kernel.matchParts(staging, staging, claim.first, claim.count, claim.total, claim.cursor, claim.options)
  board.done(claim, place)
  return true
}

/** Packs that it was given and has done. */
let packs = 0

/** Whether parts of pages come first: a few batches may wait to be packed, and nothing else does. */
function hasTimeForParts(): boolean {
  const packsWaiting = (Atomics.load(words, WORD.PACKS_POSTED) - packs) | 0
  const waiting = (Atomics.load(words, WORD.POSTED) - job) | 0
  return packsWaiting <= PACKS_WAITING_MAX && waiting <= packsWaiting
}

say({ kind: 'ready' })
for (;;) {
  const { rung } = board
  if (Atomics.load(words, WORD.END) !== 0) break
  if (hasTimeForParts() && lookForParts()) continue
  const received = receiveMessageOnPort(port) as { readonly message: ToHelper } | undefined
  if (received) {
    job = (job + 1) | 0
    if (received.message.kind === 'pack') packs = (packs + 1) | 0
    const later = take(received.message)
    if (later !== undefined) await later
    Atomics.add(words, WORD.DONE, 1)
    if (Atomics.exchange(words, WORD.AWAITED, 0) === 1) say({ kind: 'done' })
  } else if (!lookForParts()) board.wait(rung)
}
