/** What helpers do for a session that decodes: they unpack its batches, in their order, each into memory that it has lent them. */
import type { Job } from './helper.ts'
import type { HelpedSession } from './helpers.ts'

export class DecodingHelp {
  private readonly session: HelpedSession

  constructor(session: HelpedSession) {
    this.session = session
  }

  /** Unpacks columns once all before are: helper-messages.ts. Their memory is the helper's until that is done. */
  unpack(rawLength: number, columns: Uint32Array): Job {
    const { home, number: session } = this.session
    return home.post({ kind: 'unpack', session, rawLength, columns })
  }

  /**
   * @returns undefined where a job is done; else resolves once it is
   * @throws BATCH_FORMAT, INTERNAL; also as rejection
   */
  finished(job: Job): Promise<void> | undefined {
    const { home, number } = this.session
    if (home.isDone(job) && !home.wrong.has(number)) return undefined
    return this.whenFinished(job)
  }

  /** Whether a holder may have another batch unpacked before its turn. */
  takeAhead(holder: string): boolean {
    return this.session.helpers.takeAhead(holder)
  }

  giveAhead(holder: string): void {
    this.session.helpers.giveAhead(holder)
  }

  private async whenFinished(job: Job): Promise<void> {
    const { home, number } = this.session
    // something that is wrong since, of any session, is told before anything is done again
    do await home.whenDone(job)
    while (!home.isDone(job) && home.failure === undefined)
    const wrong = home.wrong.get(number)
    if (wrong && ((job - wrong.job) | 0) >= 0) throw wrong.error
    if (!home.isDone(job)) throw home.failure!
  }
}
