/** Destination proxies gone bad, without TLS: each listens at a port of its own until it is disposed of. */
import { once } from 'node:events'
import net from 'node:net'
import { readHello } from '../../src/link/greeting.ts'
import type { Link } from '../../src/link/link.ts'
import { LinkServer } from '../../src/link/server.ts'
import { encodeFrame, FrameDecoder } from '../../src/wan/frames.ts'
import { clientHelloOf, encodeServerHello } from '../../src/wan/hello.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { sinkOf } from '../helpers/silent-sink.ts'
import { TestLog } from '../link/harness.ts'

/** Pieces that are handed in at a time, and when there are none to be expected any more: the sockets' own buffers take some. */
const STEP = 1000
const PIECES_ENOUGH = 1_000_000

/** Answers of one byte, each a frame. */
export class OneByteAnswers implements AsyncDisposable {
  readonly links: Link[] = []
  pieces = 0
  port = 0
  private readonly server = new LinkServer({
    plaintext: true,
    logger: new TestLog(),
    accept: hello => ({
      ...{ sets: [], ring: hello.ring, places: hello.places, targets: [] },
      serve: link => {
        this.links.push(link)
        const flows: number[] = []
        const send = (): void => {
          for (const flow of flows) {
            for (let i = 0; i < STEP && this.pieces < PIECES_ENOUGH; i++) {
              if (link.session.dataRoom(flow, STEP) === 0) break
              link.session.sendData(flow, Uint8Array.of(0))
              this.pieces++
            }
          }
        }
        return sinkOf({
          onOpen: number => flows.push(number),
          onBatch: (number, _parts, rawLength) => link.session.consumed(number, rawLength),
          onCredit: send,
          onWork: send,
        })
      },
    }),
  })

  static async start(): Promise<OneByteAnswers> {
    const hostile = new OneByteAnswers()
    hostile.port = (await hostile.server.listen({ host: '127.0.0.1', port: 0 })).port
    return hostile
  }

  /** The first session has ended, or never will. */
  get isOver(): boolean {
    return this.links[0]?.over === true || this.pieces === PIECES_ENOUGH
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.server.close(0)
  }
}

/** Takes everything, answers PING and acknowledges nothing. */
export class AcknowledgesNothing implements AsyncDisposable {
  /** Of payloads that it was sent. */
  bytes = 0
  private readonly sockets = new Set<net.Socket>()
  private readonly server = net.createServer(socket => void this.serve(socket).catch(() => socket.destroy()))

  static async start(): Promise<AcknowledgesNothing> {
    const hostile = new AcknowledgesNothing()
    await once(hostile.server.listen(0, '127.0.0.1'), 'listening')
    return hostile
  }

  get port(): number {
    return (this.server.address() as net.AddressInfo).port
  }

  private async serve(socket: net.Socket): Promise<void> {
    this.sockets.add(socket)
    socket.on('error', () => {}).on('close', () => this.sockets.delete(socket))
    const { body } = await readHello(socket)
    const { ring, places } = clientHelloOf(body)
    const none = { sets: [], targets: ['default'], agent: 'hostile' }
    socket.write(encodeServerHello({ ...none, ring, places, token: '0'.repeat(64), received: 0, credit: 65536 }))
    let sequence = 0
    const decoder = new FrameDecoder(({ type, flow, payload }) => {
      const say = (answer: number, said: Uint8Array): void => {
        socket.write(
          encodeFrame(answer, 0, answer === FRAME.CREDIT ? flow : 0, answer === FRAME.CREDIT ? ++sequence : 0, said),
        )
      }
      if (type === FRAME.PING) say(FRAME.PONG, payload.slice())
      if (type === FRAME.OPEN) say(FRAME.CREDIT, Buffer.from('0000000010000000', 'hex'))
      this.bytes += payload.length
    })
    socket.on('data', chunk => decoder.push(chunk)).resume()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.sockets) socket.destroy()
    this.server.close()
  }
}
