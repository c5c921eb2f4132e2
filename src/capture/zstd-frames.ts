/** Finds where zstd frames end, without decompressing. Source: RFC 8878, 3.1. */
import { ProxyError } from '../errors.ts'

const FRAME_MAGIC = 0xfd2fb528
/** Sixteen magics, 0x184d2a50 to 5f, of frames to be skipped. */
const SKIPPABLE_MAGIC = 0x184d2a50
const SKIPPABLE_MASK = 0xfffffff0

const BLOCK_RLE = 1
const BLOCK_RESERVED = 3
const CHECKSUM_LENGTH = 4
/** Bytes of the dictionary id, by its flag. */
const DICTIONARY_LENGTHS = [0, 1, 2, 4]
/** Bytes of the content size, by its flag; with flag 0 a single segment has one byte. */
const CONTENT_SIZE_LENGTHS = [0, 2, 4, 8]

type State = 'magic' | 'descriptor' | 'skippable-size' | 'block-header' | 'pass'

/** Takes bytes of concatenated frames, cut anywhere. */
export class ZstdFrames {
  /** True where the last byte taken ended a frame. */
  atEnd = false
  private readonly name: string
  private readonly field = Buffer.alloc(4)
  private have = 0
  private need = 4
  private state: State = 'magic'
  /** Bytes to pass before `afterPass`. */
  private passLength = 0
  private afterPass: State | 'end' = 'magic'
  private checksum = false
  private lastBlock = false
  private position = 0
  /** Where the field under way began. */
  private fieldAt = 0

  /** @param name what errors call the input */
  constructor(name: string) {
    this.name = name
  }

  static isMagic(value: number): boolean {
    return value === FRAME_MAGIC || (value & SKIPPABLE_MASK) >>> 0 === SKIPPABLE_MAGIC
  }

  /**
   * Takes bytes from `at` up to the end of the frame or of the chunk.
   *
   * @returns the index behind them
   * @throws CAPTURE_FORMAT
   */
  take(chunk: Buffer, at: number): number {
    this.atEnd = false
    while (at < chunk.length && !this.atEnd) {
      const length = this.state === 'pass' ? this.passLength : this.need - this.have
      const taken = Math.min(length, chunk.length - at)
      if (this.state === 'pass') {
        this.passLength -= taken
        if (this.passLength === 0) this.passed()
      } else {
        if (this.have === 0) this.fieldAt = this.position
        chunk.copy(this.field, this.have, at, at + taken)
        this.have += taken
        if (this.have === this.need) this.step()
      }
      at += taken
      this.position += taken
    }
    return at
  }

  /** The input ended. @throws QEMU_TRUNCATED within a frame */
  end(): void {
    if (this.state === 'magic' && this.have === 0) return
    const where = { stream: this.name, offset: this.position }
    throw new ProxyError('QEMU_TRUNCATED', 'the zstd data end early', where, 'copy it again, whole')
  }

  private step(): void {
    const { field } = this
    switch (this.state) {
      case 'magic': {
        const magic = field.readUInt32LE(0)
        if (!ZstdFrames.isMagic(magic)) throw this.bad('bytes behind the zstd data that are no zstd frame')
        if (magic === FRAME_MAGIC) this.expect('descriptor', 1)
        else this.expect('skippable-size', 4)
        break
      }
      case 'descriptor': {
        const descriptor = field[0]!
        const singleSegment = (descriptor >> 5) & 1
        const contentSizeFlag = descriptor >> 6
        const contentSize = contentSizeFlag === 0 ? singleSegment : CONTENT_SIZE_LENGTHS[contentSizeFlag]!
        this.checksum = ((descriptor >> 2) & 1) === 1
        this.pass(1 - singleSegment + DICTIONARY_LENGTHS[descriptor & 3]! + contentSize, 'block-header')
        break
      }
      case 'skippable-size':
        this.pass(field.readUInt32LE(0), 'end')
        break
      default: {
        const header = field.readUIntLE(0, 3)
        const type = (header >> 1) & 3
        if (type === BLOCK_RESERVED) throw this.bad('a zstd block of reserved type')
        this.lastBlock = (header & 1) === 1
        const after = !this.lastBlock ? 'block-header' : 'end'
        const length = type === BLOCK_RLE ? 1 : header >> 3
        this.pass(length + (this.lastBlock && this.checksum ? CHECKSUM_LENGTH : 0), after)
      }
    }
  }

  private expect(state: State, need: number): void {
    this.state = state
    this.need = need
    this.have = 0
  }

  private pass(length: number, after: State | 'end'): void {
    this.state = 'pass'
    this.passLength = length
    this.afterPass = after
    if (length === 0) this.passed()
  }

  private passed(): void {
    if (this.afterPass === 'end') {
      this.atEnd = true
      this.expect('magic', 4)
    } else this.expect(this.afterPass, 3)
  }

  private bad(what: string): ProxyError {
    return new ProxyError('CAPTURE_FORMAT', what, { stream: this.name, offset: this.fieldAt }, 'copy it again')
  }
}
