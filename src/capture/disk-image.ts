/**
 * Disk images that are no plain bytes (qcow2, VMDK, VHDX, VDI, with backing chains and snapshots): QEMU's own qemu-nbd reads
 * them and serves their content over a socket of this process alone. It ends when we close, or are gone.
 */
import type { Duplex } from 'node:stream'
import { ProxyError } from '../errors.ts'
import { QemuNbd } from '../system/qemu-nbd.ts'
import type { Chunks } from './input-file.ts'
import { READ_LENGTH } from './limits.ts'

/** Formats as qemu-nbd calls them. Told, so that no image can pretend to be of another format. */
export type ImageFormat = 'qcow2' | 'vmdk' | 'vhdx' | 'vdi'

/** NBD, fixed newstyle. Source: the protocol document of the NBD project. */
const NBD = {
  MAGIC: 0x4e42444d41474943n, // "NBDMAGIC"
  OPTION_MAGIC: 0x49484156454f5054n, // "IHAVEOPT"
  GREETING_LENGTH: 18,
  FLAG_FIXED_NEWSTYLE: 1,
  FLAG_NO_ZEROES: 2,
  OPTION_EXPORT_NAME: 1,
  EXPORT_LENGTH: 10,
  EXPORT_ZEROES: 124,
  REQUEST_MAGIC: 0x25609513,
  REPLY_MAGIC: 0x67446698,
  REPLY_LENGTH: 16,
  READ: 0,
  DISCONNECT: 2,
} as const

export class DiskImage {
  /** What the guest sees as its disk. */
  readonly lengthBytes: number
  private readonly name: string
  private readonly connection: Connection
  private readonly server: QemuNbd

  private constructor(name: string, lengthBytes: number, connection: Connection, server: QemuNbd) {
    this.name = name
    this.lengthBytes = lengthBytes
    this.connection = connection
    this.server = server
  }

  /**
   * @param snapshot id or name of one within the image; undefined: the disk as it is now
   * @throws IO where qemu-nbd is not there, or does not like the image
   */
  static async open(path: string, format: ImageFormat, snapshot?: string): Promise<DiskImage> {
    const server = await QemuNbd.start(path, format, snapshot)
    try {
      const connection = new Connection(server.socket)
      return new DiskImage(path, await connection.greet(), connection, server)
    } catch (cause) {
      server.stop()
      throw server.failure(cause)
    }
  }

  /** All of the disk, from the start. @throws IO */
  async *chunks(readBytes: (count: number) => void): Chunks {
    const { connection, lengthBytes } = this
    const ask = (at: number): void => {
      if (at < lengthBytes) connection.ask(at, Math.min(READ_LENGTH, lengthBytes - at))
    }
    try {
      await connection.settle() // of a reading that was not read to its end
      ask(0)
      for (let at = 0; at < lengthBytes; ) {
        const chunk = await connection.answer()
        at += chunk.length
        ask(at) // while this one is used, the next one comes; one at a time, for answers may change their order
        readBytes(chunk.length)
        yield chunk
      }
    } catch (cause) {
      if (cause instanceof ProxyError) throw cause
      const what = `cannot read ${this.name}: ${(cause as Error).message}`
      throw new ProxyError('IO', what, { stream: this.name }, 'qemu-img check FILE', { cause })
    }
  }

  close(): void {
    this.connection.close()
    this.server.stop()
  }
}

/** A request, then its answer. */
class Connection {
  private readonly socket: Duplex
  private readonly bytes: AsyncIterator<Buffer>
  private rest: Buffer = Buffer.alloc(0)
  /** Bytes of the answer that is still to come; 0: nothing was asked. */
  private owed = 0

  constructor(socket: Duplex) {
    this.socket = socket
    socket.on('error', () => {}) // the reading tells
    this.bytes = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>
  }

  /** @returns bytes of the disk */
  async greet(): Promise<number> {
    const greeting = await this.take(NBD.GREETING_LENGTH)
    const flags = greeting.readUInt16BE(16)
    if (greeting.readBigUInt64BE(0) !== NBD.MAGIC || greeting.readBigUInt64BE(8) !== NBD.OPTION_MAGIC) {
      throw new Error('this is no NBD server')
    }
    const answer = Buffer.alloc(4 + 16)
    answer.writeUInt32BE(flags & (NBD.FLAG_FIXED_NEWSTYLE | NBD.FLAG_NO_ZEROES), 0)
    answer.writeBigUInt64BE(NBD.OPTION_MAGIC, 4)
    answer.writeUInt32BE(NBD.OPTION_EXPORT_NAME, 12)
    this.socket.write(answer)
    const size = Number((await this.take(NBD.EXPORT_LENGTH)).readBigUInt64BE(0))
    if ((flags & NBD.FLAG_NO_ZEROES) === 0) await this.take(NBD.EXPORT_ZEROES)
    if (!Number.isSafeInteger(size)) throw new Error(`a disk of ${size} bytes`)
    return size
  }

  ask(offset: number, length: number): void {
    this.owed = length
    this.request(NBD.READ, offset, length)
  }

  /** Takes an answer that nobody waited for. */
  async settle(): Promise<void> {
    if (this.owed > 0) await this.answer()
  }

  /** The answer to the request, in memory of its own. */
  async answer(): Promise<Buffer> {
    const length = this.owed
    this.owed = 0
    const head = await this.take(NBD.REPLY_LENGTH)
    if (head.readUInt32BE(0) !== NBD.REPLY_MAGIC) throw new Error('an answer that is none')
    const error = head.readUInt32BE(4)
    if (error !== 0) throw new Error(`qemu-nbd says error ${error}`)
    return this.take(length)
  }

  close(): void {
    if (!this.socket.destroyed) this.request(NBD.DISCONNECT, 0, 0)
  }

  private request(type: number, offset: number, length: number): void {
    const request = Buffer.alloc(28)
    request.writeUInt32BE(NBD.REQUEST_MAGIC, 0)
    request.writeUInt16BE(type, 6)
    request.writeBigUInt64BE(BigInt(offset), 16)
    request.writeUInt32BE(length, 24)
    this.socket.write(request)
  }

  private async take(length: number): Promise<Buffer> {
    const pieces = [this.rest]
    let have = this.rest.length
    while (have < length) {
      const { value, done } = await this.bytes.next()
      if (done) throw new Error('qemu-nbd went away')
      pieces.push(value)
      have += value.length
    }
    const all = pieces.length === 1 ? this.rest : Buffer.concat(pieces)
    this.rest = all.subarray(length)
    return all.subarray(0, length)
  }
}
