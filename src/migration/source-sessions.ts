/**
 * The sessions of a source proxy: the one that takes what comes, and those that were left, each to serve its disks to their
 * end (docs/adr/0019-sessions-left-to-disks.md). Pure: what it says is done by who asks.
 */
import { SESSIONS_LEFT_MAX } from '../limits.ts'
import type { SessionNow } from './reception.ts'

/** One of them. SourceRun is one. */
export interface KeptSession {
  /** Its connections to the other side. */
  readonly link: { readonly over: boolean; readonly connections: number }
  /** Its half here; undefined: both sides have not agreed yet. */
  readonly session: KeptHalf | undefined
}

/** What a half has. */
interface KeptHalf {
  /** Channels that are open, and how many of them are of migrations. */
  readonly channelCount: number
  readonly migrationChannelCount: number
  /** Connections, opened or not. */
  readonly connectionCount: number
  /** Disk transfers that run. */
  readonly transfers: SessionNow['transfers']
}

export class SourceSessions<S extends KeptSession> {
  private current: S | undefined
  private readonly before = new Set<S>()
  /** The present one was opened beside others, which had most of the memory for passed pages. */
  private isNarrow = false

  /** The one that takes what comes. */
  get present(): S | undefined {
    return this.current
  }

  /** Those that were left, and have not ended. */
  get left(): ReadonlySet<S> {
    return this.before
  }

  get all(): readonly S[] {
    return [...(this.current ? [this.current] : []), ...this.before]
  }

  /** Connections of QEMUs that they have, opened or not. */
  get connections(): number {
    return this.all.reduce((sum, { session }) => sum + (session?.connectionCount ?? 0), 0)
  }

  /** Those that the present one was opened beside are gone: the next would have their memory. */
  get isCramped(): boolean {
    return this.isNarrow && this.current !== undefined && this.before.size === 0
  }

  /** The present one, as it is now. */
  now(): SessionNow | undefined {
    const { current, before, connections } = this
    if (!current) return undefined
    const { link, session } = current
    return {
      isUp: session !== undefined && !link.over && link.connections > 0,
      channels: session?.channelCount ?? 0,
      ofMigrations: session?.migrationChannelCount ?? 0,
      transfers: session?.transfers ?? [],
      canBeLeft: before.size < SESSIONS_LEFT_MAX && !link.over,
      connections,
    }
  }

  /** This one takes what comes. */
  opens(session: S): void {
    this.current = session
    this.isNarrow = this.before.size > 0
  }

  /** The present one serves its disks to their end: the next is to be opened for what comes. */
  leave(): void {
    const { current } = this
    if (!current) return
    this.current = undefined
    this.before.add(current)
  }

  /** Whether this one was left, and has nothing to serve any more. */
  isServed(session: S): boolean {
    return this.before.has(session) && session.session?.channelCount === 0
  }

  /** It is over. @returns whether it had been left: then one more can be */
  ended(session: S): boolean {
    if (this.current === session) this.current = undefined
    return this.before.delete(session)
  }
}
