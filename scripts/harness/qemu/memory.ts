/** Guest memory as QEMU's pmemsave writes it to a file, compared page by page. */
import { open } from 'node:fs/promises'

const pageSize = 4096
const chunkBytes = 1 << 20

/** A file that holds guest-physical memory from address 0 on. Gone when its guest quits. */
export interface MemorySnapshot {
  readonly path: string
  readonly lengthBytes: number
}

/** How two memories differ. */
export interface MemoryDifference {
  /** Pages in each. */
  readonly pages: number
  /** Guest-physical addresses of pages that differ, ascending; at most 1000 of them. */
  readonly addresses: readonly number[]
  /** How many differ in all. */
  readonly differingPages: number
}

/**
 * Compares two snapshots of stopped guests.
 * @throws RangeError when they are not equally long
 */
export async function compareMemory(a: MemorySnapshot, b: MemorySnapshot): Promise<MemoryDifference> {
  if (a.lengthBytes !== b.lengthBytes) throw new RangeError(`${a.lengthBytes} bytes against ${b.lengthBytes}`)
  await using fileA = await open(a.path)
  await using fileB = await open(b.path)
  const left = Buffer.alloc(chunkBytes)
  const right = Buffer.alloc(chunkBytes)
  const addresses: number[] = []
  let differingPages = 0
  for (let at = 0; at < a.lengthBytes; at += chunkBytes) {
    const want = Math.min(chunkBytes, a.lengthBytes - at)
    const [readA, readB] = await Promise.all([fileA.read(left, 0, want, at), fileB.read(right, 0, want, at)])
    if (readA.bytesRead !== want || readB.bytesRead !== want)
      throw new RangeError(`a snapshot ends before ${at + want}`)
    if (left.compare(right, 0, want, 0, want) === 0) continue
    for (let page = 0; page < want; page += pageSize) {
      if (left.compare(right, page, page + pageSize, page, page + pageSize) === 0) continue
      differingPages++
      if (addresses.length < 1000) addresses.push(at + page)
    }
  }
  return { pages: a.lengthBytes / pageSize, addresses, differingPages }
}
