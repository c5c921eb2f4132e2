/** What an operator is told of the template sets of a store: each thing once, until it is another. */
import type { ProxyError } from '../errors.ts'
import type { InForce } from '../remote/host-channels.ts'
import type { StoredSet } from '../store/template-store.ts'
import type { SiteLog } from './events.ts'

export class SetNotices {
  private readonly log: SiteLog
  /** Sets that are signed by nobody who may, and why. */
  private unsigned = new Map<string, string>()
  /** Sets that came too late for a session: of a slow disk each session's would be. */
  private readonly tooLate = new Set<string>()
  /** Sets that stay on the disk, and such that have no room at all. */
  private onDisk = ''
  private roomless = ''
  /** What is wrong with what channels say, and with the store; undefined: nothing. */
  private channelProblem: string | undefined
  private unreadable: string | undefined

  constructor(log: SiteLog) {
    this.log = log
  }

  /** A set cannot be used as it is. */
  damaged(path: string, { code, message, action }: ProxyError): void {
    const hint = code === 'IO' ? action : 'pageferry template verify shows the damage; copy or build the set again'
    this.log.warn('template set not used', { set: path, error: message, hint })
  }

  /** Those that are not signed as they must be, by digest; all others are. */
  untrusted(sets: readonly StoredSet[], refused: ReadonlyMap<string, ProxyError>): void {
    for (const { digest, path } of sets) {
      const error = refused.get(digest)
      if (error === undefined || this.unsigned.get(digest) === error.message) continue
      this.log.warn('template set not used', { set: path, error: error.message, hint: error.action })
    }
    this.unsigned = new Map(Array.from(refused, ([digest, { message }]) => [digest, message]))
  }

  /** A session waited for a set in vain. */
  late(digest: string, path: string, { what, action }: ProxyError): void {
    if (this.tooLate.has(digest)) return
    this.tooLate.add(digest)
    this.log.warn('template set not used', { set: path, error: what, hint: action })
  }

  /** These stay on the disk. */
  stayOnDisk(digests: readonly string[]): void {
    const sets = namesOf(digests)
    if (sets !== this.onDisk && digests.length > 0) {
      const hint = 'their pages are found whole, and parts of pages are not: --set-memory is for the newest sets'
      this.log.info('template sets stay on the disk', { sets, hint })
    }
    this.onDisk = sets
  }

  /** These have no room. */
  leftOut(digests: readonly string[]): void {
    const sets = namesOf(digests)
    if (sets !== this.roomless && digests.length > 0) {
      const hint = 'the newest are used; remove sets (pageferry store prune)'
      this.log.warn('template sets left out: more than a session may have', { sets, hint })
    }
    this.roomless = sets
  }

  /** The store as it was looked up: what is wrong with it; undefined: it can be read. */
  store(error: ProxyError | undefined): void {
    if (error && this.unreadable !== error.message) {
      const { message, action } = error
      this.log.warn('template store cannot be read: going on without sets', { error: message, hint: action })
    }
    this.unreadable = error?.message
  }

  /** A document of a channel that was accepted may be damaged now. */
  inForce({ problem }: InForce): void {
    if (problem !== undefined && problem.message !== this.channelProblem) {
      const hint = 'its sets are not used; remove .channel-NAME.json from the store, and it is fetched again'
      this.log.warn('what is in force cannot be read', { error: problem.message, hint })
    }
    this.channelProblem = problem?.message
  }
}

/** As a log names them. */
function namesOf(digests: readonly string[]): string {
  return digests.map(digest => digest.slice(0, 12)).join(' ')
}
