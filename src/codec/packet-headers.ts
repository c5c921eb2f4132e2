/** The column *headers* of a batch, docs/protocol.md §7: multifd packet headers, offsets as differences, transposed. */
import { MULTIFD } from '../qemu/wire.ts'
import { PACKET_HEADER_SIZE } from './wire.ts'

const { OFFSETS_AT, PAGES_MAX: OFFSETS_COUNT } = MULTIFD

/** Makes the packet headers in [from, to) a column. In place. */
export function transposeHeaders(bytes: Uint8Array, from: number, to: number): void {
  const count = (to - from) / PACKET_HEADER_SIZE
  const plain = bytes.slice(from, to)
  const view = new DataView(plain.buffer)
  for (let packet = 0; packet < count; packet++) {
    const base = packet * PACKET_HEADER_SIZE + OFFSETS_AT
    for (let i = OFFSETS_COUNT - 1; i > 0; i--) {
      const at = base + i * 8
      const lo = view.getUint32(at + 4)
      const loBefore = view.getUint32(at - 4)
      view.setUint32(at + 4, lo - loBefore)
      view.setUint32(at, view.getUint32(at) - view.getUint32(at - 8) - (lo < loBefore ? 1 : 0))
    }
  }
  for (let i = 0; i < PACKET_HEADER_SIZE; i++) {
    for (let packet = 0; packet < count; packet++)
      bytes[from + i * count + packet] = plain[packet * PACKET_HEADER_SIZE + i]!
  }
}

/** The inverse: packet headers one after the other. In place. */
export function restoreHeaders(bytes: Uint8Array, from: number, to: number): void {
  const count = (to - from) / PACKET_HEADER_SIZE
  const plain = new Uint8Array(to - from)
  for (let i = 0; i < PACKET_HEADER_SIZE; i++) {
    for (let packet = 0; packet < count; packet++)
      plain[packet * PACKET_HEADER_SIZE + i] = bytes[from + i * count + packet]!
  }
  const view = new DataView(plain.buffer)
  for (let packet = 0; packet < count; packet++) {
    const base = packet * PACKET_HEADER_SIZE + OFFSETS_AT
    for (let i = 1; i < OFFSETS_COUNT; i++) {
      const at = base + i * 8
      const lo = view.getUint32(at + 4) + view.getUint32(at - 4)
      view.setUint32(at + 4, lo)
      view.setUint32(at, view.getUint32(at) + view.getUint32(at - 8) + (lo > 0xffffffff ? 1 : 0))
    }
  }
  bytes.set(plain, from)
}
