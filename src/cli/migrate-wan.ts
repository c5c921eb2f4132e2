/** What a migration costs on the WAN, asked of the source proxy: the one that began there after it was first asked. */
import { CONTROL_API, type PastMigration, type SiteHistory, type SiteStatus } from '../daemon/control-api.ts'
import { ProxyError } from '../errors.ts'
import { askProxy, pause } from '../system/control-client.ts'
import { controlSockets, statusOf } from './control-option.ts'

/** A proxy tells of a migration's end a moment after QEMU does; of one that it never saw, never. */
const HISTORY_LOOKS = 20
const HISTORY_LOOK_MS = 250

/** A proxy that could not open a session tries again within 30 s, and dials for some more. */
const SESSION_LOOKS = 90
const SESSION_LOOK_MS = 500

/** One migration's bytes on the WAN. */
export class WanWatch {
  private readonly path: string
  /** Migrations of before. */
  private readonly known: ReadonlySet<string>
  private id: string | undefined
  private asking = false
  /** Bytes on the WAN so far, where they are known. */
  bytes: number | undefined

  private constructor(path: string, known: ReadonlySet<string>) {
    this.path = path
    this.known = known
  }

  /**
   * @param to where QEMU is going to connect
   * @param note is told what is waited for
   * @throws ProxyError where no proxy answers there; PEER_LOST where it opens no session for what comes in at `to`
   */
  static async start(control: string, to: string, note: (text: string) => void): Promise<WanWatch> {
    const [path] = controlSockets(control)
    const status = await statusOf(path!)
    await requireSession(path!, status, to, note)
    const running = status.sources.flatMap(({ session }) => session?.migrations ?? [])
    const past = await historyOf(path!)
    return new WanWatch(path!, new Set([...running, ...past].map(({ id }) => id)))
  }

  /** Looks again, while it runs; a look that fails is none. */
  async look(): Promise<void> {
    if (this.asking) return
    this.asking = true
    try {
      const running = (await statusOf(this.path)).sources.flatMap(({ session }) => session?.migrations ?? [])
      this.take(running)
    } catch {
      // a migration runs: what it costs is worth no end of it
    } finally {
      this.asking = false
    }
  }

  /** Waits until the proxy tells its end. @returns what it told, if anything */
  async ended(): Promise<PastMigration | undefined> {
    try {
      for (let looks = 0; looks < HISTORY_LOOKS; looks++) {
        const past = await historyOf(this.path)
        this.take(past)
        const found = past.find(({ id }) => id === this.id)
        if (found) return found
        await pause(HISTORY_LOOK_MS)
      }
    } catch {
      // the last look will do
    }
    return undefined
  }

  private take(migrations: readonly { readonly id: string; readonly bytesWan?: number }[]): void {
    const fresh = migrations.filter(({ id }) => !this.known.has(id))
    this.id ??= fresh.length === 1 ? fresh[0]!.id : undefined // which of two it is, nobody says
    const own = fresh.find(({ id }) => id === this.id)
    if (own?.bytesWan !== undefined) this.bytes = own.bytesWan
  }
}

/** A proxy that has none is given its next try: the other one may have come back since the last. */
async function requireSession(
  path: string,
  status: SiteStatus,
  to: string,
  note: (text: string) => void,
): Promise<void> {
  const sourceOf = ({ sources }: SiteStatus) => sources.find(({ listening }) => listening.includes(to))
  const first = sourceOf(status)
  if (!first?.failure || first.session) return
  const { peer, failure } = first
  const none = `the source proxy has no session with ${peer}`
  note(`${none}: ${failure.what}; waiting for its next try`)
  for (let looks = 0; looks < SESSION_LOOKS; looks++) {
    await pause(SESSION_LOOK_MS)
    const now = sourceOf(await statusOf(path))
    if (!now?.failure || now.session) return
    const { what, hint, times } = now.failure
    if (times > failure.times)
      throw new ProxyError('PEER_LOST', `${none}: ${what}`, undefined, `nothing has begun; ${hint}`)
  }
}

async function historyOf(path: string): Promise<readonly PastMigration[]> {
  const answer = (await askProxy(path, 'GET /history')) as Partial<SiteHistory> | null
  const all = answer?.api === CONTROL_API && Array.isArray(answer.migrations) ? answer.migrations : []
  return all.filter(({ direction }) => direction === 'out')
}
