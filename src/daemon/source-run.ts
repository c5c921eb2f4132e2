/** One session of a source proxy, with all that it stands on. */
import type { LinkClient } from '../link/client.ts'
import type { Link } from '../link/link.ts'
import type { ReceivingSession } from './source-reception.ts'
import type { SourceSession } from './source-session.ts'
import type { AgreedTerms, SourceTerms } from './source-terms.ts'
import { type SourceSessionStatus, withoutFlows } from './status.ts'

export class SourceRun implements ReceivingSession {
  readonly client: LinkClient
  readonly terms: SourceTerms
  /** Settles when another one takes its place, while it serves what it has. */
  readonly left: Promise<void>
  tellLeft!: () => void
  /** What both sides have agreed on, and its half, once it is open. */
  agreed: AgreedTerms | undefined
  session: SourceSession | undefined
  /** Settles when all of it has ended. */
  over: Promise<void> = Promise.resolve()

  constructor(client: LinkClient, terms: SourceTerms) {
    this.client = client
    this.terms = terms
    this.left = new Promise(done => {
      this.tellLeft = done
    })
  }

  get link(): Link {
    return this.client.link
  }

  /** How it is just now, once it is open. @param peer what the other side is called */
  status(peer: string): SourceSessionStatus | undefined {
    const { client, session, agreed } = this
    if (!session || !agreed) return undefined
    return {
      link: client.link.id.slice(0, 8),
      peer,
      agent: agreed.agent,
      sets: agreed.sets.length,
      coldSets: agreed.cold.length,
      stats: withoutFlows(client.session.stats()),
      migrations: session.status(),
      disks: session.diskStatus(),
    }
  }

  /** Ends it in order: it has nothing to do. */
  close(): void {
    void this.client.close()
  }
}
