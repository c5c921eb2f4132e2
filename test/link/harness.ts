/** What the link's tests share: a clock that runs fast, ends that send and check patterns, a relay that misbehaves. */

import { createHash } from 'node:crypto'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { random } from '../../scripts/harness/random.ts'
import type { ProxyError } from '../../src/errors.ts'
import type { Clock, LinkLogger, SessionTuning } from '../../src/link/api.ts'
import { LinkClient, type LinkClientOptions } from '../../src/link/client.ts'
import { Credentials, type CredentialsOptions } from '../../src/link/credentials.ts'
import { makePsk, makeX509, writeCredentialFiles } from '../../src/link/keygen.ts'
import type { Link } from '../../src/link/link.ts'
import { LinkServer, type LinkServerOptions } from '../../src/link/server.ts'
import type { FlowInfo } from '../../src/session/api.ts'
import { CODE } from '../../src/wan/wire.ts'
import { SilentSink } from '../helpers/silent-sink.ts'

/** Time that runs `factor` times as fast as the wall's: five seconds of heartbeat pass in half a second. */
export function fastClock(factor: number): Clock {
  return {
    now: () => performance.now() * factor,
    after: (ms, run) => {
      const timer = setTimeout(run, ms / factor)
      return () => clearTimeout(timer)
    },
  }
}

export interface LogLine {
  readonly level: string
  readonly event: string
  readonly fields: Record<string, unknown>
}

export class TestLog implements LinkLogger {
  readonly lines: LogLine[] = []
  debug(event: string, fields: object): void {
    this.lines.push({ level: 'debug', event, fields: { ...fields } })
  }
  info(event: string, fields: object): void {
    this.lines.push({ level: 'info', event, fields: { ...fields } })
  }
  warn(event: string, fields: object): void {
    this.lines.push({ level: 'warn', event, fields: { ...fields } })
  }
  error(event: string, fields: object): void {
    this.lines.push({ level: 'error', event, fields: { ...fields } })
  }
  of(event: string): LogLine[] {
    return this.lines.filter(line => line.event === event)
  }
}

const PATTERN = (() => {
  const bytes = new Uint8Array(1 << 20)
  const next = random(0x5eed)
  for (let i = 0; i < bytes.length; i++) bytes[i] = next(256)
  return bytes
})()

/** Bytes `at` to `at + length` of the endless pattern of a flow; may be shorter where the table ends. */
function pattern(key: number, at: number, length: number): Uint8Array {
  const from = (key * 7919 + at) % PATTERN.length
  return PATTERN.subarray(from, Math.min(from + length, PATTERN.length))
}

/** Checks that bytes are those of the pattern at this place. */
function isPattern(key: number, at: number, bytes: Uint8Array): boolean {
  let done = 0
  while (done < bytes.length) {
    const want = pattern(key, at + done, bytes.length - done)
    if (Buffer.compare(want, bytes.subarray(done, done + want.length)) !== 0) return false
    done += want.length
  }
  return true
}

interface EndFlow {
  readonly number: number
  readonly key: number
  readonly total: number
  /** Sends batches, not data. */
  readonly bulk: boolean
  sent: number
  finSent: boolean
  got: number
  gotFin: boolean
}

/** A batch as the session wants it: format, raw length, and what this test puts behind. */
function batchOf(raw: number, body: Uint8Array): Uint8Array[] {
  const head = [1]
  let value = raw
  while (value >= 128) {
    head.push((value % 128) | 128)
    value = Math.floor(value / 128)
  }
  head.push(value)
  return [Uint8Array.from(head), body]
}

/**
 * One end of a link: sends `total` bytes of a pattern on each flow, checks what comes. A flow's target says how much
 * the server sends back: "echo:BYTES".
 */
export class End extends SilentSink {
  readonly link: Link
  readonly flows = new Map<number, EndFlow>()
  readonly mistakes: string[] = []
  bytesIn = 0
  finished = 0
  dead: ProxyError | undefined
  bye: number | undefined
  drained = false
  resets: string[] = []
  readonly wanted: number[] = []
  ups = 0
  downs = 0
  /** Of connections that were lost: not closed in order, nor replaced. */
  readonly losses: Error[] = []
  onChange: () => void = () => {}
  /** Holds back credit while true: nothing is consumed. */
  stuck = false

  constructor(link: Link) {
    super()
    this.link = link
  }

  /** Client: opens a flow that sends `total` bytes and wants `back` bytes. */
  open(total: number, back: number, bulk: boolean, migration = 1): number {
    const info: FlowInfo = { target: `${total}:${back}`, migration, kind: bulk ? 'bulk' : 'data' }
    const number = this.link.session.openFlow(info)
    this.#add(number, number, total, bulk)
    this.#send()
    return number
  }

  override onOpen(number: number, info: FlowInfo): void {
    const back = Number(info.target.split(':')[1])
    this.#add(number, number + 1000, back, false)
    this.#send()
  }

  #add(number: number, key: number, total: number, bulk: boolean): void {
    this.flows.set(number, { number, key, total, bulk, sent: 0, finSent: false, got: 0, gotFin: false })
  }

  override onData(number: number, payload: Uint8Array): void {
    this.#take(number, payload, payload.length)
  }

  override onBatch(number: number, parts: readonly Uint8Array[], rawLength: number): void {
    const all = Buffer.concat(parts)
    let head = 1
    while (all[head]! >= 128) head++
    this.#take(number, all.subarray(head + 1), rawLength)
  }

  #take(number: number, bytes: Uint8Array, raw: number): void {
    const flow = this.flows.get(number)
    if (!flow) {
      this.mistakes.push(`bytes for flow ${number}, which is not known`)
      return
    }
    const key = this.link.role === 'client' ? flow.number + 1000 : flow.number
    if (raw !== bytes.length || !isPattern(key, flow.got, bytes)) {
      this.mistakes.push(`flow ${number} byte ${flow.got}: wrong bytes`)
    }
    if (flow.gotFin) this.mistakes.push(`flow ${number}: bytes after FIN`)
    flow.got += bytes.length
    this.bytesIn += bytes.length
    if (!this.stuck) this.link.session.consumed(number, raw)
  }

  override onFin(number: number): void {
    const flow = this.flows.get(number)!
    flow.gotFin = true
    this.onChange()
  }

  override onReset(number: number, code: number, text: string): void {
    this.resets.push(`${code} ${text}`)
    this.link.session.resetFlow(number, 0, '')
  }

  override onRefused(number: number, text: string): void {
    this.onReset(number, CODE.SHUTDOWN, text)
  }

  override onEnd(number: number): void {
    this.flows.delete(number)
    this.finished++
    this.onChange()
  }

  override onCredit(): void {
    this.#send()
  }

  override onWant(numbers: readonly number[]): void {
    this.wanted.push(...numbers)
  }

  override onDrain(): void {
    this.drained = true
    this.onChange()
  }

  override onBye(code: number): void {
    this.bye = code
    this.onChange()
  }

  override onDead(error: ProxyError): void {
    this.dead = error
    this.onChange()
  }

  override onConnection(_connection: number, up: boolean, _standing: number, error?: Error): void {
    if (error) this.losses.push(error)
    if (up) this.ups++
    else this.downs++
    this.onChange()
  }

  override onWork(): void {
    this.#send()
  }

  #send(): void {
    const session = this.link.session
    for (const flow of this.flows.values()) {
      while (!flow.bulk && flow.sent < flow.total) {
        const bytes = pattern(flow.key, flow.sent, session.dataRoom(flow.number, flow.total - flow.sent))
        if (bytes.length === 0) break
        session.sendData(flow.number, bytes)
        flow.sent += bytes.length
      }
      this.#fin(flow)
    }
    const now = this.link.now()
    while (session.bulkRoom(now) > 0) {
      const candidates = [...this.flows.values()]
        .filter(flow => flow.bulk && flow.sent < flow.total && session.credit(flow.number) > 0)
        .map(flow => flow.number)
      const flow = this.flows.get(session.pickFlow(candidates, now))
      if (!flow) break
      const room = Math.min(session.credit(flow.number), flow.total - flow.sent, 256 * 1024)
      const body = pattern(flow.key, flow.sent, room)
      session.sendBatch(flow.number, body.length, batchOf(body.length, body))
      flow.sent += body.length
      this.#fin(flow)
    }
  }

  #fin(flow: EndFlow): void {
    if (flow.sent < flow.total || flow.finSent) return
    flow.finSent = true
    this.link.session.finFlow(flow.number)
  }
}

export function sleep(ms: number): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, ms))
}

/** Directory with credentials of two sites, made by keygen; removed by `t.teardown`. */
export async function makeCredentials(
  kind: 'x509' | 'psk',
  t: { teardown(run: () => void): void },
  names: readonly string[] = ['site-a', 'site-b'],
): Promise<string> {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'pageferry-link-'))
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }))
  const [a, b] = [[names[0]!], [names[1]!]] as unknown as [[string], [string]]
  writeCredentialFiles(directory, kind === 'psk' ? makePsk(a, b) : await makeX509(a, b, 100))
  return directory
}

export function credentials(directory: string, options: Partial<CredentialsOptions>): Credentials {
  return new Credentials({ role: 'client', directory, ...options })
}

/** What both sides are told, whatever the transport. */
export interface PairOptions {
  readonly clock?: Clock
  readonly client?: Partial<LinkClientOptions>
  readonly server?: Partial<LinkServerOptions>
  readonly serverSession?: SessionTuning
  readonly clientCredentials?: Credentials
  readonly serverCredentials?: Credentials
}

const SETS = [createHash('sha256').update('one').digest('hex'), createHash('sha256').update('two').digest('hex')]

export function offer(): LinkClientOptions['offer'] {
  return { sets: SETS, ring: 1024, places: 4096, seed: '0123456789abcdef' }
}

export class TestServer {
  readonly log = new TestLog()
  readonly ends: End[] = []
  readonly server: LinkServer
  /** What it takes where the test says nothing else. */
  readonly accept: LinkServerOptions['accept'] = hello => ({
    sets: hello.sets.slice(0, 1),
    ring: hello.ring,
    places: hello.places,
    targets: ['vm'],
    ...(this.#session && { session: this.#session }),
    serve: link => {
      const end = new End(link)
      this.ends.push(end)
      return end
    },
  })
  readonly #session: SessionTuning | undefined
  port = 0

  constructor(options: PairOptions) {
    this.#session = options.serverSession
    this.server = new LinkServer({
      ...(options.serverCredentials ? { credentials: options.serverCredentials } : { plaintext: true }),
      accept: this.accept,
      logger: this.log,
      ...(options.clock && { clock: options.clock }),
      ...options.server,
    })
  }

  async listen(port = 0): Promise<this> {
    this.port = (await this.server.listen({ host: '127.0.0.1', port })).port
    return this
  }
}

export interface TestClient {
  readonly client: LinkClient
  readonly end: End
  readonly log: TestLog
}

export function makeClient(port: number, options: PairOptions): TestClient {
  const log = new TestLog()
  const client = new LinkClient({
    host: '127.0.0.1',
    port,
    ...(options.clientCredentials ? { credentials: options.clientCredentials } : { plaintext: true }),
    offer: offer(),
    logger: log,
    ...(options.clock && { clock: options.clock }),
    ...options.client,
  })
  const end = new End(client.link)
  client.link.serve(end)
  return { client, end, log }
}

/** A TCP relay in the way, that can cut, stall and swallow. */
export class Relay {
  readonly server: net.Server
  readonly pairs = new Set<[net.Socket, net.Socket]>()
  port = 0
  target: number
  /** Nothing passes; both sides' sockets stay open. */
  silent = false
  /** New connections are refused at once. */
  refusing = false
  accepted = 0

  constructor(target: number) {
    this.target = target
    this.server = net.createServer({ allowHalfOpen: true }, near => this.#join(near))
  }

  async listen(): Promise<this> {
    await new Promise<void>(resolve => this.server.listen(0, '127.0.0.1', resolve))
    this.port = (this.server.address() as net.AddressInfo).port
    return this
  }

  #join(near: net.Socket): void {
    this.accepted++
    if (this.refusing) {
      near.resetAndDestroy()
      return
    }
    const far = net.connect({ port: this.target, host: '127.0.0.1', allowHalfOpen: true, noDelay: true })
    const pair: [net.Socket, net.Socket] = [near, far]
    this.pairs.add(pair)
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      from.on('data', chunk => {
        if (this.silent) return // swallowed: the bytes are gone, as with a dead path
        if (!to.write(chunk)) {
          from.pause()
          to.once('drain', () => from.resume())
        }
      })
      from.on('end', () => {
        if (!this.silent) to.end()
      })
      from.on('error', () => {})
      from.on('close', () => {
        this.pairs.delete(pair)
        if (!this.silent) to.destroy()
      })
    }
  }

  /** Breaks everything that stands, by RST or FIN. */
  cut(reset: boolean): void {
    for (const [near, far] of this.pairs) {
      if (reset) {
        near.resetAndDestroy()
        far.resetAndDestroy()
      } else {
        near.destroy()
        far.destroy()
      }
    }
    this.pairs.clear()
  }

  /** From now on nothing of what stands passes any more, without a word to either side; new connections do. */
  swallow(): void {
    for (const [near, far] of this.pairs) {
      for (const socket of [near, far]) {
        socket.removeAllListeners('data').removeAllListeners('end').removeAllListeners('close')
        socket.on('data', () => {})
        socket.on('end', () => {})
        this.#zombies.add(socket)
      }
    }
    this.pairs.clear()
  }

  /** Reads nothing any more from what stands: the senders' buffers fill up. */
  stall(stalled: boolean): void {
    for (const pair of this.pairs) for (const socket of pair) stalled ? socket.pause() : socket.resume()
  }

  readonly #zombies = new Set<net.Socket>()

  close(): void {
    this.cut(false)
    for (const socket of this.#zombies) socket.destroy()
    this.server.close()
  }
}
