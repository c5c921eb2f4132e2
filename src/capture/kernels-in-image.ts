/**
 * Linux kernels within a disk image, found as it is read: the files that /boot has. A golden image has the kernel that its
 * guests run, and no page of it in the form in which they have it. No file system is read for that: a kernel is known by
 * its first bytes, which say how long it is, and its file lies in one piece on a file system that was filled once. One
 * that lies in pieces does not unpack, and that can be told.
 */
import { ProxyError } from '../errors.ts'
import {
  KERNEL_EXPANSION_MAX,
  KERNEL_HEADERS_MAX,
  KERNEL_PAYLOAD_MAX,
  KERNEL_PROGRAM_MAX,
  KERNELS_AT_ONCE,
  KERNELS_MAX,
} from './limits.ts'
import {
  findKernelPayload,
  isLinuxKernel,
  isProgram,
  KERNEL_HEADER_LENGTH,
  KERNEL_VERSION_LENGTH,
  kernelVersion,
  kernelVersionAt,
  LENGTH_BEHIND,
} from './linux-kernel.ts'
import { packingOf, unpack } from './packing.ts'

/** Files begin where blocks of their file system do: of 4096 bytes, of 1024 on a small ext4, of 512 on a FAT. */
const BLOCK_LENGTH = 512
/** Bytes of what is packed that tell how: the longest magic is bzip2's. */
const MAGIC_LENGTH = 10

/** A kernel as it lies in an image. */
export interface PackedKernel {
  /** Bytes from the image's start. */
  readonly offset: number
  /** What `uname -r` says in its guests, printable; '' where the kernel does not say it. */
  readonly version: string
  /** Its program, packed, and the program's length; undefined where the image ends before that does. */
  readonly payload: Buffer | undefined
}

/** What begins as a kernel does, until it is one or none. */
interface Candidate {
  readonly offset: number
  /** Where in the image its version, and what is packed in it, lie. */
  readonly versionAt: number
  readonly version: Buffer
  readonly from: number
  readonly to: number
  /** The first bytes of what is packed, which say whether it is. */
  readonly magic: Buffer
  state: 'seen' | 'taken' | 'none'
  /** What is packed, as far as it came. */
  readonly pieces: Buffer[]
  /** Of the image. */
  seenTo: number
}

/** Takes the bytes of an image, cut anywhere, and gives the kernels in it as each of them ends. */
export class KernelFinder {
  /** What looked like kernels and was not taken, because so many others were. */
  passedOver = 0
  private taken = 0
  private candidates: Candidate[] = []
  private position = 0
  /** The first block that was not looked at. */
  private next = 0
  /** Bytes from there on, up to the next chunk. */
  private before: Buffer = Buffer.alloc(0)

  /** @param chunk is valid until return. @returns kernels that end in it */
  push(chunk: Buffer): PackedKernel[] {
    const { before, position } = this
    this.position += chunk.length
    const seam = before.length === 0 ? before : Buffer.concat([before, chunk.subarray(0, KERNEL_HEADER_LENGTH)])
    const seamAt = position - before.length
    this.look(seam, seamAt)
    if (this.next >= position) {
      this.look(chunk, position)
      this.before = Buffer.from(chunk.subarray(this.next - position))
    } else this.before = Buffer.concat([before, chunk]).subarray(this.next - seamAt) // the chunk is that short
    for (const candidate of this.candidates) this.feed(candidate, chunk, position)
    // out go those that are whole, and those that are none
    const whole: PackedKernel[] = []
    this.candidates = this.candidates.filter(({ state, to, offset, version, pieces }) => {
      if (state !== 'taken' || this.position < to) return state !== 'none'
      whole.push({ offset, version: kernelVersion(version), payload: Buffer.concat(pieces) })
      return false
    })
    return whole
  }

  /** The image ends. @returns kernels that do not */
  end(): PackedKernel[] {
    const cut = this.candidates.filter(({ state }) => state === 'taken')
    this.candidates = []
    return cut.map(({ offset, version }) => ({ offset, version: kernelVersion(version), payload: undefined }))
  }

  /** Looks at the blocks whose header lies whole in these bytes. */
  private look(bytes: Buffer, at: number): void {
    for (; this.next + KERNEL_HEADER_LENGTH <= at + bytes.length; this.next += BLOCK_LENGTH) {
      const header = this.next - at
      if (!isLinuxKernel(bytes, header) || this.candidates.length >= KERNEL_HEADERS_MAX) continue
      const candidate = candidateOf(bytes.subarray(header, header + KERNEL_HEADER_LENGTH), this.next)
      if (candidate === undefined) continue
      this.candidates.push(candidate)
      this.feed(candidate, bytes, at)
    }
  }

  private feed(candidate: Candidate, bytes: Buffer, at: number): void {
    const { versionAt, version, from, to, magic, pieces, seenTo } = candidate
    const copy = (into: Buffer, place: number): void => {
      const first = Math.max(place, seenTo, at)
      const end = Math.min(place + into.length, at + bytes.length)
      if (first < end) bytes.copy(into, first - place, first - at, end - at)
    }
    candidate.seenTo = Math.max(seenTo, at + bytes.length)
    copy(version, versionAt)
    copy(magic, from)
    if (candidate.seenTo < from + MAGIC_LENGTH || candidate.state === 'none') return
    if (candidate.state === 'seen') {
      candidate.state = 'none'
      if (packingOf(magic) === undefined && !isProgram(magic)) return
      if (this.taken >= KERNELS_MAX || this.takenAround(from) >= KERNELS_AT_ONCE) {
        this.passedOver++
        return
      }
      this.taken++
      candidate.state = 'taken'
      pieces.push(magic)
    }
    const first = Math.max(from + MAGIC_LENGTH, seenTo, at)
    const end = Math.min(to, at + bytes.length)
    if (first < end) pieces.push(Buffer.from(bytes.subarray(first - at, end - at)))
  }

  /** How many of those that were taken claim this byte. */
  private takenAround(at: number): number {
    return this.candidates.reduce((count, { state, to }) => count + (state === 'taken' && to > at ? 1 : 0), 0)
  }
}

function candidateOf(header: Buffer, offset: number): Candidate | undefined {
  const payload = findKernelPayload(header)
  if (payload === undefined || payload.to - payload.from > KERNEL_PAYLOAD_MAX) return undefined
  if (payload.to - payload.from <= MAGIC_LENGTH + LENGTH_BEHIND) return undefined
  const versionAt = kernelVersionAt(header)
  return {
    offset,
    versionAt: offset + (versionAt ?? 0),
    version: Buffer.alloc(versionAt === undefined ? 0 : KERNEL_VERSION_LENGTH),
    from: offset + payload.from,
    to: offset + payload.to,
    magic: Buffer.alloc(MAGIC_LENGTH),
    state: 'seen',
    pieces: [],
    seenTo: offset,
  }
}

/**
 * The program of a kernel, whole.
 *
 * @param name what errors call the image; their offsets are those of the image where they have any
 * @throws IO where a tool is missing, CAPTURE_FORMAT, QEMU_TRUNCATED, LIMIT_EXCEEDED; all of them: it is not to be had
 */
export async function unpackKernel(name: string, kernel: PackedKernel, signal: AbortSignal): Promise<Buffer[]> {
  const { payload, offset } = kernel
  const bad = (what: string): ProxyError =>
    new ProxyError('CAPTURE_FORMAT', what, { stream: name, offset }, 'give the file itself')
  if (payload === undefined) throw bad('the image ends before it does')
  const length = payload.readUInt32LE(payload.length - LENGTH_BEHIND)
  if (length > payload.length * KERNEL_EXPANSION_MAX) throw bad('its end is not that of a kernel')
  if (length > KERNEL_PROGRAM_MAX) throw bad(`it has more than ${KERNEL_PROGRAM_MAX / 2 ** 20} MiB`)
  const packing = packingOf(payload)
  const packed = packing === 'gzip' ? payload : payload.subarray(0, payload.length - LENGTH_BEHIND)
  async function* once(): AsyncGenerator<Buffer, void, void> {
    yield packed
  }
  const pieces: Buffer[] = []
  let have = 0
  for await (const piece of packing === undefined ? once() : unpack(name, packing, once(), signal)) {
    have += piece.length
    if (have > length) break
    pieces.push(piece)
  }
  if (have !== length) throw bad('it has another length than it says')
  if (!isProgram(pieces[0] ?? payload)) throw bad('what is packed is no program')
  return pieces
}
