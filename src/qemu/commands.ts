/** Commands of a main stream. Source: qemu-wire-format 2.3. */
import { readU16, readU32, readU64 } from '../bytes/big-endian.ts'
import { type Field, STEP } from './field.ts'
import type { StreamPhase } from './stream-sink.ts'
import type { Trail } from './way-back.ts'
import { COMMAND, PACKAGED_LENGTH, PAGE_SIZE, POSTCOPY_ADVISE_LENGTH } from './wire.ts'

/** What they are counted in. */
export interface CommandCounts {
  /** Commands outside packages, by id; ids above 11 under 0. */
  commands: number[]
  /** Bytes of the packages of PACKAGED commands. */
  packagedBytes: number
}

export class Commands {
  /** The one that was read last. */
  id = 0
  /** Postcopy of RAM may follow: POSTCOPY_ADVISE came with its page sizes. */
  postcopyAdvised = false
  private readonly counts: CommandCounts

  constructor(counts: CommandCounts) {
    this.counts = counts
  }

  /** u8 08, u16 command, u16 length, payload; an unknown command is passed by its length, as QEMU frames it. */
  step(field: Field): number {
    const { head } = field
    const { counts } = this
    const id = readU16(head, 1)
    const length = readU16(head, 3)
    if (id === COMMAND.POSTCOPY_ADVISE && length === POSTCOPY_ADVISE_LENGTH) {
      if (!field.wants(5 + length)) return STEP.ON
      const pageSize = readU64(head, 13)
      if (pageSize !== PAGE_SIZE) return field.bad(field.start + 13, `target page size ${pageSize}`)
      this.postcopyAdvised = true
    } else if (id === COMMAND.PACKAGED) {
      if (length !== PACKAGED_LENGTH) return field.bad(field.start, 'PACKAGED of an unknown length')
      if (!field.wants(5 + length)) return STEP.ON
      field.skip = readU32(head, 5)
      counts.packagedBytes += field.skip
    } else field.skip = length
    counts.commands[id < counts.commands.length ? id : 0]!++
    this.id = id
    return STEP.DONE
  }

  /** What the last one tells. */
  get phase(): StreamPhase | undefined {
    switch (this.id) {
      case COMMAND.OPEN_RETURN_PATH:
        return 'return-path'
      case COMMAND.POSTCOPY_ADVISE:
        return this.postcopyAdvised ? 'postcopy-advise' : undefined
      case COMMAND.PACKAGED:
        return 'postcopy'
      case COMMAND.ENABLE_COLO:
        return 'colo'
      case COMMAND.SWITCHOVER_START:
        return 'switchover'
      default:
        return undefined
    }
  }

  /** Counts those that were passed on a way back. */
  passed(trail: Trail): void {
    const { counts } = this
    for (let id = 0; id < counts.commands.length; id++) counts.commands[id]! += trail.commands[id]!
    counts.packagedBytes += trail.packagedBytes
  }
}
