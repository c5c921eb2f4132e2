/**
 * Bodies of the sections that may stand between RAM's, so that the main stream stays readable past them. All their
 * bytes stay raw. Source: qemu-wire-format 2.7.
 */
import { readU16, readU32, readU64, TWO_32 } from '../bytes/big-endian.ts'
import {
  BLOCK_CHUNK_SIZE,
  BLOCK_FLAG,
  DIRTY_BITMAP_FLAG,
  ELEMENT,
  HASH_PTE_SIZE,
  OTHER_SECTION,
  S390_FLAG,
  VFIO_TAG,
} from './wire.ts'

/** What a grammar says about the unit (a chunk of a body) whose first `have` bytes it has seen. */
export interface BodyStep {
  /** Bytes of the unit's head: more than `have` asks for more, `have` itself says that it is complete. */
  need: number
  /** Bytes that follow the complete head and that nobody looks at. */
  skip: number
  /** The body ends with this unit. */
  end: boolean
  /** Why this cannot be such a body; empty while it can. */
  bad: string
}

/**
 * Reads the head of the next unit; a function of these bytes alone.
 *
 * @param head the unit's first `have` bytes
 * @param element ELEMENT.SECTION_START, PART, END or FULL
 * @param unit index of the unit in its body, from 0
 * @param step in: skip 0, end false, bad ''; out: the answer
 */
export type BodyGrammar = (head: Uint8Array, have: number, element: number, unit: number, step: BodyStep) => void

/** Longest head of a unit: a dirty-bitmap chunk with both names and BITS. */
export const UNIT_HEAD_LENGTH_MAX = 1 + 256 + 256 + 12 + 8

/** The grammar of a START/PART/END section with this idstr; undefined where we know none. */
export function iterableGrammar(idstr: string): BodyGrammar | undefined {
  switch (idstr) {
    case OTHER_SECTION.DIRTY_BITMAP:
      return dirtyBitmap
    case OTHER_SECTION.BLOCK:
      return block
    case OTHER_SECTION.S390_STORAGE_ATTRIBUTES:
      return s390StorageAttributes
    case OTHER_SECTION.SPAPR_HTAB:
      return spaprHtab
    case OTHER_SECTION.PBS_STATE:
      return pbsState
    default:
      return idstr.endsWith(OTHER_SECTION.VFIO_SUFFIX) ? vfio : undefined
  }
}

/** Of a section whose body nobody here can read: only a search finds its end. */
export const unreadable: BodyGrammar = (_head, _have, _element, _unit, step) => {
  step.bad = 'unknown section'
}

/** The grammar of a FULL section that may come before RAM's first PART; undefined for any other device state. */
export function earlyGrammar(idstr: string): BodyGrammar | undefined {
  return idstr.endsWith(OTHER_SECTION.VIRTIO_MEM_EARLY_SUFFIX) ? virtioMemEarly : undefined
}

/** Adds a u64 count of `size` bytes each to the skip; bad where that passes 2^53. */
function skipCounted(count: number, size: number, step: BodyStep): void {
  const skip = count * size
  if (count < 0 || !Number.isSafeInteger(skip)) step.bad = 'length beyond 2^53'
  else step.skip = skip
}

const dirtyBitmap: BodyGrammar = (head, have, _element, _unit, step) => {
  step.need = 1
  if (have < 1) return
  const flags = head[0]!
  if (flags & DIRTY_BITMAP_FLAG.EXTRA_FLAGS) {
    step.bad = 'dirty-bitmap chunk with extra flags'
    return
  }
  for (const name of [DIRTY_BITMAP_FLAG.DEVICE_NAME, DIRTY_BITMAP_FLAG.BITMAP_NAME]) {
    if ((flags & name) === 0) continue
    step.need += 1
    if (have < step.need) return
    step.need += head[step.need - 1]!
  }
  if (flags & DIRTY_BITMAP_FLAG.START) step.need += 5
  else if ((flags & DIRTY_BITMAP_FLAG.COMPLETE) === 0 && flags & DIRTY_BITMAP_FLAG.BITS) {
    step.need += 12
    if ((flags & DIRTY_BITMAP_FLAG.ZEROES) === 0) {
      step.need += 8
      if (have === step.need) skipCounted(readU64(head, have - 8), 1, step)
    }
  }
  step.end = (flags & DIRTY_BITMAP_FLAG.EOS) !== 0
}

const block: BodyGrammar = (head, have, _element, _unit, step) => {
  step.need = 8
  if (have < 8) return
  const flags = readU16(head, 6) & BLOCK_FLAG.MASK
  if (flags & BLOCK_FLAG.DEVICE_BLOCK) {
    step.need = 9
    if (have < 9) return
    step.need = 9 + head[8]!
    if ((flags & BLOCK_FLAG.ZERO_BLOCK) === 0) step.skip = BLOCK_CHUNK_SIZE
  } else if ((flags & (BLOCK_FLAG.PROGRESS | BLOCK_FLAG.EOS)) === 0) step.bad = 'unknown block chunk'
  step.end = (flags & BLOCK_FLAG.EOS) !== 0
}

const vfio: BodyGrammar = (head, have, _element, _unit, step) => {
  step.need = 8
  if (have < 8) return
  const tag = readU32(head, 0) === VFIO_TAG.HIGH ? readU32(head, 4) : 0
  switch (tag) {
    case VFIO_TAG.SETUP_STATE:
      return
    case VFIO_TAG.DATA_STATE:
      step.need = 16
      if (have === 16) skipCounted(readU64(head, 8), 1, step)
      return
    case VFIO_TAG.END_OF_STATE:
    case VFIO_TAG.INIT_DATA_SENT:
      step.end = true
      return
    default:
      step.bad = 'unknown vfio tag'
  }
}

const s390StorageAttributes: BodyGrammar = (head, have, _element, _unit, step) => {
  step.need = 8
  if (have < 8) return
  switch (readU16(head, 6) & S390_FLAG.MASK) {
    case S390_FLAG.MORE:
      step.need = 16
      if (have === 16) skipCounted(readU64(head, 8), 1, step)
      return
    case S390_FLAG.DONE:
      return
    case S390_FLAG.EOS:
      step.end = true
      return
    default:
      step.bad = 'unknown storage attributes chunk'
  }
}

const spaprHtab: BodyGrammar = (head, have, element, unit, step) => {
  // START holds the table's size alone; the others a zero where that would be, then runs of entries.
  if (unit === 0) {
    step.need = 4
    if (have < 4) return
    step.end = element === ELEMENT.SECTION_START
    if (!step.end && readU32(head, 0) !== 0) step.bad = 'hash table size outside SECTION_START'
    return
  }
  step.need = 8 // u32 index, u16 valid, u16 invalid
  if (have < 8) return
  const valid = readU16(head, 4)
  step.skip = valid * HASH_PTE_SIZE
  step.end = readU32(head, 0) === 0 && valid === 0 && readU16(head, 6) === 0
}

const pbsState: BodyGrammar = (head, have, _element, _unit, step) => {
  step.need = 8
  if (have === 8) skipCounted(readU64(head, 0), 1, step)
  step.end = true
}

const virtioMemEarly: BodyGrammar = (head, have, _element, _unit, step) => {
  step.need = 36 // u64 address, u64 region size, u64 block size, u32 node, u64 size
  if (have < 36) return
  const regionSize = readU64(head, 8)
  const blockSize = readU64(head, 16)
  if (regionSize < 0 || blockSize <= 0) {
    step.bad = 'virtio-mem sizes out of range'
    return
  }
  skipCounted(Math.ceil(Math.ceil(regionSize / blockSize) / 64), 8, step)
  if (step.skip >= TWO_32) step.bad = 'virtio-mem bitmap of 4 GiB or more'
  step.end = true
}
