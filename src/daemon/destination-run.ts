/** One session of a destination proxy, with all that it stands on. */
import type { Link } from '../link/link.ts'
import { Renewal } from '../migration/renewal.ts'
import type { DestinationSession } from './destination-session.ts'
import type { DestinationTerms } from './destination-terms.ts'
import { type DestinationStatus, withoutFlows } from './status.ts'

export class DestinationRun {
  readonly link: Link
  readonly session: DestinationSession
  readonly terms: DestinationTerms
  /** Whether it is asked to end. */
  readonly renewal = new Renewal()

  constructor(link: Link, session: DestinationSession, terms: DestinationTerms) {
    this.link = link
    this.session = session
    this.terms = terms
  }

  /** How it is just now. */
  status(): DestinationStatus['sessions'][number] {
    const { link, session, terms } = this
    return {
      link: link.id.slice(0, 8),
      peer: link.identity,
      agent: terms.agent,
      sets: terms.sets.length,
      coldSets: terms.cold.length,
      stats: withoutFlows(link.session.stats()),
      ...session.status(),
    }
  }
}
