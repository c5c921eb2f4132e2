import { readU32, writeU32 } from '../bytes/big-endian.ts'
import { copyBytes } from '../bytes/copy.ts'
import { assert } from '../errors.ts'
import { Astray } from './astray.ts'
import { BlockList } from './block-list.ts'
import { BlockTable, type RamBlock } from './block-table.ts'
import { type CommandCounts, Commands } from './commands.ts'
import { Field, STEP } from './field.ts'
import { earlyGrammar, unreadable } from './other-sections.ts'
import { type RamCounts, RamRecordReader, READ } from './ram-records.ts'
import { SectionBody } from './section-body.ts'
import { NO_FOOTERS, type Section, SectionFrame, type SectionHead, SectionTable, sectionHead } from './sections.ts'
import { FILE_HEADER_LENGTH, StreamHeader } from './stream-header.ts'
import type { RecordSink, StreamPhase } from './stream-sink.ts'
import type { KnownSections, Trail } from './way-back.ts'
import { COMMAND, ELEMENT, RAM_SECTION } from './wire.ts'

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
export interface MainCounts extends CommandCounts {
  /** Section heads by element. */
  sections: { start: number; part: number; end: number; full: number }
  records: RamCounts
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

/** Who has the bytes that come. */
const STATE = {
  HEADER: 0,
  ELEMENT: 1,
  SECTION: 2, // START or FULL
  SECTION_AGAIN: 3, // PART or END
  FOOTER: 4,
  COMMAND: 5,
  RAM: 6, // RamRecordReader
  BLOCK_LIST: 7,
  OTHER_BODY: 8,
  ASTRAY: 9, // within a section that nobody here can read
  END: 10,
  VMDESCRIPTION: 11,
  DESCRIBED: 12, // nothing more may follow
  RAW: 13,
} as const

/** How far RAM is. */
const RAM = { AWAITED: 0, PARTS: 1, ENDED: 2 } as const

const NO_BYTES = new Uint8Array(0)

/**
 * Reads a main stream, cut anywhere, and tells its sink where RAM records lie. It keeps no page and no reference to a
 * chunk, and never throws on what a peer sends: what it does not understand ends its work, not the stream's; behind a
 * section that it does not know it looks for the way back. What elements may follow each other is told here; what they
 * are made of, by the reader of each. Source: qemu-wire-format 2 and 3.
 */
export class MainStreamParser {
  /** Live counts, for statistics and tests. */
  readonly counts: MainCounts
  private readonly sink: RecordSink
  private readonly toldPhases = new Set<StreamPhase>()
  private readonly field = new Field()
  private readonly header = new StreamHeader()
  private readonly commands: Commands
  private readonly sections = new SectionTable()
  private readonly frame = new SectionFrame()
  private readonly blocks: BlockTable
  private readonly blockList: BlockList
  private readonly records: RamRecordReader
  private readonly body = new SectionBody()
  private readonly astray: Astray

  private state: number = STATE.HEADER
  private streamPosition = 0
  private ram: number = RAM.AWAITED
  /** RAM is over, with the phase 'ram-end' or 'snapshot-devices'. */
  private ramComplete = false
  /** Behind PACKAGED, or in a recovery: RAM goes on, and END of ram does not lead to raw device state. */
  private postcopy = false
  private degradedAt: number | undefined = undefined
  /** What was being read where the stream was given up. */
  private givenUpIn: number = STATE.RAW

  constructor(sink: RecordSink, options: MainStreamOptions = {}) {
    const memory = options.recovery
    this.sink = sink
    this.blocks = options.blocks ?? new BlockTable(memory?.blocks, memory?.blocksComplete)
    this.records = new RamRecordReader(sink, this.blocks)
    this.blockList = new BlockList(this.blocks, this.records)
    this.counts = {
      sections: { start: 0, part: 0, end: 0, full: 0 },
      commands: new Array(COMMAND.SWITCHOVER_START + 1).fill(0),
      records: this.records.counts,
      packagedBytes: 0,
    }
    this.commands = new Commands(this.counts)
    this.astray = new Astray(this.records, this.knownSections())
    this.next(STATE.HEADER, FILE_HEADER_LENGTH)
    if (memory) {
      for (const { id, idstr } of memory.sections) this.sections.add(id, idstr)
      this.header.machineType = memory.machineType
      this.postcopy = true
      this.next(STATE.ELEMENT, 1)
    }
  }

  /** The END of ram has begun, if not ended: in precopy the guest is stopped. */
  get isStopped(): boolean {
    return this.ram === RAM.ENDED || this.ramComplete
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
    return this.state === STATE.ASTRAY ? this.astray.pending : this.field.have
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
    if (this.field.skip > 0) return this.field.skip
    return this.state === STATE.RAM ? this.records.bodyRemaining : 0
  }

  /**
   * What a stream has to say behind its last whole field (or the last one that was understood) before a RAM record may
   * follow: nothing within RAM, else the footer that is due, and the head of a section.
   */
  leadToRecord(): Uint8Array {
    const state = this.raw ? this.givenUpIn : this.state
    if (state === STATE.RAM) return NO_BYTES
    const within = state === STATE.FOOTER || state === STATE.OTHER_BODY || state === STATE.ASTRAY
    const footer = within ? this.frame.footer() : NO_BYTES
    const lead = new Uint8Array(footer.length + 5)
    lead.set(footer)
    lead[footer.length] = ELEMENT.SECTION_PART
    writeU32(lead, footer.length + 1, this.ramSectionId)
    return lead
  }

  /**
   * Goes on behind bytes that are missing, or that were not understood: the next one that is pushed stands at `position`
   * and begins a RAM record.
   *
   * @returns false where RAM has not begun or is over, so that nothing changed
   */
  resumeAtRecord(position: number): boolean {
    const over = (this.raw && this.degradedAt === undefined) || this.atEnd
    if (this.ramSectionId < 0 || !this.blocks.complete || over) return false
    this.degradedAt = undefined
    this.frame.begin(ELEMENT.SECTION_PART, this.sections.get(this.ramSectionId))
    this.ram = RAM.PARTS
    this.field.skip = 0
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
    return this.sections.ramId
  }

  /** What a recovery of this migration needs; a copy. */
  memory(): ParserMemory {
    return {
      blocks: this.blocks.list(),
      blocksComplete: this.blocks.complete,
      sections: this.sections.list(),
      machineType: this.header.machineType,
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
    const { field, records } = this
    while (at < end && this.state !== STATE.RAW) {
      if (field.skip > 0) {
        const take = Math.min(field.skip, end - at)
        field.skip -= take
        at += take
      } else if (this.state === STATE.RAM) {
        at = records.read(chunk, at, end, base)
        if (records.outcome !== READ.MORE) this.recordsStopped(base + at)
      } else if (this.state === STATE.ASTRAY) {
        at = this.search(chunk, at, end, base)
      } else {
        at = field.read(chunk, at, end, base)
        if (field.have === field.need) this.fieldStep(base + at)
      }
    }
  }

  /** The stream ended. Tells how, for tools that need whole ones; a relay does not care. */
  finish(): StreamEnd {
    const { state, field } = this
    const astray = state === STATE.ASTRAY
    const between = (state === STATE.ELEMENT || this.atEnd) && field.have === 0 && field.skip === 0
    const cut = state !== STATE.RAW && !astray && !between
    return { cut, ramComplete: this.ramComplete, degradedAt: astray ? this.astray.lostAt : this.degradedAt }
  }

  /** Behind EOF, and no field is under way. */
  private get atEnd(): boolean {
    return this.state === STATE.END || this.state === STATE.DESCRIBED
  }

  // ---- fields: steps return undefined, so that `return this.degrade(...)` ends one in a line ----

  /** `need` bytes of a field are there: whoever reads it asks for more of it, or acts on it. */
  private fieldStep(position: number): undefined {
    const { field } = this
    switch (this.state) {
      case STATE.ELEMENT:
        return this.elementStep(position)
      case STATE.SECTION:
        return this.sectionStep(position)
      case STATE.SECTION_AGAIN:
        return this.sectionAgainStep()
      case STATE.FOOTER:
        return this.footerStep(position)
      case STATE.HEADER:
        if (!this.done(this.header.step(field))) return
        this.next(STATE.ELEMENT, 1)
        return this.tellPhase('header', position) // the first of its fields: magic and version
      case STATE.COMMAND:
        return this.done(this.commands.step(field)) ? this.commandDone(position) : undefined
      case STATE.BLOCK_LIST:
        return this.done(this.blockList.step(field)) ? this.blockListDone(position) : undefined
      case STATE.OTHER_BODY:
        return this.otherBodyStep()
      case STATE.VMDESCRIPTION:
        field.skip = readU32(field.head, 1)
        return this.next(STATE.DESCRIBED, 1)
      default:
        // STATE.END, STATE.DESCRIBED
        if (field.head[0] === ELEMENT.VMDESCRIPTION && this.state === STATE.END) {
          return this.become(STATE.VMDESCRIPTION, 5)
        }
        return this.degrade(field.start, 'bytes behind the end of the stream')
    }
  }

  /** Whether a reader is done. What it does not understand nobody does. */
  private done(step: number): boolean {
    if (step === STEP.BAD) this.degrade(this.field.badPosition, this.field.badReason)
    return step === STEP.DONE
  }

  /** The field is done; the next one starts behind it. */
  private next(state: number, need: number): undefined {
    this.state = state
    this.field.next(need)
  }

  /** The bytes of this field belong to `state`, which wants `need` of them. */
  private become(state: number, need: number): undefined {
    this.state = state
    this.field.need = need
  }

  /** Raw for good, but where it comes of a way back that was none. */
  private degrade(position: number, reason: string): undefined {
    if (this.mayFindBack && this.astray.wrongWay()) return this.beginSearch(position, reason)
    this.giveUp(position, reason)
  }

  private giveUp(position: number, reason: string): undefined {
    this.givenUpIn = this.state
    this.next(STATE.RAW, 1)
    this.field.skip = 0
    this.degradedAt = position
    this.sink.degraded(position, reason)
  }

  private tellPhase(phase: StreamPhase, position: number): undefined {
    if (this.toldPhases.has(phase)) return
    this.toldPhases.add(phase)
    this.sink.phase(phase, position)
  }

  // ---- elements ----

  private elementStep(position: number): undefined {
    const { field } = this
    const element = field.head[0]!
    if (this.header.begins(element, field)) {
      this.state = STATE.HEADER
      return
    }
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
    }
    this.degrade(field.start, `unknown element 0x${element.toString(16)}`)
  }

  private commandDone(position: number): undefined {
    const { id, phase } = this.commands
    this.next(STATE.ELEMENT, 1)
    if (id === COMMAND.PACKAGED) this.postcopy = true
    if (phase) this.tellPhase(phase, position)
  }

  private sectionStep(position: number): undefined {
    const { field, sections } = this
    const head = sectionHead(field)
    if (!head) return
    if (head.element === ELEMENT.SECTION_FULL) return this.fullSection(head, position)
    this.counts.sections.start++
    const ram = head.idstr === RAM_SECTION.IDSTR
    if (ram && !head.isRamVersion) return this.degrade(field.start, 'unknown version of the ram section')
    if (sections.full) return this.degrade(field.start, 'too many sections')
    if (!ram && head.id === this.ramSectionId) return this.degrade(field.start, 'section id of ram given twice')
    const section = sections.add(head.id, head.idstr)
    if (ram) this.tellPhase('ram-start', position)
    this.beginBody(head.element, section)
  }

  private fullSection({ element, id, idstr }: SectionHead, position: number): undefined {
    this.counts.sections.full++
    const grammar = this.ram === RAM.AWAITED ? earlyGrammar(idstr) : undefined
    if (grammar) return this.beginBody(element, { id, idstr, grammar })
    if (this.ram === RAM.AWAITED || this.postcopy) {
      this.field.have = 0 // its head was understood
      return this.stray(id, this.field.start, `device state ${JSON.stringify(idstr)} before the end of RAM`)
    }
    this.ramComplete = true
    this.next(STATE.RAW, 1)
    this.tellPhase('snapshot-devices', position)
  }

  /** u8 element, u32 id. Runs by the ten thousand: it allocates nothing. */
  private sectionAgainStep(): undefined {
    const { field, sections } = this
    const id = readU32(field.head, 1)
    const section = sections.get(id)
    if (section) return this.sectionAgain(field.head[0]!, section)
    // Its START may stand in what was passed on a way back; or this was none.
    if (this.astray.foundBack && !sections.full) sections.addNameless(id)
    this.degrade(field.start, 'section id that no SECTION_START announced')
  }

  private sectionAgain(element: number, section: Section): undefined {
    if (element === ELEMENT.SECTION_PART) this.counts.sections.part++
    else this.counts.sections.end++
    if (!section.grammar) this.ram = element === ELEMENT.SECTION_END ? RAM.ENDED : RAM.PARTS
    this.beginBody(element, section)
  }

  private beginBody(element: number, section: Section): undefined {
    const { grammar } = section
    this.frame.begin(element, section)
    if (!grammar) return this.next(STATE.RAM, 1)
    if (grammar === unreadable) {
      this.field.have = 0 // its head was understood
      return this.stray(section.id, this.field.start, `unknown section ${JSON.stringify(section.idstr)}`)
    }
    this.state = STATE.OTHER_BODY
    this.body.begin(grammar, element, this.field)
  }

  private otherBodyStep(): undefined {
    const { field } = this
    const step = this.body.step(field)
    if (step === STEP.DONE) return this.next(STATE.FOOTER, 1)
    if (step === STEP.BAD) this.stray(this.frame.section!.id, field.badPosition, field.badReason)
  }

  private footerStep(position: number): undefined {
    const { field, frame } = this
    switch (frame.footerStep(field)) {
      case STEP.DONE:
        return this.sectionDone(position)
      case STEP.BAD:
        // The body did not end here: in RAM there is no going on, but another section's has a grammar that we do not know.
        if (frame.isRam) return this.degrade(field.badPosition, field.badReason)
        return this.stray(frame.section!.id, field.badPosition, field.badReason)
      case NO_FOOTERS:
        this.sectionDone(field.start)
        if (this.raw) return
        this.become(STATE.ELEMENT, 1)
        field.have = 1
        return this.elementStep(position)
    }
  }

  private sectionDone(position: number): undefined {
    this.next(STATE.ELEMENT, 1)
    if (this.ram !== RAM.ENDED || !this.frame.isRam) return
    this.ramComplete = true
    // In precopy nothing of RAM follows, and device state has no lengths. (x-colo sends RAM again: raw for good.)
    if (!this.postcopy) this.next(STATE.RAW, 1)
    this.tellPhase('ram-end', position)
  }

  // ---- the section of ram ----

  /** The record reader came back from a RAM body before its chunk was used up. */
  private recordsStopped(position: number): undefined {
    const { records, blocks, header, commands } = this
    if (records.outcome === READ.EOS) return this.next(STATE.FOOTER, 1)
    if (records.outcome === READ.BAD) return this.degrade(records.badPosition, records.badReason)
    if (this.frame.element !== ELEMENT.SECTION_START || blocks.complete) {
      return this.degrade(position - 8, 'block list outside the START of ram')
    }
    this.state = STATE.BLOCK_LIST
    const step = this.blockList.begin(records.total, commands.postcopyAdvised, header.ignoreShared, this.field)
    if (this.done(step)) this.blockListDone(position)
  }

  private blockListDone(position: number): undefined {
    const { records } = this
    this.next(STATE.RAM, 1)
    // The list's reader may have handed on a record's word: all that this chunk holds, and perhaps a whole EOS record.
    records.read(NO_BYTES, 0, 0, position)
    if (records.outcome !== READ.MORE) this.recordsStopped(position)
  }

  // ---- sections that nobody here can read ----

  /** What a search for the way back knows of sections, and learns of them. */
  private knownSections(): KnownSections {
    const { sections } = this
    return {
      has: id => sections.has(id),
      learn: (element, id, idstr) => {
        if (element === ELEMENT.SECTION_FULL && this.ram === RAM.AWAITED && earlyGrammar(idstr)) return true
        if (sections.has(id) || sections.full) return false
        return sections.add(id, idstr).grammar !== unreadable && element === ELEMENT.SECTION_START
      },
    }
  }

  /** True where something may follow by which the way back is known: records of ram, or its START. */
  private get mayFindBack(): boolean {
    if (this.ram === RAM.ENDED) return false
    return this.ramSectionId >= 0 || (!this.postcopy && this.frame.footers !== false)
  }

  /** The section has a body that cannot be read, or not on from here. Its end is looked for. */
  private stray(id: number, position: number, reason: string): undefined {
    const { sections } = this
    if (this.ram === RAM.ENDED) {
      // Nothing of RAM follows: what there is to understand was understood.
      this.field.skip = 0
      return this.next(STATE.RAW, 1)
    }
    if (!this.mayFindBack) return this.giveUp(position, reason)
    if (!sections.has(id)) {
      if (sections.full) return this.giveUp(position, 'too many sections')
      sections.addNameless(id)
    }
    if (this.astray.tellsOf(id)) this.sink.strayed?.(position, reason)
    this.beginSearch(position, reason)
  }

  private beginSearch(position: number, reason: string): undefined {
    const { records, field } = this
    // Of the field that was not understood, what came of it may hold the footer.
    const inRecord = this.state === STATE.RAM && records.outcome === READ.BAD
    const again = inRecord ? records.badBytes.slice() : field.head.slice(0, field.have)
    const againAt = inRecord ? records.badPosition : field.start
    this.astray.begin(position, reason, this.ramSectionId, this.frame.footers !== false)
    this.next(STATE.ASTRAY, 1)
    field.skip = 0
    this.take(again, 0, again.length, againAt)
  }

  private search(chunk: Uint8Array, at: number, end: number, base: number): number {
    const { astray } = this
    const next = astray.read(chunk, at, end, base)
    if (astray.found) this.goOn(astray.found, base + next)
    else if (astray.exhausted) this.giveUp(astray.lostAt, `${astray.reason}, and no end of it found`)
    return next
  }

  /** The way back is found: `position` is behind the last byte that made it certain. */
  private goOn(trail: Trail, position: number): undefined {
    const { field, records } = this
    this.frame.footers ??= true
    this.commands.passed(trail)
    if (trail.commands[COMMAND.SWITCHOVER_START]! > 0) {
      this.tellPhase('switchover', trail.commandEnds[COMMAND.SWITCHOVER_START]!)
    }
    if (trail.commands[COMMAND.PACKAGED]! > 0) {
      this.postcopy = true
      this.tellPhase('postcopy', trail.commandEnds[COMMAND.PACKAGED]!)
    }
    if (trail.element === ELEMENT.SECTION_START || trail.element === ELEMENT.SECTION_FULL) {
      field.start = trail.headStart
      field.have = trail.have
      copyBytes(trail.head, 0, field.head, 0, trail.have)
      return this.sectionStep(position)
    }
    this.sectionAgain(trail.element, this.sections.get(trail.id)!)
    if (trail.empty) return this.sectionDone(position)
    records.read(trail.head, 0, trail.have, trail.headStart)
    assert(records.outcome === READ.MORE, 'the head of a record that is none')
  }
}
