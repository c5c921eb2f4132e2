/**
 * One look at the other side, as a session's first connection would find it: dials, proves itself, exchanges hellos,
 * measures round trips, and takes its leave. Opens no flow, sends no frame with a sequence number, and keeps nothing.
 */
import { randomBytes, X509Certificate } from 'node:crypto'
import type net from 'node:net'
import type tls from 'node:tls'
import { defectOf, isProxyError, ProxyError } from '../errors.ts'
import { CREDIT_INITIAL_BYTES, FRAME_PAYLOAD_BYTES_MAX, HELLO_TIMEOUT_MS, LINGER_MS } from '../limits.ts'
import { encodeNumbers, encodeReason, reasonText } from '../wan/bodies.ts'
import { encodeFrame, type Frame, FrameDecoder } from '../wan/frames.ts'
import { type ClientHello, encodeClientHello, isRefusal, type ServerHello, serverHelloOf } from '../wan/hello.ts'
import { CODE, FRAME } from '../wan/wire.ts'
import { type Clock, systemClock } from './api.ts'
import type { Credentials } from './credentials.ts'
import { Dialer } from './dial.ts'
import { readHello } from './greeting.ts'

/** How far it came: what failed is in the stage behind the last one that has its facts. */
export type ProbeStage = 'connect' | 'tls' | 'hello' | 'link'

export interface ProbeOptions {
  readonly host: string
  readonly port: number
  /** TLS 1.3 with these; undefined: none, because the operator said so. */
  readonly credentials: Credentials | undefined
  /** What a session would offer, without memory: its ring has no page. */
  readonly offer: Pick<ClientHello, 'agent' | 'sets' | 'cold' | 'features'>
  /** Round trips to measure, one after the other. */
  readonly pings: number
  /** Measures what the connection carries, for so long; undefined: no. */
  readonly throughput?: ThroughputOptions | undefined
  readonly clock?: Clock
}

export interface ThroughputOptions {
  readonly forMs: number
  /** Bytes a second that are not to be exceeded. */
  readonly rateMax: number
}

/** What a certificate says of its owner. */
export interface PeerCertificate {
  readonly subject: string
  /** Names and addresses that it may be dialled by. */
  readonly names: readonly string[]
  readonly fromMs: number
  readonly toMs: number
}

/** What was found, as far as it went. Texts are the peer's. */
export interface Probed {
  address?: string
  identity?: string
  /** Also where it was not accepted. */
  certificate?: PeerCertificate
  hello?: ServerHello
  roundTripsMs?: readonly number[]
  /** Bytes a second that arrived there. */
  bytesPerSecond?: number
  failure?: { readonly stage: ProbeStage; readonly error: ProxyError }
}

/** A PONG, or the end, is waited for no longer. The link's own rule is as patient. */
const ANSWER_MS = 5000
/** Frames that are thrown away wait in Node's memory up to here: what waits there was not sent. */
const BUFFER_BYTES_MAX = 256 * 1024
/** They are under way in so many bytes at least, and at most ... */
const WINDOW_BYTES_MIN = 64 * 1024
const WINDOW_BYTES_MAX = 64 << 20
/** ... and about so long beyond the round trip, so that migrations beside them wait little, and the end comes soon. */
const QUEUE_MS = 200
/** A cap is kept to by waiting so long at most. */
const PACE_MS = 1000
/** PINGs a window: the PONG to each says what has arrived. */
const MARKS = 8

/**
 * How many of the frames that the other side throws away (protocol.md §3, PAD) may be under way, and how fast they arrive:
 * by PINGs between them. What counts is from the first quarter of the time on, because a connection begins slowly.
 */
class Flood {
  readonly beganMs: number
  readonly untilMs: number
  sentBytes = 0
  private readonly roundTripMs: number
  private windowBytes = WINDOW_BYTES_MIN
  private arrivedBytes = 0
  private markedBytes = 0
  /** By the number of a PING: what was sent before it, and what had arrived when it was sent. */
  private readonly marks = new Map<number, { readonly bytes: number; readonly before: number; readonly atMs: number }>()
  private atMs: number
  private first: { readonly bytes: number; readonly atMs: number } | undefined
  private last = { bytes: 0, atMs: 0 }

  constructor(roundTripMs: number, nowMs: number, forMs: number) {
    this.roundTripMs = roundTripMs
    this.beganMs = this.atMs = nowMs
    this.untilMs = nowMs + forMs
  }

  get hasRoom(): boolean {
    return this.sentBytes - this.arrivedBytes < this.windowBytes
  }

  /** Something sent has not been said to have arrived. */
  get waits(): boolean {
    return this.marks.size > 0
  }

  get bytesPerSecond(): number {
    const { first, last, beganMs } = this
    const from = first !== undefined && last.atMs > first.atMs ? first : { bytes: 0, atMs: beganMs }
    return ((last.bytes - from.bytes) / Math.max(1, last.atMs - from.atMs)) * 1000
  }

  /** @returns whether a PING is due */
  sent(bytes: number): boolean {
    this.sentBytes += bytes
    return this.sentBytes - this.markedBytes >= this.windowBytes / MARKS || !this.hasRoom
  }

  /** A PING follows what was sent so far. */
  marked(count: number): void {
    this.markedBytes = this.sentBytes
    this.marks.set(count, { bytes: this.sentBytes, before: this.arrivedBytes, atMs: this.atMs })
  }

  /** The PONG to a PING has come; PINGs before it may have none. */
  arrived(count: number, nowMs: number): void {
    const mark = this.marks.get(count)
    if (!mark) return
    for (const one of this.marks.keys()) if (one <= count) this.marks.delete(one)
    this.arrivedBytes = mark.bytes
    this.atMs = nowMs
    this.last = { bytes: mark.bytes, atMs: nowMs }
    if (this.first === undefined || nowMs < this.beganMs + (this.untilMs - this.beganMs) / 4) this.first = this.last
    // as BBR does: what arrived within a round trip, for that round trip and the queue
    const perMs = (mark.bytes - mark.before) / Math.max(nowMs - mark.atMs, 0.1)
    const wanted = 1.5 * perMs * (this.roundTripMs + QUEUE_MS)
    this.windowBytes = Math.min(WINDOW_BYTES_MAX, Math.max(WINDOW_BYTES_MIN, wanted))
  }
}

/** Never rejects for what is wrong at the other side or on the way: that is what was asked for. */
export async function probe(options: ProbeOptions): Promise<Probed> {
  const found: Probed = {}
  const run = new Probe(options, found)
  try {
    await run.whole()
  } catch (error) {
    found.failure = { stage: run.stage, error: asProxyError(error) }
    const rejected = (error as Error).cause as { cert?: tls.PeerCertificate } | undefined
    if (rejected?.cert?.raw) found.certificate = certificateOf(new X509Certificate(rejected.cert.raw))
  } finally {
    run.end()
  }
  return found
}

class Probe {
  stage: ProbeStage = 'connect'
  private readonly options: ProbeOptions
  private readonly found: Probed
  private readonly clock: Clock
  private raw: net.Socket | undefined
  private socket!: net.Socket
  /** Takes the PONG that is waited for, or why there is none. */
  private ponged: (count: number) => void = () => {}
  private reject: (error: ProxyError) => void = () => {}
  /** Why nothing comes any more. */
  private over: ProxyError | undefined
  private pings = 0

  constructor(options: ProbeOptions, found: Probed) {
    this.options = options
    this.found = found
    this.clock = options.clock ?? systemClock
  }

  async whole(): Promise<void> {
    const { pings, throughput } = this.options
    const rest = await this.greet()
    this.listen(rest)
    this.stage = 'link'
    const roundTrips: number[] = []
    for (let i = 0; i < pings; i++) roundTrips.push(await this.ping())
    this.found.roundTripsMs = roundTrips
    if (throughput) this.found.bytesPerSecond = await this.measure(throughput)
    await this.leave()
  }

  end(): void {
    this.raw?.destroy()
  }

  /** Everything up to the hellos, in bounded time. @returns what came behind the server's */
  private async greet(): Promise<Uint8Array> {
    const { host, port, credentials, offer } = this.options
    const { clock, found } = this
    const attempt = new Dialer({ host, port, clock }).dial()
    let isLate = false
    const cancel = clock.after(HELLO_TIMEOUT_MS, () => {
      isLate = true
      attempt.cancel()
      this.raw?.destroy()
    })
    try {
      const { socket: raw, address } = await attempt.connected
      this.raw = this.socket = raw
      found.address = address
      if (credentials) {
        this.stage = 'tls'
        const { socket, identity, certificate } = await credentials.connect(raw, host.replace(/%.*$/, '')) // a zone is no part of a name
        this.socket = socket
        found.identity = identity
        if (certificate) found.certificate = certificateOf(certificate)
      }
      this.stage = 'hello'
      const asked: ClientHello = {
        ...offer,
        session: randomBytes(16).toString('hex'),
        connection: 0,
        connections: 1,
        token: null,
        received: 0,
        credit: CREDIT_INITIAL_BYTES,
        ...{ ring: 0, places: 0 },
        seed: randomBytes(8).toString('hex'),
      }
      this.socket.write(encodeClientHello(asked))
      const { body, rest } = await readHello(this.socket)
      const hello = serverHelloOf(body, asked)
      if (isRefusal(hello)) {
        const { code, text } = hello.refuse
        throw new ProxyError(code, `the other side refuses: ${text}`, undefined, 'see its log')
      }
      found.hello = hello
      return rest
    } catch (error) {
      if (isLate) throw lost(`no answer within ${HELLO_TIMEOUT_MS / 1000} s`, error)
      throw error
    } finally {
      cancel()
    }
  }

  private failed(error: ProxyError): void {
    this.over ??= error
    this.reject(error)
  }

  /** Takes frames from now on. */
  private listen(rest: Uint8Array): void {
    const { socket } = this
    const decoder = new FrameDecoder(frame => this.take(frame))
    const take = (chunk: Uint8Array): void => {
      try {
        decoder.push(chunk)
      } catch (error) {
        this.failed(asProxyError(error))
      }
    }
    socket.on('data', take)
    socket.on('error', error => this.failed(asProxyError(error)))
    socket.on('close', () => this.failed(lost('the other side closed the connection')))
    if (rest.length > 0) take(rest)
    socket.resume()
  }

  private take({ type, payload }: Frame): void {
    if (type === FRAME.PING) this.socket.write(encodeFrame(FRAME.PONG, 0, 0, 0, payload))
    else if (type === FRAME.PONG) this.ponged(Number(Buffer.from(payload).readBigUInt64BE()))
    else if (type === FRAME.BYE) this.failed(lost(`the other side ended the session: ${reasonText(payload)}`))
  }

  /** @returns when `until` is called. @throws what ends the connection; PEER_LOST after ANSWER_MS */
  private async wait<T>(begin: (until: (value: T) => void) => void): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    const cancel = this.clock.after(ANSWER_MS, () => reject(lost(`no answer to a PING for ${ANSWER_MS / 1000} s`)))
    this.reject = reject
    try {
      if (this.over) throw this.over
      begin(resolve)
      return await promise
    } finally {
      cancel()
      this.reject = () => {}
    }
  }

  private sendPing(): number {
    const count = ++this.pings
    this.socket.write(encodeFrame(FRAME.PING, 0, 0, 0, encodeNumbers(count)))
    return count
  }

  private async ping(): Promise<number> {
    const sentMs = this.clock.now()
    await this.wait<void>(answered => {
      const sent = this.sendPing()
      this.ponged = count => {
        if (count === sent) answered()
      }
    })
    return this.clock.now() - sentMs
  }

  /** @returns bytes a second that arrived at the other side */
  private async measure({ forMs, rateMax }: ThroughputOptions): Promise<number> {
    const { clock, socket } = this
    const pad = encodeFrame(FRAME.PAD, 0, 0, 0, randomBytes(FRAME_PAYLOAD_BYTES_MAX))
    const flood = new Flood(Math.min(...this.found.roundTripsMs!), clock.now(), forMs)
    let wake = (): void => {}
    this.ponged = count => {
      flood.arrived(count, clock.now())
      wake()
    }
    const woken = (): void => wake()
    socket.on('drain', woken)
    /** Until something has arrived, the socket takes more, or for `ms`. */
    const pause = (ms: number): Promise<void> =>
      this.wait(until => {
        const cancel = clock.after(ms, () => wake())
        wake = () => {
          cancel()
          until()
        }
      })
    for (let nowMs = clock.now(); nowMs < flood.untilMs; nowMs = clock.now()) {
      const paidBytes = (rateMax * (nowMs - flood.beganMs)) / 1000
      const isPaid = flood.sentBytes <= paidBytes
      if (isPaid && flood.hasRoom && socket.writableLength < BUFFER_BYTES_MAX) {
        socket.write(pad)
        if (flood.sent(pad.length)) flood.marked(this.sendPing())
      } else await pause(isPaid ? ANSWER_MS : Math.min(PACE_MS, ((flood.sentBytes - paidBytes) / rateMax) * 1000 + 1))
    }
    flood.marked(this.sendPing())
    while (flood.waits) await pause(ANSWER_MS)
    socket.off('drain', woken)
    return flood.bytesPerSecond
  }

  /** Says BYE, and waits a little until the other side has read it. */
  private async leave(): Promise<void> {
    const { socket } = this
    socket.end(encodeFrame(FRAME.BYE, 0, 0, 0, encodeReason(CODE.NONE, 'checked')))
    const { promise, resolve } = Promise.withResolvers<void>()
    const cancel = this.clock.after(LINGER_MS, resolve)
    socket.once('close', () => resolve())
    if (!socket.destroyed) await promise
    cancel()
  }
}

function certificateOf(certificate: X509Certificate): PeerCertificate {
  return {
    subject: certificate.subject.replaceAll('\n', ','),
    names: (certificate.subjectAltName ?? '')
      .split(', ')
      .flatMap(name => /^(?:DNS|IP Address):(.+)$/.exec(name)?.[1] ?? []),
    fromMs: Date.parse(certificate.validFrom),
    toMs: Date.parse(certificate.validTo),
  }
}

function lost(what: string, cause?: unknown): ProxyError {
  const hint = 'check that the other proxy runs and can be reached'
  return new ProxyError('PEER_LOST', what, undefined, hint, cause === undefined ? undefined : { cause })
}

function asProxyError(error: unknown): ProxyError {
  if (isProxyError(error)) return error
  const { code } = error as NodeJS.ErrnoException
  return code === undefined ? defectOf(error) : lost(code, error)
}
