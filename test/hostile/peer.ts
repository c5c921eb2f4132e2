/** A peer that can say anything: one connection whose hello, frames and bytes are made by hand. */
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'
import type tls from 'node:tls'
import type { Credentials } from '../../src/link/credentials.ts'
import { readHello } from '../../src/link/greeting.ts'
import { encodeFrame, type Frame, FrameDecoder } from '../../src/wan/frames.ts'
import {
  type ClientHello,
  encodeClientHello,
  isRefusal,
  type RefuseHello,
  type ServerHello,
  serverHelloOf,
} from '../../src/wan/hello.ts'
import { FRAME } from '../../src/wan/wire.ts'

/** How to reach a destination proxy, and as whom. */
export interface Way {
  readonly port: number
  /** undefined: plain text. */
  readonly credentials: Credentials | undefined
}

export type AnySocket = net.Socket | tls.TLSSocket

const SEQUENCED_MAX = FRAME.END
const NONE = new Uint8Array(0)

/**
 * A connection on which nothing has been said yet but TLS's handshake. Its errors are silent: 'close' tells.
 * @throws ProxyError PEER_AUTH, PEER_LOST, or the socket's error
 */
export async function connect({ port, credentials }: Way): Promise<AnySocket> {
  const raw = net.connect({ port, host: '127.0.0.1', noDelay: true })
  await once(raw, 'connect')
  raw.on('error', () => {})
  return credentials ? (await credentials.connect(raw, '127.0.0.1')).socket : raw
}

/** What a peer without a mind of its own says in its hello. */
export function usualHello(): ClientHello {
  return {
    agent: 'hostile',
    session: randomBytes(16).toString('hex'),
    connection: 0,
    connections: 1,
    token: null,
    received: 0,
    credit: 65536,
    sets: [],
    ring: 256,
    places: 4096,
    seed: '0123456789abcdef',
  }
}

/** A connection after both hellos. */
export class Peer {
  readonly socket: AnySocket
  readonly asked: ClientHello
  readonly hello: ServerHello
  /** Number of the last sequenced frame that was sent; set it to skip or repeat numbers. */
  sequence: number
  /** Sequenced frames that have arrived. */
  received = 0
  /** Frames that have arrived, by type. */
  readonly counts = new Map<number, number>()
  /** Acknowledge each chunk's frames, as a good peer does. */
  acknowledges = true
  /** Answer each PING: who waits for its turn on a busy machine sends nothing for 5 s, and would be given up. */
  answersPings = true
  /** What BYE said, where one came. */
  goodbye = 'no BYE'
  /** Called for each frame: the object is used again for the next. */
  onFrame: (frame: Frame) => void = () => {}

  private constructor(socket: AnySocket, asked: ClientHello, hello: ServerHello, rest: Uint8Array) {
    this.socket = socket
    this.asked = asked
    this.hello = hello
    this.sequence = hello.received
    const decoder = new FrameDecoder(frame => {
      this.counts.set(frame.type, (this.counts.get(frame.type) ?? 0) + 1)
      if (frame.type <= SEQUENCED_MAX) this.received++
      if (frame.type === FRAME.PING && this.answersPings) this.send(FRAME.PONG, frame.payload.slice())
      if (frame.type === FRAME.BYE) this.goodbye = `BYE ${frame.payload[1]} ${Buffer.from(frame.payload.subarray(2))}`
      this.onFrame(frame)
    })
    const take = (chunk: Uint8Array): void => {
      const before = this.received
      decoder.push(chunk)
      if (this.acknowledges && this.received > before) this.acknowledge(this.received)
    }
    socket.on('data', take)
    if (rest.length > 0) take(rest)
    socket.resume()
  }

  /**
   * Dials and says hello.
   * @param hello what differs from `usualHello`
   * @throws Error where the server refuses or closes
   */
  static async dial(way: Way, hello: Partial<ClientHello> = {}): Promise<Peer> {
    const asked = { ...usualHello(), ...hello }
    const socket = await connect(way)
    socket.write(encodeClientHello(asked))
    const { body, rest } = await readHello(socket)
    const answer: ServerHello | RefuseHello = serverHelloOf(body)
    if (isRefusal(answer)) {
      socket.destroy()
      throw new Error(`refused: ${answer.refuse.code}: ${answer.refuse.text}`)
    }
    return new Peer(socket, asked, answer, rest)
  }

  /**
   * Sends a frame with a right check (a batch's is its own matter); sequenced ones are numbered.
   * @returns false where the socket's buffer is full: `flushed` waits for room
   */
  send(type: number, payload: Uint8Array = NONE, flow = 0, flags = 0): boolean {
    const sequence = type <= SEQUENCED_MAX ? ++this.sequence : 0
    return this.socket.write(encodeFrame(type, flags, flow, sequence, payload))
  }

  open(flow: number, target = 'default', migration = 1, kind = 'main'): boolean {
    return this.send(FRAME.OPEN, Buffer.from(JSON.stringify({ target, migration, kind })), flow)
  }

  /** @param code and a text, raw: nothing is escaped or cut */
  reset(flow: number, code = 1, text = ''): boolean {
    return this.send(FRAME.RESET, Buffer.concat([Buffer.from([code >> 8, code & 255]), Buffer.from(text)]), flow)
  }

  /** @param bytes total that the other side may send on this flow */
  credit(flow: number, bytes: number): boolean {
    const payload = Buffer.alloc(8)
    payload.writeBigUInt64BE(BigInt(bytes))
    return this.send(FRAME.CREDIT, payload, flow)
  }

  acknowledge(sequence: number): boolean {
    const payload = Buffer.alloc(16)
    payload.writeBigUInt64BE(BigInt(sequence), 0)
    payload.writeBigUInt64BE(BigInt(this.received), 8)
    return this.send(FRAME.ACK, payload)
  }

  /** Waits until the socket takes more, or is gone. */
  async flushed(): Promise<void> {
    if (!this.socket.writableNeedDrain || this.socket.destroyed) return
    await new Promise<void>(resolve => {
      const done = (): void => {
        this.socket.off('drain', done).off('close', done)
        resolve()
      }
      this.socket.on('drain', done).on('close', done)
    })
  }

  get isClosed(): boolean {
    return this.socket.destroyed
  }

  close(): void {
    this.socket.destroy()
  }
}
