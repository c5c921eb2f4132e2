/** The side that dials: opens a session, keeps its connections up, and gives up when the patience ends. */
import { randomBytes } from 'node:crypto'
import type net from 'node:net'
import { defectOf, type ErrorCode, isProxyError, ProxyError } from '../errors.ts'
import { CONNECTIONS_MAX, HELLO_TIMEOUT_MS, PATIENCE_MS } from '../limits.ts'
import type { Session } from '../session/session.ts'
import { type ClientHello, encodeClientHello, isRefusal, type ServerHello, serverHelloOf } from '../wan/hello.ts'
import { AGENT_DEFAULT, type Clock, type LinkLogger, type SessionTuning, systemClock } from './api.ts'
import { type Credentials, PLAIN_IDENTITY } from './credentials.ts'
import { Dialer, type DialOptions } from './dial.ts'
import { peerOf, readHello } from './greeting.ts'
import { Link } from './link.ts'

/** First pause before a lost connection is dialled again (protocol.md §3, heartbeat); doubles ... */
const BACKOFF_MIN_MS = 100
/** ... up to this. */
const BACKOFF_MAX_MS = 5000

export interface LinkClientOptions {
  /** Name or address; a name is resolved at every dial, so that a peer may move. */
  readonly host: string
  readonly port: number
  /** TLS 1.3 with these ... */
  readonly credentials?: Credentials
  /** ... or, only where this is said, no TLS at all. */
  readonly plaintext?: boolean
  /** Connections to stripe over, 1..16. Default 1. */
  readonly connections?: number
  /** What we offer the server: protocol.md §2. */
  readonly offer: Pick<ClientHello, 'sets' | 'ring' | 'places' | 'seed'> &
    Partial<Pick<ClientHello, 'agent' | 'instance' | 'process' | 'cold' | 'kept' | 'features'>>
  readonly session?: SessionTuning
  /** How long to try for the first connection. Default: the patience. */
  readonly openMs?: number
  readonly logger: LinkLogger
  readonly clock?: Clock
  readonly localAddress?: string
  /** Tests bring their own. */
  readonly resolve?: DialOptions['resolve']
  /** TLS records that a connection may carry. Default TLS_RECORDS_MAX. */
  readonly recordsMax?: number
}

/** A connection that stands. */
interface Standing {
  /** Settles when it is gone again: whether anything arrived on it after the hello. */
  readonly gone: Promise<boolean>
  /** Settles when it should be replaced, while it goes on. */
  readonly worn: Promise<void>
}

/**
 * One session, seen from the side that dials: `link.serve` it before the first flow. When it has ended, make a new
 * LinkClient for a new one.
 */
export class LinkClient {
  readonly link: Link
  readonly #options: LinkClientOptions
  readonly #clock: Clock
  readonly #connections: number
  #token: string | null = null
  #hello: ServerHello | undefined
  #lastReason = ''
  readonly #dialer: Dialer
  /** Give up what is no connection of the session yet. */
  readonly #dialling = new Set<() => void>()
  /** Ends the waits between dials. */
  readonly #wake = new Set<() => void>()
  #opening: Promise<ServerHello> | undefined

  /** @throws ProxyError USAGE */
  constructor(options: LinkClientOptions) {
    requireSecurity(options)
    this.#connections = options.connections ?? 1
    if (!Number.isInteger(this.#connections) || this.#connections < 1 || this.#connections > CONNECTIONS_MAX) {
      throw new ProxyError('USAGE', `${this.#connections} connections`, undefined, `1 to ${CONNECTIONS_MAX}`)
    }
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.link = new Link({
      role: 'client',
      id: randomBytes(16).toString('hex'),
      ...(options.session && { session: options.session }),
      logger: options.logger,
      clock: this.#clock,
      identity: options.plaintext ? PLAIN_IDENTITY : '',
      recordsMax: options.recordsMax,
    })
    this.#dialer = new Dialer({ ...options, clock: this.#clock })
    void this.link.ended.then(() => {
      this.#wakeAll()
      for (const cancel of this.#dialling) cancel()
    })
  }

  get session(): Session {
    return this.link.session
  }

  /**
   * Dials until the session stands, then keeps all its connections up until it ends.
   * @throws ProxyError PEER_AUTH, PROTOCOL_VERSION, ... (the server refuses, or is not who it must be: at once),
   *   PEER_LOST (nobody answered for `openMs`). The session is dead then.
   */
  open(): Promise<ServerHello> {
    this.#opening ??= this.#open()
    return this.#opening
  }

  /** Delivers what was handed in, says BYE, closes. */
  close(): Promise<ProxyError | undefined> {
    return this.link.close()
  }

  async #open(): Promise<ServerHello> {
    const o = this.#options
    if (o.plaintext) o.logger.warn('link.plaintext', { host: o.host, port: o.port, link: this.link.id.slice(0, 8) })
    const deadline = this.#clock.now() + (o.openMs ?? o.session?.patienceMs ?? PATIENCE_MS)
    let backoff = BACKOFF_MIN_MS
    let first: Standing
    for (;;) {
      try {
        first = await this.#dial(0)
        break
      } catch (error) {
        if (this.link.over) throw lost('the session was closed')
        const failure = asProxyError(error, this.#options.logger)
        this.#logFailure(0, failure)
        const late = this.#clock.now() + backoff >= deadline
        // While nothing is at stake an operator wants to hear of wrong credentials now, not after the patience.
        const final = !mayPass(failure) && !this.#dialer.hasOther
        if (late || final) {
          const end = failure.code === 'PEER_LOST' ? lost(`${o.host}:${o.port}: ${failure.what}`) : failure
          void this.link.abort(end)
          throw end
        }
        await this.#pause(backoff)
        backoff = Math.min(backoff * 2, BACKOFF_MAX_MS)
      }
    }
    void this.#keep(0, first)
    for (let connection = 1; connection < this.#connections; connection++) void this.#keep(connection)
    return this.#hello!
  }

  /** Keeps one connection up for as long as the session lives. */
  async #keep(connection: number, first?: Standing): Promise<void> {
    let backoff = BACKOFF_MIN_MS
    for (let current = first; !this.link.over; ) {
      if (current) {
        const fresh = await this.#replacement(connection, current)
        if (fresh) {
          current = fresh
          continue
        }
        // Only a connection over which something came shows that the path works.
        if (await current.gone) backoff = BACKOFF_MIN_MS
        current = undefined
        if (this.link.over) return
        await this.#pause(backoff)
        backoff = Math.min(backoff * 2, BACKOFF_MAX_MS)
        continue
      }
      try {
        current = await this.#dial(connection)
        this.#lastReason = ''
      } catch (error) {
        if (this.link.over) return
        const failure = asProxyError(error, this.#options.logger)
        this.#logFailure(connection, failure)
        if (isFinal(failure)) {
          void this.link.abort(failure)
          return
        }
        await this.#pause(backoff)
        backoff = Math.min(backoff * 2, BACKOFF_MAX_MS)
      }
    }
  }

  /** Once a connection's keys are worn, dials another one beside it. @returns undefined: it is gone before that */
  async #replacement(connection: number, current: Standing): Promise<Standing | undefined> {
    let isGone = false
    const gone = current.gone.then(() => {
      isGone = true
    })
    await Promise.race([gone, current.worn])
    while (!isGone && !this.link.over) {
      try {
        return await this.#dial(connection)
      } catch (error) {
        if (this.link.over) return undefined
        this.#logFailure(connection, asProxyError(error, this.#options.logger))
        await Promise.race([gone, this.#pause(BACKOFF_MAX_MS)])
      }
    }
    return undefined
  }

  /** One attempt, in bounded time. */
  async #dial(connection: number): Promise<Standing> {
    const o = this.#options
    const attempt = this.#dialer.dial()
    let raw: net.Socket | undefined
    let address = ''
    let timedOut = false
    const giveUp = (): void => {
      attempt.cancel()
      raw?.destroy()
    }
    this.#dialling.add(giveUp)
    const cancel = this.#clock.after(HELLO_TIMEOUT_MS, () => {
      timedOut = true
      giveUp()
    })
    try {
      const connected = await attempt.connected
      raw = connected.socket
      address = connected.address
      let socket: net.Socket = raw
      if (o.credentials) {
        const secured = await o.credentials.connect(raw, o.host.replace(/%.*$/, '')) // a zone is no part of a name
        socket = secured.socket
        this.link.identity = secured.identity
      }
      const asked: ClientHello = {
        agent: AGENT_DEFAULT,
        ...o.offer,
        session: this.link.id,
        connection,
        connections: this.#connections,
        token: this.#token,
        received: this.link.session.received,
        credit: this.link.session.initialCredit,
      }
      socket.write(encodeClientHello(asked))
      const { body, rest } = await readHello(socket)
      const hello = serverHelloOf(body, asked)
      if (isRefusal(hello)) {
        throw new RefusedError(hello.refuse.code, hello.refuse.text)
      }
      if (this.link.over) throw lost('the session was closed')
      if (this.#token === null) {
        this.#token = hello.token
        this.#hello = hello
        o.logger.debug('link.open', {
          link: this.link.id.slice(0, 8),
          identity: this.link.identity,
          agent: hello.agent,
        })
      } else if (this.#token !== hello.token) {
        throw new ProxyError('PROTOCOL_STATE', 'the server changed the token', undefined, 'the session ends')
      }
      this.#dialer.worked(address)
      this.link.trouble = ''
      const { promise: worn, resolve: wears } = Promise.withResolvers<void>()
      const gone = new Promise<boolean>(resolve => {
        this.link.attach(socket, connection, hello, rest, peerOf(socket), resolve, wears)
      })
      return { gone, worn }
    } catch (error) {
      raw?.destroy()
      if (address !== '') this.#dialer.failed(address)
      if (timedOut) throw lost(`no answer within ${HELLO_TIMEOUT_MS / 1000} s`, error)
      throw error
    } finally {
      cancel()
      this.#dialling.delete(giveUp)
    }
  }

  /** Each new reason once: a link that is down for two minutes is no reason for thirty lines. */
  #logFailure(connection: number, error: ProxyError): void {
    const reason = `${error.code}: ${error.what}`
    this.link.trouble = error.what
    if (reason === this.#lastReason) return
    this.#lastReason = reason
    const { host, port } = this.#options
    this.#options.logger.warn('link.dial', {
      link: this.link.id.slice(0, 8),
      connection,
      host,
      port,
      code: error.code,
      reason: error.what,
      hint: error.action,
    })
  }

  #pause(ms: number): Promise<void> {
    return new Promise(resolve => {
      const done = (): void => {
        cancel()
        this.#wake.delete(done)
        resolve()
      }
      const cancel = this.#clock.after(ms, done)
      this.#wake.add(done)
    })
  }

  #wakeAll(): void {
    for (const done of this.#wake) done()
  }
}

/**
 * TLS or, said aloud, none.
 * @throws ProxyError USAGE
 */
export function requireSecurity(options: {
  readonly credentials?: Credentials | undefined
  readonly plaintext?: boolean | undefined
}): void {
  if ((options.credentials === undefined) !== (options.plaintext === true)) {
    throw new ProxyError(
      'USAGE',
      options.credentials ? 'both TLS credentials and plaintext' : 'no TLS credentials for the link',
      undefined,
      'give a credentials directory, or say that the link is plaintext',
    )
  }
}

function lost(what: string, cause?: unknown): ProxyError {
  return new ProxyError('PEER_LOST', what, undefined, 'check that the other proxy runs and can be reached', { cause })
}

/** The server itself said no. */
class RefusedError extends ProxyError {
  constructor(code: ErrorCode, text: string) {
    super(code, `the server refuses: ${text}`, undefined, 'see the log of the other side')
  }
}

/** What a later attempt to open a session may not meet any more. */
function mayPass(error: ProxyError): boolean {
  if (error.code === 'INTERNAL') return error instanceof RefusedError // what went wrong there was not this side's doing
  return error.code === 'PEER_LOST' || error.code === 'LIMIT_EXCEEDED'
}

/** What no later attempt to resume can heal. PEER_AUTH is not of that kind: certificates may be in the middle of a change. */
function isFinal(error: ProxyError): boolean {
  if (error.code === 'PEER_LOST') return error instanceof RefusedError
  return error.code === 'PROTOCOL_VERSION' || error.code === 'PROTOCOL_STATE' || error.code === 'PROTOCOL_SYNTAX'
}

/** What is neither ours nor the network's is a defect that one connection found: it is told, and no reason to end others. */
function asProxyError(error: unknown, logger: LinkLogger): ProxyError {
  if (isProxyError(error)) return error
  const e = error as NodeJS.ErrnoException & { address?: string }
  if (e.code === undefined) {
    logger.error('link.defect', { stack: e.stack })
    return defectOf(error)
  }
  return lost(`${e.code}${e.address ? ` ${e.address}` : ''}`, error)
}
