/** The sections of a main stream, and how they are framed: heads and footers. Source: qemu-wire-format 2.2. */
import { readU32, writeU32 } from '../bytes/big-endian.ts'
import { latin1 } from '../bytes/copy.ts'
import { SECTIONS_MAX } from '../limits.ts'
import { type Field, STEP } from './field.ts'
import { type BodyGrammar, iterableGrammar, unreadable } from './other-sections.ts'
import { ELEMENT, RAM_SECTION } from './wire.ts'

export interface Section {
  readonly id: number
  /** Empty where its START was not seen. */
  readonly idstr: string
  /** undefined for ram, `unreadable` where there is none. */
  readonly grammar: BodyGrammar | undefined
}

/** Those that START announced, or that were met without it. */
export class SectionTable {
  /** The section of ram, -1 before its START. */
  ramId = -1
  private readonly byId = new Map<number, Section>()

  get(id: number): Section | undefined {
    return this.byId.get(id)
  }

  has(id: number): boolean {
    return this.byId.has(id)
  }

  /** There are as many as there may be. */
  get full(): boolean {
    return this.byId.size >= SECTIONS_MAX
  }

  add(id: number, idstr: string): Section {
    const grammar = idstr === RAM_SECTION.IDSTR ? undefined : (iterableGrammar(idstr) ?? unreadable)
    const section = { id, idstr, grammar }
    this.byId.set(id, section)
    if (!grammar) this.ramId = id
    return section
  }

  /** One whose name is not known. */
  addNameless(id: number): void {
    this.byId.set(id, { id, idstr: '', grammar: unreadable })
  }

  /** A copy. */
  list(): { readonly id: number; readonly idstr: string }[] {
    return Array.from(this.byId.values(), ({ id, idstr }) => ({ id, idstr }))
  }
}

/** What START and FULL say. */
export interface SectionHead {
  /** ELEMENT.SECTION_START or FULL. */
  readonly element: number
  readonly id: number
  readonly idstr: string
  /** Instance and version are those of ram as it is understood here. */
  readonly isRamVersion: boolean
}

/** u8 element, u32 id, cstr idstr, u32 instance, u32 version. @returns undefined where it wants more of it */
export function sectionHead(field: Field): SectionHead | undefined {
  const { head } = field
  const length = head[5]!
  if (!field.wants(6 + length + 8)) return undefined
  const [instance, version] = [readU32(head, 6 + length), readU32(head, 10 + length)]
  return {
    element: head[0]!,
    id: readU32(head, 1),
    idstr: latin1(head, 6, length),
    isRamVersion: instance === RAM_SECTION.INSTANCE && version === RAM_SECTION.VERSION,
  }
}

/** What {@link SectionFrame.footerStep} may say besides: the byte is an element, this machine type sends no footers. */
export const NO_FOOTERS = 3

/** The section under way, or the last one. */
export class SectionFrame {
  section: Section | undefined = undefined
  /** What its head was: START, PART, END or FULL. */
  element = 0
  /** Sections end in footers: all but those of machine types up to 2.3. Unknown before the first section ended. */
  footers: boolean | undefined = undefined

  begin(element: number, section: Section | undefined): void {
    this.element = element
    this.section = section
  }

  /** It is ram's: its body are RAM records. */
  get isRam(): boolean {
    return this.section?.grammar === undefined
  }

  /** u8 footer, u32 id of the section; or the next element where this machine type sends no footers. */
  footerStep(field: Field): number {
    const { head } = field
    if (field.have === 1) {
      if (head[0] === ELEMENT.SECTION_FOOTER && this.footers !== false) {
        this.footers = true
        field.need = 5
        return STEP.ON
      }
      if (this.footers === true) return field.bad(field.start, 'section without footer')
      this.footers = false
      return NO_FOOTERS
    }
    if (readU32(head, 1) !== this.section?.id) return field.bad(field.start, 'footer of another section')
    return STEP.DONE
  }

  /** Bytes of the footer that a section under way will have: none before there is one, and where none is sent. */
  footer(): Uint8Array {
    if (!this.section || this.footers === false) return new Uint8Array(0)
    const footer = new Uint8Array(5)
    footer[0] = ELEMENT.SECTION_FOOTER
    writeU32(footer, 1, this.section.id)
    return footer
  }
}
