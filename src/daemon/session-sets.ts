/** Which template sets a side brings into a session: the sound ones of its store, verified once each. */
import { HELLO_SETS_MAX } from '../limits.ts'
import type { TemplateStore } from '../store/template-store.ts'
import type { Log } from './log.ts'

export class SessionSets {
  private readonly store: TemplateStore | undefined
  private readonly log: Log
  /** Digests that were offered last, by name alone. */
  private offered = ''
  private readonly known = new Map<string, boolean>()
  private current = ''

  constructor(store: TemplateStore | undefined, log: Log) {
    this.store = store
    this.log = log
    if (store) setInterval(() => void this.look(), 2000).unref()
  }

  /** Whether the store holds other sets than were offered last; looked at every two seconds. */
  get changed(): boolean {
    return this.store !== undefined && this.current !== '' && this.current !== this.offered
  }

  /** Digests of the sets to offer, newest first. A damaged one is told once and left out. @throws IO */
  async offer(): Promise<string[]> {
    if (!this.store) return []
    const names = await this.store.digests()
    this.offered = names.join()
    this.current = this.offered
    const sound: { digest: string; modified: number }[] = []
    for (const set of await this.store.list()) {
      let good = this.known.get(`${set.digest} ${set.modified.getTime()} ${set.fileBytes}`)
      if (good === undefined) {
        good = set.problem === undefined && (await this.store.holds(set.digest))
        this.known.set(`${set.digest} ${set.modified.getTime()} ${set.fileBytes}`, good)
        if (!good) {
          this.log.warn('template set not used', {
            set: set.path,
            error: set.problem?.message ?? 'pages do not match their digests',
            hint: 'pageferry template verify shows the damage; copy or build the set again',
          })
        }
      }
      if (good) sound.push({ digest: set.digest, modified: set.modified.getTime() })
    }
    sound.sort((a, b) => b.modified - a.modified)
    return sound.slice(0, HELLO_SETS_MAX).map(({ digest }) => digest)
  }

  private async look(): Promise<void> {
    try {
      this.current = (await this.store!.digests()).join()
    } catch {
      // said when the next session is opened
    }
  }
}
