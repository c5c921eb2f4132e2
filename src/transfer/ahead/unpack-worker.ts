/** A thread that unpacks columns of batches before their turn, and has pages committed: unpack-message.ts has what is said. */
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import type { ArrivedColumn } from '../../codec/batch.ts'
import { COLUMN_COUNT, type Method } from '../../codec/wire.ts'
import { ColumnUnpacker, type UnpackedColumns } from '../../compression/column-unpacker.ts'
import { PAGE_SIZE } from '../../template/wire.ts'
import {
  COLUMN_WORD,
  COLUMN_WORDS,
  type ThreadMessage,
  type UnpackColumns,
  type UnpackWorkerData,
  WORD,
  type WrongAnswer,
} from './unpack-message.ts'
import { wrongBatchOf } from './wrong-batch.ts'

/** Where the columns of a session's batches lie. */
class Columns implements UnpackedColumns {
  readonly bytes: Uint8Array
  readonly columnAt: number[] = new Array(COLUMN_COUNT).fill(0)
  readonly columnLength = new Int32Array(COLUMN_COUNT)
  readonly unpacker = new ColumnUnpacker()
  isWrong = false

  constructor(memory: SharedArrayBuffer) {
    this.bytes = new Uint8Array(memory)
  }

  clear(): void {
    this.columnLength.fill(0)
  }
}

const port: MessagePort = parentPort!
const words = new Int32Array((workerData as UnpackWorkerData).words)
const sessions = new Map<number, Columns>()
const waiting: ThreadMessage[] = []
let isBusy = false
/** Jobs that were begun. */
let job = 0

port.on('message', (message: ThreadMessage) => {
  waiting.push(message)
  if (!isBusy) void run()
})

async function run(): Promise<void> {
  isBusy = true
  for (let message = waiting.shift(); message !== undefined; message = waiting.shift()) {
    job = (job + 1) | 0
    if (message.kind === 'unpack') {
      const later = unpack(message)
      if (later !== undefined) await later
    } else if (message.kind === 'commit') commit(message.streams, message.at, message.length)
    else if (message.kind === 'open') sessions.set(message.streams, new Columns(message.memory))
    else {
      sessions.get(message.streams)?.unpacker.close()
      sessions.delete(message.streams)
    }
    Atomics.add(words, WORD.DONE, 1)
    if (Atomics.exchange(words, WORD.AWAITED, 0) === 1) port.postMessage(undefined)
  }
  isBusy = false
}

/** @returns undefined where it is over already */
function unpack({ streams, rawLength, columns: table }: UnpackColumns): Promise<unknown> | undefined {
  const target = sessions.get(streams)
  if (target === undefined || target.isWrong) return undefined
  const columns: ArrivedColumn[] = []
  try {
    for (let at = 0; at < table.length; at += COLUMN_WORDS) {
      const column = table[at + COLUMN_WORD.COLUMN]!
      const packedAt = table[at + COLUMN_WORD.PACKED_AT]!
      target.columnAt[column] = table[at + COLUMN_WORD.AT]!
      columns.push({
        column,
        method: table[at + COLUMN_WORD.METHOD]! as Method,
        rawLength: table[at + COLUMN_WORD.LENGTH]!,
        packed: [target.bytes.subarray(packedAt, packedAt + table[at + COLUMN_WORD.PACKED_LENGTH]!)],
      })
    }
    const of = job
    return target.unpacker
      .unpack({ rawLength, columns }, target)
      ?.catch((error: unknown) => tellWrong(target, streams, of, error))
  } catch (error) {
    tellWrong(target, streams, job, error)
    return undefined
  }
}

function tellWrong(target: Columns, streams: number, of: number, error: unknown): void {
  target.isWrong = true
  const answer: WrongAnswer = { streams, job: of, wrong: wrongBatchOf(error) }
  port.postMessage(answer)
  Atomics.add(words, WORD.WRONG, 1)
}

/** As Kernel.commit: a page that somebody writes to at this moment has what they write. */
function commit(streams: number, at: number, length: number): void {
  const bytes = sessions.get(streams)?.bytes
  if (bytes === undefined) return
  for (let page = at; page < at + length; page += PAGE_SIZE) Atomics.compareExchange(bytes, page, 0, 0)
}
