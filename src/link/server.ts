/**
 * The side that listens: takes connections from anyone, lets in who proves to be a peer, and joins them to their
 * session. Until then a connection costs one slot of a bounded number, for a bounded time.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto'
import net from 'node:net'
import { isProxyError, ProxyError } from '../errors.ts'
import {
  GREETERS_MAX,
  HELLO_TIMEOUT_MS,
  REFUSAL_LINES_BURST,
  REFUSAL_LINES_PER_SECOND,
  REFUSAL_LINGER_MS,
  SESSIONS_MAX,
  STRANGERS_MAX,
} from '../limits.ts'
import { type ClientHello, clientHelloOf, encodeRefusal, encodeServerHello, type ServerHello } from '../wan/hello.ts'
import { REFUSALS } from '../wan/wire.ts'
import { AGENT_DEFAULT, type Clock, type LinkLogger, type LinkSink, type SessionTuning, systemClock } from './api.ts'
import { requireSecurity } from './client.ts'
import { type Credentials, PLAIN_IDENTITY } from './credentials.ts'
import { KEEP_ALIVE_DELAY_MS, peerOf, readHello } from './greeting.ts'
import { Link } from './link.ts'

/** What the layer above decides about a new session. */
export interface Accepted extends Pick<ServerHello, 'sets' | 'ring' | 'places' | 'targets'> {
  /** Makes the session's sink, when the session is sure to be: take memory here, not before. */
  readonly sink: (link: Link) => LinkSink
  readonly session?: SessionTuning
  /** Called in place of `sink` where the peer went away before the session could begin. */
  readonly discard?: () => void
}

export interface LinkServerOptions {
  /** TLS 1.3 with these ... */
  readonly credentials?: Credentials
  /** ... or, only where this is said, no TLS at all. */
  readonly plaintext?: boolean
  /**
   * A peer that is let in opens a session: what of its offer to use.
   * @param identity who TLS proved it to be: `x509:` subject and names, `psk:` username, `plain`
   * Throw ProxyError to refuse; its code and `what` go to the peer.
   */
  readonly accept: (hello: ClientHello, identity: string) => Accepted | Promise<Accepted>
  readonly logger: LinkLogger
  readonly agent?: string
  readonly clock?: Clock
  readonly sessionsMax?: number
  readonly strangersMax?: number
  readonly helloTimeoutMs?: number
  /** TLS records that a connection may carry. Default TLS_RECORDS_MAX. */
  readonly recordsMax?: number
}

/** Where to listen: an address, or a socket that systemd opened. */
export type ListenAt = { readonly host?: string; readonly port: number } | { readonly fd: number }

/** A connection before it belongs to a session. */
interface Arrival {
  readonly raw: net.Socket
  readonly peer: string
  cancel: () => void
  /** Why it was ended by us, where that is not what the socket says. */
  ended: ProxyError | undefined
}

interface Member {
  readonly link: Link
  readonly token: Buffer
  readonly identity: string
  readonly accepted: Accepted
  readonly bornMs: number
}

/** Counters for metrics. */
export interface LinkServerStats {
  readonly sessions: number
  readonly strangers: number
  readonly greeters: number
  readonly connectionsAccepted: number
  readonly refused: number
  /** Of those refused: dropped because too many strangers came at once. */
  readonly crowdedOut: number
}

export class LinkServer {
  readonly #options: LinkServerOptions
  readonly #clock: Clock
  readonly #listeners = new Set<net.Server>()
  /** By age: a Set keeps the order of insertion. */
  readonly #strangers = new Set<Arrival>()
  readonly #greeters = new Set<Arrival>()
  readonly #members = new Map<string, Member>()
  /** Sessions that the layer above is taking memory for. */
  readonly #opening = new Set<string>()
  /** Sessions that were given up and whose memory is not free yet. */
  #leaving = 0
  #draining = false
  #connectionsAccepted = 0
  #refused = 0
  #crowdedOut = 0
  #logTokens = REFUSAL_LINES_BURST
  #logAtMs: number
  #logSuppressed = 0
  #cancelSummary: (() => void) | undefined

  /** @throws ProxyError USAGE */
  constructor(options: LinkServerOptions) {
    requireSecurity(options)
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#logAtMs = this.#clock.now()
  }

  /** Sessions that live. */
  get links(): Link[] {
    return [...this.#members.values()].map(member => member.link)
  }

  get stats(): LinkServerStats {
    return {
      sessions: this.#members.size,
      strangers: this.#strangers.size,
      greeters: this.#greeters.size,
      connectionsAccepted: this.#connectionsAccepted,
      refused: this.#refused,
      crowdedOut: this.#crowdedOut,
    }
  }

  /**
   * Takes connections at one more address.
   * @returns where: with port 0, the one that the system chose
   * @throws ProxyError IO
   */
  listen(at: ListenAt): Promise<net.AddressInfo> {
    const server = net.createServer({
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: KEEP_ALIVE_DELAY_MS,
      pauseOnConnect: false,
    })
    server.on('connection', socket => this.take(socket))
    return new Promise((resolve, reject) => {
      server.once('error', error => {
        const where = 'fd' in at ? `fd ${at.fd}` : `${at.host ?? ''}:${at.port}`
        const code = (error as NodeJS.ErrnoException).code
        reject(
          new ProxyError('IO', `cannot listen at ${where}: ${code}`, undefined, 'choose another', { cause: error }),
        )
      })
      server.listen('fd' in at ? { fd: at.fd } : { host: at.host, port: at.port }, () => {
        // Errors of accept (too many files): the listener goes on, the connection is lost.
        server.removeAllListeners('error').on('error', error => {
          this.#options.logger.error('link.listen', { reason: error.message })
        })
        this.#listeners.add(server)
        const address = server.address() as net.AddressInfo
        if (this.#options.plaintext) this.#options.logger.warn('link.plaintext', { ...address })
        resolve(address)
      })
    })
  }

  /** Takes one connection, however it came to be. */
  take(raw: net.Socket): void {
    this.#connectionsAccepted++
    raw.on('error', () => {}) // 'close' follows
    const arrival: Arrival = { raw, peer: peerOf(raw), cancel: () => {}, ended: undefined }
    const timeoutMs = this.#options.helloTimeoutMs ?? HELLO_TIMEOUT_MS
    arrival.cancel = this.#clock.after(timeoutMs, () =>
      this.#end(arrival, timeout(`no handshake and hello within ${timeoutMs / 1000} s`)),
    )
    this.#admit(this.#strangers, arrival, this.#options.strangersMax ?? STRANGERS_MAX)
    this.#welcome(arrival)
      .catch((error: unknown) => {
        if (!isProxyError(error)) throw error // ours: crash rather than guess
      })
      .finally(() => {
        arrival.cancel()
        this.#strangers.delete(arrival)
        this.#greeters.delete(arrival)
      })
  }

  /** Takes no new sessions; those that live go on, without new flows. */
  drain(): void {
    this.#draining = true
    for (const { link } of this.#members.values()) link.drain()
  }

  /** Stops listening. Connections that stand go on. */
  stopListening(): void {
    for (const server of this.#listeners) server.close()
    this.#listeners.clear()
  }

  /**
   * Ends in order: no new connections, every session delivers what it holds and says BYE.
   * @param graceMs after this, what still lives is ended at once
   */
  async close(graceMs: number): Promise<void> {
    this.#draining = true
    this.stopListening()
    const links = this.links
    for (const arrival of [...this.#strangers, ...this.#greeters]) this.#end(arrival, timeout('this proxy stops'))
    const cancel = this.#clock.after(graceMs, () => {
      for (const link of links) if (!link.over) void link.abort(timeout('this proxy stops'))
    })
    await Promise.all(links.map(link => link.close()))
    cancel()
    this.#cancelSummary?.()
  }

  /** Counts a connection among `group`; the oldest there makes room. */
  #admit(group: Set<Arrival>, arrival: Arrival, max: number): void {
    group.add(arrival)
    if (group.size <= max) return
    const oldest = group.values().next().value!
    group.delete(oldest)
    this.#crowdedOut++
    this.#end(oldest, timeout(`crowded out by ${max} newer strangers`))
  }

  #end(arrival: Arrival, why: ProxyError): void {
    arrival.ended = why
    arrival.raw.destroy()
  }

  /** @throws ProxyError where the connection is refused; it is ended by then */
  async #welcome(arrival: Arrival): Promise<void> {
    const { raw } = arrival
    const { credentials } = this.#options
    let socket = raw
    let identity: string = PLAIN_IDENTITY
    let known = false
    try {
      if (credentials) {
        const secured = await credentials.accept(raw)
        socket = secured.socket
        if (secured.refusal) throw secured.refusal
        identity = secured.identity
        this.#strangers.delete(arrival)
        this.#admit(this.#greeters, arrival, GREETERS_MAX)
      }
      const { body, rest } = await readHello(socket)
      known = true
      const hello = clientHelloOf(body)
      if (rest.length > 0) {
        throw new ProxyError('PROTOCOL_STATE', 'the client sent frames before our hello', undefined, 'closed')
      }
      const member = this.#resume(hello, identity) ?? (await this.#open(hello, identity, raw))
      const { accepted, link } = member
      socket.write(
        encodeServerHello({
          agent: this.#options.agent ?? AGENT_DEFAULT,
          token: member.token.toString('hex'),
          received: link.session.received,
          credit: link.session.initialCredit,
          sets: accepted.sets,
          ring: accepted.ring,
          places: accepted.places,
          targets: accepted.targets,
        }),
      )
      link.attach(socket, hello.connection, hello, rest, arrival.peer)
    } catch (error) {
      if (isProxyError(error)) {
        this.#refused++
        const reason = arrival.ended ?? error
        this.#logRefusal({ peer: arrival.peer, code: reason.code, reason: reason.what, hint: reason.action })
      }
      // Who says nothing, or begins with anything but our magic, gets no answer, and no hint of what listens here.
      const silent =
        !known && (error as ProxyError).where?.stream === 'hello' && (error as ProxyError).where!.offset < 8
      if (!isProxyError(error) || silent || (!known && error.code === 'PEER_LOST')) socket.destroy()
      else await this.#refuse(socket, error) // until it is closed it counts among the strangers
      throw error
    }
  }

  /** Tells why, where somebody may be there to read it, and closes. */
  async #refuse(socket: net.Socket, error: ProxyError): Promise<void> {
    const code = REFUSALS.find(known => known === error.code)
    if (socket.destroyed) return
    socket.end(encodeRefusal(this.#options.agent ?? AGENT_DEFAULT, code ?? 'LIMIT_EXCEEDED', error.what))
    socket.resume() // what still comes is thrown away: closing over unread bytes would reset our answer too
    const cancel = this.#clock.after(REFUSAL_LINGER_MS, () => socket.destroy())
    await new Promise(resolve => socket.once('close', resolve))
    cancel()
  }

  /**
   * The session that a hello belongs to.
   * @returns undefined where it opens a new one
   * @throws ProxyError PEER_AUTH, PEER_LOST, PROTOCOL_STATE
   */
  #resume(hello: ClientHello, identity: string): Member | undefined {
    const member = this.#members.get(hello.session)
    if (hello.token === null) {
      if (!member) return undefined
      // Our answer to the first hello was lost: nothing was ever said on this session, so it begins again.
      if (member.identity === identity && !member.link.heard) {
        void this.#giveUp(member, 'opened again by the peer')
        return undefined
      }
      throw new ProxyError('PEER_AUTH', 'this session belongs to somebody', undefined, 'refused')
    }
    if (!member || member.link.over) {
      throw new ProxyError(
        'PEER_LOST',
        'no such session: this side was restarted, or its patience ran out',
        undefined,
        'the peer opens a new session',
      )
    }
    const proven = timingSafeEqual(Buffer.from(hello.token, 'hex'), member.token)
    if (!proven) throw new ProxyError('PEER_AUTH', 'wrong token for this session', undefined, 'refused')
    if (member.identity !== identity) {
      throw new ProxyError('PEER_AUTH', 'this session belongs to another certificate or key', undefined, 'refused')
    }
    return member
  }

  async #open(hello: ClientHello, identity: string, raw: net.Socket): Promise<Member> {
    const { accept, logger, sessionsMax = SESSIONS_MAX } = this.#options
    if (this.#draining) throw new ProxyError('LIMIT_EXCEEDED', 'this side takes no new sessions', undefined, 'refused')
    const count = (): number => this.#members.size + this.#opening.size + this.#leaving
    if (count() >= sessionsMax) await this.#forgetOne()
    if (count() >= sessionsMax) {
      throw new ProxyError('LIMIT_EXCEEDED', `${sessionsMax} sessions are open`, undefined, 'refused')
    }
    if (this.#opening.has(hello.session) || this.#members.has(hello.session)) {
      throw new ProxyError('LIMIT_EXCEEDED', 'opened twice at once', undefined, 'refused')
    }
    let accepted: Accepted
    this.#opening.add(hello.session)
    try {
      accepted = await accept(hello, identity)
    } finally {
      this.#opening.delete(hello.session)
    }
    if (raw.destroyed) {
      accepted.discard?.()
      throw new ProxyError('PEER_LOST', 'closed before our hello', undefined, 'closed')
    }
    const link = new Link({
      role: 'server',
      id: hello.session,
      sink: accepted.sink,
      ...(accepted.session && { session: accepted.session }),
      logger,
      clock: this.#clock,
      identity,
      recordsMax: this.#options.recordsMax,
    })
    const member = { link, token: randomBytes(32), identity, accepted, bornMs: this.#clock.now() }
    this.#members.set(link.id, member)
    logger.info('link.open', {
      link: link.id.slice(0, 8),
      identity,
      agent: hello.agent,
      connections: hello.connections,
    })
    void link.ended.then(() => {
      if (this.#members.get(link.id) === member) this.#members.delete(link.id)
    })
    return member
  }

  /** Gives up the oldest session that never said anything and has no connection. */
  async #forgetOne(): Promise<void> {
    for (const member of this.#members.values()) {
      if (member.link.heard || member.link.connections > 0) continue
      return this.#giveUp(member, 'never used')
    }
  }

  /** Ends a session on which nothing was ever said; it counts until its sockets are closed and its memory is free. */
  async #giveUp({ link }: Member, why: string): Promise<void> {
    this.#members.delete(link.id)
    this.#leaving++
    await link.abort(timeout(why))
    this.#leaving--
  }

  /** One line for each refused stranger, as long as it is not a flood of them. */
  #logRefusal(fields: Record<string, unknown>): void {
    const now = this.#clock.now()
    this.#logTokens = Math.min(
      REFUSAL_LINES_BURST,
      this.#logTokens + ((now - this.#logAtMs) / 1000) * REFUSAL_LINES_PER_SECOND,
    )
    this.#logAtMs = now
    if (this.#logTokens >= 1) {
      this.#logTokens--
      this.#options.logger.warn('link.refused', fields)
      return
    }
    this.#logSuppressed++
    this.#cancelSummary ??= this.#clock.after(1000, () => {
      this.#cancelSummary = undefined
      this.#options.logger.warn('link.refused.more', { count: this.#logSuppressed })
      this.#logSuppressed = 0
    })
  }
}

function timeout(what: string): ProxyError {
  return new ProxyError('PEER_LOST', what, undefined, 'the connection is closed')
}
