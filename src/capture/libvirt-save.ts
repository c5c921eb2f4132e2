/**
 * What libvirt puts before QEMU's stream in a save image (`virsh save`, managed save, external memory snapshots): a header
 * and the domain's description. Source: libvirt, src/qemu/qemu_saveimage.h.
 */
import { ProxyError } from '../errors.ts'
import type { Chunks } from './input-file.ts'

const MAGIC = Buffer.from('LibvirtQemudSave')
const VERSION = 2
/** u32 fields in the byte order of the host that wrote them, behind the magic. */
const HEADER = { VERSION: 16, DATA_LENGTH: 20, FORMAT: 28 } as const
/** Bytes of the header, before the description. */
export const SAVE_HEADER_LENGTH = 92
/** How QEMU's stream behind it is packed; `sparse` is a mapped-ram file whose places count from the start of this one. */
const FORMATS = ['raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse']

export function isSaveImage(head: Buffer): boolean {
  return head.subarray(0, MAGIC.length).equals(MAGIC)
}

/**
 * Bytes before QEMU's stream.
 *
 * @param header the first {@link SAVE_HEADER_LENGTH} bytes
 * @throws CAPTURE_FORMAT for a version or packing that is not read
 */
export function saveStreamAt(name: string, header: Buffer): number {
  const fail = (what: string, offset: number, action: string): ProxyError =>
    new ProxyError('CAPTURE_FORMAT', what, { stream: name, offset }, action)
  const little = header.readUInt32LE(HEADER.VERSION) === VERSION
  const field = (at: number): number => (little ? header.readUInt32LE(at) : header.readUInt32BE(at))
  if (field(HEADER.VERSION) !== VERSION) {
    throw fail(
      `a libvirt save image of version ${field(HEADER.VERSION)}`,
      HEADER.VERSION,
      'save it with another libvirt',
    )
  }
  if (field(HEADER.FORMAT) >= FORMATS.length) {
    const action = 'set save_image_format = "zstd" (or "raw") in /etc/libvirt/qemu.conf, and save again'
    throw fail(`a libvirt save image, packed by method ${field(HEADER.FORMAT)}`, HEADER.FORMAT, action)
  }
  return SAVE_HEADER_LENGTH + field(HEADER.DATA_LENGTH)
}

/** The bytes behind header and description: QEMU's stream, as it is packed. @throws CAPTURE_FORMAT, QEMU_TRUNCATED */
export async function* withoutSaveHeader(name: string, chunks: Chunks): Chunks {
  let header: Buffer = Buffer.alloc(0)
  /** Bytes still to be left out, once the header is there. */
  let skip = -1
  for await (const chunk of chunks) {
    let rest = chunk
    if (skip < 0) {
      header = Buffer.concat([header, chunk])
      if (header.length < SAVE_HEADER_LENGTH) continue
      skip = saveStreamAt(name, header)
      rest = header
    }
    const left = Math.min(skip, rest.length)
    skip -= left
    if (left < rest.length) yield rest.subarray(left)
  }
  if (skip === 0) return
  const where = { stream: name, offset: header.length }
  throw new ProxyError('QEMU_TRUNCATED', 'the libvirt save image ends early', where, 'copy it again, whole')
}
