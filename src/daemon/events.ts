/**
 * What the proxies tell: one union of events, to which the log, tests and whatever else wants to know subscribe. Fields are
 * plain data, texts from outside in them are as they came.
 */
import type { LearningEvents } from '../learning/learning.ts'
import type { LinkEvents } from '../link/api.ts'
import type { DetailLog, Level, Log } from '../log.ts'
import type { ArrivalEvents } from '../migration/arrival-events.ts'
import type { SourceChannelEvents } from '../migration/source-events.ts'
import type {
  ArrivalSummary,
  DiskArrivalSummary,
  DiskDepartureSummary,
  MigrationSummary,
} from '../migration/summary.ts'
import type { CapTold } from './cap-keeper.ts'

/** An error as it is told. */
interface Failure {
  readonly error: string
  readonly hint?: string
}

/** Fields by the name of the event. */
export interface SiteEvents extends LinkEvents, LearningEvents, SourceChannelEvents, ArrivalEvents {
  // the process
  started: {
    readonly version: string
    readonly role: string
    /** 'none': because the operator said so. */
    readonly tls: 'x509' | 'psk' | 'none'
    /** Template sets in the store; left out: there is none. */
    readonly sets?: number
    readonly learn: 'off' | 'shared' | 'all'
    /** Cap of what goes to each peer, bytes a second. */
    readonly rates?: Readonly<Record<string, number | 'none'>>
    readonly node: string
    /** What packs and matches: `lz4` and `simd`, or what stands in for them and is slower. */
    readonly lz4: 'lz4' | 'lz4-napi'
    readonly kernel: 'simd' | 'twin'
    /** That match, pack and unpack. */
    readonly threads: number
  }
  'listening for QEMU': { readonly at: string; readonly disks?: string }
  'listening for source proxies': { readonly at: string }
  serving: { readonly from: readonly string[] }
  'ports are taken: tried again': Failure & { readonly ports: string }
  'listening at one port more': { readonly port: number }
  'accept failed': Failure
  /** Guests that never were, all of whose way took so long. */
  rehearsed: { readonly guests: number; readonly ms: number }
  'rehearsal failed': Failure
  stopping: { readonly signal: string; readonly running: number }
  'stopping: running migrations finish first': { readonly migrations?: number; readonly channels?: number }
  'ending running migrations: their source guests go on': Record<never, never>
  stopped: Record<never, never>
  'systemd is not told': { readonly reason: string }
  'history is not kept': Failure
  /** They are not found any more when the memory behind them comes. */
  'blocks of disks are not kept': Failure
  'hook failed': Failure & {
    readonly at?: string
    readonly migration?: string
    readonly times?: number
    readonly seconds?: number
  }
  /** Too many wait, or none can be run. */
  'hook left out': { readonly at: string; readonly migration: string }
  'lines of the history are damaged': { readonly file: string; readonly lines: number }
  'what sets bring is not kept': Failure
  'what sets brought is begun anew': Failure
  // settings and keys
  credentials: { readonly warning: string }
  /** `changed`: false where they are what they were; sessions go on as they are. */
  'certificates and keys read again': { readonly changed: boolean }
  'certificates and keys not read: the old ones stay': Failure
  'settings read again': { readonly counting: string }
  'settings not read: the old ones stay': Failure
  'mistake in the settings': { readonly at: string; readonly what: string; readonly hint: string }
  'a restart is needed for changed settings': { readonly settings: string }
  /** Another cap counts from now on: by the settings, by their schedule, or by command. */
  rate: CapTold & { readonly peer: string }
  // template sets
  'template store cannot be read: going on without sets': Failure
  'what is in force cannot be read': Failure
  'sets are not fetched': Failure & { readonly channel?: string; readonly times: number; readonly seconds: number }
  'template set fetched': { readonly channel: string; readonly set: string; readonly bytes: number }
  'template set signed': { readonly channel: string; readonly set: string }
  'template sets in force': { readonly channel: string; readonly serial: number; readonly sets: number }
  'template set removed: out of force, and its room is needed': { readonly set: string }
  'template set not used': Failure & { readonly set: string }
  'template sets stay on the disk': { readonly sets: string; readonly hint: string }
  'template sets left out: more than a session may have': { readonly sets: string; readonly hint: string }
  // sessions
  'session open': {
    readonly link: string
    readonly sets: readonly string[]
    /** Sets that stay on the disk; left out: none. */
    readonly cold?: readonly string[]
    /** Name and version of the other proxy. */
    readonly agent: string
    /** At the destination: who the source proxy is, and where its first connection came from. */
    readonly identity?: string
    readonly from?: string
    /** At the source: where the destination proxy is, and how often it was tried before. */
    readonly peer?: string
    readonly templatePages?: number
    readonly failedBefore?: number
  }
  /** At the destination: its memory is given to others. */
  'idle session closed': { readonly link: string; readonly identity: string; readonly reason: string }
  /** What comes waits for the next one: it serves the disks that it has to their end. */
  'session left to its disks': { readonly link: string }
  'session that was left has broken': Failure
  'no session': Failure & { readonly times?: number; readonly seconds?: number }
  'WAN connection lost': Failure & { readonly connection: number }
  'peer drains: it takes no new migrations': Record<never, never>
  // migrations
  'connection waits for a session': { readonly target: string; readonly at: string }
  'connections wait for another session': { readonly connections: number }
  'target refused': Failure & { readonly migration: number; readonly target: string }
  /** A write of a disk that its client had an answer to has failed, or may have. */
  'early answers were wrong': Failure
  'disk transfer ended': (Omit<DiskDepartureSummary, 'level'> | Omit<DiskArrivalSummary, 'level'>) & {
    readonly peer: string
  }
  'migration ended': (Omit<MigrationSummary, 'level'> | Omit<ArrivalSummary, 'level'>) & {
    /** Where it went, or whence it came: the other proxy, as it is called in a status. */
    readonly peer: string
  }
}

/** What happened, once. */
export type SiteEvent = {
  readonly [K in keyof SiteEvents]: {
    readonly level: Level
    readonly event: K
    readonly fields: SiteEvents[K]
    /** Who outside of this process made us tell it: identity of a peer, or a name for those who have none. */
    readonly cause: string | undefined
  }
}[keyof SiteEvents]

/** The cause of what QEMUs and others at a source's listeners make it tell. */
export const QEMUS = 'connections of QEMU'

export type SiteLog = Log<SiteEvents>

/** Where all parts of a process tell what happens, and whoever wants to know listens. */
export class Events implements DetailLog<SiteEvents> {
  private readonly listeners = new Set<(event: SiteEvent) => void>()

  /** @param hears called for each event, at once; it must not throw. @returns ends it */
  subscribe(hears: (event: SiteEvent) => void): () => void {
    this.listeners.add(hears)
    return () => void this.listeners.delete(hears)
  }

  readonly debug: SiteLog['info'] = (...[event, fields]) => this.tell('debug', event, fields)
  readonly info: SiteLog['info'] = (...[event, fields]) => this.tell('info', event, fields)
  readonly warn: SiteLog['warn'] = (...[event, fields]) => this.tell('warn', event, fields)
  readonly error: SiteLog['error'] = (...[event, fields]) => this.tell('error', event, fields)

  /** The same for what `cause` makes us tell: the log gives each cause so many lines a minute. */
  of(cause: string): DetailLog<SiteEvents> {
    return this.causedBy(() => cause)
  }

  /**
   * The same for a layer that serves many: what an event is about says who caused it. Those with an `identity` are its,
   * those about a `peer` that has none yet are of all strangers together, others are our own.
   */
  byFields(): DetailLog<SiteEvents> {
    return this.causedBy(({ identity, peer }) => {
      if (typeof identity === 'string') return identity
      return peer === undefined ? undefined : 'strangers'
    })
  }

  private causedBy(
    causeOf: (fields: { identity?: unknown; peer?: unknown }) => string | undefined,
  ): DetailLog<SiteEvents> {
    const at =
      (level: Level): SiteLog['info'] =>
      (...[event, fields]) =>
        this.tell(level, event, fields, causeOf(fields ?? {}))
    return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
  }

  private tell(level: Level, event: keyof SiteEvents, fields: object = {}, cause?: string): void {
    // Log's arguments have brought name and fields together
    const told = { level, event, fields, cause } as SiteEvent
    for (const hears of this.listeners) hears(told)
  }
}
