import { readU16, readU32, readU64, writeU32 } from '../bytes/big-endian.ts'
import { copyBytes, latin1 } from '../bytes/copy.ts'
import { assert } from '../errors.ts'
import {
  CAPABILITIES_MAX,
  MACHINE_TYPE_LENGTH_MAX,
  SECTION_SEARCH_BYTES_MAX,
  SECTIONS_MAX,
  WRONG_WAYS_MAX,
} from '../limits.ts'
import { BlockTable, type RamBlock } from './block-table.ts'
import {
  type BodyGrammar,
  type BodyStep,
  earlyGrammar,
  iterableGrammar,
  UNIT_HEAD_LENGTH_MAX,
  unreadable,
} from './other-sections.ts'
import { type RamCounts, RamRecordReader, READ } from './ram-records.ts'
import type { RecordSink, StreamPhase } from './record-sink.ts'
import { type Trail, WayBack } from './way-back.ts'
import {
  CAPABILITY_IGNORE_SHARED,
  CAPABILITY_MAPPED_RAM,
  COMMAND,
  CONFIGURATION_SUBSECTION,
  ELEMENT,
  FILE_MAGIC,
  FILE_VERSION,
  PACKAGED_LENGTH,
  PAGE_BITS,
  PAGE_SIZE,
  POSTCOPY_ADVISE_LENGTH,
  RAM_FLAG_MASK,
  RAM_SECTION,
  UUID_LENGTH,
} from './wire.ts'

/** What a recovery connection needs to know of the first one; plain data, may go through JSON. */
export interface ParserMemory {
  readonly blocks: readonly RamBlock[]
  /** True where a block list named all of them. */
  readonly blocksComplete: boolean
  /** START sections seen, by id. */
  readonly sections: readonly { readonly id: number; readonly idstr: string }[]
  readonly machineType: string
}

/** Plain counts of a main stream. */
export interface MainCounts {
  /** Section heads by element. */
  sections: { start: number; part: number; end: number; full: number }
  /** Commands outside packages, by id; ids above 11 under 0. */
  commands: number[]
  records: RamCounts
  /** Bytes of the packages of PACKAGED commands. */
  packagedBytes: number
}

/** How a stream ended. */
export interface StreamEnd {
  /** It ended inside a section or another element. Between two it may still lack the rest: see ramComplete. */
  cut: boolean
  /** All of RAM was there: END of ram, or device state in its place (background-snapshot). */
  ramComplete: boolean
  /** Position of the field that was not understood, undefined where all were. */
  degradedAt: number | undefined
}

/** Options of {@link MainStreamParser}. */
export interface MainStreamOptions {
  /** State of the migration's first connection: this is its recovery, a stream without header. */
  recovery?: ParserMemory
  /** The migration's RAMBlocks, shared with its other channels; by default a table of this parser alone. */
  blocks?: BlockTable
}

/** What the bytes in `head` are, or will be once `need` of them are there. */
const STATE = {
  HEADER: 0,
  ELEMENT: 1,
  CONFIGURATION: 2,
  SUBSECTION: 3,
  CAPABILITY: 4,
  SECTION: 5, // START or FULL
  SECTION_AGAIN: 6, // PART or END
  FOOTER: 7,
  COMMAND: 8,
  VMDESCRIPTION: 9,
  RAM: 10, // RamRecordReader has the bytes
  BLOCK_ENTRY: 11,
  BLOCK_PAGE_SIZE: 12, // or the entry or record after it, where there is none
  BLOCK_ADDRESS: 13,
  OTHER_BODY: 14,
  END: 15,
  ASTRAY: 16, // within a section that nobody here can read: WayBack has the bytes
  RAW: 17,
} as const

const NO_BYTES = new Uint8Array(0)

interface Section {
  readonly id: number
  readonly idstr: string
  /** undefined for ram, `unreadable` where there is none. */
  readonly grammar: BodyGrammar | undefined
}

function sectionOf(id: number, idstr: string): Section {
  const grammar = idstr === RAM_SECTION.IDSTR ? undefined : (iterableGrammar(idstr) ?? unreadable)
  return { id, idstr, grammar }
}

/**
 * Reads a main stream, cut anywhere, and tells its sink where RAM records lie. It keeps no page and no reference to a
 * chunk, and never throws on what a peer sends: what it does not understand ends its work, not the stream's; behind a
 * section that it does not know it looks for the way back.
 * Source: qemu-wire-format 2 and 3.
 */
export class MainStreamParser {
  /** Live counts, for statistics and tests. */
  readonly counts: MainCounts
  private readonly sink: RecordSink
  private readonly blocks: BlockTable
  private readonly records: RamRecordReader
  private readonly sections = new Map<number, Section>()
  private readonly toldPhases = new Set<StreamPhase>()

  private state: number = STATE.HEADER
  /** Bytes of the field under way; it starts at `fieldStart`. */
  private readonly head = new Uint8Array(UNIT_HEAD_LENGTH_MAX)
  private have = 0
  private need = 8
  private fieldStart = 0
  /** Bytes to pass before the next field. */
  private skip = 0
  private streamPosition = 0

  private machineType = ''
  /** Elements CONFIGURATION and SUBSECTION are allowed, in the header alone. */
  private configurationAllowed = false
  private subsectionsAllowed = false
  private capabilitiesLeft = 0
  private ignoreShared = false
  private postcopyAdvised = false
  /** Behind PACKAGED, or in a recovery: RAM goes on, and END of ram does not lead to raw device state. */
  private postcopy = false
  private ramPartSeen = false
  private ramEnded = false
  /** RAM is over, with the phase 'ram-end' or 'snapshot-devices'. */
  private ramComplete = false
  /** VMDESCRIPTION came: nothing more may follow. */
  private descriptionSeen = false
  /** Sections end in footers: all but those of machine types up to 2.3. Unknown before the first section ended. */
  private footers: boolean | undefined = undefined

  private element = 0
  private section: Section | undefined = undefined
  private grammar: BodyGrammar | undefined = undefined
  private unit = 0
  private readonly step: BodyStep = { need: 0, skip: 0, end: false, bad: '' }
  /** Bytes of RAMBlocks that the block list still has to name. */
  private blockBytesLeft = 0
  private degradedAt: number | undefined = undefined
  /** What was being read where the stream was given up. */
  private givenUpIn: number = STATE.RAW

  /** The section of ram, -1 before its START. */
  private ramId = -1
  // Astray.
  private wayBack: WayBack | undefined = undefined
  private lostAt = 0
  private lostReason = ''
  private searchBytesLeft = 0
  private readonly strayedTold = new Set<number>()
  private foundBack = false
  private wrongWays = 0

  constructor(sink: RecordSink, options: MainStreamOptions = {}) {
    const memory = options.recovery
    this.sink = sink
    this.blocks = options.blocks ?? new BlockTable(memory?.blocks, memory?.blocksComplete)
    this.records = new RamRecordReader(sink, this.blocks)
    this.counts = {
      sections: { start: 0, part: 0, end: 0, full: 0 },
      commands: new Array(COMMAND.SWITCHOVER_START + 1).fill(0),
      records: this.records.counts,
      packagedBytes: 0,
    }
    if (memory) {
      for (const { id, idstr } of memory.sections) this.addSection(id, idstr)
      this.machineType = memory.machineType
      this.postcopy = true
      this.state = STATE.ELEMENT
      this.need = 1
    }
  }

  /** Bytes of the stream taken so far. */
  get position(): number {
    return this.streamPosition
  }

  /**
   * Bytes at the end of what was taken that belong to an incomplete RAM record or other small field: at most
   * 8 + 1 + 255 + 4096. A caller that keeps them in front of its next chunk has every record contiguous when its event
   * comes. 0 between records and in raw stretches.
   */
  get pending(): number {
    if (this.state === STATE.RAM) return this.records.pending
    return this.state === STATE.ASTRAY ? this.wayBack!.pending : this.have
  }

  /** True where everything from here on is raw: RAM is over, or the stream was not understood. */
  get raw(): boolean {
    return this.state === STATE.RAW
  }

  /**
   * Bytes to come that no field is made of (bodies of pages, of other records, packages): a reader of captures may push
   * anything in the place of as many that it lacks. 0 where the next byte counts.
   */
  get passable(): number {
    if (this.skip > 0) return this.skip
    return this.state === STATE.RAM ? this.records.bodyRemaining : 0
  }

  /**
   * What a stream has to say behind its last whole field (or the last one that was understood) before a RAM record may
   * follow: nothing within RAM, else the footer that is due, and the head of a section.
   */
  leadToRecord(): Uint8Array {
    const state = this.state === STATE.RAW ? this.givenUpIn : this.state
    if (state === STATE.RAM) return NO_BYTES
    const within = state === STATE.FOOTER || state === STATE.OTHER_BODY || state === STATE.ASTRAY
    const footer = within && this.section && this.footers !== false
    const lead = new Uint8Array(footer ? 10 : 5)
    if (footer) {
      lead[0] = ELEMENT.SECTION_FOOTER
      writeU32(lead, 1, this.section!.id)
    }
    lead[lead.length - 5] = ELEMENT.SECTION_PART
    writeU32(lead, lead.length - 4, this.ramId)
    return lead
  }

  /**
   * Goes on behind bytes that are missing, or that were not understood: the next one that is pushed stands at `position`
   * and begins a RAM record.
   *
   * @returns false where RAM has not begun or is over, so that nothing changed
   */
  resumeAtRecord(position: number): boolean {
    const over = (this.raw && this.degradedAt === undefined) || this.state === STATE.END
    if (this.ramId < 0 || !this.blocks.complete || over) return false
    this.degradedAt = undefined
    this.section = this.sections.get(this.ramId)
    this.grammar = undefined
    this.element = ELEMENT.SECTION_PART
    this.ramPartSeen = true
    this.ramEnded = false
    this.skip = 0
    this.streamPosition = position
    this.records.abandon()
    this.next(STATE.RAM, 1)
    return true
  }

  /** Offsets of RAM records without a name have to be below this: the RAMBlock that was named last ends there. 0: none was. */
  get continuedEnd(): number {
    return this.records.continuedEnd
  }

  /** Id of the section of RAM, -1 before it is known. */
  get ramSectionId(): number {
    return this.ramId
  }

  /** What a recovery of this migration needs; a copy. */
  memory(): ParserMemory {
    return {
      blocks: this.blocks.list(),
      blocksComplete: this.blocks.complete,
      sections: Array.from(this.sections.values(), ({ id, idstr }) => ({ id, idstr })),
      machineType: this.machineType,
    }
  }

  /** Takes the next `length` bytes of the channel, which lie in `chunk` from `at`, cut anywhere. Keeps no reference. */
  push(chunk: Uint8Array, at: number, length: number): void {
    const end = at + length
    assert(at >= 0 && length >= 0 && end <= chunk.length, 'bytes outside their chunk')
    const base = this.streamPosition - at
    if (this.streamPosition === 0 && length > 0 && this.postcopy) this.tellPhase('recovery', 0)
    this.take(chunk, at, end, base)
    this.streamPosition = base + end
  }

  private take(chunk: Uint8Array, at: number, end: number, base: number): void {
    while (at < end && this.state !== STATE.RAW) {
      if (this.skip > 0) {
        const take = Math.min(this.skip, end - at)
        this.skip -= take
        at += take
      } else if (this.state === STATE.RAM) {
        at = this.records.read(chunk, at, end, base)
        if (this.records.outcome !== READ.MORE) this.recordsStopped(base + at)
      } else if (this.state === STATE.ASTRAY) {
        at = this.search(chunk, at, end, base)
      } else {
        if (this.have === 0) this.fieldStart = base + at
        const take = Math.min(this.need - this.have, end - at)
        copyBytes(chunk, at, this.head, this.have, take)
        this.have += take
        at += take
        if (this.have === this.need) this.fieldStep(base + at)
      }
    }
  }

  /** The stream ended. Tells how, for tools that need whole ones; a relay does not care. */
  finish(): StreamEnd {
    const { state } = this
    const astray = state === STATE.ASTRAY
    const between = (state === STATE.ELEMENT || state === STATE.END) && this.have === 0 && this.skip === 0
    const cut = state !== STATE.RAW && !astray && !between
    return { cut, ramComplete: this.ramComplete, degradedAt: astray ? this.lostAt : this.degradedAt }
  }

  // ---- fields: steps return undefined, so that `return this.degrade(...)` ends one in a line ----

  /** `need` bytes of a field are there. Asks for more of it, or acts on it and sets the next state. */
  private fieldStep(position: number): undefined {
    switch (this.state) {
      case STATE.HEADER:
        return this.headerStep(position)
      case STATE.ELEMENT:
        return this.elementStep(position)
      case STATE.CONFIGURATION:
        return this.configurationStep()
      case STATE.SUBSECTION:
        return this.subsectionStep()
      case STATE.CAPABILITY:
        return this.capabilityStep()
      case STATE.SECTION:
        return this.sectionStep(position)
      case STATE.SECTION_AGAIN:
        return this.sectionAgainStep()
      case STATE.FOOTER:
        return this.footerStep(position)
      case STATE.COMMAND:
        return this.commandStep(position)
      case STATE.VMDESCRIPTION:
        this.skip = readU32(this.head, 1)
        this.descriptionSeen = true
        return this.next(STATE.END, 1)
      case STATE.BLOCK_ENTRY:
        return this.blockEntryStep()
      case STATE.BLOCK_PAGE_SIZE:
        return this.blockPageSizeStep(position)
      case STATE.BLOCK_ADDRESS:
        return this.blockEntryDone()
      case STATE.OTHER_BODY:
        return this.otherBodyStep()
      default:
        // STATE.END
        if (this.head[0] === ELEMENT.VMDESCRIPTION && !this.descriptionSeen) return this.become(STATE.VMDESCRIPTION, 5)
        return this.degrade(this.fieldStart, 'bytes behind the end of the stream')
    }
  }

  /** The field is done; the next one starts behind it. */
  private next(state: number, need: number): undefined {
    this.state = state
    this.need = need
    this.have = 0
  }

  /** The bytes of this field belong to `state`, which wants `need` of them. */
  private become(state: number, need: number): undefined {
    this.state = state
    this.need = need
  }

  /** Raw for good, but where it comes of a way back that was none. */
  private degrade(position: number, reason: string): undefined {
    if (this.foundBack && this.wrongWays < WRONG_WAYS_MAX && this.mayFindBack) {
      this.wrongWays++
      return this.beginSearch(position, reason)
    }
    this.giveUp(position, reason)
  }

  private giveUp(position: number, reason: string): undefined {
    this.givenUpIn = this.state
    this.next(STATE.RAW, 1)
    this.skip = 0
    this.degradedAt = position
    this.sink.degraded(position, reason)
  }

  private tellPhase(phase: StreamPhase, position: number): undefined {
    if (this.toldPhases.has(phase)) return
    this.toldPhases.add(phase)
    this.sink.phase(phase, position)
  }

  // ---- sections that nobody here can read ----

  private addSection(id: number, idstr: string): Section {
    const section = sectionOf(id, idstr)
    this.sections.set(id, section)
    if (!section.grammar) this.ramId = id
    return section
  }

  /** True where something may follow by which the way back is known: records of ram, or its START. */
  private get mayFindBack(): boolean {
    if (this.ramEnded) return false
    return this.ramId >= 0 || (!this.postcopy && this.footers !== false)
  }

  /** The section has a body that cannot be read, or not on from here. Its end is looked for. */
  private stray(id: number, position: number, reason: string): undefined {
    if (this.ramEnded) {
      // Nothing of RAM follows: what there is to understand was understood.
      this.skip = 0
      return this.next(STATE.RAW, 1)
    }
    if (!this.mayFindBack) return this.giveUp(position, reason)
    if (!this.sections.has(id)) {
      if (this.sections.size >= SECTIONS_MAX) return this.giveUp(position, 'too many sections')
      this.sections.set(id, { id, idstr: '', grammar: unreadable })
    }
    if (!this.strayedTold.has(id)) {
      this.strayedTold.add(id)
      this.sink.strayed?.(position, reason)
    }
    this.beginSearch(position, reason)
  }

  private beginSearch(position: number, reason: string): undefined {
    // Of the field that was not understood, what came of it may hold the footer.
    const inRecord = this.state === STATE.RAM && this.records.outcome === READ.BAD
    const again = inRecord ? this.records.badBytes.slice() : this.head.slice(0, this.have)
    const againAt = inRecord ? this.records.badPosition : this.fieldStart
    this.lostAt = position
    this.lostReason = reason
    this.searchBytesLeft = SECTION_SEARCH_BYTES_MAX
    this.wayBack ??= new WayBack(this.records, {
      has: id => this.sections.has(id),
      learn: (element, id, idstr) => {
        if (element === ELEMENT.SECTION_FULL && !this.ramPartSeen && earlyGrammar(idstr)) return true
        if (this.sections.has(id) || this.sections.size >= SECTIONS_MAX) return false
        return this.addSection(id, idstr).grammar !== unreadable && element === ELEMENT.SECTION_START
      },
    })
    this.wayBack.begin(this.ramId, this.footers !== false)
    this.next(STATE.ASTRAY, 1)
    this.skip = 0
    this.take(again, 0, again.length, againAt)
  }

  private search(chunk: Uint8Array, at: number, end: number, base: number): number {
    const wayBack = this.wayBack!
    const next = wayBack.read(chunk, at, Math.min(end, at + this.searchBytesLeft), base)
    this.searchBytesLeft -= next - at
    if (wayBack.found) this.goOn(wayBack.found, base + next)
    else if (this.searchBytesLeft === 0) this.giveUp(this.lostAt, `${this.lostReason}, and no end of it found`)
    return next
  }

  /** The way back is found: `position` is behind the last byte that made it certain. */
  private goOn(trail: Trail, position: number): undefined {
    const { counts, records } = this
    this.foundBack = true
    this.footers ??= true
    for (let command = 0; command < counts.commands.length; command++) {
      counts.commands[command]! += trail.commands[command]!
    }
    if (trail.commands[COMMAND.SWITCHOVER_START]! > 0) {
      this.tellPhase('switchover', trail.commandEnds[COMMAND.SWITCHOVER_START]!)
    }
    if (trail.commands[COMMAND.PACKAGED]! > 0) {
      counts.packagedBytes += trail.packagedBytes
      this.postcopy = true
      this.tellPhase('postcopy', trail.commandEnds[COMMAND.PACKAGED]!)
    }
    if (trail.element === ELEMENT.SECTION_START || trail.element === ELEMENT.SECTION_FULL) {
      this.fieldStart = trail.headStart
      this.have = trail.have
      copyBytes(trail.head, 0, this.head, 0, trail.have)
      return this.sectionStep(position)
    }
    this.sectionAgain(trail.element, this.sections.get(trail.id)!)
    if (trail.empty) return this.sectionDone(position)
    records.read(trail.head, 0, trail.have, trail.headStart)
    assert(records.outcome === READ.MORE, 'the head of a record that is none')
  }

  // ---- header ----

  private headerStep(position: number): undefined {
    if (readU32(this.head, 0) !== FILE_MAGIC) return this.degrade(0, 'not a migration stream')
    if (readU32(this.head, 4) !== FILE_VERSION) return this.degrade(4, 'unknown version of the migration stream')
    this.configurationAllowed = true
    this.next(STATE.ELEMENT, 1)
    this.tellPhase('header', position)
  }

  private configurationStep(): undefined {
    const length = readU32(this.head, 1)
    if (length > MACHINE_TYPE_LENGTH_MAX) return this.degrade(this.fieldStart, 'machine type name too long')
    this.need = 5 + length
    if (this.have < this.need) return
    this.machineType = latin1(this.head, 5, length)
    this.subsectionsAllowed = true
    this.next(STATE.ELEMENT, 1)
  }

  /** u8 05, cstr name, u32 version, then what the name says. */
  private subsectionStep(): undefined {
    const { head } = this
    const length = head[1]!
    const bodyAt = 2 + length + 4
    if (this.have < bodyAt) {
      this.need = bodyAt
      return
    }
    const name = latin1(head, 2, length)
    if (name === CONFIGURATION_SUBSECTION.UUID) {
      this.skip = UUID_LENGTH
      return this.next(STATE.ELEMENT, 1)
    }
    const pageBits = name === CONFIGURATION_SUBSECTION.TARGET_PAGE_BITS
    if (!pageBits && name !== CONFIGURATION_SUBSECTION.CAPABILITIES) {
      return this.degrade(this.fieldStart, `unknown configuration subsection ${JSON.stringify(name)}`)
    }
    if (this.have < bodyAt + 4) {
      this.need = bodyAt + 4
      return
    }
    const value = readU32(head, bodyAt)
    if (pageBits) {
      if (value !== PAGE_BITS) return this.degradePageSize(this.fieldStart + bodyAt, 2 ** value)
      return this.next(STATE.ELEMENT, 1)
    }
    if (value > CAPABILITIES_MAX) return this.degrade(this.fieldStart + bodyAt, 'too many capabilities')
    this.capabilitiesLeft = value
    this.next(value > 0 ? STATE.CAPABILITY : STATE.ELEMENT, 1)
  }

  private capabilityStep(): undefined {
    const length = this.head[0]!
    this.need = 1 + length
    if (this.have < this.need) return
    const name = latin1(this.head, 1, length)
    if (name === CAPABILITY_MAPPED_RAM) return this.degrade(this.fieldStart, 'mapped-ram on a socket')
    if (name === CAPABILITY_IGNORE_SHARED) this.ignoreShared = true
    this.capabilitiesLeft--
    this.next(this.capabilitiesLeft > 0 ? STATE.CAPABILITY : STATE.ELEMENT, 1)
  }

  private degradePageSize(position: number, pageSize: number): undefined {
    this.degrade(position, `target page size ${pageSize}`)
  }

  // ---- elements ----

  private elementStep(position: number): undefined {
    const element = this.head[0]!
    const configurationAllowed = this.configurationAllowed
    const subsectionsAllowed = this.subsectionsAllowed
    this.configurationAllowed = false
    this.subsectionsAllowed = false
    switch (element) {
      case ELEMENT.SECTION_START:
      case ELEMENT.SECTION_FULL:
        return this.become(STATE.SECTION, 6)
      case ELEMENT.SECTION_PART:
      case ELEMENT.SECTION_END:
        return this.become(STATE.SECTION_AGAIN, 5)
      case ELEMENT.COMMAND:
        return this.become(STATE.COMMAND, 5)
      case ELEMENT.EOF:
        this.next(STATE.END, 1)
        return this.tellPhase('eof', position)
      case ELEMENT.CONFIGURATION:
        if (configurationAllowed) return this.become(STATE.CONFIGURATION, 5)
        break
      case ELEMENT.SUBSECTION:
        if (subsectionsAllowed) {
          this.subsectionsAllowed = true
          return this.become(STATE.SUBSECTION, 2)
        }
        break
    }
    this.degrade(this.fieldStart, `unknown element 0x${element.toString(16)}`)
  }

  /** u8 element, u32 id, cstr idstr, u32 instance, u32 version. */
  private sectionStep(position: number): undefined {
    const { head } = this
    const length = head[5]!
    this.need = 6 + length + 8
    if (this.have < this.need) return
    const id = readU32(head, 1)
    const idstr = latin1(head, 6, length)
    this.element = head[0]!
    if (this.element === ELEMENT.SECTION_FULL) {
      this.counts.sections.full++
      return this.fullSection(id, idstr, position)
    }
    this.counts.sections.start++
    const ram = idstr === RAM_SECTION.IDSTR
    if (
      ram &&
      (readU32(head, 6 + length) !== RAM_SECTION.INSTANCE || readU32(head, 10 + length) !== RAM_SECTION.VERSION)
    ) {
      return this.degrade(this.fieldStart, 'unknown version of the ram section')
    }
    if (this.sections.size >= SECTIONS_MAX) return this.degrade(this.fieldStart, 'too many sections')
    if (!ram && id === this.ramId) return this.degrade(this.fieldStart, 'section id of ram given twice')
    const section = this.addSection(id, idstr)
    if (ram) this.tellPhase('ram-start', position)
    this.beginBody(section, section.grammar)
  }

  private fullSection(id: number, idstr: string, position: number): undefined {
    const grammar = this.ramPartSeen ? undefined : earlyGrammar(idstr)
    if (grammar) return this.beginBody({ id, idstr, grammar }, grammar)
    if (!this.ramPartSeen || this.postcopy) {
      this.have = 0 // its head was understood
      return this.stray(id, this.fieldStart, `device state ${JSON.stringify(idstr)} before the end of RAM`)
    }
    this.ramComplete = true
    this.next(STATE.RAW, 1)
    this.tellPhase('snapshot-devices', position)
  }

  /** u8 element, u32 id. Runs by the ten thousand: it allocates nothing. */
  private sectionAgainStep(): undefined {
    const id = readU32(this.head, 1)
    const section = this.sections.get(id)
    if (section) return this.sectionAgain(this.head[0]!, section)
    // Its START may stand in what was passed on a way back; or this was none.
    if (this.foundBack && this.sections.size < SECTIONS_MAX)
      this.sections.set(id, { id, idstr: '', grammar: unreadable })
    this.degrade(this.fieldStart, 'section id that no SECTION_START announced')
  }

  private sectionAgain(element: number, section: Section): undefined {
    this.element = element
    if (this.element === ELEMENT.SECTION_PART) this.counts.sections.part++
    else this.counts.sections.end++
    if (!section.grammar) {
      this.ramPartSeen = true
      this.ramEnded = this.element === ELEMENT.SECTION_END
    }
    this.beginBody(section, section.grammar)
  }

  private beginBody(section: Section, grammar: BodyGrammar | undefined): undefined {
    this.section = section
    this.grammar = grammar
    if (!grammar) return this.next(STATE.RAM, 1)
    if (grammar === unreadable) {
      this.have = 0 // its head was understood
      return this.stray(section.id, this.fieldStart, `unknown section ${JSON.stringify(section.idstr)}`)
    }
    this.unit = 0
    this.nextUnit(grammar)
  }

  /** u8 footer, u32 id of the section; or the next element where this machine type sends no footers. */
  private footerStep(position: number): undefined {
    const { head } = this
    if (this.have === 1) {
      if (head[0] === ELEMENT.SECTION_FOOTER && this.footers !== false) {
        this.footers = true
        this.need = 5
        return
      }
      if (this.footers === true) return this.noFooter('section without footer')
      this.footers = false
      this.sectionDone(this.fieldStart)
      if (this.raw) return
      this.become(STATE.ELEMENT, 1)
      this.have = 1
      return this.elementStep(position)
    }
    if (readU32(head, 1) !== this.section?.id) return this.noFooter('footer of another section')
    this.sectionDone(position)
  }

  /** The body did not end here: in RAM there is no going on, but another section's has a grammar that we do not know. */
  private noFooter(reason: string): undefined {
    if (!this.grammar) return this.degrade(this.fieldStart, reason)
    this.stray(this.section!.id, this.fieldStart, reason)
  }

  private sectionDone(position: number): undefined {
    this.next(STATE.ELEMENT, 1)
    if (!this.ramEnded || this.grammar) return
    this.ramComplete = true
    // In precopy nothing of RAM follows, and device state has no lengths. (x-colo sends RAM again: raw for good.)
    if (!this.postcopy) this.next(STATE.RAW, 1)
    this.tellPhase('ram-end', position)
  }

  /** u8 08, u16 command, u16 length, payload; an unknown command is passed by its length, as QEMU frames it. */
  private commandStep(position: number): undefined {
    const { head } = this
    const command = readU16(head, 1)
    const length = readU16(head, 3)
    if (command === COMMAND.POSTCOPY_ADVISE && length === POSTCOPY_ADVISE_LENGTH) {
      this.need = 5 + length
      if (this.have < this.need) return
      const pageSize = readU64(head, 13)
      if (pageSize !== PAGE_SIZE) return this.degradePageSize(this.fieldStart + 13, pageSize)
      this.postcopyAdvised = true
    } else if (command === COMMAND.PACKAGED) {
      if (length !== PACKAGED_LENGTH) return this.degrade(this.fieldStart, 'PACKAGED of an unknown length')
      this.need = 5 + length
      if (this.have < this.need) return
      this.skip = readU32(head, 5)
      this.counts.packagedBytes += this.skip
      this.postcopy = true
    } else this.skip = length
    this.counts.commands[command < this.counts.commands.length ? command : 0]!++
    this.next(STATE.ELEMENT, 1)
    switch (command) {
      case COMMAND.OPEN_RETURN_PATH:
        return this.tellPhase('return-path', position)
      case COMMAND.POSTCOPY_ADVISE:
        return this.postcopyAdvised ? this.tellPhase('postcopy-advise', position) : undefined
      case COMMAND.PACKAGED:
        return this.tellPhase('postcopy', position)
      case COMMAND.ENABLE_COLO:
        return this.tellPhase('colo', position)
      case COMMAND.SWITCHOVER_START:
        return this.tellPhase('switchover', position)
    }
  }

  // ---- bodies ----

  /** The record reader came back from a RAM body before its chunk was used up. */
  private recordsStopped(position: number): undefined {
    const { records } = this
    if (records.outcome === READ.EOS) return this.next(STATE.FOOTER, 1)
    if (records.outcome === READ.BAD) return this.degrade(records.badPosition, records.badReason)
    if (this.element !== ELEMENT.SECTION_START || this.blocks.complete) {
      return this.degrade(position - 8, 'block list outside the START of ram')
    }
    this.blockBytesLeft = records.total
    this.blockListStep()
  }

  /** Behind a whole entry of the block list, or its total: an entry follows, or records. */
  private blockListStep(): undefined {
    if (this.blockBytesLeft > 0) return this.next(STATE.BLOCK_ENTRY, 1)
    this.blocks.complete = true
    this.next(STATE.RAM, 1)
  }

  /** cstr idstr, u64 used_length. */
  private blockEntryStep(): undefined {
    const { head } = this
    const length = head[0]!
    if (length === 0) return this.degrade(this.fieldStart, 'RAMBlock with an empty idstr')
    this.need = 1 + length + 8
    if (this.have < this.need) return
    const lengthBytes = readU64(head, 1 + length)
    if (lengthBytes <= 0 || lengthBytes > this.blockBytesLeft) {
      return this.degrade(this.fieldStart, 'block list does not sum up to its total')
    }
    const block = this.blocks.declare(head, 1, length, lengthBytes)
    if (block < 0) return this.degrade(this.fieldStart, 'RAMBlock listed twice, or too many RAMBlocks')
    this.blockBytesLeft -= lengthBytes
    this.records.tell(block)
    if (this.postcopyAdvised) this.next(STATE.BLOCK_PAGE_SIZE, this.blockBytesLeft > 0 ? 1 : 8)
    else this.blockEntryDone()
  }

  private blockEntryDone(): undefined {
    if (this.ignoreShared && this.state !== STATE.BLOCK_ADDRESS) return this.next(STATE.BLOCK_ADDRESS, 8)
    this.blockListStep()
  }

  /**
   * A u64 page size stands here for some RAMBlocks, and nothing says for which. It opens with a zero byte, which no
   * other entry does; behind the last entry it has no low bits, which every record has.
   */
  private blockPageSizeStep(position: number): undefined {
    const { head } = this
    if (this.blockBytesLeft > 0) {
      if (head[0] !== 0) {
        this.become(STATE.BLOCK_ENTRY, 1)
        return this.blockEntryStep()
      }
      this.need = 8
      if (this.have < this.need) return
    } else if ((readU32(head, 4) & RAM_FLAG_MASK) !== 0) {
      this.records.resume(head, this.fieldStart)
      this.blockListStep()
      // The word may be all that this chunk holds, and may be the whole EOS record.
      this.records.read(NO_BYTES, 0, 0, position)
      if (this.records.outcome !== READ.MORE) this.recordsStopped(position)
      return
    }
    this.blockEntryDone()
  }

  private nextUnit(grammar: BodyGrammar): undefined {
    const { step } = this
    step.skip = 0
    step.end = false
    step.bad = ''
    grammar(this.head, 0, this.element, this.unit, step)
    this.next(STATE.OTHER_BODY, step.need)
  }

  private otherBodyStep(): undefined {
    const { step } = this
    const grammar = this.grammar!
    step.skip = 0
    step.end = false
    step.bad = ''
    grammar(this.head, this.have, this.element, this.unit, step)
    if (step.bad !== '') return this.stray(this.section!.id, this.fieldStart, step.bad)
    this.need = step.need
    if (this.have < this.need) return
    const { skip, end } = step
    this.unit++
    if (end) this.next(STATE.FOOTER, 1)
    else this.nextUnit(grammar)
    this.skip = skip
  }
}
