/** Makers of kdump files. Not by the code under test. */
import { deflateSync, zstdCompressSync } from 'node:zlib'
import { PAGE } from './makers.ts'

export interface Descriptor {
  readonly at: number
  readonly length: number
  readonly flags: number
}

export interface KdumpShape {
  readonly little?: boolean
  readonly wide?: boolean
  readonly blockSize?: number
  readonly status?: number
  readonly split?: number
  readonly version?: number
  readonly bitmapBlocks?: number
  readonly subHeader?: number
  /** Flag and bytes of each page in the file; zlib, zstd and as it is, in turn, where nothing is said. */
  readonly pack?: (page: Buffer) => { flags: number; bytes: Buffer }
  /** What a descriptor says in place of the truth. */
  readonly bend?: (page: number) => Partial<Descriptor>
}

/** A kdump-compressed file by the letter of its description: pages, with those of zeros sharing their bytes. */
export function kdump(pages: readonly Buffer[], shape: KdumpShape = {}): Buffer {
  const { little = true, wide = true, blockSize = PAGE, status = 1, split = 0, version = 6, subHeader = 1 } = shape
  const memory = Buffer.concat(pages)
  const blocks = Array.from({ length: memory.length / blockSize }, (_, i) =>
    memory.subarray(i * blockSize, (i + 1) * blockSize),
  )
  const u32 = (to: Buffer, value: number, at: number): unknown =>
    little ? to.writeUInt32LE(value, at) : to.writeUInt32BE(value, at)
  const u64 = (to: Buffer, value: number, at: number): unknown =>
    little ? to.writeBigUInt64LE(BigInt(value), at) : to.writeBigUInt64BE(BigInt(value), at)
  const header = Buffer.alloc(blockSize)
  header.write('KDUMP   ', 'latin1')
  u32(header, version, 8)
  header.write('Linux', 12, 'latin1')
  const fields = wide ? 424 : 412
  const values = [status, blockSize, subHeader, shape.bitmapBlocks ?? 2, blocks.length, blocks.length]
  for (const [i, value] of values.entries()) u32(header, value, fields + 4 * i)
  const sub = Buffer.alloc(blockSize)
  u32(sub, split, wide ? 12 : 8)
  const bitmap = Buffer.alloc(blockSize)
  // Not from the first page frame on: a hole as below a PC's BIOS.
  for (let i = 0; i < blocks.length; i++) bitmap[(i + 5) >> 3]! |= 1 << ((i + 5) & 7)
  const descriptors = Buffer.alloc(24 * blocks.length)
  let at = 4 * blockSize + descriptors.length
  const data: Buffer[] = []
  const packings = [
    (bytes: Buffer) => ({ flags: 1, bytes: deflateSync(bytes) }),
    (bytes: Buffer) => ({ flags: 0x20, bytes: zstdCompressSync(bytes) }),
    (bytes: Buffer) => ({ flags: 0, bytes }),
  ]
  const zeros = Buffer.alloc(blockSize)
  const shared = { at, length: 0, flags: 0 }
  for (const [i, block] of [zeros, ...blocks].entries()) {
    let place: Descriptor = { ...shared }
    if (i === 0 || !block.equals(zeros)) {
      const { flags, bytes } = (shape.pack ?? packings[i % 3]!)(block)
      place = { at, length: bytes.length, flags }
      data.push(bytes)
      at += bytes.length
    }
    if (i === 0) {
      Object.assign(shared, place)
      continue
    }
    place = { ...place, ...shape.bend?.(i - 1) }
    u64(descriptors, place.at, 24 * (i - 1))
    u32(descriptors, place.length, 24 * (i - 1) + 8)
    u32(descriptors, place.flags, 24 * (i - 1) + 12)
  }
  return Buffer.concat([header, sub, bitmap, bitmap, descriptors, ...data])
}

/** The same as makedumpfile -F would write it: pieces with their places, here not in order, one written again. */
export function flattened(file: Buffer, pieceLength = 5000, end = true): Buffer {
  const header = Buffer.alloc(4096)
  header.write('makedumpfile\0\0\0\0', 'latin1')
  header.writeBigInt64BE(1n, 16)
  header.writeBigInt64BE(1n, 24)
  const piece = (at: number, bytes: Buffer): Buffer => {
    const head = Buffer.alloc(16)
    head.writeBigInt64BE(BigInt(at), 0)
    head.writeBigInt64BE(BigInt(bytes.length), 8)
    return Buffer.concat([head, bytes])
  }
  const pieces: Buffer[] = []
  for (let at = 0; at < file.length; at += pieceLength) pieces.push(piece(at, file.subarray(at, at + pieceLength)))
  pieces.unshift(piece(0, Buffer.alloc(100, 0xee))) // and put right by one that comes later
  const last = pieces.pop()!
  pieces.splice(1, 0, last)
  return Buffer.concat([header, ...pieces, end ? Buffer.alloc(16, 0xff) : Buffer.alloc(0)])
}
