/** What one side learns of a migration while it passes: who it is, and how it ends. */
import { ReturnPathParser } from '../qemu/return-path.ts'
import { type ChannelHead, ChannelTail, type GuestName } from './channel-ends.ts'
import type { FlowKind } from './gate.ts'
import { type Cause, judge, type Verdict } from './outcome.ts'

/** PINGs within PACKAGED and behind it: who answers them has begun with postcopy. Source: qemu-wire-format 2.3. */
const POSTCOPY_PINGS: ReadonlySet<number> = new Set([3, 4, 0x42])

export class MigrationRecord {
  /** The same at both sites: the session's id (8 hex digits of it), and the migration's number in it. */
  readonly id: string
  guest: GuestName = {}
  cause: Cause | undefined
  private broke: Cause | undefined
  /** Status of SHUT, once it was heard. */
  shut: number | undefined
  /** The destination QEMU answers. */
  answers = false
  /** The guest may run at the destination, on pages that have not come. */
  postcopy = false
  unheard: string | undefined
  /** Main can be read, as far as its first bytes tell. */
  readable = true
  private readonly tail = new ChannelTail()

  /** @param session 32 hex digits */
  constructor(session: string, number: number) {
    this.id = `${session.slice(0, 8)}-${number}`
  }

  /** Its main channel is there, or what stands for it. */
  leads(kind: FlowKind): void {
    this.readable = kind === 'main' || kind === 'recovery'
    if (kind === 'recovery') this.postcopy = true
  }

  /** More of a channel's first bytes are there: they may say who the guest is, and that it wants answers. */
  begins(head: ChannelHead): void {
    this.guest = { ...head.guest(), ...this.guest }
    if (head.opensReturnPath) this.answers = true
  }

  /** Bytes of its main channel, in order. */
  main(bytes: Uint8Array, at: number, length: number): void {
    this.tail.push(bytes, at, length)
  }

  /**
   * Follows the return path of its main channel.
   * @param shut told with SHUT's status
   */
  returnPath(shut: (status: number) => void = () => {}): ReturnPathParser {
    return new ReturnPathParser({
      shut: status => {
        this.answers = true
        this.shut = status
        if (status !== 0) {
          this.ended({ by: 'destination', how: 'broke', text: `the destination QEMU reports error ${status}` })
        }
        shut(status)
      },
      pong: value => {
        this.answers = true
        if (POSTCOPY_PINGS.has(value)) this.postcopy = true
      },
      requestPages: () => {
        this.answers = true
        this.postcopy = true
      },
      message: () => {
        this.answers = true
      },
      degraded: () => {},
    })
  }

  /** Somebody ended it; who was first counts. */
  ended(cause: Cause): void {
    this.cause ??= cause
    if (cause.how === 'broke') this.broke ??= cause
  }

  /**
   * Its source QEMU goes on with the guest if it closes now, or is gone: all of main has come, and it has asked for an answer
   * behind which it would close, and has not heard one. Source: qemu-wire-format 1.6.
   */
  get isUnanswered(): boolean {
    return this.readable && this.answers && !this.postcopy && this.shut === undefined && this.tail.isWhole
  }

  /** Somebody broke it off, or a connection of it. */
  get isBroken(): boolean {
    return this.broke !== undefined
  }

  get endedBy(): string {
    return this.cause?.text ?? 'both sides closed'
  }

  verdict(): Verdict {
    const { shut, answers, postcopy, readable, cause, broke, unheard } = this
    return judge({ shut, answers, whole: this.tail.isWhole, postcopy, readable, cause, broke, unheard })
  }
}
