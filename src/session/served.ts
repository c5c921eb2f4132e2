/** Whoever serves, who may come late. Nothing of a flow comes before, but word of the session can: it is told then. */

import { assert } from '../errors.ts'

export class Served<Sink> {
  private now: Sink | undefined
  private readonly early: ((sink: Sink) => void)[] = []

  /** For what cannot come before anybody serves. */
  get sink(): Sink {
    assert(this.now, 'a flow before anybody serves its session')
    return this.now
  }

  /** For what nobody misses before. */
  get maybe(): Sink | undefined {
    return this.now
  }

  /** For what is told late rather than never. Each word is a few bytes; who calls bounds how many there are. */
  tell(word: (sink: Sink) => void): void {
    if (this.now) word(this.now)
    else this.early.push(word)
  }

  begin(sink: Sink): void {
    assert(!this.now, 'a session is served once')
    this.now = sink
    for (const word of this.early.splice(0)) word(sink)
  }
}
