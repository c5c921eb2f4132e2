/** A remote store behind a web server: read only. Not by fetch, which changes what it is sent: docs/adr/0012-remote-stores.md. */
import http, { type IncomingMessage } from 'node:http'
import https from 'node:https'
import { ProxyError } from '../errors.ts'
import { STORE_ANSWER_MS, STORE_REDIRECTS_MAX } from '../limits.ts'
import {
  bodyOf,
  lost,
  type OpenObject,
  type OpenOptions,
  type RemoteStore,
  refused,
  type SmallObject,
  strange,
  wholeBody,
} from './remote-store.ts'

const REDIRECTS = [301, 302, 303, 307, 308]
const NOT_THERE = [404, 410]

export interface HttpStoreOptions {
  /** Allows `http://` to other hosts: sets cross readable by all on the way. */
  readonly insecure?: boolean | undefined
  readonly answerMs?: number
  readonly stallMs?: number
}

/** Agents that go through the proxies of the environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY; Node 24.5 and later). */
export function storeAgents(): { readonly http: http.Agent; readonly https: https.Agent } {
  const options = { keepAlive: true, proxyEnv: process.env }
  return { http: new http.Agent(options), https: new https.Agent(options) }
}

/** Whether nobody else can read on the way. */
export function isSafe({ protocol, hostname }: URL): boolean {
  return protocol === 'https:' || /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(hostname)
}

/** @throws USAGE where sets would cross readable */
export function requireSafe(url: URL, name: string, insecure: boolean | undefined): void {
  if (isSafe(url) || insecure) return
  const action = 'use https://'
  throw new ProxyError(
    'USAGE',
    `${name}: sets hold pages of guests, and http:// shows them to all on the way`,
    undefined,
    action,
  )
}

export class HttpStore implements RemoteStore {
  readonly name: string
  readonly writer = undefined
  private readonly base: URL
  private readonly agents = storeAgents()
  private readonly answerMs: number
  private readonly stallMs: number | undefined

  /** @param name `https://HOST/PATH` @throws USAGE */
  constructor(name: string, options: HttpStoreOptions = {}) {
    const url = URL.canParse(name) ? new URL(name) : undefined
    if (url === undefined || !['http:', 'https:'].includes(url.protocol) || url.search !== '' || url.hash !== '') {
      throw new ProxyError('USAGE', `${name} is no address of a store`, undefined, 'https://HOST/PATH')
    }
    if (url.username !== '' || url.password !== '') {
      const action = 'everyone on this host sees command lines; let the server know this host by its address'
      throw new ProxyError('USAGE', `a password in the address of ${url.host}`, undefined, action)
    }
    requireSafe(url, name, options.insecure)
    if (!url.pathname.endsWith('/')) url.pathname += '/'
    this.name = name
    this.base = url
    this.answerMs = options.answerMs ?? STORE_ANSWER_MS
    this.stallMs = options.stallMs
  }

  async read(
    key: string,
    maxBytes: number,
    { unlessTag, signal }: { unlessTag?: string | undefined; signal?: AbortSignal | undefined } = {},
  ): Promise<SmallObject | 'unchanged' | undefined> {
    const answer = await this.ask('GET', key, unlessTag === undefined ? {} : { 'if-none-match': unlessTag }, signal)
    if (answer === undefined) return undefined
    if (answer.statusCode === 304 && unlessTag !== undefined) {
      answer.resume() // there is no body: the connection is kept
      return 'unchanged'
    }
    const lengthBytes = this.expect(answer, 200)
    if (lengthBytes > maxBytes) throw this.strangeAnswer(answer, `${key} of ${lengthBytes} bytes: at most ${maxBytes}`)
    const bytes = await wholeBody(bodyOf(answer, lengthBytes, this.name, signal, this.stallMs), lengthBytes)
    return { bytes, tag: answer.headers.etag }
  }

  async open(key: string, { from = 0, tag, signal }: OpenOptions = {}): Promise<OpenObject | undefined> {
    // a weak tag stands for what is alike, not for the same bytes
    const condition = tag === undefined || tag.startsWith('W/') ? {} : { 'if-range': tag }
    const headers = from === 0 ? {} : { range: `bytes=${from}-`, ...condition }
    const answer = await this.ask('GET', key, headers, signal)
    if (answer === undefined) return undefined
    const { etag } = answer.headers
    if (answer.statusCode !== 206 || from === 0) {
      const lengthBytes = this.expect(answer, 200)
      const body = bodyOf(answer, lengthBytes, this.name, signal, this.stallMs)
      return { lengthBytes, tag: etag, from: 0, body }
    }
    const restBytes = this.expect(answer, 206)
    const [, first, last, total] =
      /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(answer.headers['content-range'] ?? '') ?? []
    const lengthBytes = Number(total)
    if (Number(first) !== from || Number(last) !== lengthBytes - 1 || restBytes !== lengthBytes - from) {
      throw this.strangeAnswer(answer, `another part of ${key} than was asked for`)
    }
    return { lengthBytes, tag: etag, from, body: bodyOf(answer, restBytes, this.name, signal, this.stallMs) }
  }

  async lengthOf(key: string, signal?: AbortSignal): Promise<number | undefined> {
    const answer = await this.ask('HEAD', key, {}, signal)
    if (answer === undefined) return undefined
    const lengthBytes = this.expect(answer, 200)
    answer.resume()
    return lengthBytes
  }

  close(): void {
    this.agents.http.destroy()
    this.agents.https.destroy()
  }

  /** @returns the bytes of the body @throws where it is none of ours to read, having closed it */
  private expect(answer: IncomingMessage, status: number): number {
    const { statusCode = 0, headers } = answer
    if (statusCode === 401 || statusCode === 403) {
      answer.destroy()
      throw refused(this.name, `HTTP status ${statusCode}`, 'let the server give this host what is below that address')
    }
    if (statusCode === 429 || statusCode >= 500) {
      answer.destroy()
      throw lost(this.name, `HTTP status ${statusCode}`)
    }
    if (statusCode !== status)
      throw this.strangeAnswer(answer, `HTTP status ${statusCode} where ${status} was expected`)
    if ((headers['content-encoding'] ?? 'identity') !== 'identity') {
      throw this.strangeAnswer(answer, `an encoding that was not asked for: ${headers['content-encoding']}`)
    }
    // without a length nobody could tell a whole body from one that broke off
    if (!/^\d{1,15}$/.test(headers['content-length'] ?? ''))
      throw this.strangeAnswer(answer, 'an answer without its length')
    return Number(headers['content-length'])
  }

  private strangeAnswer(answer: IncomingMessage, what: string): ProxyError {
    answer.destroy()
    return strange(this.name, what)
  }

  /** @returns undefined where there is nothing under that key */
  private async ask(
    method: 'GET' | 'HEAD',
    key: string,
    headers: Record<string, string>,
    signal: AbortSignal | undefined,
  ): Promise<IncomingMessage | undefined> {
    let url: URL = new URL(key, this.base)
    for (let redirects = 0; ; redirects++) {
      const answer = await this.send(method, url, headers, signal)
      const { statusCode = 0, headers: told } = answer
      if (NOT_THERE.includes(statusCode)) {
        answer.destroy()
        return undefined
      }
      if (!REDIRECTS.includes(statusCode)) return answer
      answer.destroy()
      if (redirects === STORE_REDIRECTS_MAX) throw strange(this.name, `more than ${STORE_REDIRECTS_MAX} redirects`)
      const { location } = told
      const next: URL | undefined =
        location !== undefined && URL.canParse(location, url.href) ? new URL(location, url) : undefined
      if (next?.origin !== url.origin) throw strange(this.name, `a redirect to ${location ?? 'nowhere'}`)
      url = next
    }
  }

  private send(
    method: string,
    url: URL,
    headers: Record<string, string>,
    signal: AbortSignal | undefined,
  ): Promise<IncomingMessage> {
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
    if (signal?.aborted) throw signal.reason
    const isSecure = url.protocol === 'https:'
    const request = (isSecure ? https : http).request(url, {
      method,
      agent: isSecure ? this.agents.https : this.agents.http,
      headers: { 'accept-encoding': 'identity', 'user-agent': 'pageferry', ...headers },
    })
    const late = setTimeout(
      () => request.destroy(lost(this.name, `no answer in ${this.answerMs / 1000} s`)),
      this.answerMs,
    )
    const abort = (): void => void request.destroy(signal!.reason)
    signal?.addEventListener('abort', abort)
    const done = (): void => {
      clearTimeout(late)
      signal?.removeEventListener('abort', abort)
    }
    request.on('response', answer => {
      done()
      answer.on('error', () => {}) // whoever reads it is told; a body that nobody reads may break
      resolve(answer)
    })
    request.on('error', error => {
      done()
      const isOurs = error instanceof ProxyError || (signal?.aborted && error === signal.reason)
      reject(isOurs ? error : lost(this.name, 'cannot be reached', error))
    })
    request.end()
    return promise
  }
}
