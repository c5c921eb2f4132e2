/** The state of a session, and with what it ends. */
import { assert } from '../errors.ts'
import { CODE } from '../wan/wire.ts'
import type { SessionState } from './api.ts'
import { SESSION_TABLE, type SessionInput } from './states.ts'

/** What BYE says. */
interface Bye {
  readonly code: number
  readonly text: string
}

export class SessionLife {
  private current: SessionState = 'opening'
  /** undefined: the peer has said it. */
  private last: Bye | undefined = { code: CODE.NONE, text: '' }

  get state(): SessionState {
    return this.current
  }

  get isClosed(): boolean {
    return this.current === 'closed'
  }

  /** It waits for a connection. */
  get isBroken(): boolean {
    return this.current === 'broken' || this.current === 'stranded'
  }

  /** It ends once all is delivered. */
  get isEnding(): boolean {
    return this.current === 'closing' || this.current === 'stranded'
  }

  /** What is handed in can go out. */
  get isUp(): boolean {
    return this.current === 'live' || this.current === 'closing'
  }

  /** What is said on each connection at the end; undefined: the peer has said it. */
  get bye(): Bye | undefined {
    return this.last
  }

  enter(input: SessionInput): void {
    const next = SESSION_TABLE[this.current][input]
    assert(next !== null, `${input} in a session that is ${this.current}`)
    this.current = next
  }

  /** The peer has ended it. */
  toldBye(): void {
    this.enter('bye')
    this.last = undefined
  }

  /** It ends in order. @param why told to the peer */
  close(why: string): void {
    if (why !== '' && this.last?.code === CODE.NONE) this.last = { code: CODE.NONE, text: why }
    this.enter('close')
  }

  /** It ends at once. */
  die(bye: Bye): void {
    this.enter('die')
    this.last = bye
  }
}
