import { type Field, STEP } from './field.ts'
import { type BodyGrammar, type BodyStep, unreadable } from './other-sections.ts'

/** Passes the body of a section that is not ram's, by its grammar. */
export class SectionBody {
  private grammar: BodyGrammar = unreadable
  private element = 0
  /** Index of the unit under way. */
  private unit = 0
  private readonly answer: BodyStep = { need: 0, skip: 0, end: false, bad: '' }

  /** @param element as the grammar wants it */
  begin(grammar: BodyGrammar, element: number, field: Field): void {
    this.grammar = grammar
    this.element = element
    this.unit = 0
    this.nextUnit(field)
  }

  /** DONE: the body is over, once `skip` bytes are passed. */
  step(field: Field): number {
    const { need, skip, end, bad } = this.ask(field, field.have)
    if (bad !== '') return field.bad(field.start, bad)
    if (!field.wants(need)) return STEP.ON
    field.skip = skip
    if (end) return STEP.DONE
    this.unit++
    this.nextUnit(field)
    return STEP.ON
  }

  private nextUnit(field: Field): void {
    field.next(this.ask(field, 0).need)
  }

  private ask(field: Field, have: number): BodyStep {
    const { answer } = this
    answer.skip = 0
    answer.end = false
    answer.bad = ''
    this.grammar(field.head, have, this.element, this.unit, answer)
    return answer
  }
}
