/**
 * A small HTTP server for those who run the proxies: on a Unix socket that only its owner opens, or on a port of this host.
 * A connection has one request at a time, and little time for it; on one that was answered more may come, for a new
 * connection costs more than an answer. Whoever wants a place that is taken gets that of one who asks nothing just now, or
 * the oldest one's, and what is sent to us is bounded, so that nobody who stalls or never reads holds anything for long.
 */
import http from 'node:http'
import net from 'node:net'
import { isProxyError, ProxyError } from '../errors.ts'
import {
  CONTROL_BODY_BYTES_MAX,
  CONTROL_CLIENT_MS,
  CONTROL_CLIENTS_MAX,
  CONTROL_HEAD_BYTES_MAX,
  CONTROL_IDLE_MS,
} from '../limits.ts'
import { type Address, formatAddress } from '../relay/address.ts'
import { type Listener, listenSockets } from '../relay/listener.ts'

export interface Answer {
  readonly type: string
  /** Or what it is put together of, which is not copied: a history may be long. */
  readonly body: string | readonly Uint8Array[]
}

/** By `GET /status`: what answers. @throws ProxyError what the asker is told */
export type Routes = ReadonlyMap<string, (body: string) => Answer | Promise<Answer>>

export interface ControlServerOptions {
  /** How long a request may take. */
  readonly clientMs?: number
  /** How long a connection is kept for the next one. */
  readonly idleMs?: number
  /** Of every answer, beside its own. */
  readonly headers?: Readonly<Record<string, string>>
  /** What whoever asks for what is not there is told, where it is not to be told what is. */
  readonly hint?: string
  /** On a Unix socket too only who asks for loopback is answered: browsers reach it through a tunnel. */
  readonly isForBrowsers?: boolean
}

/** In so many turns a client's time passes: a machine that stood still meanwhile counts as one of them. */
const TURNS = 10

/** Loopback by name or number, with or without a port: what a browser that was lured here does not say (DNS rebinding). */
const OWN_HOST = /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?$/i

/** A connection. */
interface Client {
  /** Turns of the clock that it has left. */
  turns: number
  /** What it asked is not answered to the last byte. */
  isAsking: boolean
  /** All that it asked is. */
  isIdle: boolean
}

export class ControlServer {
  private readonly routes: Routes
  private readonly onDefect: (error: unknown) => void
  private readonly http: http.Server
  /** In the order in which they came, or were answered last. */
  private readonly clients = new Map<net.Socket, Client>()
  private clock: NodeJS.Timeout | undefined
  private readonly options: ControlServerOptions
  private readonly clientMs: number
  private readonly idleMs: number
  private listener: Listener | undefined
  private anyHost = true

  /** @param onDefect told of what a route throws that is no ProxyError */
  constructor(routes: Routes, onDefect: (error: unknown) => void, options: ControlServerOptions = {}) {
    this.options = options
    this.clientMs = options.clientMs ?? CONTROL_CLIENT_MS
    this.idleMs = options.idleMs ?? CONTROL_IDLE_MS
    this.routes = routes
    this.onDefect = onDefect
    const { idleMs: keepAliveTimeout } = this
    this.http = http.createServer({ maxHeaderSize: CONTROL_HEAD_BYTES_MAX, keepAliveTimeout }, (request, response) => {
      if (!this.asks(request.socket, response)) return
      this.take(request, response).catch(error => {
        onDefect(error)
        response.destroy()
      })
    })
  }

  /** @throws ProxyError IO, ADDRESS */
  async listen(address: Address): Promise<void> {
    this.anyHost = address.kind === 'unix' && this.options.isForBrowsers !== true
    if (address.kind === 'unix' && (await answers(address.path))) throw taken(address)
    this.clock = setInterval(() => this.turn(), this.clientMs / TURNS).unref()
    // an accept that fails (no descriptors) costs this client its answer, and nobody else anything
    this.listener = await listenSockets(address, socket => this.come(socket), { onAcceptError: () => {} })
  }

  /** Where it listens, once it does. */
  get addresses(): readonly Address[] {
    return this.listener?.addresses ?? []
  }

  async close(): Promise<void> {
    await this.listener?.close()
    clearInterval(this.clock)
    for (const socket of this.clients.keys()) socket.destroy()
  }

  private turn(): void {
    for (const [socket, client] of this.clients) {
      if (client.turns === 0) socket.destroy()
      else client.turns--
    }
  }

  private come(socket: net.Socket): void {
    const { clients } = this
    if (clients.size >= CONTROL_CLIENTS_MAX) {
      const all = [...clients]
      const [leaves] = all.find(([, { isIdle }]) => isIdle) ?? all[0]!
      clients.delete(leaves)
      leaves.destroy()
    }
    clients.set(socket, { turns: TURNS, isAsking: false, isIdle: false })
    socket.on('close', () => void clients.delete(socket))
    this.http.emit('connection', socket)
    socket.resume() // it was accepted paused
  }

  /** @returns false where it asks before it was answered: who does so may never read */
  private asks(socket: net.Socket, response: http.ServerResponse): boolean {
    const client = this.clients.get(socket)
    if (!client || client.isAsking) {
      socket.destroy()
      return false
    }
    client.isAsking = true
    client.isIdle = false
    client.turns = TURNS
    response.on('finish', () => {
      client.isAsking = false
      client.isIdle = true
      client.turns = Math.ceil((this.idleMs / this.clientMs) * TURNS)
      if (!this.clients.delete(socket)) return
      this.clients.set(socket, client) // behind those who were answered before
    })
    return true
  }

  private async take(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const { method = '', url = '', headers } = request
    const [path = ''] = url.split('?')
    const body = await bodyOf(request)
    if (body === undefined) return // it went away
    const { hint, headers: all = {} } = this.options
    const answer = (status: number, what: Answer, more: Readonly<Record<string, string>> = {}): void =>
      send(response, status, what, { ...all, ...more })
    const refuse = (status: number, what: string, more?: Readonly<Record<string, string>>): void =>
      answer(status, refusal(what, hint), more)
    if (body.length > CONTROL_BODY_BYTES_MAX) return refuse(413, 'the request is too long')
    if (!this.anyHost && !OWN_HOST.test(headers.host ?? '')) return refuse(403, 'another host is asked for')
    const route = this.routes.get(`${method} ${path}`)
    if (!route) {
      const names = [...this.routes.keys()]
      const allowed = names.filter(name => name.endsWith(` ${path}`)).map(name => name.split(' ')[0])
      const what = `no ${method} ${path} here${hint === undefined ? `: ${names.join(', ')}` : ''}`
      return allowed.length > 0 ? refuse(405, what, { allow: allowed.join(', ') }) : refuse(404, what)
    }
    try {
      answer(200, await route(body))
    } catch (error) {
      if (isProxyError(error)) return answer(400, json({ error }))
      this.onDefect(error)
      refuse(500, 'a defect of Pageferry: its log says more')
    }
  }
}

/** A little more than we take where it is too long; undefined: whoever asks went away. */
async function bodyOf(request: http.IncomingMessage): Promise<string | undefined> {
  const { headers } = request
  // reading one costs a third of an answer, and who looks sends none
  if (headers['content-length'] === undefined && headers['transfer-encoding'] === undefined) return ''
  let body = ''
  try {
    for await (const chunk of request.setEncoding('utf8')) if (body.length <= CONTROL_BODY_BYTES_MAX) body += chunk
  } catch {
    return undefined
  }
  return body
}

export const JSON_TYPE = 'application/json'

export function json(value: unknown): Answer {
  return { type: JSON_TYPE, body: `${JSON.stringify(value)}\n` }
}

function refusal(what: string, action = 'ask as `pageferry status` does'): Answer {
  return json({ error: { code: 'USAGE', what, where: null, action } })
}

function send(
  response: http.ServerResponse,
  status: number,
  { type, body }: Answer,
  headers: Readonly<Record<string, string>>,
): void {
  response.writeHead(status, {
    'content-type': type,
    'content-length':
      typeof body === 'string' ? Buffer.byteLength(body) : body.reduce((sum, { length }) => sum + length, 0),
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    ...(status === 200 ? {} : { connection: 'close' }),
    ...headers,
  })
  if (typeof body === 'string') return void response.end(body)
  for (const piece of body) response.write(piece)
  response.end()
}

/** Whether somebody takes connections there, in whatever network namespace. */
function answers(path: string): Promise<boolean> {
  return new Promise(done => {
    const socket = net.connect(path)
    socket.on('connect', () => {
      socket.destroy()
      done(true)
    })
    socket.on('error', () => done(false)) // nobody, or listening will tell
  })
}

function taken(address: Address): ProxyError {
  const what = `${formatAddress(address)} is served by a process that runs`
  const hint = '`pageferry status --control PATH` tells which: stop it, or choose another path'
  return new ProxyError('IO', what, undefined, hint)
}
