/**
 * The side that listens: takes connections from anyone, lets in who proves to be a peer, and joins them to their
 * session. Until then a connection costs one place of a bounded number (door.ts), for a bounded time.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto'
import net from 'node:net'
import { defectOf, isProxyError, ProxyError } from '../errors.ts'
import { FairShares } from '../fair-shares.ts'
import { listenAction } from '../io-error.ts'
import {
  FLOWS_OPEN_MAX,
  GREETERS_MAX,
  HELLO_TIMEOUT_MS,
  MEMORY_BUDGET_BYTES,
  REFUSAL_LINGER_MS,
  RETURNER_HANDSHAKES_MAX,
  RETURNER_HANDSHAKES_PER_SECOND,
  RETURNERS_MAX,
  SESSION_IDLE_MS,
  SESSIONS_MAX,
  STRANGER_HANDSHAKES_MAX,
  STRANGER_HANDSHAKES_PER_SECOND,
  STRANGERS_MAX,
} from '../limits.ts'
import {
  agreedFeatures,
  type ClientHello,
  clientHelloOf,
  encodeRefusal,
  encodeServerHello,
  type ServerHello,
} from '../wan/hello.ts'
import { REFUSALS } from '../wan/wire.ts'
import { AGENT_DEFAULT, type Clock, type LinkLogger, type LinkSink, type SessionTuning, systemClock } from './api.ts'
import { requireSecurity } from './client.ts'
import { areRelated, type Credentials, PLAIN_IDENTITY } from './credentials.ts'
import { Door } from './door.ts'
import { KEEP_ALIVE_DELAY_MS, peerOf, readHello } from './greeting.ts'
import { addressGroup, KnownAddresses } from './known-addresses.ts'
import { Link } from './link.ts'
import { quote } from './tls-errors.ts'
import { WaitingRoom } from './waiting-room.ts'

/** What the layer above decides about a new session. */
export interface Accepted extends Pick<ServerHello, 'sets' | 'cold' | 'kept' | 'ring' | 'places' | 'targets'> {
  /** Makes who serves the link, when the session is sure to be: take memory here, not before. */
  readonly serve: (link: Link) => LinkSink
  readonly session?: SessionTuning
  /** Called in place of `serve` where the peer went away before the session could begin. */
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
   * @param holder whose share of what is bounded it gets: the identity, without TLS the address with it
   * Throw ProxyError to refuse; its code and `what` go to the peer.
   */
  readonly accept: (hello: ClientHello, identity: string, holder: string, peer: string) => Accepted | Promise<Accepted>
  readonly logger: LinkLogger
  readonly agent?: string
  readonly clock?: Clock
  /** What sessions may hold beyond their own, where this process has other sessions too. Default: MEMORY_BUDGET_BYTES. */
  readonly memory?: FairShares | undefined
  /** Sessions at once, of which an identity may have as many as are still free. */
  readonly sessionsMax?: number
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
  /** Of addresses: whom its place counts for until TLS has told who it is. */
  readonly group: string
  readonly door: Door<Arrival>
  /** Its handshake has begun. */
  begun: boolean
  /** Once TLS has proven it. */
  identity: string | undefined
  cancel: () => void
  /** Why it was ended by us, where that is not what the socket says. */
  ended: ProxyError | undefined
}

interface Member {
  readonly link: Link
  readonly token: Buffer
  /** As of its last connection: a certificate may be renewed with other names. */
  identity: string
  /** Whom its place counts for. */
  readonly holder: string
  readonly accepted: Accepted
  /** Gives its place back. */
  readonly leave: () => void
  /** As the client's hello says which proxy it is, in which process. */
  readonly hello: Pick<ClientHello, 'instance' | 'process'>
  /** When another process of the same proxy opened a session. */
  succeededMs: number | undefined
}

/** Why a connection was refused from which no byte came: a port scan, a health check. */
const SAID_NOTHING = 'closed before it said anything'

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
  readonly #known = new KnownAddresses()
  /** For those who come from where a peer came from lately, and for all others. */
  readonly #returners: Door<Arrival>
  readonly #strangers: Door<Arrival>
  readonly #greeters = new WaitingRoom<Arrival>(GREETERS_MAX)
  readonly #members = new Map<string, Member>()
  /** Of sessions, those that are being opened or are ending counted. */
  readonly #places: FairShares
  /** What sessions may hold beyond their own, shared by identity. */
  readonly #memory: FairShares
  /** Flows that may be open. */
  readonly #flowPlaces = new FairShares(FLOWS_OPEN_MAX)
  /** Sessions that the layer above is taking memory for. */
  readonly #opening = new Set<string>()
  #draining = false
  #connectionsAccepted = 0
  #refused = 0
  #crowdedOut = 0

  /** @throws ProxyError USAGE */
  constructor(options: LinkServerOptions) {
    requireSecurity(options)
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#memory = options.memory ?? new FairShares(MEMORY_BUDGET_BYTES)
    this.#places = new FairShares(options.sessionsMax ?? SESSIONS_MAX)
    const common = {
      clock: this.#clock,
      atOnce: options.credentials !== undefined,
      begin: (arrival: Arrival) => this.#begin(arrival),
      crowdedOut: (arrival: Arrival) => this.#crowd(arrival),
    }
    this.#strangers = new Door({
      ...common,
      waitingMax: STRANGERS_MAX,
      handshakesMax: STRANGER_HANDSHAKES_MAX,
      perSecond: STRANGER_HANDSHAKES_PER_SECOND,
      burst: STRANGER_HANDSHAKES_PER_SECOND,
    })
    this.#returners = new Door({
      ...common,
      waitingMax: RETURNERS_MAX,
      handshakesMax: RETURNER_HANDSHAKES_MAX,
      perSecond: RETURNER_HANDSHAKES_PER_SECOND,
      burst: RETURNER_HANDSHAKES_PER_SECOND,
    })
  }

  /** Sessions that live. */
  get links(): Link[] {
    return [...this.#members.values()].map(member => member.link)
  }

  get stats(): LinkServerStats {
    return {
      sessions: this.#members.size,
      strangers: this.#strangers.size + this.#returners.size,
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
        const code = (error as NodeJS.ErrnoException).code ?? error.message
        const what = `cannot listen at ${where}: ${code}`
        reject(new ProxyError('IO', what, undefined, listenAction(code), { cause: error }))
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
    const group = addressGroup(raw.remoteAddress)
    const arrival: Arrival = {
      raw,
      peer: peerOf(raw),
      group,
      door: this.#known.has(group) ? this.#returners : this.#strangers,
      begun: false,
      identity: undefined,
      cancel: () => {},
      ended: undefined,
    }
    const timeoutMs = this.#options.helloTimeoutMs ?? HELLO_TIMEOUT_MS
    arrival.cancel = this.#clock.after(timeoutMs, () =>
      this.#end(arrival, timeout(`no handshake and hello within ${timeoutMs / 1000} s`)),
    )
    raw.on('error', () => {}) // 'close' follows
    raw.once('close', () => {
      if (arrival.begun) return
      this.#leave(arrival)
      this.#logRefusal(arrival, arrival.ended ?? timeout(SAID_NOTHING))
    })
    arrival.door.arrive(arrival)
    if (arrival.begun) return
    // Where many come, nothing is spent on who says nothing: no TLS before there are bytes for it, which stay in the socket.
    raw.once('readable', () => {
      if (raw.readableLength > 0) arrival.door.spoke(arrival)
      else raw.destroy() // its end
    })
  }

  /** Its turn has come. */
  #begin(arrival: Arrival): void {
    arrival.begun = true
    void this.#welcome(arrival).finally(() => this.#leave(arrival))
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
    for (const arrival of [...this.#strangers, ...this.#returners, ...this.#greeters])
      this.#end(arrival, timeout('this proxy stops'))
    const cancel = this.#clock.after(graceMs, () => {
      for (const link of links) if (!link.over) void link.abort(timeout('this proxy stops'))
    })
    await Promise.all(links.map(link => link.close()))
    cancel()
  }

  #crowd(arrival: Arrival): void {
    this.#crowdedOut++
    this.#end(arrival, timeout('crowded out by newer ones'))
  }

  #end(arrival: Arrival, why: ProxyError): void {
    arrival.ended = why
    arrival.raw.destroy()
  }

  /** Refused, gone, or one of a session's connections by now. */
  #leave(arrival: Arrival): void {
    arrival.cancel()
    arrival.door.leave(arrival)
    this.#greeters.leave(arrival)
  }

  /** Never rejects: whoever it is and whatever goes wrong, this connection alone ends. */
  async #welcome(arrival: Arrival): Promise<void> {
    const { raw } = arrival
    const { credentials } = this.#options
    let socket = raw
    let identity: string = PLAIN_IDENTITY
    /** A hello has come, and ours has not gone: the peer reads a refusal. */
    let isAsked = false
    try {
      if (credentials) {
        const secured = await credentials.accept(raw)
        socket = secured.socket
        if (secured.refusal) throw secured.refusal
        identity = secured.identity
        arrival.identity = identity
        arrival.door.leave(arrival)
        const loser = this.#greeters.enter(arrival, identity)
        if (loser) this.#crowd(loser)
      }
      const { body, rest } = await readHello(socket)
      isAsked = true
      const hello = clientHelloOf(body)
      if (rest.length > 0) {
        throw new ProxyError('PROTOCOL_STATE', 'the client sent frames before our hello', undefined, 'closed')
      }
      const member = this.#resume(hello, identity) ?? (await this.#open(hello, identity, arrival))
      const { accepted, link } = member
      socket.write(
        encodeServerHello({
          agent: this.#options.agent ?? AGENT_DEFAULT,
          token: member.token.toString('hex'),
          received: link.session.received,
          credit: link.session.initialCredit,
          sets: accepted.sets,
          ...(accepted.cold && { cold: accepted.cold }),
          ...(accepted.kept && { kept: accepted.kept }),
          ring: accepted.ring,
          places: accepted.places,
          targets: accepted.targets,
          ...agreedFeatures(hello),
        }),
      )
      isAsked = false
      this.#known.add(member.holder, arrival.group)
      link.attach(socket, hello.connection, hello, rest, arrival.peer, () => this.#endOrphan(member))
    } catch (error) {
      const isSilent = raw.bytesRead === 0 && isProxyError(error)
      const failure = arrival.ended ?? (isSilent ? timeout(SAID_NOTHING) : this.#asProxyError(error, arrival))
      this.#logRefusal(arrival, failure)
      // Who says nothing, or begins with anything but our magic, gets no answer, and no hint of what listens here.
      const isHello = isProxyError(error) && error.code !== 'PEER_LOST' && !isBeforeHello(error)
      if (isAsked || isHello)
        await this.#refuse(socket, failure) // until it is closed it keeps its place
      else socket.destroy()
    }
  }

  /** What is no ProxyError is a defect of ours that somebody outside found: told as one, and no reason to end all others. */
  #asProxyError(error: unknown, arrival: Arrival): ProxyError {
    if (isProxyError(error)) return error
    const { stack } = error as Error
    this.#options.logger.error('link.defect', { peer: arrival.peer, identity: arrival.identity, stack })
    return defectOf(error)
  }

  /** Tells why, where somebody may be there to read it, and closes. */
  async #refuse(socket: net.Socket, error: ProxyError): Promise<void> {
    const code = REFUSALS.find(known => known === error.code)
    if (socket.destroyed) return
    socket.end(encodeRefusal(this.#options.agent ?? AGENT_DEFAULT, code ?? 'INTERNAL', error.what))
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
      // A renewed certificate may have other names. With the token, which only its owner has, it is the same peer where
      // the operator's own rule says so, or where it still carries one of the names.
      if (this.#options.credentials?.peerName === undefined && !areRelated(member.identity, identity)) {
        const what = `this session belongs to ${quote(member.identity)}, not to ${quote(identity)}`
        const hint = 'a renewed certificate keeps a name of the one before, or carries the peer name of the other side'
        throw new ProxyError('PEER_AUTH', what, undefined, hint)
      }
      const { link } = member
      this.#options.logger.warn('link.renamed', { link: link.id.slice(0, 8), identity, before: member.identity })
      member.identity = identity
      link.identity = identity
    }
    return member
  }

  async #open(hello: ClientHello, identity: string, { raw, group, peer }: Arrival): Promise<Member> {
    const { accept, logger, credentials } = this.#options
    if (this.#draining) throw new ProxyError('LIMIT_EXCEEDED', 'this side takes no new sessions', undefined, 'refused')
    const holder = credentials ? identity : `${identity} ${group}`
    await this.#makeRoom(holder)
    if (this.#places.room(holder) === 0) {
      const { used, total } = this.#places
      const what = `${used} of ${total} sessions are open, ${this.#places.held(holder)} of them this peer's`
      throw new ProxyError('LIMIT_EXCEEDED', what, undefined, 'refused: see --sessions-max')
    }
    if (this.#opening.has(hello.session) || this.#members.has(hello.session)) {
      throw new ProxyError('LIMIT_EXCEEDED', 'opened twice at once', undefined, 'refused')
    }
    const place = this.#places.share(holder)
    place.take(1)
    const leave = (): void => place.close()
    this.#opening.add(hello.session)
    let accepted: Accepted
    try {
      accepted = await accept(hello, identity, holder, peer)
      if (raw.destroyed) {
        accepted.discard?.()
        throw new ProxyError('PEER_LOST', 'closed before our hello', undefined, 'closed')
      }
    } catch (error) {
      leave()
      throw error
    } finally {
      this.#opening.delete(hello.session)
    }
    const link = new Link({
      role: 'server',
      id: hello.session,
      session: {
        memory: this.#memory.share(holder),
        flowPlaces: this.#flowPlaces.share(holder),
        ...accepted.session,
      },
      logger,
      clock: this.#clock,
      identity: holder,
      recordsMax: this.#options.recordsMax,
    })
    link.serve(accepted.serve(link))
    const token = randomBytes(32)
    const member: Member = { link, token, identity, holder, accepted, leave, hello, succeededMs: undefined }
    this.#succeed(member)
    this.#members.set(link.id, member)
    logger.debug('link.open', {
      link: link.id.slice(0, 8),
      identity: holder,
      agent: hello.agent,
      connections: hello.connections,
    })
    void link.ended.then(() => {
      leave()
      if (this.#members.get(link.id) === member) this.#members.delete(link.id)
    })
    return member
  }

  /** A proxy that was started anew needs no session of the process before: its QEMUs' connections went with it. */
  #succeed(next: Member): void {
    const { instance, process } = next.hello
    if (instance === undefined || process === undefined) return
    for (const member of this.#members.values()) {
      const { identity, hello } = member
      if (identity !== next.identity || hello.instance !== instance || hello.process === process) continue
      member.succeededMs ??= this.#clock.now()
      this.#endOrphan(member)
    }
  }

  /**
   * Ends a session whose process is gone: another of the same proxy has come, and this one has no connection and has said
   * nothing since. One that lives, against all expectation (two hosts with one name), says something every second.
   */
  #endOrphan({ link, succeededMs }: Member): void {
    if (succeededMs === undefined || link.over || link.connections > 0 || link.heardMs > succeededMs) return
    void link.abort(timeout('the other proxy was started anew'))
  }

  /**
   * Gives up a session that nobody needs, where a holder's next one has no place otherwise: of whoever holds most the one
   * that has been idle for longest. One that never said anything and has no connection goes at once.
   */
  async #makeRoom(holder: string): Promise<void> {
    if (this.#places.room(holder) > 0) return
    const nowMs = this.#clock.now()
    let best: Member | undefined
    let bestMs = 0
    for (const member of this.#members.values()) {
      const { link } = member
      const unused = !link.heard && link.connections === 0
      const idleMs = unused ? Number.POSITIVE_INFINITY : link.idleMs(nowMs)
      if (idleMs < SESSION_IDLE_MS || this.#places.roomWithout(member.holder, holder) === 0) continue
      const more = best ? this.#places.held(member.holder) - this.#places.held(best.holder) : 1
      if (more < 0 || (more === 0 && idleMs <= bestMs)) continue
      best = member
      bestMs = idleMs
    }
    if (best) await this.#giveUp(best, 'idle, and another peer needs the place')
  }

  /** Ends a session; its place is free once its sockets are closed and its memory is free. */
  async #giveUp({ link }: Member, why: string): Promise<void> {
    this.#members.delete(link.id)
    await link.abort(timeout(why))
  }

  #logRefusal(arrival: Arrival, { code, what, action }: ProxyError): void {
    this.#refused++
    const { peer, identity } = arrival
    this.#options.logger.warn('link.refused', { peer, ...(identity && { identity }), code, reason: what, hint: action })
  }
}

/** Whether it was found in the magic of a hello. */
function isBeforeHello({ where }: ProxyError): boolean {
  return where?.stream === 'hello' && (where.offset ?? 8) < 8
}

function timeout(what: string): ProxyError {
  return new ProxyError('PEER_LOST', what, undefined, 'the connection is closed')
}
