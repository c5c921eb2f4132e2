import { readU16, readU32 } from '../bytes/big-endian.ts'
import { latin1 } from '../bytes/copy.ts'
import type { RamRecordReader } from './ram-records.ts'
import {
  COMMAND,
  COMMAND_LENGTH,
  ELEMENT,
  PACKAGED_LENGTH,
  PAGE_SIZE,
  RAM_FLAG,
  RAM_FLAG_MASK,
  RAM_SECTION,
} from './wire.ts'

/** What a trail waits for. */
const STATE = {
  ELEMENT: 0,
  COMMAND: 1,
  START: 2,
  SECTION_AGAIN: 3,
  RECORD: 4,
  FOOTER: 5, // behind an EOS record
} as const

/** What a byte made of a trail. */
const STEP = { ON: 0, LOST: 1, FOUND: 2 } as const

/** Longest field of a trail: START with an idstr of 255 bytes. */
const HEAD_LENGTH = 6 + 255 + 8

/**
 * Trails at once. A footer that is none is found out within a few bytes, so that two at once are rare; more is the work
 * of someone who wants to hide the right one. The oldest gives way.
 */
const TRAILS_MAX = 8

/** One place at which a section may have ended, followed byte by byte until it is certain or impossible. */
export class Trail {
  /** Where it begins: behind the footer. */
  start = 0
  /** The element that made it certain: PART or END of ram; START of ram, START or FULL of another that can be read. */
  element = 0
  /** That element's section. */
  id = 0
  /** Where the bytes in `head` start: the head of a section, or of a RAM record. */
  headStart = 0
  readonly head = new Uint8Array(HEAD_LENGTH)
  have = 0
  /** The section of ram was empty: EOS and footer are behind. */
  empty = false
  /** Commands on the way, by id, and the positions behind the last of each. */
  readonly commands = new Int32Array(COMMAND.SWITCHOVER_START + 1)
  readonly commandEnds = new Float64Array(COMMAND.SWITCHOVER_START + 1)
  packagedBytes = 0

  // The field under way.
  state: number = STATE.ELEMENT
  need = 1
  skip = 0
  /** Without footers to go by it takes two records that follow each other. */
  recordsWanted = 1

  begin(start: number, state: number, need: number): void {
    this.start = start
    this.headStart = start
    this.empty = false
    this.commands.fill(0)
    this.packagedBytes = 0
    this.skip = 0
    this.recordsWanted = 1
    this.next(state, need)
  }

  next(state: number, need: number): void {
    this.state = state
    this.need = need
    this.have = 0
  }
}

/** The sections of a main stream, as far as they matter here. */
export interface KnownSections {
  has(id: number): boolean
  /** The head of a section on the way, START or FULL, that is not ram's. @returns whether its body can be read */
  learn(element: number, id: number, idstr: string): boolean
}

/**
 * Finds the end of a section whose body it cannot read: a footer, then elements that parse, and the next record of RAM
 * (or the head of a section whose name we know) to make it certain. Bytes that only look like a footer lead into trails
 * that end; so several are followed at once, byte by byte, and no byte is looked at again. Whatever the bytes are, work
 * is bounded by them, and memory by TRAILS_MAX. Being wrong costs savings and nothing else: what is told from here on
 * are records that stand in the stream, be they QEMU's or bytes that look alike. Source: qemu-wire-format 2.7.
 */
export class WayBack {
  private readonly records: RamRecordReader
  private readonly known: KnownSections
  /** Trails under way come first, in order of age. */
  private readonly trails: Trail[] = []
  private count = 0
  /** The last four bytes, and the one before them. */
  private last = 0
  private before = 0
  private ramId = -1
  private footers = true

  constructor(records: RamRecordReader, known: KnownSections) {
    this.records = records
    this.known = known
  }

  /**
   * Begins anew, with the next byte.
   *
   * @param ramId the section of ram, -1 before its START
   * @param footers whether sections end in footers
   */
  begin(ramId: number, footers: boolean): void {
    this.ramId = ramId
    this.footers = footers
    this.count = 0
    this.last = 0
    this.before = 0
  }

  /** Bytes at the end of what was read that may be the head of a RAM record. */
  get pending(): number {
    let most = 0
    for (let i = 0; i < this.count; i++) {
      const trail = this.trails[i]!
      if (trail.state === STATE.RECORD && trail.skip === 0) most = Math.max(most, trail.have)
    }
    return most
  }

  /** The trail that is certain, after {@link read}; undefined where none is yet. */
  found: Trail | undefined = undefined

  /**
   * Takes bytes from `chunk`, `at` up to `end`, until a trail is certain.
   *
   * @param base position in the stream of `chunk[0]`
   * @returns the index behind the last byte taken
   */
  read(chunk: Uint8Array, at: number, end: number, base: number): number {
    const { known, ramId, footers } = this
    this.found = undefined
    let { last, before } = this
    while (at < end) {
      const byte = chunk[at]!
      at++
      if (this.count > 0 && this.step(byte, base + at)) break
      before = last >>> 24
      last = ((last << 8) | byte) >>> 0
      if (footers) {
        if (before === ELEMENT.SECTION_FOOTER && known.has(last)) this.follow(base + at)
      } else if (last === ramId && (before === ELEMENT.SECTION_PART || before === ELEMENT.SECTION_END)) {
        const trail = this.follow(base + at)
        trail.start -= 5
        trail.element = before
        trail.id = ramId
        trail.recordsWanted = 2
        trail.next(STATE.RECORD, 8)
      }
    }
    this.last = last
    this.before = before
    return at
  }

  private follow(start: number): Trail {
    if (this.count === TRAILS_MAX) this.drop(0)
    const trail = this.trails[this.count] ?? new Trail()
    this.trails[this.count++] = trail
    trail.begin(start, STATE.ELEMENT, 1)
    return trail
  }

  /** The trail at `i` is over; those behind it move up. */
  private drop(i: number): void {
    const trail = this.trails[i]!
    for (this.count--; i < this.count; i++) this.trails[i] = this.trails[i + 1]!
    this.trails[this.count] = trail
  }

  /** Gives a byte to all trails. @returns whether one of them is certain */
  private step(byte: number, position: number): boolean {
    for (let i = 0; i < this.count; ) {
      const trail = this.trails[i]!
      const outcome = this.stepOne(trail, byte, position)
      if (outcome === STEP.FOUND) {
        this.found = trail
        return true
      }
      if (outcome === STEP.LOST) this.drop(i)
      else i++
    }
    return false
  }

  private stepOne(trail: Trail, byte: number, position: number): number {
    if (trail.skip > 0) {
      trail.skip--
      if (trail.skip === 0) trail.headStart = position
      return STEP.ON
    }
    trail.head[trail.have++] = byte
    if (trail.have < trail.need) return STEP.ON
    switch (trail.state) {
      case STATE.ELEMENT:
        return this.element(trail, byte, position)
      case STATE.COMMAND:
        return command(trail, position)
      case STATE.START:
        return this.sectionStart(trail)
      case STATE.SECTION_AGAIN:
        if (readU32(trail.head, 1) !== this.ramId) return STEP.LOST
        trail.element = trail.head[0]!
        trail.id = this.ramId
        trail.headStart = position
        trail.next(STATE.RECORD, 8)
        return STEP.ON
      case STATE.RECORD:
        return this.record(trail, position)
      default: // STATE.FOOTER
        if (trail.head[0] !== ELEMENT.SECTION_FOOTER || readU32(trail.head, 1) !== trail.id) return STEP.LOST
        trail.empty = true
        return STEP.FOUND
    }
  }

  private element(trail: Trail, element: number, position: number): number {
    trail.headStart = position - 1
    switch (element) {
      case ELEMENT.COMMAND:
        trail.state = STATE.COMMAND
        trail.need = 5
        return STEP.ON
      case ELEMENT.SECTION_START:
      case ELEMENT.SECTION_FULL: // of device state that comes early
        trail.state = STATE.START
        trail.need = 6
        return STEP.ON
      case ELEMENT.SECTION_PART:
      case ELEMENT.SECTION_END:
        trail.state = STATE.SECTION_AGAIN
        trail.need = 5
        return STEP.ON
      default:
        return STEP.LOST
    }
  }

  /** u8 element, u32 id, cstr idstr, u32 instance, u32 version. The trail is lost in a body that cannot be read. */
  private sectionStart(trail: Trail): number {
    const { head } = trail
    const length = head[5]!
    if (length === 0) return STEP.LOST
    trail.need = 6 + length + 8
    if (trail.have < trail.need) return STEP.ON
    const id = readU32(head, 1)
    const idstr = latin1(head, 6, length)
    trail.element = head[0]!
    trail.id = id
    if (idstr === RAM_SECTION.IDSTR) {
      const [instance, version] = [readU32(head, 6 + length), readU32(head, 10 + length)]
      const ours = instance === RAM_SECTION.INSTANCE && version === RAM_SECTION.VERSION
      return trail.element === ELEMENT.SECTION_START && ours && this.ramId < 0 ? STEP.FOUND : STEP.LOST
    }
    if (!/^[\x20-\x7e]+$/.test(idstr)) return STEP.LOST
    return this.known.learn(trail.element, id, idstr) ? STEP.FOUND : STEP.LOST
  }

  private record(trail: Trail, position: number): number {
    const { head } = trail
    const need = this.records.probe(head, trail.have)
    if (need === 0) return STEP.LOST
    if (need > trail.have) {
      trail.need = need
      return STEP.ON
    }
    const kind = readU32(head, 4) & RAM_FLAG_MASK & ~RAM_FLAG.CONTINUE
    if (kind === RAM_FLAG.MULTIFD_FLUSH) {
      trail.headStart = position
      trail.next(STATE.RECORD, 8)
      return STEP.ON
    }
    if (kind === RAM_FLAG.EOS) {
      if (!this.footers) return STEP.LOST
      trail.next(STATE.FOOTER, 5)
      return STEP.ON
    }
    if (--trail.recordsWanted === 0) return STEP.FOUND
    if (kind !== RAM_FLAG.PAGE && kind !== RAM_FLAG.ZERO) return STEP.LOST
    trail.skip = kind === RAM_FLAG.PAGE ? PAGE_SIZE : 1
    trail.next(STATE.RECORD, 8)
    return STEP.ON
  }
}

/** u8 08, u16 command, u16 length, payload. */
function command(trail: Trail, position: number): number {
  const { head } = trail
  const id = readU16(head, 1)
  const length = readU16(head, 3)
  const [least, most] = COMMAND_LENGTH[id] ?? [1, 0]
  if (length < least! || length > most!) return STEP.LOST
  if (id === COMMAND.PACKAGED) {
    trail.need = 5 + PACKAGED_LENGTH
    if (trail.have < trail.need) return STEP.ON
    trail.skip = readU32(head, 5)
    trail.packagedBytes += trail.skip
  } else trail.skip = length
  trail.commands[id]!++
  trail.commandEnds[id] = position
  trail.next(STATE.ELEMENT, 1)
  return STEP.ON
}
