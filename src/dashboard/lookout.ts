/**
 * Looks at proxies for those who watch them: however many these are, each proxy is asked as often as one of them would,
 * and none is asked while nobody watches. One that hangs holds up nobody: what it said last is told as that.
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
  private readonly statuses: Patient<SiteStatus>
  private readonly histories: Patient<readonly PastMigration[]>

  /** @param pause after which a proxy's answer is not waited for any longer */
  constructor(proxies: Proxies, nowMs: () => number, pause: () => Promise<void>) {
    this.proxies = proxies
    this.nowMs = nowMs
    this.statuses = new Patient(control => proxies.statusOf(control), pause)
    this.histories = new Patient(control => proxies.historyOf(control), pause)
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
    const { value: controls } = found
    this.statuses.keepOnly(controls)
    const sites = await Promise.all(
      controls.map(async (control): Promise<SiteLook> => {
        const { value, failure } = await this.statuses.ask(control)
        return { control, ...(value && { status: value }), ...(failure && { failure }) }
      }),
    )
    return { at: at(), sites }
  }

  private async lookAtHistory(): Promise<PastLook> {
    const found = await told(async () => this.proxies.sockets())
    if ('failure' in found) return { migrations: [], failures: [found.failure] }
    this.histories.keepOnly(found.value)
    const answers = await Promise.all(found.value.map(control => this.histories.ask(control)))
    const migrations = answers.flatMap(({ value = [] }) => value)
    return {
      migrations: migrations.sort((a, b) => (a.ended < b.ended ? 1 : -1)),
      failures: answers.flatMap(({ failure }) => (failure ? [failure] : [])),
    }
  }
}

/** What a proxy says, or said before it hung, and why it does not say it now. */
interface Said<T> {
  readonly value?: T
  readonly failure?: Failure
}

/** Asks proxies that may hang: each at most once at a time, and none is waited for longer than `pause`. */
class Patient<T> {
  private readonly askOne: (control: string) => Promise<T>
  private readonly pause: () => Promise<void>
  private readonly pending = new Map<string, Promise<Said<T>>>()
  private readonly last = new Map<string, { readonly value: T; readonly at: string }>()

  constructor(askOne: (control: string) => Promise<T>, pause: () => Promise<void>) {
    this.askOne = askOne
    this.pause = pause
  }

  async ask(control: string): Promise<Said<T>> {
    const asked = this.pending.get(control) ?? this.begin(control)
    const said = await Promise.race([asked, this.pause()])
    if (said) return said
    const { value, at } = this.last.get(control) ?? {}
    const shown = at === undefined ? '' : `; what it said at ${at.slice(11, 19)} UTC is shown`
    const action = 'is it stopped, or very busy? It is asked on'
    return {
      ...(value !== undefined && { value }),
      failure: { what: `${control} does not answer just now${shown}`, action },
    }
  }

  /** Others are gone. */
  keepOnly(controls: readonly string[]): void {
    for (const control of this.last.keys()) if (!controls.includes(control)) this.last.delete(control)
  }

  private begin(control: string): Promise<Said<T>> {
    const asked = told(() => this.askOne(control)).then(said => {
      this.last.delete(control)
      if ('value' in said) this.last.set(control, { value: said.value, at: new Date().toISOString() })
      return said
    })
    this.pending.set(control, asked)
    const over = (): void => void this.pending.delete(control)
    asked.then(over, over)
    return asked
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
    // one that is under way is waited for
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
