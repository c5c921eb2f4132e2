/** Batches that cost as much as the rules allow, or more: what the tests of work and of hostile peers send. */
import { COLUMN, OP } from '../../src/codec/wire.ts'
import { loadLz4 } from '../../src/compression/lz4.ts'
import { type Kernel, layoutMemory, loadKernel } from '../../src/kernel/kernel.ts'
import { type HandColumn, handBatch, varint } from './hand-batch.ts'
import { PAGE, SEED_WORDS } from './harness.ts'

const MEMORY = layoutMemory({
  role: 'decoder',
  templatePages: 0,
  ringPages: 1,
  places: 0,
  ioBytes: (1 << 20) + 64,
  longEntries: 0,
})
let kernel: Kernel | undefined

/** Attackers have better things to do than to wait for the second decoder's. */
function quickChecksum(bytes: Uint8Array): bigint {
  kernel ??= loadKernel(MEMORY)
  const answer = MEMORY.io + (1 << 20)
  kernel.bytes.set(bytes, MEMORY.io)
  kernel.checksum(MEMORY.io, bytes.length, ...SEED_WORDS, answer)
  return Buffer.from(kernel.bytes.slice(answer, answer + 8)).readBigUInt64LE()
}

export interface Batch {
  readonly rawLength: number
  readonly columns: Partial<Record<number, number[] | Uint8Array>>
}

/**
 * A batch of these columns; its checksum is that of `gives`.
 * @param small long columns as LZ4 blocks: few bytes on the WAN
 */
export function packed({ rawLength, columns }: Batch, gives?: Uint8Array, small = false): Buffer {
  const hand: HandColumn[] = []
  for (const [name, content] of Object.entries(columns)) {
    const column = Number(name)
    const raw = Buffer.from(content!)
    const block = Buffer.alloc(raw.length)
    const length = small && raw.length > 100 ? loadLz4().encodeBlock(raw, block) : 0
    if (length > 0) hand.push({ column, method: 1, rawLength: raw.length, packed: block.subarray(0, length) })
    else if (raw.length > 0) hand.push({ column, method: 0, rawLength: raw.length, packed: raw })
  }
  return handBatch(rawLength, gives ? quickChecksum(gives) : 0n, hand)
}

/** Builds an operation. */
export const op = (kind: number, count: number): number[] =>
  count < 16 ? [(kind << 4) | count] : [kind << 4, ...varint(count - 16)]

/** Writes as many operations of one kind as `budget` and the room allow. What they need of other columns comes along. */
type Build = (batch: Required<Batch> & { columns: number[][] }, room: number, count: number) => number

const builders: Record<string, Build> = {
  skip: ({ columns }, _, count) => {
    for (let i = 0; i < count; i++) columns[COLUMN.OPS]!.push(0x91)
    return 0
  },
  seek: ({ columns }, _, count) => {
    for (let i = 0; i < count; i++) {
      columns[COLUMN.OPS]!.push(0xa1)
      columns[COLUMN.NUMBERS]!.push(i % 2 === 0 ? 2 : 1)
    }
    return 0
  },
  block: ({ columns }, _, count) => {
    for (let i = 0; i < count; i++) {
      columns[COLUMN.OPS]!.push(0xb2)
      columns[COLUMN.NUMBERS]!.push(0)
    }
    return 0
  },
  named: ({ columns }, room, count) => {
    const times = Math.min(count, Math.floor(room / 11))
    for (let i = 0; i < times; i++) {
      columns[COLUMN.OPS]!.push(0xb1, 0x11)
      columns[COLUMN.NUMBERS]!.push(0)
    }
    return 11 * times
  },
  zero: ({ columns }, room, count) => {
    const times = Math.min(count, Math.floor(room / 9))
    for (let i = 0; i < times; i++) columns[COLUMN.OPS]!.push(0x11)
    return 9 * times
  },
  other: ({ columns }, room, count) => {
    const times = Math.min(count, room)
    for (let i = 0; i < times; i++) {
      columns[COLUMN.OPS]!.push(0x81)
      columns[COLUMN.OTHER]!.push(0)
    }
    return times
  },
  ref: ({ columns }, room, count) => {
    const times = Math.min(count, Math.floor(room / 4104))
    for (let i = 0; i < times; i++) {
      columns[COLUMN.OPS]!.push(0x21)
      columns[COLUMN.NUMBERS]!.push(i === 0 ? 0 : 2)
    }
    return 4104 * times
  },
  fill: ({ columns }, room, count) => {
    const times = Math.min(count, Math.floor(room / 4104))
    if (times === 0) return 0
    columns[COLUMN.OPS]!.push(...op(OP.FILL, times))
    for (let i = 0; i < times; i++) columns[COLUMN.NUMBERS]!.push(7)
    return 4104 * times
  },
  fresh: ({ columns }, room, count) => {
    const times = Math.min(count, Math.floor(room / 4104))
    for (let i = 0; i < times; i++) {
      columns[COLUMN.OPS]!.push(0x41)
      for (let k = 0; k < PAGE; k++) columns[COLUMN.PAGES]!.push(0)
    }
    return 4104 * times
  },
  words: ({ columns }, room, count) => {
    const times = Math.min(count, Math.floor(room / 4104))
    for (let i = 0; i < times; i++) {
      columns[COLUMN.OPS]!.push(0xf1)
      columns[COLUMN.NUMBERS]!.push(1)
      for (let k = 0; k < PAGE; k++) columns[COLUMN.WORDS]!.push(0)
    }
    return 4104 * times
  },
  copies: ({ columns }, room, count) => {
    const times = Math.min(count, Math.floor(room / 4104))
    for (let i = 0; i < times; i++) {
      columns[COLUMN.OPS]!.push(0x61)
      for (let copy = 0; copy < 512; copy++) {
        const length = copy < 511 ? 1 : PAGE - 511
        columns[COLUMN.LENGTHS]!.push(0, ...varint(length))
        columns[COLUMN.SOURCES]!.push(1 + 2 * (copy > 0 ? 1 + (copy % 2) : i > 0 ? 3 : 0)) // to the next slot and back
        columns[COLUMN.SHIFTS]!.push(0)
      }
    }
    return 4104 * times
  },
  exports: ({ columns }, _, count) => {
    for (let i = 0; i < count; i++) {
      columns[COLUMN.OPS]!.push(0x01, 0x02)
      columns[COLUMN.NUMBERS]!.push(3, 5)
    }
    return 0
  },
  /** Of the shortest form, every word of each said at length; they bring no data. */
  messages: ({ columns }, room, count) => {
    const times = Math.min(count, Math.floor(room / 28))
    columns[COLUMN.OPS]!.push(0x01, 0x02)
    columns[COLUMN.NUMBERS]!.push(1, 5)
    const least = varint(2 ** 32 - 3)
    for (let i = 0; i < times; i++) {
      columns[COLUMN.OPS]!.push(0x01, 0x03)
      columns[COLUMN.NUMBERS]!.push(0x3e, ...least, ...least, ...least, ...least, ...least)
    }
    return 28 * times
  },
  packets: ({ columns }, room, count) => {
    const times = Math.min(count, Math.floor(room / 1344))
    for (let i = 0; i < times; i++) columns[COLUMN.OPS]!.push(0xd1)
    for (let k = 0; k < 1344 * times; k++) columns[COLUMN.HEADERS]!.push(0)
    return 1344 * times
  },
}
export const STEPS = Object.keys(builders)

/**
 * A batch of these steps; what room they leave is filled with OTHER: zero bytes.
 * @param names begins with a RAMBlock's name, which some steps need
 */
export function mixture(rawLength: number, steps: readonly (readonly [string, number])[], names = true): Batch {
  const columns = Array.from({ length: 10 }, (): number[] => [])
  if (names) {
    columns[COLUMN.OPS]!.push(0xc1)
    columns[COLUMN.NUMBERS]!.push(1)
    columns[COLUMN.OTHER]!.push(0x61)
  }
  let left = rawLength
  for (const [name, count] of steps) left -= builders[name]!({ rawLength, columns }, left, count)
  if (left > 0) {
    columns[COLUMN.OPS]!.push(...op(OP.OTHER, left))
    for (let i = 0; i < left; i++) columns[COLUMN.OTHER]!.push(0)
  }
  return { rawLength, columns: { ...columns } }
}
