/**
 * Looks at proxies for those who watch them: however many these are, each proxy is asked as often as one of them would,
 * and none is asked while nobody watches.
 */
import type { PastMigration, SiteStatus } from '../daemon/control-api.ts'
import { isProxyError } from '../errors.ts'
import type { Failure, Look, PastLook, SiteLook } from './dashboard-api.ts'

/** How proxies are found and asked. */
export interface Proxies {
  /** Control sockets of those that are there. @throws ProxyError where none is */
  sockets(): readonly string[]
  statusOf(control: string): Promise<SiteStatus>
  /** The oldest first. */
  historyOf(control: string): Promise<readonly PastMigration[]>
}

/** What was said so lately is said again: the page looks every second. */
const FRESH_MS = 900

export class Lookout {
  private readonly proxies: Proxies
  private readonly nowMs: () => number
  private readonly status = new Shared(() => this.lookAtStatus())
  private readonly past = new Shared(() => this.lookAtHistory())

  constructor(proxies: Proxies, nowMs: () => number) {
    this.proxies = proxies
    this.nowMs = nowMs
  }

  look(): Promise<Look> {
    return this.status.get(this.nowMs())
  }

  history(): Promise<PastLook> {
    return this.past.get(this.nowMs())
  }

  private async lookAtStatus(): Promise<Look> {
    const found = await told(async () => this.proxies.sockets())
    const at = (): string => new Date().toISOString()
    if ('failure' in found) return { at: at(), sites: [], failure: found.failure }
    const sites = await Promise.all(
      found.value.map(async (control): Promise<SiteLook> => {
        const status = await told(() => this.proxies.statusOf(control))
        return 'failure' in status ? { control, failure: status.failure } : { control, status: status.value }
      }),
    )
    return { at: at(), sites }
  }

  private async lookAtHistory(): Promise<PastLook> {
    const found = await told(async () => this.proxies.sockets())
    if ('failure' in found) return { migrations: [], failures: [found.failure] }
    const answers = await Promise.all(found.value.map(control => told(() => this.proxies.historyOf(control))))
    const migrations = answers.flatMap(answer => ('value' in answer ? answer.value : []))
    return {
      migrations: migrations.sort((a, b) => (a.ended < b.ended ? 1 : -1)),
      failures: answers.flatMap(answer => ('failure' in answer ? [answer.failure] : [])),
    }
  }
}

/** An answer that all who ask at about the same time get. */
class Shared<T> {
  private readonly ask: () => Promise<T>
  private answer: Promise<T> | undefined
  private sinceMs = 0

  constructor(ask: () => Promise<T>) {
    this.ask = ask
  }

  get(nowMs: number): Promise<T> {
    if (this.answer && nowMs - this.sinceMs < FRESH_MS) return this.answer
    // one that is under way is waited for, however long: a proxy that hangs is not asked a second time meanwhile
    this.sinceMs = Number.POSITIVE_INFINITY
    const answer = this.ask()
    this.answer = answer
    const settled = (): void => {
      this.sinceMs = nowMs
    }
    answer.then(settled, settled)
    return answer
  }
}

async function told<T>(ask: () => Promise<T>): Promise<{ readonly value: T } | { readonly failure: Failure }> {
  try {
    return { value: await ask() }
  } catch (error) {
    if (!isProxyError(error)) throw error
    return { failure: { what: error.what, action: error.action } }
  }
}
