/**
 * Migrations before the first one: of a guest that never was, through both proxies as they are, by sockets and TLS, within
 * this process. What V8 makes of code only once it has run often, what libraries take for themselves the first time, and
 * memory that nobody has touched yet would otherwise be the first guest's to wait for (docs/adr/0027-rehearsal.md).
 *
 * Nothing of it is told but that it failed: its proxies have events, a session and a key of their own, and no store. Of the
 * process they share the memory, which is given back clean.
 */
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { LZ4 } from '../compression/effort.ts'
import { defectOf, isProxyError, ProxyError } from '../errors.ts'
import { REHEARSAL_GRACE_MS, REHEARSAL_MS } from '../limits.ts'
import { CREDENTIAL_FILE, PSK_USERNAME_DEFAULT } from '../link/credential-files.ts'
import { Credentials } from '../link/credentials.ts'
import { parseAddress } from '../relay/address.ts'
import { PAGE_BYTES, type Pools } from '../transfer/pool.ts'
import { DestinationDaemon } from './destination-daemon.ts'
import { Events, type SiteEvent } from './events.ts'
import { GUEST_PAGES, madeUpGuest } from './made-up-guest.ts'
import { SourceDaemon } from './source-daemon.ts'

/**
 * Guests that are moved, one after the other, where there is time, each through proxies of its own: code that V8 made for one
 * session's objects alone would have to be made again for the first session that counts.
 */
const GUESTS = 4
/**
 * V8 compiles by how often a function was called, which is once a batch for many of them: small batches call it as often
 * in a tenth of the time.
 */
const PIECE_BYTES = 4 * (PAGE_BYTES + 8)
/** Turns of the event loop between two pieces, so that each is a batch. */
const PIECE_TURNS = 3
/** How much of a guest comes in such pieces; the rest comes as fast as it can, in batches as large as they get. */
const PIECES_SHARE = 0.5
/**
 * By guest, where the effort is not fixed. Over loopback `auto` itself passes most of it raw, and zstd's levels differ by what
 * they tell zstd alone. Only the first two have the thread for LZ4, which takes 90 ms of CPU each time.
 */
const AUTO_EFFORTS = ['auto', LZ4.level, 1, 2] as const
const SIDES = ['source', 'destination'] as const
/** MIG_RP_MSG_SHUT, without an error, on the return path (docs/qemu-wire-format.md). */
const SHUT = Buffer.of(0, 1, 0, 4, 0, 0, 0, 0)
/** Fewer than the guest has, so that pages take the place of others. */
const RING_PAGES = GUEST_PAGES - (GUEST_PAGES >> 2)
const PLACES = 1 << 14

export interface RehearsalOptions {
  /** Of the process. */
  readonly pools: Pools
  /** Of its source proxies; left out: it has none. */
  readonly effort?: number | 'auto'
  /** Whether its link has TLS. */
  readonly tls: boolean
  /** After this time it ends, however far it is. */
  readonly limitMs: number
}

/**
 * Rehearses; whatever goes wrong is told as a warning, and is all that there is to it: migrations work without.
 * @param signal nothing would come of it any more: it ends, however far it is
 */
export async function rehearse(options: RehearsalOptions, events: Events, signal?: AbortSignal): Promise<void> {
  if (options.limitMs === 0 || signal?.aborted) return
  const beganMs = performance.now()
  const timer = new AbortController()
  try {
    const rehearsal = new Rehearsal(options)
    const end = (): void => rehearsal.endSoon()
    signal?.addEventListener('abort', end)
    const run = rehearsal.run().finally(() => signal?.removeEventListener('abort', end))
    run.catch(() => {}) // who is late tells nobody
    const hangs = sleep(options.limitMs + REHEARSAL_GRACE_MS, undefined, { signal: timer.signal }).then(() => {
      throw failed('it did not end in its time', 'please report this; --rehearsal 0s leaves it out')
    })
    hangs.catch(() => {}) // it need not
    const guests = await Promise.race([run, hangs])
    // on a host that is busy few guests, or none, get through; a session that never opened is another thing
    if (!rehearsal.hasOpened && options.limitMs >= REHEARSAL_MS && !signal?.aborted)
      throw failed(
        'no session over loopback',
        'where the host is not just busy: does a firewall or IPAddressDeny stand before 127.0.0.1?',
      )
    if (rehearsal.failure !== undefined)
      throw failed(
        `a guest that never was did not arrive: ${rehearsal.failure}`,
        'please report this; --rehearsal 0s leaves it out',
      )
    events.debug('rehearsed', { guests, ms: Math.round(performance.now() - beganMs) })
  } catch (error) {
    const { what, action } = isProxyError(error) ? error : defectOf(error)
    events.warn('rehearsal failed', { error: what, hint: action })
  } finally {
    timer.abort()
  }
}

function failed(what: string, action: string): ProxyError {
  return new ProxyError('IO', what, undefined, action)
}

class Rehearsal {
  private readonly options: RehearsalOptions
  /** Of each proxy its own: who tells of a failure stands in front of it. */
  private readonly events = { source: new Events(), destination: new Events() }
  private readonly whenLate: Promise<void>
  /** Ends it, however far it is. */
  readonly endSoon: () => void
  /** Which guest failed that was not cut short, where, and why: as the first to tell it said. */
  failure: string | undefined
  /** Guests that were moved. */
  private guests = 0
  /** A session did. */
  hasOpened = false
  private readonly timer: NodeJS.Timeout
  private isLate = false
  private isMoving = false
  /** What is closed at the end, the last first. */
  private readonly closing: (() => unknown)[] = []
  private readonly sockets = new Set<net.Socket>()

  constructor(options: RehearsalOptions) {
    this.options = options
    for (const side of SIDES) this.watch(side)
    const { promise, resolve } = Promise.withResolvers<void>()
    this.whenLate = promise
    this.endSoon = () => {
      this.isLate = true
      resolve()
    }
    this.timer = setTimeout(this.endSoon, options.limitMs)
  }

  /** @returns guests that were moved. @throws whatever goes wrong */
  async run(): Promise<number> {
    try {
      while (this.guests < GUESTS && !this.isLate) {
        const stream = madeUpGuest(this.guests)
        const port = await this.start(stream.length)
        await Promise.race([this.move(stream, port), this.whenLate])
        if (!this.isLate) this.guests++
        await this.end()
      }
      return this.guests
    } finally {
      clearTimeout(this.timer)
      await this.end()
    }
  }

  private async end(): Promise<void> {
    for (const socket of this.sockets) socket.destroy()
    let fault: unknown
    for (const close of this.closing.splice(0).reverse()) {
      try {
        await close()
      } catch (error) {
        fault ??= error // the others are closed all the same
      }
    }
    if (fault !== undefined) throw fault
  }

  /** Both proxies of a guest of so many bytes. @returns the port where its source QEMU connects */
  private async start(length: number): Promise<number> {
    const { pools, limitMs } = this.options
    const { events, closing } = this
    const { near, far } = this.credentials()
    const opened = this.told('session open').then(() => {
      this.hasOpened = true
    })
    // a host that is so busy that nothing is acknowledged ends it by its limit, which is no failure
    const common = { store: undefined, queueTargetMs: 50, patienceMs: limitMs + REHEARSAL_GRACE_MS, pools }
    const destination = new DestinationDaemon({
      ...common,
      events: events.destination,
      listen: [{ host: '127.0.0.1', port: 0 }],
      targets: new Map([['default', parseAddress(`tcp:127.0.0.1:${await this.target(length)}`)]]),
      credentials: far,
      ringPagesMax: RING_PAGES,
      placesMax: PLACES,
    })
    closing.push(() => destination.abort())
    await destination.start()
    const source = new SourceDaemon({
      ...common,
      events: events.source,
      listen: [{ name: 'default', address: parseAddress('tcp:127.0.0.1:0') }],
      beyondLoopback: false,
      peer: { host: '127.0.0.1', port: destination.addresses[0]!.port },
      credentials: near,
      ringPages: RING_PAGES,
      places: PLACES,
      effort: this.effort,
      connections: 1,
      rate: Number.POSITIVE_INFINITY,
    })
    let isStarted = false
    closing.push(async () => {
      await source.abort() // one that did not start may have begun to listen
      if (isStarted) await source.ended
    })
    await source.start()
    isStarted = true
    await Promise.race([opened, this.whenLate])
    const [at] = source.addresses
    return at?.kind === 'tcp' ? at.port : 0
  }

  /** Of the present guest. */
  private get effort(): number | 'auto' {
    const { effort = 'auto' } = this.options
    return effort === 'auto' ? AUTO_EFFORTS[this.guests % AUTO_EFFORTS.length]! : effort
  }

  /** A key that nobody else ever has: whoever finds the port in this second cannot come in. */
  private credentials(): { readonly near?: Credentials; readonly far?: Credentials } {
    if (!this.options.tls) return {}
    const directory = mkdtempSync(join(tmpdir(), 'pageferry-rehearsal-'))
    try {
      const key = `${PSK_USERNAME_DEFAULT}:${randomBytes(32).toString('hex')}\n`
      writeFileSync(join(directory, CREDENTIAL_FILE.psk), key, { mode: 0o600 })
      return {
        near: new Credentials({ role: 'client', directory }),
        far: new Credentials({ role: 'server', directory }),
      }
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  }

  /** Where the destination QEMU would be: drops what comes, and says that it has taken over. @returns its port */
  private async target(length: number): Promise<number> {
    const server = net.createServer(socket => {
      let missing = length
      this.keep(socket).on('data', bytes => {
        missing -= bytes.length
        if (missing <= 0) socket.end(SHUT)
      })
    })
    this.closing.push(() => server.close())
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return (server.address() as net.AddressInfo).port
  }

  /** As its QEMU would. Resolves when both proxies have told its end. */
  private async move(stream: Uint8Array, port: number): Promise<void> {
    const ended = this.told('migration ended')
    this.isMoving = true
    const socket = this.keep(net.connect({ port, host: '127.0.0.1' }))
    await once(socket, 'connect')
    socket.once('data', () => socket.end()) // the destination QEMU has taken over
    const pieces = stream.length * PIECES_SHARE
    let at = 0
    for (; at < pieces && !this.isLate && !socket.destroyed; at += PIECE_BYTES) {
      await new Promise<void>(done => void socket.write(stream.subarray(at, at + PIECE_BYTES), () => done()))
      for (let turn = 0; turn < PIECE_TURNS; turn++) await new Promise(setImmediate)
    }
    socket.write(stream.subarray(at))
    await ended
    this.isMoving = false
  }

  private keep(socket: net.Socket): net.Socket {
    this.sockets.add(socket)
    return socket.on('error', () => {}).on('close', () => this.sockets.delete(socket))
  }

  /** Resolves when both proxies have told this event. */
  private told(event: 'session open' | 'migration ended'): Promise<void> {
    const told = SIDES.map(
      side =>
        new Promise<void>(done => {
          const unsubscribe = this.events[side].subscribe(one => {
            if (one.event !== event) return
            unsubscribe()
            done()
          })
        }),
    )
    return Promise.all(told).then(() => {})
  }

  /** What one proxy tells may be all that there is of a failure: nobody waits for what the other one says of it. */
  private watch(side: (typeof SIDES)[number]): void {
    this.events[side].subscribe(told => {
      if (!this.isMoving || this.isLate) return // it was cut short, which is told as well
      const why = failureIn(told)
      if (why === undefined) return
      this.failure = `${side} proxy: ${why} (guest ${this.guests + 1} of ${GUESTS}, effort ${this.effort})`
      this.endSoon()
    })
  }
}

/** Why a guest does not arrive, as one event of a proxy says it. */
function failureIn(told: SiteEvent): string | undefined {
  if (told.event === 'migration ended') return told.fields.outcome === 'completed' ? undefined : told.fields.reason
  if (told.event === 'no session') return told.fields.error
  return told.event === 'link.defect' ? String(told.fields.stack).split('\n')[0] : undefined
}
