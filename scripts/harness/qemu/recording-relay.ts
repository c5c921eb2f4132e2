/** A TCP relay that keeps every byte of every connection: what a capture of the same connections must reassemble to. */
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'

/** One connection, in the order in which the source opened them. */
export interface Recording {
  /** Port from which the source connected. */
  readonly sourcePort: number
  /** Bytes from source to destination. */
  readonly forward: Buffer[]
  /** Bytes from destination to source: the return path, or none. */
  readonly back: Buffer[]
  /** Bytes of each chunk in the order in which the relay took them, those from the destination negative. */
  readonly order: number[]
}

/** Where connections go. */
export type RelayTarget = { readonly host: string; readonly port: number } | { readonly path: string }

/**
 * Relays to one address, raw, and records. Each connection is relayed as soon as those before it stand, as QEMU 7.2
 * needs.
 */
export class RecordingRelay implements AsyncDisposable {
  readonly recordings: Recording[] = []
  private readonly server: Server
  private readonly sockets = new Set<Socket>()
  private open = 0
  private dialled = Promise.resolve()
  private onIdle = () => {}

  private constructor(target: RelayTarget) {
    this.server = createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, near => {
      this.open++
      const recording: Recording = { sourcePort: near.remotePort!, forward: [], back: [], order: [] }
      this.recordings.push(recording)
      this.dialled = this.dialled.then(() => this.relay(near, target, recording))
    })
  }

  /** Listens on `listen` and relays to `target`. */
  static async start(listen: { host: string; port: number }, target: RelayTarget): Promise<RecordingRelay> {
    const relay = new RecordingRelay(target)
    await new Promise<void>((resolve, reject) =>
      relay.server.once('error', reject).listen(listen.port, listen.host, resolve),
    )
    return relay
  }

  /** Where it listens, if it was told port 0. */
  get port(): number {
    return (this.server.address() as AddressInfo).port
  }

  /** Listens no longer, and waits until every connection has ended both ways. */
  async close(): Promise<void> {
    this.server.close()
    if (this.open > 0) {
      await new Promise<void>(resolve => {
        this.onIdle = resolve
      })
    }
  }

  /** Cuts what is still open. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.server.close()
    for (const socket of this.sockets) socket.destroy()
  }

  /** Gives the connection its other half; settled once that stands. */
  private relay(near: Socket, target: RelayTarget, recording: Recording): Promise<void> {
    const far = connect({ ...target, allowHalfOpen: true, noDelay: true })
    for (const socket of [near, far]) {
      this.sockets.add(socket)
      socket.once('close', () => this.sockets.delete(socket))
    }
    let ends = 2
    const ended = () => {
      if (--ends === 0 && --this.open === 0) this.onIdle()
    }
    pump(near, far, recording.forward, length => recording.order.push(length), ended)
    pump(far, near, recording.back, length => recording.order.push(-length), ended)
    near.resume()
    return new Promise(resolve => far.once('connect', resolve).once('close', () => resolve()))
  }
}

function pump(from: Socket, to: Socket, record: Buffer[], note: (length: number) => void, ended: () => void): void {
  from.on('data', chunk => {
    record.push(chunk)
    note(chunk.length)
    if (!to.write(chunk)) {
      from.pause()
      to.once('drain', () => from.resume())
    }
  })
  from.on('end', () => to.end())
  from.on('error', () => to.destroy()) // reset: close follows
  from.on('close', ended)
}
