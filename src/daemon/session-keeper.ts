/** Opens one session after the other for as long as a source proxy runs: when the next is tried, and what is said meanwhile. */
import { defectOf, isProxyError, type ProxyError } from '../errors.ts'
import type { SiteLog } from './events.ts'
import { RepeatedFailure } from './repeated-failure.ts'
import type { SessionFailure } from './status.ts'

/** A session that ended in order after less than this ... */
const SESSION_SHORT_MS = 1000
/** ... is followed by the next one after this: a destination that ends each at once costs ten handshakes a second. */
const SESSION_SHORT_PAUSE_MS = 100

export interface SessionKeeperOptions {
  /** Opens one. @returns when it has ended in order. @throws why there is none, or is none any more */
  readonly run: () => Promise<void>
  /** No further one is wanted. */
  readonly isOver: () => boolean
  readonly log: SiteLog
  /** What to tell systemd and people, when it changes. */
  readonly onStatus?: ((status: string) => void) | undefined
}

export class SessionKeeper {
  private readonly options: SessionKeeperOptions
  private readonly failures = new RepeatedFailure()
  private lastFailure: ProxyError | undefined
  private endPause: () => void = () => {}

  constructor(options: SessionKeeperOptions) {
    this.options = options
  }

  /** The last one could not be opened, or broke. */
  get isFailing(): boolean {
    return this.failures.times > 0
  }

  /** Why the last one could not be opened, or broke. */
  get failure(): SessionFailure | undefined {
    const { isFailing, lastFailure: last, failures } = this
    return isFailing && last ? { what: last.what, hint: last.action, times: failures.times } : undefined
  }

  /** One is open. @returns how many failures there were before */
  opened(): number {
    return this.failures.recovered()
  }

  /** Somebody waits for the next one: it is tried at once. */
  wake(): void {
    this.endPause()
  }

  /** @returns when the last one has ended; never rejects */
  async keep(): Promise<void> {
    const { run, isOver } = this.options
    while (!isOver()) {
      const beganMs = performance.now()
      try {
        await run()
        // one that ends in order is followed by the next at once, but not over and over
        if (!isOver() && performance.now() - beganMs < SESSION_SHORT_MS) await this.pause(SESSION_SHORT_PAUSE_MS)
      } catch (cause) {
        await this.failed(cause)
      }
    }
  }

  private async failed(cause: unknown): Promise<void> {
    const { isOver, log, onStatus } = this.options
    const error = asProxyError(cause)
    if (error !== cause) log.error('link.defect', { stack: (cause as Error).stack })
    if (isOver()) return
    this.lastFailure = error
    const said = this.failures.failed(`${error.code} ${error.what}`, performance.now())
    if (said) {
      const again = said.times > 1 ? said : {}
      log.warn('no session', { error: error.what, hint: error.action, ...again })
    }
    onStatus?.(`no session: ${error.what}`)
    await this.pause(this.failures.retryMs)
  }

  private pause(ms: number): Promise<void> {
    return new Promise(done => {
      const timer = setTimeout(done, ms)
      this.endPause = () => {
        clearTimeout(timer)
        done()
      }
    })
  }
}

/** What is none is a defect of ours, which ends one session. */
export function asProxyError(cause: unknown): ProxyError {
  return isProxyError(cause) ? cause : defectOf(cause)
}
