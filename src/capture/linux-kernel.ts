/**
 * A Linux kernel as a boot loader takes it (bzImage: `/boot/vmlinuz-*` of a distribution, `-kernel` of QEMU): what sets up the
 * machine, and within it the kernel's program, packed. The guests of an image run it, and no page of its file is a page of
 * theirs. Source: Linux, Documentation/arch/x86/boot.rst.
 */
import { ProxyError } from '../errors.ts'
import type { Chunks } from './input-file.ts'
import { KERNEL_SETUP_MAX } from './limits.ts'

const SECTOR_LENGTH = 512
/** Sectors of the setup, behind the first one; 0 stands for four. */
const SETUP_SECTORS_AT = 0x1f1
const BOOT_FLAG_AT = 0x1fe
const MAGIC_AT = 0x202
const VERSION_AT = 0x206
/** Where what is packed begins, from the end of the setup, and its length. */
const PAYLOAD_AT = 0x248
/** The first version that has these two. */
const VERSION_MIN = 0x0208
/** Bytes of the file that tell all this. */
export const KERNEL_HEADER_LENGTH = 0x250
/** Behind what is packed in any way but gzip's stands its length, unpacked. */
const LENGTH_BEHIND = 4

export function isLinuxKernel(head: Buffer): boolean {
  if (head.length < KERNEL_HEADER_LENGTH) return false
  const { length } = 'HdrS'
  return (
    head.toString('latin1', MAGIC_AT, MAGIC_AT + length) === 'HdrS' &&
    head.readUInt16LE(BOOT_FLAG_AT) === 0xaa55 &&
    head.readUInt16LE(VERSION_AT) >= VERSION_MIN
  )
}

/** Whether a program begins so. */
export function isProgram(head: Uint8Array): boolean {
  return Buffer.from(head.subarray(0, 4)).toString('latin1') === '\x7fELF'
}

/** Where the packed program lies in the file. @throws CAPTURE_FORMAT */
export function kernelPayload(name: string, header: Buffer): { readonly from: number; readonly to: number } {
  const setupLength = ((header[SETUP_SECTORS_AT] || 4) + 1) * SECTOR_LENGTH
  const from = setupLength + header.readUInt32LE(PAYLOAD_AT)
  const length = header.readUInt32LE(PAYLOAD_AT + 4)
  if (from > KERNEL_SETUP_MAX || length <= LENGTH_BEHIND) {
    const where = { stream: name, offset: PAYLOAD_AT }
    const action = 'give a kernel as /boot has it'
    throw new ProxyError('CAPTURE_FORMAT', 'a Linux kernel without what should be packed in it', where, action)
  }
  return { from, to: from + length }
}

/** The program within a kernel, as it is packed. @throws CAPTURE_FORMAT, QEMU_TRUNCATED */
export async function* kernelProgram(name: string, chunks: Chunks): Chunks {
  let header: Buffer = Buffer.alloc(0)
  let payload: ReturnType<typeof kernelPayload> | undefined
  let isGzip: boolean | undefined
  let position = 0
  let left: Buffer = Buffer.alloc(0)
  for await (const chunk of chunks) {
    let rest = chunk
    if (payload === undefined) {
      header = Buffer.concat([header, chunk])
      if (header.length < KERNEL_HEADER_LENGTH) continue
      payload = kernelPayload(name, header)
      rest = header
    }
    const from = Math.max(payload.from - position, 0)
    const to = Math.min(payload.to - position, rest.length)
    position += rest.length
    if (from >= to) continue
    let piece = rest.subarray(from, to)
    if (left.length > 0) piece = Buffer.concat([left, piece])
    // what may be the length stays behind until more comes
    const kept = Math.min(piece.length, LENGTH_BEHIND)
    isGzip ??= piece.length >= 2 ? piece[0] === 0x1f && piece[1] === 0x8b : undefined
    left = Buffer.from(piece.subarray(piece.length - kept))
    if (piece.length > kept) yield piece.subarray(0, piece.length - kept)
    if (position >= payload.to) {
      if (isGzip) yield left
      return
    }
  }
  const where = { stream: name, offset: payload === undefined ? header.length : position }
  throw new ProxyError('QEMU_TRUNCATED', 'the Linux kernel ends early', where, 'copy it again, whole')
}
