/** A client of NBD by hand: one connection to an export, as its test wants it, for as long as it wants it. */
import { once } from 'node:events'
import net from 'node:net'

const OPTION = Buffer.from('IHAVEOPT')
const EXPORT_NAME = 1
const WRITE = 1
const DISC = 2
const FLUSH = 3
const REQUEST_BYTES = 28

export class DiskClient {
  private readonly socket: net.Socket
  private readonly bytes: AsyncIterator<Buffer>
  private rest: Buffer = Buffer.alloc(0)
  private cookie = 0

  private constructor(socket: net.Socket) {
    this.socket = socket
    this.bytes = socket[Symbol.asyncIterator]()
  }

  /** Connects, and takes the export without a name. */
  static async open(port: number): Promise<DiskClient> {
    const socket = net.connect({ port, host: '127.0.0.1' })
    await once(socket, 'connect')
    const client = new DiskClient(socket)
    await client.take(18) // both magics, flags
    const hello = Buffer.alloc(20)
    hello.writeUInt32BE(3, 0) // FIXED_NEWSTYLE, NO_ZEROES
    OPTION.copy(hello, 4)
    hello.writeUInt32BE(EXPORT_NAME, 12)
    socket.write(hello)
    await client.take(10) // size, flags
    return client
  }

  /** Writes, and waits for the answer. */
  async write(at: number, data: Buffer): Promise<void> {
    await this.asks(WRITE, at, data.length, data)
  }

  async flush(): Promise<void> {
    await this.asks(FLUSH, 0, 0)
  }

  /** Ends in order. */
  async close(): Promise<void> {
    this.socket.end(this.request(DISC, 0, 0))
    if (!this.socket.closed) await once(this.socket.resume(), 'close')
  }

  private async asks(type: number, at: number, length: number, data: Buffer = Buffer.alloc(0)): Promise<void> {
    this.socket.write(Buffer.concat([this.request(type, at, length), data]))
    const reply = await this.take(16)
    const error = reply.readUInt32BE(4)
    if (error !== 0) throw new Error(`the server answers ${error}`)
  }

  private request(type: number, at: number, length: number): Buffer {
    const head = Buffer.alloc(REQUEST_BYTES)
    head.writeUInt32BE(0x25609513, 0)
    head.writeUInt16BE(type, 6)
    head.writeUInt32BE(++this.cookie, 12)
    head.writeBigUInt64BE(BigInt(at), 16)
    head.writeUInt32BE(length, 24)
    return head
  }

  private async take(count: number): Promise<Buffer> {
    while (this.rest.length < count) {
      const { value, done } = await this.bytes.next()
      if (done) throw new Error('the connection has ended')
      this.rest = Buffer.concat([this.rest, value])
    }
    const taken = this.rest.subarray(0, count)
    this.rest = this.rest.subarray(count)
    return taken
  }
}
