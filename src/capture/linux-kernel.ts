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
/** Where the text of its version stands, from the end of the first sector; 0: nowhere. */
const KERNEL_VERSION_AT = 0x20e
/** Bytes of the file that tell all this. */
export const KERNEL_HEADER_LENGTH = 0x250
/** Behind what is packed in any way but gzip's stands its length, unpacked; gzip's own last bytes are the same. */
export const LENGTH_BEHIND = 4
/** Bytes of its version that are looked at: `6.1.0-50-cloud-amd64 (debian-kernel@...`, of which the first word counts. */
export const KERNEL_VERSION_LENGTH = 80
/** "HdrS" */
const MAGIC = 0x53726448

/** @param at where in the bytes it would begin */
export function isLinuxKernel(bytes: Buffer, at = 0): boolean {
  return (
    bytes.length >= at + KERNEL_HEADER_LENGTH &&
    bytes.readUInt32LE(at + MAGIC_AT) === MAGIC &&
    bytes.readUInt16LE(at + BOOT_FLAG_AT) === 0xaa55 &&
    bytes.readUInt16LE(at + VERSION_AT) >= VERSION_MIN
  )
}

/** Whether a program begins so. */
export function isProgram(head: Uint8Array): boolean {
  return Buffer.from(head.subarray(0, 4)).toString('latin1') === '\x7fELF'
}

/** What is packed in a kernel: bytes from the start of its file. */
export interface KernelPayload {
  readonly from: number
  readonly to: number
}

/** Where the packed program lies in the file. @throws CAPTURE_FORMAT */
export function kernelPayload(name: string, header: Buffer): KernelPayload {
  const payload = findKernelPayload(header)
  if (payload !== undefined) return payload
  const where = { stream: name, offset: PAYLOAD_AT }
  const action = 'give a kernel as /boot has it'
  throw new ProxyError('CAPTURE_FORMAT', 'a Linux kernel without what should be packed in it', where, action)
}

/** The same; undefined where the header tells of none. */
export function findKernelPayload(header: Buffer): KernelPayload | undefined {
  const from = setupLength(header) + header.readUInt32LE(PAYLOAD_AT)
  const length = header.readUInt32LE(PAYLOAD_AT + 4)
  return from > KERNEL_SETUP_MAX || length <= LENGTH_BEHIND ? undefined : { from, to: from + length }
}

function setupLength(header: Buffer): number {
  return ((header[SETUP_SECTORS_AT] || 4) + 1) * SECTOR_LENGTH
}

/** Where in the file the text of its version begins; undefined where it has none. */
export function kernelVersionAt(header: Buffer): number | undefined {
  const at = header.readUInt16LE(KERNEL_VERSION_AT)
  return at === 0 || SECTOR_LENGTH + at >= setupLength(header) ? undefined : SECTOR_LENGTH + at
}

/** What `uname -r` says where this kernel runs. @param text from `kernelVersionAt` on. @returns '' where it is not told */
export function kernelVersion(text: Buffer): string {
  return /^[\x21-\x7e]+(?=[ \0])/.exec(text.toString('latin1'))?.[0] ?? ''
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
