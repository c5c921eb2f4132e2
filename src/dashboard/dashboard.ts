/**
 * A page in the browser that shows what proxies do, live. Read-only: there is no request that changes anything. On a port
 * of loopback, which every user of the host reaches, its address has a secret in it; a Unix socket is its owner's alone.
 */
import { randomBytes } from 'node:crypto'
import { type Answer, ControlServer, JSON_TYPE, type Routes } from '../daemon/control-server.ts'
import type { Address } from '../relay/address.ts'
import { callAfter } from '../system/control-client.ts'
import { Lookout, type Proxies } from './lookout.ts'
import { makePage, type Page } from './page.ts'

/** Of the secret: whoever guesses a million times a second needs longer than there are stars. */
const SECRET_BYTES = 16

/** What browsers do with an answer beyond showing it: nothing. */
const HEADERS = {
  'referrer-policy': 'no-referrer', // the address is secret
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'x-frame-options': 'DENY',
}

/** So long the page waits for one proxy's answer: the others' wait with it. */
const SITE_MS = 2000
/** Whoever asked is still there then, on a machine that is busy too; the page itself gives up after 40 s. */
const CLIENT_MS = 30_000

const HINT = 'open the address that `pageferry dashboard` printed'

export class Dashboard {
  private readonly address: Address
  private readonly server: ControlServer
  private readonly root: string
  private readonly lookout: Lookout

  /** @param onDefect told of what is no ProxyError */
  constructor(address: Address, proxies: Proxies, onDefect: (error: unknown) => void) {
    this.address = address
    this.root = address.kind === 'unix' ? '/' : `/${randomBytes(SECRET_BYTES).toString('base64url')}/`
    this.lookout = new Lookout(
      proxies,
      () => performance.now(),
      late => callAfter(SITE_MS, late),
    )
    const page = makePage()
    this.server = new ControlServer(this.routes(page), onDefect, {
      headers: { ...HEADERS, 'content-security-policy': page.policy },
      hint: HINT,
      clientMs: CLIENT_MS,
      isForBrowsers: true,
    })
  }

  /** @returns where it is: what is opened in a browser, or of a Unix socket its address */
  async start(): Promise<string> {
    await this.server.listen(this.address)
    const [at] = this.server.addresses
    if (at?.kind !== 'tcp') return `unix:${(at as { readonly path: string }).path}`
    return `http://${at.host.includes(':') ? `[${at.host}]` : at.host}:${at.port}${this.root}`
  }

  async close(): Promise<void> {
    await this.server.close()
  }

  private routes({ html }: Page): Routes {
    const { root, lookout } = this
    return new Map<string, () => Answer | Promise<Answer>>([
      [`GET ${root}`, () => ({ type: 'text/html; charset=utf-8', body: html })],
      [`GET ${root}data`, async () => ({ type: JSON_TYPE, body: await lookout.look() })],
      [`GET ${root}history`, async () => ({ type: JSON_TYPE, body: await lookout.history() })],
    ])
  }
}
