/** The expanding side's questions for cold pages that it cannot read: one after the other, each page once. */
import type { AskForPages } from './cold-fetcher.ts'

interface Question {
  readonly numbers: readonly number[]
  readonly pages: Map<number, Uint8Array | undefined>
  readonly done: (pages: readonly (Uint8Array | undefined)[]) => void
}

export class ColdQuestions {
  private readonly send: (numbers: readonly number[]) => void
  private question: Question | undefined

  /** @param send asks the other side, which gives each page, or says that it cannot, by `answered` */
  constructor(send: (numbers: readonly number[]) => void) {
    this.send = send
  }

  /** Pages of these numbers, which differ; undefined in place of one that cannot be had. One question at a time. */
  readonly ask: AskForPages = numbers =>
    new Promise(done => {
      this.question = { numbers, pages: new Map(), done }
      this.send(numbers)
    })

  /** @returns false where nobody asked for it */
  answered(number: number, page: Uint8Array | undefined): boolean {
    const { question } = this
    if (!question?.numbers.includes(number) || question.pages.has(number)) return false
    question.pages.set(number, page)
    if (question.pages.size === question.numbers.length) this.end(question)
    return true
  }

  /** The session is over: nothing more comes. */
  close(): void {
    if (this.question) this.end(this.question)
  }

  private end({ numbers, pages, done }: Question): void {
    this.question = undefined
    done(numbers.map(number => pages.get(number)))
  }
}
