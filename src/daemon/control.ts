/** What a proxy's process offers to those who run it, beside its migrations. */
import { isProxyError, ProxyError } from '../errors.ts'
import { parseCapOrNone } from '../quantity.ts'
import { type Address, formatAddress, parseAddress } from '../relay/address.ts'
import type { SiteStatus } from './control-api.ts'
import { type Answer, ControlServer, JSON_TYPE, json, type Routes } from './control-server.ts'
import type { Events } from './events.ts'
import { History } from './history.ts'
import { Hook } from './hook.ts'
import { Metrics } from './metrics.ts'
import { SetLedger } from './set-ledger.ts'
import type { Site } from './site.ts'

export interface ControlSettings {
  /** Path of the control socket. */
  readonly control: string | undefined
  /** Folder of the host's own store, where it is noted what sets bring. */
  readonly store?: string | undefined
  /** File in which the migrations that ended last are kept; undefined: they are forgotten with the process. */
  readonly history?: string | undefined
  /** Where metrics can be had beside the control socket. */
  readonly metrics?: Address | undefined
  /** Program that is told of migrations. */
  readonly hook?: string | undefined
}

export class Control {
  private readonly settings: ControlSettings
  private readonly site: Site
  private readonly events: Events
  private history: History | undefined
  private metrics: Metrics | undefined
  private ledger: SetLedger | undefined
  private hook: Hook | undefined
  private readonly servers: ControlServer[] = []

  constructor(settings: ControlSettings, site: Site, events: Events) {
    this.settings = settings
    this.site = site
    this.events = events
  }

  /** @throws ProxyError IO, ADDRESS */
  async start(): Promise<void> {
    const { settings, site, events } = this
    const { control, history: path, metrics: address, store, hook } = settings
    if (store !== undefined) this.ledger = new SetLedger(store, events)
    if (hook !== undefined) this.hook = new Hook(hook, events, id => site.peerOf(id))
    if (control !== undefined || path !== undefined) this.history = new History(path, events)
    if (control === undefined && address === undefined) return
    const metrics = await Metrics.load(() => site.status(), events)
    this.metrics = metrics
    const routes = metricsRoutes(metrics)
    if (address !== undefined) await this.serve(routes, '--metrics', address)
    if (control === undefined) return
    const all = new Map([...controlRoutes(site, this.history!), ...routes])
    await this.serve(all, '--control', parseAddress(`unix:${control}`))
  }

  /** Where it can be asked, once started. */
  get addresses(): readonly string[] {
    return this.servers.flatMap(({ addresses }) => addresses.map(formatAddress))
  }

  async close(): Promise<void> {
    for (const server of this.servers) await server.close()
    this.metrics?.close()
    await this.history?.close()
    await this.ledger?.close()
    await this.hook?.close()
  }

  /** @param option that named the address */
  private async serve(routes: Routes, option: string, address: Address): Promise<void> {
    const server = new ControlServer(routes, error =>
      this.events.error('link.defect', { stack: (error as Error).stack }),
    )
    try {
      await server.listen(address)
      this.servers.push(server)
    } catch (error) {
      if (!isProxyError(error)) throw error
      throw new ProxyError(error.code, `${option}: ${error.what}`, undefined, error.action, { cause: error })
    }
  }
}

function metricsRoutes(metrics: Metrics): Routes {
  return new Map([['GET /metrics', async () => ({ type: metrics.contentType, body: await metrics.text() })]])
}

function controlRoutes(site: Site, history: History): Routes {
  return new Map<string, (body: string) => Answer>([
    ['GET /status', () => json({ ...site.status(), history: history.mark } satisfies SiteStatus)],
    ['GET /history', () => ({ type: JSON_TYPE, body: history.json })],
    [
      'POST /rate',
      body => {
        const { peer, rate } = textsOf(body, ['peer', 'rate'])
        return json(site.setRate(peer!, rate === 'schedule' ? rate : parseCapOrNone(rate!, 'rate')))
      },
    ],
    ['POST /cancel', body => json(site.cancel(textsOf(body, ['migration']).migration!))],
  ])
}

/** Texts of a JSON object by these names. @throws ProxyError USAGE */
function textsOf(body: string, names: readonly string[]): Record<string, string> {
  let value: unknown
  try {
    value = JSON.parse(body)
  } catch {
    // said below
  }
  const fields = (value ?? {}) as Record<string, unknown>
  for (const name of names) {
    if (!Object.hasOwn(fields, name) || typeof fields[name] !== 'string') {
      const shown = `{${names.map(name => `"${name}": "..."`).join(', ')}}`
      throw new ProxyError('USAGE', `no "${name}" in what is asked`, undefined, `send ${shown}`)
    }
  }
  return fields as Record<string, string>
}
