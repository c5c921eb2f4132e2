/**
 * Linux kernels within a disk image, found as it is read: the files that /boot has. A golden image has the kernel that its
 * guests run, and no page of it in the form in which they have it. No file system is read for that: a kernel is known by
 * its first bytes, which say how long it is, and its file lies in one piece on a file system that was filled once. One
 * that lies in pieces does not unpack, and that can be told.
 */
import { ProxyError } from '../errors.ts'
import {
  KERNEL_EXPANSION_MAX,
  KERNEL_FRAMES_MAX,
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
import { ZstdFrames } from './zstd-frames.ts'

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
}

/**
 * Takes the bytes of an image, and gives the kernels in it as each of them ends. Which ones stands by places in the image alone:
 * an image that is packed comes cut otherwise each time that it is read.
 */
export class KernelFinder {
  /** What looked like kernels and was not taken, because so many others were. */
  passedOver = 0
  /** Where those end that were taken, of the image. */
  private readonly ends: number[] = []
  /** In the order of their headers. */
  private candidates: Candidate[] = []
  /** Up to where it has come before it shows what is packed, header by header. */
  private awaited: number[] = []
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
    for (const candidate of this.candidates) copyHead(candidate, chunk, position)
    this.decide()
    for (const { state, from, to, pieces } of this.candidates) {
      const first = Math.max(from + MAGIC_LENGTH, position)
      const end = Math.min(to, this.position)
      if (state === 'taken' && first < end) pieces.push(Buffer.from(chunk.subarray(first - position, end - position)))
    }
    // out go those that are whole, and those that are none
    const whole = this.candidates.filter(({ state, to }) => state === 'taken' && to <= this.position)
    this.candidates = this.candidates.filter(({ state, to }) => state !== 'none' && to > this.position)
    whole.sort((a, b) => a.to - b.to || a.offset - b.offset)
    return whole.map(({ offset, version, pieces }) => {
      return { offset, version: kernelVersion(version), payload: Buffer.concat(pieces) }
    })
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
      if (!isLinuxKernel(bytes, header) || !this.mayWait()) continue
      const candidate = candidateOf(bytes.subarray(header, header + KERNEL_HEADER_LENGTH), this.next)
      if (candidate === undefined) continue
      this.awaited.push(candidate.from + MAGIC_LENGTH)
      this.candidates.push(candidate)
      copyHead(candidate, bytes, at)
    }
  }

  /** Whether there is room for one more of which it does not show yet what it is. */
  private mayWait(): boolean {
    if (this.awaited.length >= KERNEL_HEADERS_MAX) this.awaited = this.awaited.filter(at => at > this.next)
    return this.awaited.length < KERNEL_HEADERS_MAX
  }

  /** Takes those of which it shows now that something is packed there, in the order in which that lies, or passes over them. */
  private decide(): void {
    const due = this.candidates.filter(({ state, from }) => state === 'seen' && from + MAGIC_LENGTH <= this.position)
    due.sort((a, b) => a.from - b.from || a.offset - b.offset)
    for (const candidate of due) {
      const { magic, from, to, pieces } = candidate
      candidate.state = 'none'
      if (packingOf(magic) === undefined && !isProgram(magic)) continue
      const around = this.ends.reduce((count, end) => count + (end > from ? 1 : 0), 0)
      if (this.ends.length >= KERNELS_MAX || around >= KERNELS_AT_ONCE) {
        this.passedOver++
        continue
      }
      this.ends.push(to)
      candidate.state = 'taken'
      pieces.push(magic)
    }
  }
}

/** Of its version and the first bytes of what is packed, what lies in these bytes. */
function copyHead({ state, versionAt, version, from, magic }: Candidate, bytes: Buffer, at: number): void {
  if (state === 'none') return
  for (const [into, place] of [
    [version, versionAt],
    [magic, from],
  ] as const) {
    const first = Math.max(place, at)
    const end = Math.min(place + into.length, at + bytes.length)
    if (first < end) bytes.copy(into, first - place, first - at, end - at)
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
  if (packing === 'zstd' && hasManyFrames(name, packed)) throw bad('it has many zstd frames, where a kernel has one')
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

/** Each frame is a decompressor of its own, and one that stands for nothing has nine bytes. @throws CAPTURE_FORMAT */
function hasManyFrames(name: string, packed: Buffer): boolean {
  const frames = new ZstdFrames(name)
  let at = 0
  for (let count = 0; count < KERNEL_FRAMES_MAX && at < packed.length; count++) at = frames.take(packed, at)
  return at < packed.length
}
