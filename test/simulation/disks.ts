/**
 * Disks beside the guests that migrate: clients and servers that speak a small NBD through the same pair. A client opens
 * an export at a moment of its own, writes, reads, flushes, and ends in order, or breaks; a server has an image that lasts
 * and a cache that does not, answers in any order, and dies with its cache. A run fails where
 *
 * - a side is given other bytes than the other side said, or some of them twice, or an end in order that nobody made
 * - an answer comes that nobody waits for, or what is read is older than what was answered
 * - a FLUSH is answered, and the image lacks what was answered before it
 * - a client to which nothing happened does not come to its end, or what ends at one side does not end at the other
 */
import type { Random } from '../../scripts/harness/random.ts'
import type { Process, VirtualTime } from '../helpers/virtual-time.ts'
import { LocalConnection, type QemuEnd } from './local.ts'
import {
  ASK_STRUCTURED,
  askFor,
  CLIENT_FLAGS,
  ClientSide,
  DISC,
  EIO,
  FLUSH,
  GREETING,
  READ,
  type Reply,
  type Request,
  reply,
  request,
  ServerSide,
  UNITS,
  WRITE,
} from './nbd.ts'

/** What they need of the run. */
export interface DisksWorld {
  readonly time: VirtualTime
  readonly random: Random
  /** Nothing fails in this run. */
  readonly quiet: boolean
  readonly gates: number
  /** A connection at a gate of disks of the source proxy; undefined: there is none. */
  connectDisk(gate: number, peer: string): QemuEnd | undefined
  note(what: string): void
  happens(what: string): void
  fail(what: string): never
}

/** Beyond this a refusal has nothing to do with what failed before. */
const TROUBLE_MS = 200_000
/** Until a dead proxy is noticed. */
const UNNOTICED_MS = 40_000
const UNDER_WAY_MAX = 8

/** All that was said in one direction. */
class Said {
  private bytes = Buffer.alloc(4096)
  length = 0

  add(more: Uint8Array): void {
    if (this.length + more.length > this.bytes.length) {
      this.bytes = Buffer.concat([this.bytes], 2 * (this.length + more.length))
    }
    this.bytes.set(more, this.length)
    this.length += more.length
  }

  /** A copy of what lies there. */
  from(at: number, count: number): Uint8Array {
    return new Uint8Array(this.bytes.subarray(at, Math.min(this.length, at + count)))
  }

  has(at: number, bytes: Uint8Array): boolean {
    return at + bytes.length <= this.length && Buffer.compare(bytes, this.bytes.subarray(at, at + bytes.length)) === 0
  }
}

interface Asked extends Request {
  /** Serial number that each unit had at least, by what was answered, when this was asked. */
  readonly known: readonly number[]
}

/** A client, with its one connection. */
class Client {
  readonly name: string
  readonly number: number
  readonly gate: number
  readonly structured: boolean
  /** What it says, and how much of that its kernel has. */
  readonly said = new Said()
  written = 0
  /** What it was given. */
  readonly heard = new Said()
  readonly under = new Map<number, Asked>()
  readonly nbd = new ClientSide(cookie => this.under.get(cookie))
  /** Serial number of what was last written and answered, by unit; and of what was last asked. */
  readonly known = new Array<number>(UNITS).fill(0)
  end: QemuEnd | undefined
  server: Connection | undefined
  left: number
  endMs = -1
  closedInOrder = false
  disconnects = false
  /** It came to its end, with all answers. */
  completed = false
  over = false
  readonly excuses = new Set<string>()

  constructor(number: number, gate: number, structured: boolean, requests: number) {
    this.number = number
    this.name = `disk-${number}`
    this.gate = gate
    this.structured = structured
    this.left = requests
  }
}

/** What a server has of one export. */
interface Image {
  readonly lasts: number[]
  cache: Map<number, number>
}

/** A connection at a server. */
class Connection {
  readonly gate: number
  readonly end: QemuEnd
  readonly nbd = new ServerSide()
  readonly heard = new Said()
  readonly said = new Said()
  sent = 0
  client: Client | undefined
  /** Requests that are not answered. */
  under = 0
  leaves = false
  endMs = -1
  finished = false
  closedInOrder = false

  constructor(gate: number, end: QemuEnd) {
    this.gate = gate
    this.end = end
  }

  get isOver(): boolean {
    return this.end.gone || this.end.broken
  }
}

/** The servers of one address. */
class Server {
  readonly images = new Map<string, Image>()
  readonly connections = new Set<Connection>()
  isUp = true
}

export class Disks {
  private readonly world: DisksWorld
  private readonly clients: Client[] = []
  private readonly byName = new Map<string, Client>()
  private readonly servers: Server[]
  private readonly connections: Connection[] = []
  private serial = 0
  private clientsLeft: number
  /** Clients ask as fast as they can. */
  private readonly hurries: boolean
  private troubleMs = Number.NEGATIVE_INFINITY
  private excusedMs = Number.NEGATIVE_INFINITY
  completed = 0

  constructor(world: DisksWorld) {
    const { random, gates, quiet } = world
    this.world = world
    this.servers = Array.from({ length: gates }, () => new Server())
    this.clientsLeft = random.int(1, random.pick([2, 5, 10]))
    const begins = random.pick([50, 500, 5000, 20_000])
    this.hurries = random.chance(0.4)
    for (let i = this.clientsLeft; i > 0; i--) this.after(random.next() * begins, () => this.opens())
    for (let i = quiet ? 0 : random.int(0, 2); i > 0; i--) this.after(random.next() * begins, () => this.dies())
  }

  static address(gate: number): string {
    return `tcp:127.0.0.1:${5000 + gate}`
  }

  get isDone(): boolean {
    return this.clientsLeft === 0 && this.clients.every(({ over }) => over)
  }

  get attempts(): number {
    return this.clients.length
  }

  describe(): string {
    const open = this.clients.filter(({ over }) => !over)
    return open
      .map(({ name, written, said, server, heard, under, left }) => {
        const back = `${heard.length}/${server?.said.length ?? '-'}`
        return `${name}: ${written}/${said.length} -> ${server?.heard.length ?? '-'}, back ${back}, ${under.size} asked, ${left} left`
      })
      .join(' | ')
  }

  /** Something happened that may end any of them. */
  excuse(why: string): void {
    this.trouble()
    this.excusedMs = this.troubleMs
    for (const client of this.clients) if (!client.over) client.excuses.add(why)
  }

  /** Something happened for which a client may have to wait longer than it does. */
  trouble(): void {
    this.troubleMs = this.world.time.nowMs
  }

  /** The source proxy does not take it, or takes it no longer. */
  refused(number: number, reason: string): void {
    const { time } = this.world
    const client = this.clients[number]!
    this.world.note(`${client.name} refused: ${reason}`)
    if (time.nowMs - this.troubleMs < TROUBLE_MS) client.excuses.add(reason)
  }

  private after(ms: number, run: () => void): void {
    this.world.time.afterAs(undefined, ms, run)
  }

  // --- clients

  private opens(): void {
    const { world } = this
    const { random } = world
    this.clientsLeft--
    const number = this.clients.length
    const requests = random.int(0, random.pick([10, 40, 40, 150]))
    const client = new Client(number, random.int(0, world.gates - 1), random.chance(0.5), requests)
    // it joins those of a session that is gone, and breaks with them when that is noticed
    const joins = this.clients.some(other => other.gate === client.gate && (!other.over || !other.server))
    if (joins && world.time.nowMs - this.excusedMs < UNNOTICED_MS) client.excuses.add('joins what is gone')
    this.clients.push(client)
    this.byName.set(client.name, client)
    world.note(`${client.name} opens at gate ${client.gate}`)
    if (!world.quiet && random.chance(0.15)) {
      this.after(random.next() * random.pick([5, 500, 5000]), () => this.breaks(client))
    }
    const end = world.connectDisk(client.gate, `disk:${number}`)
    if (!end) {
      client.excuses.add('no proxy')
      client.over = true
      return
    }
    client.end = end
    end.sink = {
      onBytes: bytes => this.atClient(client, bytes),
      onFin: () => this.clientFin(client),
      onReset: () => this.clientOver(client),
    }
  }

  private say(client: Client, bytes: Uint8Array): void {
    client.said.add(bytes)
    this.write(client)
  }

  private write(client: Client): void {
    const { random } = this.world
    const { end, said } = client
    if (client.over || !end || end.gone) return
    if (end.orphaned) {
      this.clientOver(client)
      return
    }
    const count = Math.min(end.room, said.length - client.written, random.pick([1, 28, 5000, 65536]))
    if (count > 0) {
      end.write(said.from(client.written, count))
      client.written += count
    }
    if (client.written < said.length) this.after(random.next() * random.pick([0.1, 1]), () => this.write(client))
    else if (client.disconnects) this.after(random.next(), () => this.closes(client))
  }

  private atClient(client: Client, bytes: Uint8Array): void {
    const { random } = this.world
    const { heard, server, name } = client
    const at = heard.length
    heard.add(bytes)
    if (server && !server.said.has(at, bytes)) this.world.fail(`${name}: wrong answers at ${at}`)
    const { greeted, open, options } = client.nbd
    let replies: Reply[] = []
    try {
      replies = client.nbd.take(bytes)
    } catch (error) {
      this.world.fail(`${name}: ${(error as Error).message}`)
    }
    if (client.nbd.greeted && !greeted) {
      this.say(client, CLIENT_FLAGS)
      this.say(client, client.structured ? ASK_STRUCTURED : askFor(name))
    } else if (client.nbd.options > options && !client.nbd.open) this.say(client, askFor(name))
    for (const answer of replies) this.answered(client, answer)
    if (client.nbd.open && !open) this.asks(client)
    if (random.chance(0.02)) client.end!.pause(random.next() * random.pick([5, 500]))
  }

  /** Something next, and so on. */
  private asks(client: Client): void {
    const { random } = this.world
    if (client.over || client.disconnects) return
    if (client.left === 0) {
      this.leaves(client)
      return
    }
    if (client.under.size < UNDER_WAY_MAX) {
      client.left--
      this.ask(client)
    }
    this.after(random.next() * (this.hurries ? 1 : random.pick([0.1, 10, 10, 400])), () => this.asks(client))
  }

  private ask(client: Client): void {
    const { random } = this.world
    const { under, known } = client
    const kind = random.pick([WRITE, WRITE, READ, READ, FLUSH])
    const units = kind === FLUSH ? 0 : random.int(1, random.pick([1, 8, 64]))
    const first = kind === FLUSH ? 0 : random.int(0, UNITS - units)
    // two at once at one place may come about in any order
    const isFree = [...under.values()].every(
      other => other.type !== WRITE || other.first + other.units <= first || first + units <= other.first,
    )
    const type = kind === WRITE && !isFree ? FLUSH : kind
    const place = type === FLUSH ? { first: 0, units: 0 } : { first, units }
    const asked = { type, cookie: ++this.serial, serial: type === WRITE ? this.serial : 0, ...place, known: [...known] }
    under.set(asked.cookie, asked)
    this.say(client, request(asked))
  }

  private answered(client: Client, { cookie, error, read }: Reply): void {
    const { name, known, under } = client
    const { type, first, units, serial, known: before } = under.get(cookie)!
    under.delete(cookie)
    if (error !== 0) {
      this.world.happens('disk error')
      return
    }
    if (type === WRITE) known.fill(serial, first, first + units)
    else if (type === READ) {
      if (read.length !== units) this.world.fail(`${name}: ${read.length} units are read in place of ${units}`)
      const old = read.findIndex((found, i) => found < before[first + i]!)
      if (old >= 0) this.world.fail(`${name}: unit ${first + old} is read as it was before it was written`)
    } else {
      this.world.happens('disk flushed')
      const { lasts } = this.servers[client.gate]!.images.get(name)!
      const lost = lasts.findIndex((found, i) => found < before[i]!)
      if (lost >= 0) this.world.fail(`${name}: flushed, and unit ${lost} is not on the disk`)
    }
  }

  /** It has asked all: it waits for the answers, or does not, and says so. */
  private leaves(client: Client): void {
    const { random } = this.world
    if (client.over || client.disconnects) return
    if (client.under.size > 0) {
      this.after(random.next() * 20, () => this.leaves(client))
      return
    }
    client.completed = true
    client.disconnects = true
    this.completed++
    this.world.happens('disk ends in order')
    const asked = { type: DISC, cookie: ++this.serial, first: 0, units: 0, serial: 0 }
    this.say(client, request(asked))
  }

  private closes(client: Client): void {
    const { end } = client
    if (client.over || !end) return
    client.closedInOrder = end.unreadBytes === 0 && !end.broken
    end.close()
    this.clientOver(client)
  }

  /** A job that is cancelled, or a client that dies: in the middle, as its kernel closes. */
  private breaks(client: Client): void {
    const { random } = this.world
    if (client.over || !client.end) return
    client.excuses.add('breaks')
    if (random.chance(0.5)) {
      this.world.happens('disk client breaks')
      client.end.rst()
      this.clientOver(client)
    } else {
      this.world.happens('disk client closes')
      this.closes(client)
    }
  }

  private clientFin(client: Client): void {
    const { server, name, heard, end } = client
    if (!end!.orphaned) {
      if (server ? !server.finished : !client.excuses.size)
        this.world.fail(`${name} ends in order, and nobody closed it`)
      if (server?.closedInOrder && heard.length !== server.said.length)
        this.world.fail(`${name} ends with ${heard.length} of ${server.said.length} bytes`)
    }
    if (!client.over) this.closes(client)
  }

  private clientOver(client: Client): void {
    if (client.endMs < 0) client.endMs = this.world.time.nowMs
    client.over = true
  }

  // --- servers

  /** @returns undefined: no disk has this address */
  dialled(address: string, process: Process): LocalConnection | string | undefined {
    const { time, random } = this.world
    const gate = this.servers.findIndex((_, gate) => Disks.address(gate) === address)
    if (gate < 0) return undefined
    const server = this.servers[gate]!
    if (!server.isUp) {
      for (const client of this.clients)
        if (client.gate === gate && !client.over && !client.server) client.excuses.add('no server')
      return `${address} refused the connection`
    }
    this.world.note(`dialled: ${address}, a disk`)
    const local = new LocalConnection(time, random, process, address)
    const connection = new Connection(gate, local.qemu)
    this.connections.push(connection)
    server.connections.add(connection)
    local.qemu.sink = {
      onBytes: bytes => this.atServer(connection, bytes),
      onFin: () => this.serverFin(connection),
      onReset: () => this.serverOver(connection),
    }
    this.after(random.next() * random.pick([0.1, 20]), () => this.answer(connection, GREETING))
    return local
  }

  private answer(connection: Connection, bytes: Uint8Array): void {
    if (connection.isOver) return
    connection.said.add(bytes)
    this.push(connection)
  }

  private push(connection: Connection): void {
    const { end, said } = connection
    if (connection.isOver) return
    const count = Math.min(end.room, said.length - connection.sent)
    if (count > 0) {
      end.write(said.from(connection.sent, count))
      connection.sent += count
    }
    if (connection.sent < said.length) this.after(1 + this.world.random.next(), () => this.push(connection))
    else if (connection.leaves && connection.under === 0) this.serverCloses(connection)
  }

  private atServer(connection: Connection, bytes: Uint8Array): void {
    const { random } = this.world
    const { nbd, heard } = connection
    const at = heard.length
    heard.add(bytes)
    if (connection.client && !connection.client.said.has(at, bytes))
      this.world.fail(`${connection.client.name}: its server hears other bytes at ${at}`)
    let taken: ReturnType<ServerSide['take']>
    try {
      taken = nbd.take(bytes)
    } catch (error) {
      this.world.fail(`a disk's server hears what is no NBD: ${(error as Error).message}`)
    }
    if (nbd.name !== '' && !connection.client) this.identified(connection)
    for (const said of taken.said) this.answer(connection, said)
    for (const asked of taken.requests) this.serve(connection, asked)
    if (random.chance(0.01)) connection.end.pause(random.next() * random.pick([5, 500]))
  }

  private identified(connection: Connection): void {
    const { nbd, gate, heard, said } = connection
    const client = this.byName.get(nbd.name)
    if (!client) this.world.fail(`a disk's server is asked for ${nbd.name}`)
    if (client.server) this.world.fail(`${client.name} comes twice`)
    if (client.gate !== gate)
      this.world.fail(`${client.name} of gate ${client.gate} comes to the server of gate ${gate}`)
    connection.client = client
    client.server = connection
    if (!client.said.has(0, heard.from(0, heard.length)))
      this.world.fail(`${client.name}: its server hears other bytes`)
    if (!said.has(0, client.heard.from(0, client.heard.length))) this.world.fail(`${client.name}: wrong greeting`)
    this.servers[gate]!.images.set(client.name, { lasts: new Array(UNITS).fill(0), cache: new Map() })
  }

  private serve(connection: Connection, asked: Request): void {
    const { random } = this.world
    if (asked.type === DISC) {
      connection.leaves = true
      this.push(connection)
      return
    }
    connection.under++
    this.after(random.next() * random.pick([0.1, 2, 30]), () => this.done(connection, asked))
  }

  private done(connection: Connection, asked: Request): void {
    const { random, quiet } = this.world
    const { client, nbd } = connection
    // what a connection asked for that has gone is done, or is not
    if (connection.isOver && random.chance(0.5)) return
    const image = this.servers[connection.gate]!.images.get(client!.name)!
    const { type, first, units, serial, cookie } = asked
    const error = !quiet && random.chance(0.003) ? EIO : 0
    const read: number[] = []
    for (let i = first; i < first + units; i++) {
      if (type === WRITE && error === 0) image.cache.set(i, serial)
      else if (type === READ) read.push(image.cache.get(i) ?? image.lasts[i]!)
    }
    if (type === FLUSH && error === 0) {
      for (const [i, written] of image.cache) image.lasts[i] = written
      image.cache.clear()
    }
    connection.under--
    this.answer(connection, reply({ cookie, error, read }, asked, nbd.structured))
  }

  private serverCloses(connection: Connection): void {
    const { end, said } = connection
    if (connection.isOver) return
    connection.finished = end.unreadBytes === 0
    connection.closedInOrder = connection.finished && connection.sent === said.length
    end.close()
    this.serverOver(connection)
  }

  private serverOver(connection: Connection): void {
    if (connection.endMs < 0) connection.endMs = this.world.time.nowMs
    this.servers[connection.gate]!.connections.delete(connection)
  }

  private serverFin(connection: Connection): void {
    const { client, heard, end } = connection
    if (client && !end.orphaned) {
      if (!client.closedInOrder) this.world.fail(`${client.name} ends in order at its server, and nobody closed it`)
      if (heard.length !== client.written)
        this.world.fail(`${client.name} ends at its server with ${heard.length} of ${client.written} bytes`)
    }
    this.serverCloses(connection)
  }

  /** The process of a server is killed: what it had not flushed is lost, and it is back after a while. */
  private dies(): void {
    const { random } = this.world
    const gate = random.int(0, this.servers.length - 1)
    const server = this.servers[gate]!
    if (!server.isUp) return
    this.world.happens('disk server dies')
    this.world.note(`=== the disk server of gate ${gate} dies`)
    for (const client of this.clients) if (client.gate === gate && !client.over) client.excuses.add('server dies')
    this.troubleMs = this.world.time.nowMs
    for (const image of server.images.values()) image.cache.clear()
    for (const connection of [...server.connections]) {
      connection.end.rst()
      this.serverOver(connection)
    }
    server.isUp = false
    this.after(random.next() * 3000, () => {
      server.isUp = true
      for (const client of this.clients) if (client.gate === gate && !client.over) client.excuses.add('server dies')
    })
  }

  // --- the end

  /** @param latestMs so long after one side's end the other's may come */
  verify(latestMs: number): void {
    for (const { name, end, completed, excuses, endMs, server } of this.clients) {
      if (!completed && excuses.size === 0)
        this.world.fail(`${name} did not come to its end, and nothing had happened to it`)
      if (!end) continue
      if (endMs < 0) this.world.fail(`${name} has not ended at the source`)
      if (!server) continue
      if (server.endMs < 0) this.world.fail(`${name} has not ended at its server`)
      if (Math.abs(endMs - server.endMs) > latestMs)
        this.world.fail(`${name} ended ${((server.endMs - endMs) / 1000).toFixed(1)} s later at its server`)
    }
    for (const { endMs, client } of this.connections)
      if (endMs < 0) this.world.fail(`a connection of ${client?.name ?? 'nobody'} has not ended at its server`)
  }
}
