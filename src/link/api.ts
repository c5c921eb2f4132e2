/** What the link layer is handed from above: where it logs, what time it is, and who gets what arrives. */
import type { ProxyError } from '../errors.ts'
import type { DetailLog } from '../log.ts'
import type { FlowSink, SessionOptions } from '../session/api.ts'

/** What a link tells of itself: the first digits of its session, and who the peer is ('' before that is known). */
interface OfLink {
  readonly link: string
  readonly identity: string
}

/** An end, or a refusal. */
interface Reason {
  readonly code: string
  readonly reason: string
}

/** What the link layer tells. */
export interface LinkEvents {
  'link.open': OfLink & { readonly agent: string; readonly connections?: number }
  'link.up': OfLink & { readonly connection: number; readonly peer: string | undefined }
  'link.down': OfLink & {
    readonly connection: number
    readonly peer: string | undefined
    readonly reason: string | undefined
  }
  'link.bye': OfLink & { readonly code: number; readonly text: string }
  'link.dead': OfLink & Reason
  'link.dial': Reason & {
    readonly link: string
    readonly connection: number
    readonly host: string
    readonly port: number
    readonly hint: string
  }
  /** A session goes on under a new certificate's name. */
  'link.renamed': OfLink & { readonly before: string }
  'link.refused': Reason & { readonly peer: string | undefined; readonly identity?: string; readonly hint: string }
  'link.listen': { readonly reason: string }
  'link.plaintext': { readonly address?: string; readonly host?: string; readonly port: number; readonly link?: string }
  /** A defect of ours that somebody outside found. */
  'link.defect': {
    readonly link?: string
    readonly peer?: string | undefined
    readonly identity?: string | undefined
    readonly stack: string | undefined
  }
}

export type LinkLogger = DetailLog<LinkEvents>

/** Time, injected so that tests can let it run faster than the wall's. */
export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number
  /** Calls `run` once, at the earliest `ms` from now. @returns cancels it */
  after(ms: number, run: () => void): () => void
}

/** The real one. */
export const systemClock: Clock = {
  now: () => performance.now(),
  after: (ms, run) => {
    const timer = setTimeout(run, ms)
    return () => clearTimeout(timer)
  },
}

/** What a link tells whoever serves it: what its session tells of flows, and how the link itself fares. */
export interface LinkSink extends FlowSink {
  /** The peer ended the session; every flow is gone. Code 0: it owed nothing any more. */
  onBye(code: number, text: string): void
  /** The session ended on this side; every flow is gone. */
  onDead(error: ProxyError): void
  /**
   * Once at the end of a turn in which something changed, before bytes are pulled: the place to encode and hand in
   * batches while `session.bulkRoom` is more than 0.
   */
  onWork(): void
  /**
   * A connection came up, or went down with `error` (undefined: closed in order).
   * @param standing how many connections there are now
   */
  onConnection(connection: number, up: boolean, standing: number, error?: Error): void
}

/** What a session can be told at its birth. */
export type SessionTuning = Omit<SessionOptions, 'role' | 'transport'>

/** Name and version for the logs of the other side. */
export const AGENT_DEFAULT = 'pageferry'
