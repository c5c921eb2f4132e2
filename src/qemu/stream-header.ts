/** What stands before the first section: magic and version, then the configuration. Source: qemu-wire-format 2.1. */
import { readU32 } from '../bytes/big-endian.ts'
import { latin1 } from '../bytes/copy.ts'
import { CAPABILITIES_MAX, MACHINE_TYPE_LENGTH_MAX } from '../limits.ts'
import { type Field, STEP } from './field.ts'
import {
  CAPABILITY_IGNORE_SHARED,
  CAPABILITY_MAPPED_RAM,
  CONFIGURATION_SUBSECTION,
  ELEMENT,
  FILE_MAGIC,
  FILE_VERSION,
  PAGE_BITS,
  UUID_LENGTH,
} from './wire.ts'

const STATE = { FILE: 0, CONFIGURATION: 1, SUBSECTION: 2, CAPABILITY: 3 } as const

/** Of `allowed`: no element of the header may come any more. */
const NOTHING = -1

/** Bytes of magic and version, with which a stream begins. */
export const FILE_HEADER_LENGTH = 8

export class StreamHeader {
  machineType = ''
  /** x-ignore-shared: entries of the block list have an address. */
  ignoreShared = false
  private state: number = STATE.FILE
  /** The element that may come: CONFIGURATION behind the file's header, SUBSECTION behind that. */
  private allowed: number = NOTHING
  private capabilitiesLeft = 0

  /** Whether an element is the header's, and may stand here: if so its fields are read by {@link step}. */
  begins(element: number, field: Field): boolean {
    if (element !== this.allowed) {
      this.allowed = NOTHING
      return false
    }
    const configuration = element === ELEMENT.CONFIGURATION
    this.state = configuration ? STATE.CONFIGURATION : STATE.SUBSECTION
    field.need = configuration ? 5 : 2
    return true
  }

  /** `need` bytes are there. DONE: an element follows. */
  step(field: Field): number {
    switch (this.state) {
      case STATE.FILE:
        return this.fileStep(field)
      case STATE.CONFIGURATION:
        return this.configurationStep(field)
      case STATE.SUBSECTION:
        return this.subsectionStep(field)
      default: // STATE.CAPABILITY
        return this.capabilityStep(field)
    }
  }

  private fileStep(field: Field): number {
    if (readU32(field.head, 0) !== FILE_MAGIC) return field.bad(0, 'not a migration stream')
    if (readU32(field.head, 4) !== FILE_VERSION) return field.bad(4, 'unknown version of the migration stream')
    this.allowed = ELEMENT.CONFIGURATION
    return STEP.DONE
  }

  /** u8 07, u32 length, the machine type's name. */
  private configurationStep(field: Field): number {
    const length = readU32(field.head, 1)
    if (length > MACHINE_TYPE_LENGTH_MAX) return field.bad(field.start, 'machine type name too long')
    if (!field.wants(5 + length)) return STEP.ON
    this.machineType = latin1(field.head, 5, length)
    this.allowed = ELEMENT.SUBSECTION
    return STEP.DONE
  }

  /** u8 05, cstr name, u32 version, then what the name says. */
  private subsectionStep(field: Field): number {
    const { head } = field
    const length = head[1]!
    const bodyAt = 2 + length + 4
    if (!field.wants(bodyAt)) return STEP.ON
    const name = latin1(head, 2, length)
    if (name === CONFIGURATION_SUBSECTION.UUID) {
      field.skip = UUID_LENGTH
      return STEP.DONE
    }
    const pageBits = name === CONFIGURATION_SUBSECTION.TARGET_PAGE_BITS
    if (!pageBits && name !== CONFIGURATION_SUBSECTION.CAPABILITIES) {
      return field.bad(field.start, `unknown configuration subsection ${JSON.stringify(name)}`)
    }
    if (!field.wants(bodyAt + 4)) return STEP.ON
    const value = readU32(head, bodyAt)
    if (pageBits) {
      return value === PAGE_BITS ? STEP.DONE : field.bad(field.start + bodyAt, `target page size ${2 ** value}`)
    }
    if (value > CAPABILITIES_MAX) return field.bad(field.start + bodyAt, 'too many capabilities')
    this.capabilitiesLeft = value
    return this.nextCapability(field)
  }

  /** u8 length, name. */
  private capabilityStep(field: Field): number {
    const length = field.head[0]!
    if (!field.wants(1 + length)) return STEP.ON
    const name = latin1(field.head, 1, length)
    if (name === CAPABILITY_MAPPED_RAM) return field.bad(field.start, 'mapped-ram on a socket')
    if (name === CAPABILITY_IGNORE_SHARED) this.ignoreShared = true
    this.capabilitiesLeft--
    return this.nextCapability(field)
  }

  private nextCapability(field: Field): number {
    if (this.capabilitiesLeft === 0) return STEP.DONE
    this.state = STATE.CAPABILITY
    field.next(1)
    return STEP.ON
  }
}
