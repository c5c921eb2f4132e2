/** Which template sets a side brings into a session: the sound ones of its store. */
import { basename } from 'node:path'
import { isProxyError } from '../errors.ts'
import { HELLO_SETS_MAX } from '../limits.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { digestOfFileName } from '../template/wire.ts'
import type { Log } from './log.ts'

export class SessionSets {
  private readonly store: TemplateStore | undefined
  private readonly log: Log
  /** Digests that were offered last, by name alone. */
  private offered = ''
  /** Sets that were offered, and sets that must not be: digest to what tells one file from the next of that name. */
  private readonly states = new Map<string, { readonly state: string; readonly path: string }>()
  private readonly excluded = new Map<string, string>()
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

  /**
   * Digests of the sets to offer, newest first. Their pages are verified when they are loaded, which reads them all anyway:
   * see `exclude`. A set whose head is damaged is told once and left out. @throws IO
   */
  async offer(): Promise<string[]> {
    if (!this.store) return []
    this.offered = (await this.store.digests()).join()
    this.current = this.offered
    const sound: { digest: string; modified: number }[] = []
    for (const { digest, path, problem, modified, fileBytes } of await this.store.list()) {
      const state = `${digest} ${modified.getTime()} ${fileBytes}`
      if (this.excluded.get(digest) === state) continue
      if (problem) this.tell(digest, state, path, problem.message)
      else {
        this.states.set(digest, { state, path })
        sound.push({ digest, modified: modified.getTime() })
      }
    }
    sound.sort((a, b) => b.modified - a.modified)
    return sound.slice(0, HELLO_SETS_MAX).map(({ digest }) => digest)
  }

  /**
   * A set could not be loaded: it is told, and not offered again as it is.
   * @returns false where the error is not about a set: nothing was done
   */
  exclude(error: unknown): boolean {
    if (!isProxyError(error) || !error.code.startsWith('TEMPLATE_') || !error.where) return false
    const digest = digestOfFileName(basename(error.where.stream))
    const known = digest === undefined ? undefined : this.states.get(digest)
    if (digest === undefined || known === undefined) return false
    this.tell(digest, known.state, known.path, error.message)
    return true
  }

  private tell(digest: string, state: string, path: string, error: string): void {
    this.excluded.set(digest, state)
    this.log.warn('template set not used', {
      set: path,
      error,
      hint: 'pageferry template verify shows the damage; copy or build the set again',
    })
  }

  private async look(): Promise<void> {
    try {
      this.current = (await this.store!.digests()).join()
    } catch {
      // said when the next session is opened
    }
  }
}
