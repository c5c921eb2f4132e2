/** The proxies of one process, as whoever runs them asks for them and tells them: by names of peers and ids of migrations. */
import { ProxyError } from '../errors.ts'
import type { NamedMigration } from '../migration/summary.ts'
import type { CapKeeper, CapStatus } from './cap-keeper.ts'
import { CONTROL_API, type SiteStatus } from './control-api.ts'
import type { DestinationDaemon } from './destination-daemon.ts'
import { ALL_PEERS } from './settings.ts'
import type { SourceDaemon } from './source-daemon.ts'
import { VERSION } from './version.ts'

/** What of a proxy is asked; the daemons have it. */
export type ControlledSource = Pick<SourceDaemon, 'status' | 'caps' | 'cancel'>
export type ControlledDestination = Pick<DestinationDaemon, 'status'>

/** A cap that was changed, bytes a second; undefined: none. */
export interface RateChange extends CapStatus {
  readonly peer: string
  readonly before: number | undefined
  readonly rate: number | undefined
}

export class Site {
  private readonly sources: readonly ControlledSource[]
  private readonly destination: ControlledDestination | undefined
  /** Of all peers together. */
  private readonly caps: CapKeeper | undefined
  private readonly threads: number | undefined
  private readonly started = new Date().toISOString()

  constructor(
    sources: readonly ControlledSource[],
    destination: ControlledDestination | undefined,
    caps?: CapKeeper | undefined,
    threads?: number,
  ) {
    this.threads = threads
    this.caps = caps
    this.sources = sources
    this.destination = destination
  }

  status(): SiteStatus {
    return {
      api: CONTROL_API,
      version: VERSION,
      process: process.pid,
      started: this.started,
      ...(this.threads !== undefined && { threads: this.threads }),
      ...(this.caps && { all: { rate: rateOf(this.caps), cap: this.caps.status() } }),
      sources: this.sources.map(source => source.status()),
      destination: this.destination?.status(),
    }
  }

  /** Where a migration that runs goes, or whence it comes. */
  peerOf(id: string): string | undefined {
    return this.sessions().find(({ migrations }) => migrations.some(migration => migration.id === id))?.peer
  }

  private sessions() {
    const { sources, destination } = this.status()
    return [...sources.flatMap(({ session }) => session ?? []), ...(destination?.sessions ?? [])]
  }

  /**
   * Caps what goes to a peer, until its schedule's next change; where it has none, until that is said again, on SIGHUP or
   * at the next start.
   * @param peer its name here, or its address; `all`: a cap on all peers together, where there are several
   * @param bytesPerSecond Infinity: no cap; 'schedule': what the settings say
   * @throws ProxyError USAGE where there is no such peer
   */
  setRate(peer: string, bytesPerSecond: number | 'schedule'): RateChange {
    const { name, caps } = this.capsOf(peer)
    const before = rateOf(caps)
    if (bytesPerSecond === 'schedule') caps.follow()
    else caps.say(bytesPerSecond)
    return { peer: name, before, rate: rateOf(caps), ...caps.status() }
  }

  /** @throws ProxyError USAGE where there is no such peer */
  private capsOf(peer: string): { readonly name: string; readonly caps: CapKeeper } {
    if (this.caps && peer === ALL_PEERS) return { name: peer, caps: this.caps }
    const statuses = this.sources.map(source => source.status())
    const at = statuses.findIndex(status => status.peer === peer || status.address === peer)
    if (at >= 0) return { name: statuses[at]!.peer, caps: this.sources[at]!.caps }
    const names = [...statuses.map(status => status.peer), ...(this.caps ? [ALL_PEERS] : [])].join(', ')
    const hint = names === '' ? 'this proxy only receives: say it to the source proxy' : `peers are: ${names}`
    throw new ProxyError('USAGE', `no peer ${JSON.stringify(peer)}`, undefined, hint)
  }

  /**
   * Ends a migration that leaves here: its guest goes on.
   * @param asked its id, or its number alone, as lines of the log have it
   * @throws ProxyError MIGRATION_MISSING, CANCEL_REFUSED, USAGE where several have the number
   */
  cancel(asked: string): NamedMigration {
    const id = this.idOf(asked)
    for (const source of this.sources) {
      const cancelled = source.cancel(id)
      if (cancelled) return cancelled
    }
    const arrives = this.destination?.status().sessions.some(({ migrations }) => migrations.some(one => one.id === id))
    const [what, hint] = arrives
      ? [`migration ${id} arrives here`, 'cancel it at the site that its guest leaves']
      : [`no migration ${id} leaves here`, '`pageferry status` lists those that run; it may be over']
    throw new ProxyError('MIGRATION_MISSING', what, undefined, hint)
  }

  /** Numbers are of a session: one that arrives may have the same, and nobody means both. @throws ProxyError USAGE */
  private idOf(asked: string): string {
    const all = this.sessions().flatMap<NamedMigration>(({ migrations }) => migrations)
    // a site that sends to itself has one twice
    const ids = [...new Set(all.filter(({ migration }) => `${migration}` === asked).map(({ id }) => id))]
    if (ids.length > 1) {
      const hint = `say which: ${ids.join(', ')}`
      throw new ProxyError('USAGE', `${ids.length} migrations ${asked} run here`, undefined, hint)
    }
    return ids[0] ?? asked
  }
}

/** Of a status: bytes a second; undefined: no cap. */
function rateOf({ bytesPerSecond }: CapKeeper): number | undefined {
  return Number.isFinite(bytesPerSecond) ? bytesPerSecond : undefined
}
