/**
 * What a host does about one channel, and when: asks, fetches what a new document names, puts it in force once all of it
 * is there. Pure: time and chance come in, so that a thousand hosts can be played in virtual time.
 * docs/adr/0012-remote-stores.md, 6, 7 and 11.
 */
import type { KeyObject } from 'node:crypto'
import { ProxyError } from '../errors.ts'
import { CHANNEL_POLL_MS, CHANNEL_POLL_MS_MAX, SIGNATURE_POLL_MS } from '../limits.ts'
import { type ChannelDocument, type ChannelSet, checkFreshness, checkSignature, decodeChannel } from './channel.ts'

/** Of a pause, so that hosts that were started together do not ask together. */
const CHANCE = 0.1

/** What to do next. */
export type Act =
  | { readonly kind: 'wait'; readonly untilMs: number }
  /** Ask for the document. */
  | { readonly kind: 'ask' }
  /** See that this set is there, verified. */
  | { readonly kind: 'fetch'; readonly set: ChannelSet; readonly of: ChannelDocument }
  /** Put the document in force. */
  | { readonly kind: 'accept'; readonly document: ChannelDocument }

type State = 'resting' | 'asking' | 'fetching' | 'accepting'

/** What may come when; anything else is a defect of whoever drives it. */
const EXPECTED = {
  resting: [],
  asking: ['answered', 'failed'],
  fetching: ['fetched', 'failed'],
  accepting: ['accepted', 'lost', 'failed'],
} as const satisfies Record<State, readonly string[]>

export type FollowerInput = 'answered' | 'failed' | 'fetched' | 'accepted' | 'lost'

export interface FollowerOptions {
  readonly channel: string
  /** Public halves of keys that this host trusts, as things are when it is asked; what it throws fails the check. */
  readonly trusted: () => readonly KeyObject[]
  /** Whether this host uses only sets that somebody signed. Default: not. */
  readonly needsSigners?: boolean
  /** From 0 to 1. */
  readonly chance: () => number
}

export class ChannelFollower {
  private readonly options: FollowerOptions
  private state: State = 'resting'
  /** A document that is good, and whose sets are not all there yet. */
  private next: ChannelDocument | undefined
  /** Digests of its sets that are there. */
  private readonly have = new Set<string>()
  private pollAtMs = 0
  /** Whatever the time is. */
  private isWanted = false
  private pollFailures = 0
  /** After a failure: not before. */
  private fetchAtMs = 0
  private fetchFailures = 0
  /** How often sets of the document were gone when it was to come into force. */
  private losses = 0
  /** Not before it is asked who signed sets that are in force. */
  private signersAtMs = 0

  constructor(options: FollowerOptions) {
    this.options = options
  }

  /** The document that is good, and not in force yet. */
  get pending(): ChannelDocument | undefined {
    return this.next
  }

  /** Asks as soon as nothing is under way, and fetches what failed: somebody knows that there is something new. */
  askNow(): void {
    this.isWanted = true
    this.fetchAtMs = 0
    this.signersAtMs = 0
  }

  /** Behind an answer that brought nothing new: whether it is time to ask who signed the sets in force. It is asked then. */
  looksForSigners(nowMs: number): boolean {
    if (this.options.needsSigners !== true && nowMs < this.signersAtMs) return false
    this.signersAtMs = nowMs + SIGNATURE_POLL_MS
    return true
  }

  /**
   * What to do now; it is under way then.
   * @param nowMs of a clock that only goes forward
   * @param dateMs milliseconds since 1970
   * @throws CHANNEL_UNTRUSTED, CHANNEL_STALE where the document that waits is not good any more, and what `trusted` throws:
   * it is dropped, and asked for again later
   */
  act(nowMs: number, dateMs: number): Act {
    if (this.state !== 'resting') throw new RangeError(`${this.state} is under way`)
    // asked now and then while sets are fetched too: what they are fetched for may have been replaced
    if (nowMs >= this.pollAtMs || this.isWanted) {
      this.isWanted = false
      this.state = 'asking'
      return { kind: 'ask' }
    }
    if (this.next === undefined) return { kind: 'wait', untilMs: this.pollAtMs }
    if (nowMs < this.fetchAtMs) return { kind: 'wait', untilMs: Math.min(this.pollAtMs, this.fetchAtMs) }
    this.checkNext(this.next, nowMs, dateMs)
    const set = this.next.channel.sets.find(({ digest }) => !this.have.has(digest))
    if (set !== undefined) {
      this.state = 'fetching'
      return { kind: 'fetch', set, of: this.next }
    }
    const earlyMs = this.next.channel.notBeforeMs - dateMs
    if (earlyMs > 0) return { kind: 'wait', untilMs: Math.min(this.pollAtMs, nowMs + earlyMs) }
    this.state = 'accepting'
    return { kind: 'accept', document: this.next }
  }

  /**
   * The answer to `ask`.
   * @param bytes undefined: no store has such a channel
   * @param accepted what this host accepted last, in this process or another
   * @returns whether there is something new; false where it is what is in force
   * @throws CHANNEL_* where it is none to be believed: what is in force stays, and it is asked again later
   */
  answered(
    bytes: Uint8Array | undefined,
    accepted: ChannelDocument | undefined,
    nowMs: number,
    dateMs: number,
  ): boolean {
    this.take('answered')
    try {
      const document = this.check(bytes, accepted, dateMs)
      this.pollFailures = 0
      this.pollAtMs = nowMs + this.pauseMs(0)
      const isKnown = document && this.next && Buffer.compare(this.next.signed, document.signed) === 0
      if (!isKnown) this.turnTo(document)
      return document !== undefined
    } catch (error) {
      this.pollFailed(nowMs)
      this.turnTo(undefined)
      throw error
    }
  }

  /** The set is there. */
  fetched(digest: string): void {
    this.take('fetched')
    this.have.add(digest)
  }

  /** The document is in force. */
  acceptedIt(): void {
    this.take('accepted')
    this.turnTo(undefined)
  }

  /**
   * Sets of the document to accept are not there any more: they are fetched again before it is.
   * @returns whether at once; where it was not the first time, later: whoever removes them may do it again
   */
  lost(digests: readonly string[], nowMs: number): boolean {
    this.take('lost')
    for (const digest of digests) this.have.delete(digest)
    if (this.losses++ === 0) return true
    this.fetchAtMs = nowMs + this.pauseMs(++this.fetchFailures)
    return false
  }

  /** Whatever was under way: again, later. */
  failed(nowMs: number): void {
    const was = this.state
    this.take('failed')
    if (was === 'asking') this.pollFailed(nowMs)
    else this.fetchAtMs = nowMs + this.pauseMs(++this.fetchFailures)
  }

  private pollFailed(nowMs: number): void {
    this.pollAtMs = nowMs + this.pauseMs(++this.pollFailures)
  }

  /** Another document, or none, is what is worked for. */
  private turnTo(document: ChannelDocument | undefined): void {
    this.next = document
    this.have.clear()
    this.fetchAtMs = 0
    this.fetchFailures = 0
    this.losses = 0
  }

  /** It was good when it came: a key may have been taken from those that are trusted since, and its time may be over. */
  private checkNext(next: ChannelDocument, nowMs: number, dateMs: number): void {
    try {
      checkSignature(next, this.options.trusted())
      checkFreshness(next, undefined, dateMs)
    } catch (error) {
      this.pollFailed(nowMs)
      this.turnTo(undefined)
      throw error
    }
  }

  private take(input: FollowerInput): void {
    if (!(EXPECTED[this.state] as readonly string[]).includes(input)) {
      throw new RangeError(`${input} while ${this.state}`)
    }
    this.state = 'resting'
  }

  private check(
    bytes: Uint8Array | undefined,
    accepted: ChannelDocument | undefined,
    dateMs: number,
  ): ChannelDocument | undefined {
    const { channel, trusted } = this.options
    if (bytes === undefined) {
      const action = '`pageferry store promote` makes it; what is in force stays'
      throw new ProxyError('CHANNEL_MISSING', `no store has channel of sets ${channel}`, undefined, action)
    }
    const document = decodeChannel(bytes, channel)
    // what is in force stays, also where it was signed by a key that is not trusted any more
    const isInForce = accepted !== undefined && Buffer.compare(accepted.signed, document.signed) === 0
    if (!isInForce) checkSignature(document, trusted())
    return checkFreshness(document, accepted, dateMs) ? document : undefined
  }

  private pauseMs(failures: number): number {
    const pauseMs = Math.min(CHANNEL_POLL_MS * 2 ** Math.min(failures, 20), CHANNEL_POLL_MS_MAX)
    return pauseMs * (1 - CHANCE + 2 * CHANCE * this.options.chance())
  }
}
