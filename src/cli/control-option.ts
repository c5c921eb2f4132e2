/** Where commands find the proxies that run on this host. */
import { existsSync } from 'node:fs'
import { CONTROL_API, type PastMigration, type SiteHistory, type SiteStatus } from '../daemon/control-api.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { parseAddress } from '../relay/address.ts'
import { askForBytes, askProxy, parse } from '../system/control-client.ts'

/** Of the shipped units. */
const UNITS = ['source', 'destination', 'serve'].map(name => `/run/pageferry-${name}/control`)

export const CONTROL_OPTION = {
  describe: 'Control socket of the proxy',
  type: 'string',
  requiresArg: true,
  defaultDescription: 'those of the units that run here',
} as const

export const JSON_OPTION = { describe: 'Print JSON', type: 'boolean', default: false } as const

/** @throws ADDRESS; IO where no proxy runs as a unit */
export function controlSockets(control: string | undefined): readonly string[] {
  if (control !== undefined) {
    parseAddress(`unix:${control}`) // a path that is too long
    return [control]
  }
  const there = UNITS.filter(path => existsSync(path))
  if (there.length > 0) return there
  const what = `no control socket: ${UNITS.join(', ')}`
  throw new ProxyError(
    'IO',
    what,
    undefined,
    'start a proxy by its unit, or with --control PATH, and say the same here',
  )
}

/** @throws ProxyError also where it is of another version than this command understands */
export async function statusOf(path: string): Promise<SiteStatus> {
  return ofThisApi(path, await askProxy(path, 'GET /status')) as SiteStatus
}

/** The oldest first. @throws ProxyError as {@link statusOf} */
export async function historyOf(path: string): Promise<readonly PastMigration[]> {
  return (ofThisApi(path, await askProxy(path, 'GET /history')) as SiteHistory).migrations
}

/** How what a proxy of this API answers begins. */
const BEGINNING = Buffer.from(`{"api":${CONTROL_API},`)

/** What {@link statusOf} or {@link historyOf} read, for who passes it on: JSON as it came. @throws ProxyError as these */
export async function bytesOf(path: string, request: 'GET /status' | 'GET /history'): Promise<Buffer> {
  const bytes = await askForBytes(path, request)
  // reading all of it each second would cost more than all else
  if (!bytes.subarray(0, BEGINNING.length).equals(BEGINNING)) ofThisApi(path, parse(path, bytes))
  return bytes
}

function ofThisApi(path: string, answer: unknown): unknown {
  const { api, version } = (answer ?? {}) as Partial<SiteStatus>
  if (api === CONTROL_API) return answer
  const named = typeof version === 'string' ? ` ${version}` : ''
  const what = `the proxy at ${path} is of another version${named}, and speaks otherwise`
  throw new ProxyError('PROTOCOL_VERSION', what, undefined, "ask with that version's command, or restart the proxy")
}

/**
 * Asks each proxy for something that one of them can do. @returns the first answer
 * @throws ProxyError of the last, where none could
 */
export async function askFirst(control: string | undefined, request: string, body: object): Promise<unknown> {
  let last: unknown
  for (const path of controlSockets(control)) {
    try {
      return await askProxy(path, request, body)
    } catch (error) {
      if (!isProxyError(error)) throw error
      last = worse(last, error)
    }
  }
  throw last
}

/** Of two refusals the one that tells more: that a proxy does not know what is meant is said where none does. */
function worse(before: unknown, error: ProxyError): unknown {
  const isPlain = (one: unknown): boolean => isProxyError(one, 'MIGRATION_MISSING') || isProxyError(one, 'USAGE')
  return before !== undefined && isPlain(error) ? before : error
}
