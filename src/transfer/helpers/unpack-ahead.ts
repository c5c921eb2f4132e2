/**
 * A session's batches that helpers unpack before their turn, each into a slot of the session's memory, of which there is a
 * fixed number. What takes effect does so in its turn: a batch that is damaged is an error then, as if it had been looked at
 * only then.
 */
import { copyOf, copyRange } from '../../bytes/copy.ts'
import { parseBatch } from '../../codec/batch.ts'
import { METHOD } from '../../codec/wire.ts'
import type { Workspace } from '../../codec/workspace.ts'
import { assert } from '../../errors.ts'
import { BATCH_WIRE_BYTES_MAX, UNPACK_COLUMNS_BYTES } from '../../limits.ts'
import type { DecodingHelp } from './decoding-help.ts'
import type { Job } from './helper.ts'
import { COLUMN_WORDS } from './helper-messages.ts'

/** Packed bytes of one batch, then its columns. */
export const AHEAD_SLOT_BYTES = BATCH_WIRE_BYTES_MAX + UNPACK_COLUMNS_BYTES
/** Columns begin on a cache line. */
const ALIGNMENT = 64

/** A column that is unpacked, or will be. */
interface LaidColumn {
  readonly column: number
  readonly at: number
  readonly length: number
}

/** A batch that a helper has. */
export interface AheadBatch {
  readonly rawLength: number
  readonly checksum: Uint8Array
  readonly columns: readonly LaidColumn[]
  readonly slot: number
  /** Undefined: nothing was to be unpacked. */
  readonly job: Job | undefined
  /** Whether it was given before its turn. */
  readonly isAhead: boolean
}

/** One that cannot be read: in its turn that is an error. */
export interface WrongAhead {
  readonly error: unknown
}

export class UnpackAhead {
  private readonly help: DecodingHelp
  private readonly bytes: Uint8Array
  private readonly holder: string
  private readonly free: number[]
  /** Raw bytes of batches that had nothing to unpack, since the last that had. */
  private rawBytes = 0
  /** Looked at already: they wait for their turn. */
  private tooLarge: readonly Uint8Array[] | undefined
  private isWrong = false
  /** Of our holder's. */
  private taken = 0

  /**
   * @param bytes all of the memory
   * @param slots addresses of AHEAD_SLOT_BYTES each
   * @param holder whose sessions share what may be before others' turn
   */
  constructor(help: DecodingHelp, bytes: Uint8Array, slots: readonly number[], holder: string) {
    this.help = help
    this.bytes = bytes
    this.free = [...slots]
    this.holder = holder
  }

  /**
   * Gives a batch to a helper before its turn: the next one that was not given yet. Its parts are not needed any more.
   * @returns undefined where it has to wait: for a slot, or for its turn
   */
  offer(parts: readonly Uint8Array[]): AheadBatch | WrongAhead | undefined {
    if (this.free.length === 0 || this.isWrong || parts === this.tooLarge) return undefined
    if (!this.help.takeAhead(this.holder)) return undefined
    this.taken++
    try {
      const given = this.give(parts, undefined)
      if (given !== undefined) return given
      this.tooLarge = parts
    } catch (error) {
      this.isWrong = true // none behind it will ever have its turn
      this.giveBack()
      return { error }
    }
    this.giveBack()
    return undefined
  }

  /**
   * The same in its turn.
   * @param workspace has columns that no slot holds
   * @throws BATCH_FORMAT
   */
  take(parts: readonly Uint8Array[], workspace: Workspace): AheadBatch {
    return this.give(parts, workspace)!
  }

  /**
   * @returns undefined where all of it is unpacked; else resolves once it is
   * @throws BATCH_FORMAT, INTERNAL; also as rejection
   */
  finished(batch: AheadBatch | WrongAhead): Promise<void> | undefined {
    if ('error' in batch) throw batch.error
    return batch.job === undefined ? undefined : this.help.finished(batch.job)
  }

  /** Has the workspace find its columns. */
  lay({ columns }: AheadBatch, workspace: Workspace): void {
    workspace.clear()
    for (const { column, at, length } of columns) workspace.lay(column, at, length)
  }

  /** It is expanded. */
  release({ slot, isAhead }: AheadBatch): void {
    this.free.push(slot)
    if (isAhead) this.giveBack()
  }

  /** Nothing is expanded any more. */
  close(): void {
    while (this.taken > 0) this.giveBack()
  }

  private giveBack(): void {
    if (this.taken === 0) return // it is closed
    this.taken--
    this.help.giveAhead(this.holder)
  }

  /** @param workspace undefined: before its turn */
  private give(parts: readonly Uint8Array[], workspace: Workspace | undefined): AheadBatch | undefined {
    const { rawLength, checksum, columns } = parseBatch(parts)
    let columnBytes = 0
    for (const column of columns) columnBytes += aligned(column.rawLength)
    const fits = columnBytes <= UNPACK_COLUMNS_BYTES
    if (!fits && workspace === undefined) return undefined
    const slot = this.free.pop()
    assert(slot !== undefined, 'a batch in its turn finds no slot')
    const { bytes } = this
    let packedAt = slot
    let next = slot + BATCH_WIRE_BYTES_MAX
    const laid: LaidColumn[] = []
    const table: number[] = []
    if (!fits) workspace!.clear() // where its own columns are
    for (const { column, method, rawLength: length, packed } of columns) {
      const at = fits ? next : workspace!.columnAt[column]!
      next += aligned(length)
      laid.push({ column, at, length })
      let to = method === METHOD.STORED ? at : packedAt
      for (const part of packed) {
        copyRange(part, 0, part.length, bytes, to)
        to += part.length
      }
      if (method === METHOD.STORED) continue
      table.push(column, method, packedAt, to - packedAt, at, length)
      packedAt = to
    }
    assert(table.length % COLUMN_WORDS === 0, 'a column is said in so many words')
    this.rawBytes += rawLength
    let job: Job | undefined
    if (table.length > 0) {
      job = this.help.unpack(this.rawBytes, Uint32Array.from(table))
      this.rawBytes = 0
    }
    return { rawLength, checksum: copyOf(checksum), columns: laid, slot, job, isAhead: workspace === undefined }
  }
}

function aligned(length: number): number {
  return Math.ceil(length / ALIGNMENT) * ALIGNMENT
}
