/**
 * One connection of QEMU, TCP or Unix: bytes land in memory that the caller provides, and leave from memory that the
 * caller lends. Nothing is interpreted or held back, and nothing copied but a few bytes at the start and after each
 * pause.
 */

import net from 'node:net'
import { copyRange } from '../bytes/copy.ts'
import { resetSocket } from './reset-socket.ts'

/**
 * Takes what a connection delivers. Called from the event loop, never from inside a call to the socket's methods but
 * {@link QemuSocket.resume}.
 */
export interface SocketSink {
  /**
   * Where the next bytes may land, 1 byte or more: any Uint8Array, also one over shared WebAssembly memory, which must
   * not grow meanwhile. The socket may write to all of it until the `onBytes` that follows, or else until `onEnd` or
   * `onClosed`. Not asked before the first bytes are there, so a connection that is silent from its start holds no
   * slot; later it holds one. Undefined: no room now. The bytes stay in the kernel (but for a few), and the peer feels
   * it, until {@link QemuSocket.resume}.
   */
  nextSlot(): Uint8Array | undefined
  /**
   * The first `count` bytes of the slot given last are the next bytes of the stream, and the slot is the caller's
   * again: what is left of it may be given as the next one.
   */
  onBytes(count: number): void
  /** FIN: the peer sends no more. All its bytes have been delivered. The other direction lives on. */
  onEnd(): void
  /** The last event. No slot and no written memory is used any more; every `done` has been called or is called next. */
  onClosed(closed: SocketClosed): void
}

/** How a connection came to its end. */
export interface SocketClosed {
  /**
   * - `finished`: FIN both ways, all bytes taken
   * - `reset`: the peer went away with bytes undelivered: RST, or a close while we still wrote
   * - `error`: the network or kernel failed, `error` says how
   * - `local`: {@link QemuSocket.reset} was called
   */
  readonly how: 'finished' | 'reset' | 'error' | 'local'
  readonly error?: NodeJS.ErrnoException
}

/** Called once for every write: without error when the kernel has taken the bytes, with one when they are lost. */
export type WriteDone = (error?: NodeJS.ErrnoException) => void

/**
 * How bytes are read: `onread` lets the kernel write into the slots, `data` copies them out of Node's buffers. The
 * second is there for a Node whose private field has gone (see {@link takeHandle}), and for tests.
 */
export type ReadMode = 'onread' | 'data'

/**
 * Bytes that a connection reads into memory of its own at its start and when slots ran out, and copies. Node fixes
 * where the next bytes land when it has read the ones before: so whatever lies there while nothing comes cannot be
 * taken back.
 */
const BRIDGE_BYTES = 4096

/**
 * A QEMU that is silent for hours is healthy (a preempt channel, a destination that loads devices), a host that has
 * gone must be found all the same. Libuv's own 10 probes a second apart would break a connection over a switch that
 * restarts.
 */
const KEEP_ALIVE = { enable: true, initialDelay: 120_000, interval: 30_000, count: 10 }

/** Errors by which a peer's disappearance shows. */
const PEER_GONE = new Set(['ECONNRESET', 'EPIPE', 'ENOTCONN', 'ECONNABORTED'])

/** The part of net.Socket that Node does not document. */
interface WithHandle {
  _handle: { reading: boolean } | null
}

/**
 * Takes the kernel's socket out of an accepted net.Socket, because net.createServer cannot pass `onread` on and only
 * the constructor takes it. Private to Node (20 to 26 have it), so it stands here alone: undefined where it is not as
 * expected, and the connection is then read by 'data' events.
 */
function takeHandle(accepted: net.Socket): object | undefined {
  const holder = accepted as unknown as WithHandle
  const handle = holder._handle as ({ reading: boolean } & Record<string, unknown>) | null | undefined
  if (!handle || typeof handle.useUserBuffer !== 'function' || typeof handle.readStart !== 'function') return undefined
  holder._handle = null
  handle.reading = false
  // Counts the connection out of the server, so that server.close() does not wait for the empty shell.
  accepted.destroy()
  return handle
}

/** What is decided by the time the net.Socket is made: where its bytes go. */
interface Intake {
  /** Where the next bytes will land. */
  target: () => Uint8Array
  /** So many bytes have landed there. False stops the reading. */
  landed: (count: number) => boolean
}

/**
 * Lets a socket's reading survive a failed write. Node destroys a socket at the first EPIPE, and with it bytes that the
 * peer sent before it went: the destination's SHUT may be among them, and without it the source resumes a guest that
 * already runs at the destination (wire format, 1.5 and 1.6). So the failure is kept, and reading goes on to its end.
 * _write and _writev are what Node documents for those who implement a stream; here they wrap the socket's own.
 */
function keepReading(socket: net.Socket, failed: (error: NodeJS.ErrnoException) => void): void {
  const write = socket._write.bind(socket)
  const writev = socket._writev?.bind(socket)
  let over = false
  const keep = (error: NodeJS.ErrnoException | null | undefined): Error | null | undefined => {
    if (!error || socket.destroyed || !PEER_GONE.has(error.code ?? '')) return error
    over = true
    failed(error)
    return null
  }
  socket._write = (chunk, encoding, callback) => {
    if (over) callback()
    else write(chunk, encoding, error => callback(keep(error)))
  }
  if (!writev) return
  socket._writev = (chunks, callback) => {
    if (over) callback()
    else writev(chunks, error => callback(keep(error)))
  }
}

/**
 * One connection of QEMU. Made by {@link acceptQemuSocket} or {@link connectQemuSocket}; silent until {@link
 * QemuSocket.start}.
 */
export class QemuSocket {
  /** How its bytes are read. */
  readonly readMode: ReadMode
  /** Bytes that went to the sink. */
  bytesRead = 0
  /** Bytes of writes that the kernel has taken whole. */
  bytesWritten = 0
  /** Bytes handed to {@link write} that the kernel has not taken yet: back-pressure. */
  pendingWriteBytes = 0
  /** The write that failed because the peer had gone. Reading goes on to its end all the same. */
  writeError: NodeJS.ErrnoException | undefined

  private readonly socket: net.Socket
  private peerName = ''
  private sink: SocketSink | undefined
  private readonly bridge: Uint8Array
  /** The slot that the kernel writes to next; undefined means the bridge. */
  private slot: Uint8Array | undefined
  /** Bytes that arrived while there was no slot for them. Reading is stopped as long as there are any. */
  private held: Uint8Array | undefined
  private ended = false
  private finishing = false
  private resetting = false
  private closed: SocketClosed | undefined
  private error: NodeJS.ErrnoException | undefined

  /** @internal */
  constructor(readMode: ReadMode, make: (intake: Intake) => net.Socket) {
    this.readMode = readMode
    this.bridge = new Uint8Array(readMode === 'onread' ? BRIDGE_BYTES : 0)
    this.socket = make({
      target: () => this.slot ?? this.bridge,
      landed: count => this.landed(count),
    })
    const socket = this.socket
    socket.pause()
    keepReading(socket, error => {
      this.writeError ??= error
    })
    socket.on('end', () => this.onEnd())
    socket.on('error', error => {
      this.error ??= error
    })
    socket.on('close', () => this.onClose())
    if (readMode === 'data') {
      socket.on('data', (chunk: Buffer) => {
        if (!this.take(chunk)) socket.pause()
      })
      socket.pause() // listening for 'data' set it flowing
    }
  }

  /** The other end, for logs: `127.0.0.1:53124`; empty for a Unix socket. Known after the end too. */
  get peer(): string {
    const { remoteAddress, remotePort } = this.socket
    if (this.peerName === '' && remoteAddress !== undefined) {
      this.peerName = remoteAddress.includes(':')
        ? `[${remoteAddress}]:${remotePort}`
        : `${remoteAddress}:${remotePort}`
    }
    return this.peerName
  }

  /** True from {@link SocketSink.onClosed} on. */
  get isClosed(): boolean {
    return this.closed !== undefined
  }

  /** True where the peer has sent its FIN and all bytes before it were delivered. */
  get isEnded(): boolean {
    return this.ended
  }

  /** True while bytes wait for a slot. */
  get isPaused(): boolean {
    return this.held !== undefined
  }

  /** Starts to read. What happened to the connection before is reported now: bytes first. */
  start(sink: SocketSink): void {
    if (this.sink) throw new Error('the connection was started before')
    this.sink = sink
    void this.peer // the kernel tells as long as the connection lives
    const closed = this.closed
    if (closed) process.nextTick(() => sink.onClosed(closed))
    else this.socket.resume()
  }

  /** There may be slots again. Bytes that waited are delivered from inside this call. Does nothing where none wait. */
  resume(): void {
    const held = this.held
    if (!held || this.closed) return
    this.held = undefined
    if (this.take(held) && !this.socket.destroyed) this.socket.resume()
  }

  /**
   * Sends bytes, in order. The memory is lent until `done`, which is called once in every case, never from inside this
   * call, and in the order of the writes.
   */
  write(view: Uint8Array, done: WriteDone): void {
    const refused = this.refusal()
    if (refused) {
      process.nextTick(done, refused)
      return
    }
    const bytes = view.length
    this.pendingWriteBytes += bytes
    this.socket.write(view, error => {
      this.pendingWriteBytes -= bytes
      const failed = this.writeError ?? error
      if (!failed) {
        this.bytesWritten += bytes
        done()
        return
      }
      done(failed)
      // Both directions are over: there is no FIN to wait for.
      if (this.ended) this.socket.destroy()
    })
  }

  private refusal(): NodeJS.ErrnoException | undefined {
    if (this.writeError) return this.writeError
    if (!this.finishing && !this.resetting && !this.socket.destroyed) return undefined
    const error: NodeJS.ErrnoException = new Error('write to a connection that has ended')
    error.code = 'EPIPE'
    return error
  }

  /** Sends FIN behind all that was written. The connection closes by itself when the peer's FIN has come too. */
  finish(): void {
    if (this.finishing || this.resetting) return
    this.finishing = true
    if (!this.writeError) this.socket.end()
  }

  /**
   * Ends the connection now: RST, and what was not delivered is lost. A Unix socket knows no RST: its peer sees the end
   * of the stream, or ECONNRESET where bytes of its own were still unread.
   */
  reset(): void {
    if (this.resetting || this.closed) return
    this.resetting = true
    resetSocket(this.socket)
  }

  /** `count` bytes were written to where `target` had said. */
  private landed(count: number): boolean {
    if (this.slot) {
      this.slot = undefined
      this.bytesRead += count
      this.sink?.onBytes(count)
    } else if (!this.take(this.bridge.subarray(0, count))) return false
    // Without a slot the bridge is read on: an end or a reset of the peer is then seen, and bytes ask again.
    if (!this.resetting) this.slot = this.askSlot()
    return true
  }

  private askSlot(): Uint8Array | undefined {
    const slot = this.sink?.nextSlot()
    return slot && slot.length > 0 ? slot : undefined
  }

  /**
   * Copies bytes into slots and delivers them.
   * @returns false where slots ran out: the rest is held, and the reading has to stop
   */
  private take(bytes: Uint8Array): boolean {
    let at = 0
    while (at < bytes.length) {
      if (this.resetting) return false
      const slot = this.askSlot()
      if (!slot) {
        this.held = bytes.subarray(at)
        return false
      }
      const count = Math.min(bytes.length - at, slot.length)
      copyRange(bytes, at, at + count, slot, 0)
      at += count
      this.bytesRead += count
      this.sink?.onBytes(count)
    }
    return true
  }

  private onEnd(): void {
    if (this.resetting) return
    this.slot = undefined
    const failed = this.writeError
    // The kernel tells of an RST once, to the write that came first; the read then sees an end that was none.
    if (failed && failed.code !== 'EPIPE') {
      this.error ??= failed
      this.socket.destroy()
      return
    }
    this.ended = true
    this.sink?.onEnd()
    if (failed) this.socket.destroy() // nothing can be sent any more, so no FIN of ours is awaited
  }

  private onClose(): void {
    const error = this.error ?? this.writeError
    this.slot = undefined
    this.held = undefined
    if (this.resetting) this.closed = { how: 'local' }
    else if (!error) this.closed = { how: 'finished' }
    else this.closed = { how: PEER_GONE.has(error.code ?? '') ? 'reset' : 'error', error }
    this.sink?.onClosed(this.closed)
  }
}

function onreadOption(intake: Intake): net.OnReadOpts {
  return {
    buffer: () => intake.target(),
    callback: count => intake.landed(count),
  }
}

/** Settings of every TCP connection of QEMU; a Unix socket ignores them. */
function tune(socket: net.Socket): net.Socket {
  socket.setNoDelay(true)
  socket.setKeepAlive(KEEP_ALIVE)
  return socket
}

/**
 * Makes a QemuSocket of a connection that a net.Server has accepted with `pauseOnConnect` and `allowHalfOpen`. The
 * net.Socket is not to be used any more.
 */
export function acceptQemuSocket(accepted: net.Socket, readMode: ReadMode = 'onread'): QemuSocket {
  const handle = readMode === 'onread' ? takeHandle(accepted) : undefined
  if (!handle) return new QemuSocket('data', () => tune(accepted))
  return new QemuSocket('onread', intake => {
    const options = { handle, allowHalfOpen: true, manualStart: true, onread: onreadOption(intake) }
    return tune(new net.Socket(options as net.SocketConstructorOpts))
  })
}

/**
 * Starts to connect; the caller waits for `connected` or `failed`, of which exactly one is called. No name is looked up
 * and no second address is tried.
 */
export function connectQemuSocket(
  where: { host: string; port: number; localAddress?: string } | { path: string },
  connected: () => void,
  failed: (error: NodeJS.ErrnoException) => void,
  readMode: ReadMode = 'onread',
): QemuSocket {
  return new QemuSocket(readMode, intake => {
    const options = readMode === 'onread' ? { onread: onreadOption(intake) } : {}
    const socket = new net.Socket({ ...options, allowHalfOpen: true } as net.SocketConstructorOpts)
    socket.once('error', failed)
    socket.once('connect', () => {
      socket.off('error', failed)
      connected()
    })
    // Happy eyeballs would open connections and drop them: each one would kill a waiting QEMU.
    socket.connect({ ...where, autoSelectFamily: false } as net.NetConnectOpts)
    return tune(socket)
  })
}
