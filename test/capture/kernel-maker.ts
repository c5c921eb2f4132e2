/** Made-up Linux kernels, as boot loaders take them. Not by the code under test. */
import { elfCore, page } from '../template/makers.ts'

export const SETUP_SECTORS = 39
export const PAYLOAD_OFFSET = 716

export interface KernelShape {
  readonly sectors?: number
  /** Of the boot protocol. */
  readonly protocol?: number
  readonly from?: number
  readonly length?: number
  /** What `uname -r` would say. */
  readonly version?: string
}

/** What a boot loader takes. @param packed with what stands behind it there */
export function kernel(packed: Buffer, shape: KernelShape = {}): Buffer {
  const { sectors = SETUP_SECTORS, protocol = 0x20f, from = PAYLOAD_OFFSET, length = packed.length, version } = shape
  const head = Buffer.alloc(((sectors || 4) + 1) * 512 + PAYLOAD_OFFSET, 0x90)
  head[0x1f1] = sectors
  head.writeUInt16LE(0xaa55, 0x1fe)
  head.write('HdrS', 0x202)
  head.writeUInt16LE(protocol, 0x206)
  head.writeUInt16LE(version === undefined ? 0 : 0x300, 0x20e)
  if (version !== undefined) head.write(`${version} (builder@host) #1 SMP\0`, 0x500, 'latin1')
  head.writeUInt32LE(from, 0x248)
  head.writeUInt32LE(length, 0x24c)
  return Buffer.concat([head, packed, Buffer.alloc(3000, 0xcc)]) // what unpacks it
}

/** A kernel's program, of two segments that have these pages. */
export function program(ids: readonly number[]): Buffer {
  const pages = ids.map(page)
  const half = pages.length >> 1
  const bytes = elfCore([pages.slice(0, half), pages.slice(half)])
  bytes.writeUInt16LE(2, 16) // no core
  return bytes
}

/** With the length behind it that those have which are not packed with gzip. */
export function withLength(packed: Buffer, unpacked: Buffer): Buffer {
  const length = Buffer.alloc(4)
  length.writeUInt32LE(unpacked.length)
  return Buffer.concat([packed, length])
}
