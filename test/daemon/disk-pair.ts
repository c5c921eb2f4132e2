/** Both daemons with disks, all that they tell, and what tests of disks have in common. */
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'
import { Events, type SiteEvent } from '../../src/daemon/events.ts'
import { until } from '../helpers/until.ts'
import { Daemons, type DaemonsOptions } from './daemons.ts'

const MIB = 1 << 20

/** A pair, and all that it tells. */
export class DiskPair implements AsyncDisposable {
  readonly daemons: Daemons
  readonly told: SiteEvent[]

  private constructor(daemons: Daemons, told: SiteEvent[]) {
    this.daemons = daemons
    this.told = told
  }

  /**
   * With a session that is open: a client of NBD has 10 s for all that comes before its export.
   * @param at where the disk's server listens
   */
  static async start(at: string, options: DaemonsOptions = {}): Promise<DiskPair> {
    const events = new Events()
    const told: SiteEvent[] = []
    events.subscribe(event => told.push(event))
    const daemons = await Daemons.start({ disks: at, ringPages: 8192, effort: 1, events, ...options })
    const pair = new DiskPair(daemons, told)
    await until('a session', () => pair.count('session open') >= 2)
    return pair
  }

  get uri(): string {
    return `nbd://127.0.0.1:${this.daemons.diskPort}`
  }

  of<E extends SiteEvent['event']>(event: E): Extract<SiteEvent, { event: E }>['fields'][] {
    return this.told.filter(one => one.event === event).map(({ fields }) => fields as never)
  }

  count(event: SiteEvent['event']): number {
    return this.of(event).length
  }

  /** A client that reads nothing yet. */
  connect(): net.Socket {
    const socket = net.connect({ port: this.daemons.diskPort, host: '127.0.0.1', allowHalfOpen: true })
    socket.on('error', () => {})
    return socket
  }

  async dial(): Promise<net.Socket> {
    const socket = this.connect()
    await once(socket, 'connect')
    return socket
  }

  /** What its server says first. */
  async greeting(socket: net.Socket): Promise<string> {
    try {
      return String((await once(socket, 'data'))[0])
    } catch (cause) {
      const last = this.told.slice(-12).map(({ event, fields }) => `${event} ${JSON.stringify(fields)}`)
      throw new Error(`no greeting; told: ${last.join('\n')}`, { cause })
    }
  }

  /** What both sides tell of a transfer that has ended: source, destination. */
  async ended() {
    return await until('both summaries', () => {
      const ended = this.of('disk transfer ended')
      const near = ended.find(fields => 'bytesWan' in fields)
      const far = ended.find(fields => 'bytesOut' in fields)
      return near && far && 'bytesWan' in near && 'bytesOut' in far && { near, far }
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.daemons[Symbol.asyncDispose]()
  }
}

/** A disk as guests have them: noise, text, and holes; its end is no whole block. */
export function diskImage(bytes: number): Buffer {
  const disk = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; at += MIB) {
    const end = Math.min(bytes, at + MIB)
    const part = (at / MIB) % 4
    if (part === 0) randomBytes(end - at).copy(disk, at)
    else if (part === 1) disk.fill(`line ${at} of a file that compresses well\n`, at, end)
    else if (part === 2) randomBytes(Math.min(MIB / 2, end - at)).copy(disk, at)
  }
  return disk
}

/** What tells one disk from another, in a line. */
export function digestOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}
