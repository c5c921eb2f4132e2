/** Seventeen source proxies at one destination proxy: each has a ring, and after a while a fair one. */
import { once } from 'node:events'
import net from 'node:net'
import t from 'tap'
import { DestinationDaemon } from '../../src/daemon/destination-daemon.ts'
import { Events } from '../../src/daemon/events.ts'
import { readHello } from '../../src/link/greeting.ts'
import { reasonCode, reasonText } from '../../src/wan/bodies.ts'
import { encodeFrame, FrameDecoder } from '../../src/wan/frames.ts'
import { encodeClientHello, isRefusal, serverHelloOf } from '../../src/wan/hello.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { until } from '../helpers/until.ts'
import { usualHello } from '../hostile/peer.ts'

t.setTimeout(590_000) // the machine may be busy

const PAGE = 4096
const MIB = 1 << 20
const TOTAL_MIB = 512
const WANTED_PAGES = 65536
const SOURCES = 17

/** A source proxy that only has sessions, at an address of its own: without TLS that is an identity. */
class Source {
  ringMib = 0
  /** Sessions that the other side ended. */
  ended = 0
  /** What its sessions were told when they were closed. */
  readonly told: string[] = []
  private readonly name: string
  private readonly port: number
  private readonly stays: boolean
  private socket: net.Socket | undefined
  private over = false
  private readonly heartbeat: NodeJS.Timeout

  /** @param stays whatever its first session is asked */
  constructor(name: string, port: number, stays: boolean) {
    this.name = name
    this.port = port
    this.stays = stays
    this.heartbeat = setInterval(() => this.socket?.write(encodeFrame(FRAME.PING, 0, 0, 0, new Uint8Array(8))), 1000)
  }

  async open(): Promise<void> {
    const socket = net.connect({ port: this.port, host: '127.0.0.1', localAddress: this.name })
    socket.on('error', () => {})
    await once(socket, 'connect')
    socket.write(encodeClientHello({ ...usualHello(), ring: WANTED_PAGES }))
    const { body, rest } = await readHello(socket)
    const answer = serverHelloOf(body)
    if (isRefusal(answer)) throw new Error(answer.refuse.text)
    this.ringMib = (answer.ring * PAGE) / MIB
    this.socket = socket
    const leave = (): void => {
      if (this.socket !== socket) return
      this.socket = undefined
      socket.end(encodeFrame(FRAME.BYE, 0, 0, 0, new Uint8Array(2)))
      socket.once('close', () => {
        if (this.over) return
        void this.open().catch((error: unknown) => {
          if (!this.over) throw error // the test's end may come while it dials
        })
      })
    }
    const decoder = new FrameDecoder(({ type, payload }) => {
      if (type === FRAME.BYE) {
        this.ended++
        this.told.push(`${reasonCode(payload)} ${reasonText(payload)}`)
      }
      if (type === FRAME.BYE || (type === FRAME.DRAIN && !(this.stays && this.ended === 0))) leave()
    })
    socket.on('data', chunk => decoder.push(chunk))
    decoder.push(rest)
    socket.resume()
  }

  close(): void {
    this.over = true
    clearInterval(this.heartbeat)
    this.socket?.destroy()
  }
}

t.test('seventeen sources', async t => {
  const events = new Events()
  const causes = new Set<string | undefined>()
  const closed: { link: string; identity: string; reason: string }[] = []
  events.subscribe(({ event, cause, fields }) => {
    if (event === 'idle session closed') closed.push(fields)
    if (event === 'session open' || event === 'link.open') causes.add(cause)
  })
  const daemon = new DestinationDaemon({
    listen: [{ host: '127.0.0.1', port: 0 }],
    targets: new Map(),
    credentials: undefined,
    store: undefined,
    ringPagesMax: (TOTAL_MIB / 2) * (MIB / PAGE),
    placesMax: 4096,
    queueTargetMs: 50,
    patienceMs: 60_000,
    renewMs: 50,
    events,
  })
  await daemon.start()
  const port = daemon.addresses[0]!.port
  // the second has more than its share, and does not go when it is asked
  const sources = Array.from({ length: SOURCES }, (_, i) => new Source(`127.0.0.${i + 10}`, port, i === 1))
  t.teardown(() => {
    for (const source of sources) source.close()
  })
  const first: number[] = []
  for (const source of sources) {
    await source.open()
    first.push(source.ringMib)
  }
  t.equal(first[0], TOTAL_MIB / 2, 'the first had half of it')
  t.ok(
    first.every(mib => mib > 0),
    `whoever came had something: ${first.map(mib => mib.toFixed(2))}`,
  )
  t.equal(causes.size, SOURCES, 'and lines of the log of its own')
  const share = TOTAL_MIB / (SOURCES + 1)
  const isFair = (): boolean => sources.every(({ ringMib }) => ringMib >= share / 2 - 1 && ringMib <= 2 * share)
  await until('fair shares', isFair, 200_000)
  t.pass(`then all have about ${share.toFixed(0)} MiB: ${sources.map(({ ringMib }) => Math.round(ringMib))}`)
  t.ok(sources[1]!.ended > 0, 'whoever had more than its share and did not go was closed')
  const told = closed.find(({ identity }) => identity === 'plain 127.0.0.11')
  t.match(told, { reason: /stayed when it was asked/ }, 'which is logged')
  t.equal(new Set(closed.map(({ link }) => link)).size, closed.length, 'once a session')
  t.match(sources[1]!.told[0], /^0 .*stayed when it was asked/, 'and told to the peer')
  for (const source of sources) source.close()
  await daemon.abort()
})
