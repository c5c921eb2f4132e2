/** What the page is told by the process that serves it: what proxies said, or why one did not. */
import type { SiteHistory, SiteStatus } from '../daemon/control-api.ts'

export interface Failure {
  readonly what: string
  readonly action: string
}

/** One proxy's process, by its control socket. */
export interface SiteLook {
  readonly control: string
  readonly status?: SiteStatus
  /** In place of a status, or beside the one that was told before the proxy hung. */
  readonly failure?: Failure
}

/** GET data */
export interface Look {
  /** When the proxies said it. */
  readonly at: string
  readonly sites: readonly SiteLook[]
  /** Why there are none. */
  readonly failure?: Failure
}

/** GET history */
export interface PastLook {
  readonly histories: readonly SiteHistory[]
  /** Of proxies that did not say what they know. */
  readonly failures: readonly Failure[]
}
