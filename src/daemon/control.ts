/** What a proxy's process offers to those who run it, beside its migrations. */
import { isProxyError, ProxyError } from '../errors.ts'
import { parseCapOrNone } from '../quantity.ts'
import { parseAddress } from '../relay/address.ts'
import { CONTROL_API, type SiteHistory } from './control-api.ts'
import { type Answer, ControlServer, json, type Routes } from './control-server.ts'
import type { Events } from './events.ts'
import { History } from './history.ts'
import type { Site } from './site.ts'

export interface ControlSettings {
  /** Path of the control socket. */
  readonly control: string | undefined
  /** File in which the migrations that ended last are kept; undefined: they are forgotten with the process. */
  readonly history?: string | undefined
}

export class Control {
  private readonly settings: ControlSettings
  private readonly site: Site
  private readonly events: Events
  private history: History | undefined
  private server: ControlServer | undefined

  constructor(settings: ControlSettings, site: Site, events: Events) {
    this.settings = settings
    this.site = site
    this.events = events
  }

  /** @throws ProxyError IO, ADDRESS */
  async start(): Promise<void> {
    const { control, history: path } = this.settings
    if (control === undefined && path === undefined) return
    const history = new History(path, this.events)
    this.history = history
    if (control !== undefined)
      this.server = await this.serve(controlRoutes(this.site, history), '--control', `unix:${control}`)
  }

  async close(): Promise<void> {
    await this.server?.close()
    await this.history?.close()
  }

  /** @param option that named the address */
  private async serve(routes: Routes, option: string, address: string): Promise<ControlServer> {
    const server = new ControlServer(routes, error =>
      this.events.error('link.defect', { stack: (error as Error).stack }),
    )
    try {
      await server.listen(parseAddress(address))
    } catch (error) {
      if (!isProxyError(error)) throw error
      throw new ProxyError(error.code, `${option}: ${error.what}`, undefined, error.action, { cause: error })
    }
    return server
  }
}

function controlRoutes(site: Site, history: History): Routes {
  return new Map<string, (body: string) => Answer>([
    ['GET /status', () => json(site.status())],
    ['GET /history', () => json({ api: CONTROL_API, migrations: history.migrations } satisfies SiteHistory)],
    [
      'POST /rate',
      body => {
        const { peer, rate } = textsOf(body, ['peer', 'rate'])
        return json(site.setRate(peer!, parseCapOrNone(rate!, 'rate')))
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
