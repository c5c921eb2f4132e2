/**
 * A thread that helps: packs pieces of columns in their order, and looks for parts of pages whenever there is nothing to pack,
 * since the main thread does that itself where nobody helps. It never comes back to its event loop.
 */
import { runInNewContext } from 'node:vm'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { ZstdPacker } from '../../compression/zstd-stream.ts'
import { type KernelFunctions, STAGED } from '../../kernel/functions.ts'
import { commitMemory, instantiate } from '../../kernel/instance.ts'
import { SCRATCH_BYTES } from '../../kernel/layout.ts'
import { Board, type Claim } from './board.ts'
import type { FromHelper, HelperData, Piece, ToHelper } from './messages.ts'

const port = parentPort!
const { board: buffer, helper } = workerData as HelperData
const board = new Board(buffer)

interface Session {
  readonly memory: WebAssembly.Memory
  readonly kernel: KernelFunctions
  /** The memory as it was when the session opened: its block is in it. */
  readonly bytes: Uint8Array
  /** Of this thread. */
  readonly staging: number
}

const sessions = new Map<number, Session>()
/** That of the claim at hand: while it is prepared no other one is put up. */
let claimed: Session | undefined
const streams = new Map<number, { readonly packer: ZstdPacker; readonly memory: WebAssembly.Memory }>()

function answer(message: FromHelper, transfer: ArrayBuffer[] = []): void {
  port.postMessage(message, transfer)
}

function take(message: ToHelper): void {
  switch (message.kind) {
    case 'session': {
      const { session, memory, module, layout } = message
      const thread = helper + 1
      const kernel = instantiate(module, memory, layout, layout.scratch + thread * SCRATCH_BYTES)
      const staging = layout.staging + thread * STAGED.BYTES
      sessions.set(session, { memory, kernel, bytes: new Uint8Array(memory.buffer), staging })
      break
    }
    case 'stream': {
      const { memory } = sessions.get(message.session)!
      streams.set(message.stream, { memory, packer: new ZstdPacker(message.settings, true) })
      break
    }
    case 'pack':
      pack(message.pieces)
      break
    case 'close stream':
      streams.get(message.stream)?.packer.close()
      streams.delete(message.stream)
      break
    case 'commit':
      commitMemory(sessions.get(message.session)!.bytes, message.at, message.length)
      answer({ kind: 'committed' })
      break
    case 'close':
      if (claimed === sessions.get(message.session)) claimed = undefined
      sessions.delete(message.session)
      answer({ kind: 'closed' })
      break
    case 'collect':
      collectGarbage()
      answer({ kind: 'collected' })
  }
}

/** The main thread has set the flags. A memory that only this thread's garbage knows is resident as long as that. */
function collectGarbage(): void {
  const collect = runInNewContext('typeof gc === "function" ? gc : undefined') as (() => void) | undefined
  collect?.()
}

function pack(pieces: readonly Piece[]): void {
  const packed: Uint8Array<ArrayBuffer>[] = []
  for (const { stream, at, length } of pieces) {
    const { packer, memory } = streams.get(stream)!
    // the memory may have grown since
    const parts = packer.pack(new Uint8Array(memory.buffer, at, length))
    if (!Array.isArray(parts)) {
      answer({ kind: 'failed', reason: 'a zstd stream failed' })
      return
    }
    packed.push(...(parts as Uint8Array<ArrayBuffer>[]))
  }
  const buffers = packed.map(({ buffer }) => buffer)
  answer({ kind: 'packed', pieces: packed }, buffers)
}

function prepare({ session, parts, first, count }: Claim): boolean {
  claimed = sessions.get(session)
  if (claimed === undefined) return false // what opens it is on its way
  const { bytes, staging } = claimed
  const from = parts + first * STAGED.PART
  bytes.copyWithin(staging, from, from + count * STAGED.PART)
  return true
}

/** @returns whether there was anything to do */
function lookForParts(): boolean {
  const claim = board.claim(prepare)
  if (claim === undefined) return false
  const { kernel, staging } = claimed!
  kernel.matchParts(staging, staging, claim.first, claim.count, claim.total, claim.cursor, claim.options)
  board.done(claim, helper)
  return true
}

answer({ kind: 'ready' })
for (;;) {
  const { rung } = board
  const received = receiveMessageOnPort(port) as { readonly message: ToHelper } | undefined
  if (received) take(received.message)
  else if (!lookForParts()) board.wait(rung)
}
