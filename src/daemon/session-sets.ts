/** Which template sets a side brings into a session: the sound ones of its store. */
import { basename } from 'node:path'
import { isProxyError, type ProxyError } from '../errors.ts'
import { HELLO_SETS_MAX } from '../limits.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { digestOfFileName } from '../template/wire.ts'
import type { SiteLog } from './events.ts'

export class SessionSets {
  private readonly store: TemplateStore | undefined
  private readonly log: SiteLog
  /** The store's fingerprint when sets were offered last; '' before that. */
  private offered = ''
  /** Sets that were offered, and sets that must not be: digest to what tells one file from the next of that name. */
  private readonly states = new Map<string, { readonly state: string; readonly path: string }>()
  private readonly excluded = new Map<string, string>()
  private current = ''
  /** Template pages that fit into a session, whatever else it needs. */
  private pagesMax: number
  /** Template pages that were offered last. */
  private offeredPages = 0
  /** Sets that were told to have no room, so that it is told once. */
  private roomless = ''
  /** Why the store could not be read, as it was told; undefined where it can be. */
  private unreadable: string | undefined

  constructor(store: TemplateStore | undefined, log: SiteLog, pagesMax = Number.POSITIVE_INFINITY) {
    this.store = store
    this.pagesMax = pagesMax
    this.log = log
    if (store) setInterval(() => void this.look(), 2000).unref()
  }

  /** Whether the store holds other sets than were offered last, or became readable; looked at every two seconds. */
  get changed(): boolean {
    return this.store !== undefined && this.current !== '' && this.current !== this.offered
  }

  /**
   * Digests of the sets to offer, newest first. Their pages are verified when they are loaded, which reads them all anyway:
   * see `exclude`. A set whose head is damaged is told once and left out. Of a store that is not there or cannot be read there
   * are none, which is told once: migrations go on without. Of more than fit into memory the newest are taken, and the others told.
   */
  async offer(): Promise<string[]> {
    if (!this.store) return []
    let sets: Awaited<ReturnType<TemplateStore['list']>>
    try {
      this.offered = await this.store.fingerprint()
      sets = await this.store.list()
      this.current = this.offered
      this.unreadable = undefined
    } catch (error) {
      if (!isProxyError(error, 'IO')) throw error
      this.offered = this.current = unreadable(error)
      this.tellUnreadable(error)
      return []
    }
    const sound: { digest: string; modified: number; pages: number }[] = []
    for (const { digest, path, problem, modified, changed, fileBytes, pages } of sets) {
      const state = `${digest} ${modified.getTime()} ${changed.getTime()} ${fileBytes}`
      if (this.excluded.get(digest) === state) continue
      if (problem) this.tell(digest, state, path, problem)
      else {
        this.states.set(digest, { state, path })
        sound.push({ digest, modified: modified.getTime(), pages })
      }
    }
    sound.sort((a, b) => b.modified - a.modified)
    const fitting: string[] = []
    const others: string[] = []
    let room = this.pagesMax
    let offered = 0
    for (const { digest, pages } of sound.slice(0, HELLO_SETS_MAX)) {
      if (pages > room) others.push(digest)
      else {
        fitting.push(digest)
        room -= pages
        offered += pages
      }
    }
    this.offeredPages = offered
    this.tellRoomless(others)
    return fitting
  }

  /** What was offered last did not fit beside what other sessions have: half of it next time. */
  takeFewer(): void {
    this.pagesMax = Math.floor(Math.min(this.pagesMax, this.offeredPages) / 2)
  }

  private tellRoomless(others: readonly string[]): void {
    const names = others.map(digest => digest.slice(0, 12)).join(' ')
    if (names !== this.roomless && others.length > 0) {
      this.log.warn('template sets left out: more than fit into memory beside --pool-memory', {
        sets: names,
        hint: 'the newest are used; remove sets (pageferry store prune), or give less --pool-memory',
      })
    }
    this.roomless = names
  }

  /**
   * A set could not be loaded: it is told, and not offered again as it is.
   * @returns false where the error is not about a set: nothing was done
   */
  exclude(error: unknown): boolean {
    const aboutSet = isProxyError(error) && (error.code.startsWith('TEMPLATE_') || error.code === 'IO')
    if (!aboutSet || !error.where) return false
    const digest = digestOfFileName(basename(error.where.stream))
    const known = digest === undefined ? undefined : this.states.get(digest)
    if (digest === undefined || known === undefined) return false
    this.tell(digest, known.state, known.path, error)
    return true
  }

  private tell(digest: string, state: string, path: string, { code, message, action }: ProxyError): void {
    this.excluded.set(digest, state)
    const hint = code === 'IO' ? action : 'pageferry template verify shows the damage; copy or build the set again'
    this.log.warn('template set not used', { set: path, error: message, hint })
  }

  private tellUnreadable({ message, action }: ProxyError): void {
    if (this.unreadable === message) return
    this.unreadable = message
    this.log.warn('template store cannot be read: going on without sets', { error: message, hint: action })
  }

  private async look(): Promise<void> {
    try {
      this.current = await this.store!.fingerprint()
    } catch (error) {
      this.current = unreadable(error as Error)
    }
  }
}

/** In place of a fingerprint: it changes when the store can be read. */
function unreadable({ message }: Error): string {
  return `unreadable: ${message}`
}
