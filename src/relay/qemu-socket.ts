/**
 * One connection of QEMU, TCP or Unix: bytes land in memory that the caller provides, and leave from memory that the
 * caller lends. Nothing is interpreted, held back or copied, save the few bytes that come first after each idle moment.
 */
import net from 'node:net'

/** Takes what a connection delivers. Called from the event loop, never from inside a call to the socket's methods but {@link QemuSocket.resume}. */
export interface SocketSink {
  /**
   * Where the bytes that are there now may land; undefined pauses the connection until {@link QemuSocket.resume}. Asked only
   * when bytes have arrived (or, after a slot was filled to its end, are likely to). The socket writes to it until the
   * `onBytes` that follows, and no later. Any Uint8Array of at least 1 byte, also one over shared WebAssembly memory, which
   * must not grow meanwhile.
   */
  nextSlot(): Uint8Array | undefined
  /** The first `count` bytes of the slot given last are the next bytes of the stream. The slot belongs to the caller again. */
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
 * How bytes are read: `onread` lets the kernel write into the slots, `data` copies them out of Node's buffers. The second
 * is there for a Node whose private field has gone (see {@link takeHandle}), and for tests.
 */
export type ReadMode = 'onread' | 'data'

/**
 * Bytes that a connection reads before it asks for a slot, so that an idle connection holds none, and so that a pause needs
 * no slot either: Node fixes where the next bytes land before it is known whether there are any. They are copied.
 */
const BRIDGE_BYTES = 4096

/** Node's 'data' events bring at most this much at once; a full one means that more is likely. */
const DATA_CHUNK_BYTES = 65536

/**
 * A QEMU that is silent for hours is healthy (a preempt channel, a destination that loads devices), a host that has gone
 * must be found all the same. Libuv's own 10 probes a second apart would break a connection over a switch that restarts.
 */
const KEEP_ALIVE = { enable: true, initialDelay: 120_000, interval: 30_000, count: 10 }

/** Errors by which a peer's disappearance shows. */
const PEER_GONE = new Set(['ECONNRESET', 'EPIPE', 'ENOTCONN', 'ECONNABORTED'])

/** The part of net.Socket that Node does not document. */
interface WithHandle {
  _handle: { reading: boolean } | null
}

/**
 * Takes the kernel's socket out of an accepted net.Socket, because net.createServer cannot pass `onread` on and only the
 * constructor takes it. Private to Node (20 to 26 have it), so it stands here alone: undefined where it is not as expected,
 * and the connection is then read by 'data' events.
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
 * A net.Socket whose reading survives a failed write. Node destroys a socket at the first EPIPE, and with it bytes that the
 * peer sent before it went: the destination's SHUT may be among them, and without it the source resumes a guest that
 * already runs at the destination (docs: wire format, 1.5 and 1.6). So the failure is kept, and reading goes on to its end.
 */
class DrainingSocket extends net.Socket {
  writeError: NodeJS.ErrnoException | undefined

  override _write(chunk: unknown, encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    if (this.writeError) callback()
    else super._write(chunk, encoding, error => callback(this.keep(error)))
  }

  override _writev(
    chunks: { chunk: unknown; encoding: BufferEncoding }[],
    callback: (error?: Error | null) => void,
  ): void {
    if (this.writeError) callback()
    else super._writev?.(chunks, error => callback(this.keep(error)))
  }

  private keep(error: NodeJS.ErrnoException | null | undefined): Error | null | undefined {
    if (!error || this.destroyed || !PEER_GONE.has(error.code ?? '')) return error
    this.writeError = error
    return null
  }
}

/** One connection of QEMU. Made by {@link acceptQemuSocket} or {@link connectQemuSocket}; silent until {@link QemuSocket.start}. */
export class QemuSocket {
  /** How its bytes are read. */
  readonly readMode: ReadMode
  /** Bytes that went to the sink. */
  bytesRead = 0
  /** Bytes of writes that the kernel has taken whole. */
  bytesWritten = 0
  /** Bytes handed to {@link write} that the kernel has not taken yet: back-pressure. */
  pendingWriteBytes = 0

  private readonly socket: net.Socket
  private sink: SocketSink | undefined
  private readonly bridge: Uint8Array
  /** The slot that is being filled, and how far. */
  private slot: Uint8Array | undefined
  private filled = 0
  /** The rest of `slot`, where it is what the kernel writes to next; undefined means the bridge. */
  private room: Uint8Array | undefined
  /** Bytes that arrived while there was no slot for them. Reading is stopped as long as there are any. */
  private held: Uint8Array | undefined
  private flushing: NodeJS.Immediate | undefined
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
      target: () => this.room ?? this.bridge,
      landed: count => this.landed(count),
    })
    const socket = this.socket
    socket.pause()
    socket.on('end', () => this.onEnd())
    socket.on('error', error => {
      this.error ??= error
    })
    socket.on('close', () => this.onClose())
    if (readMode === 'data') {
      socket.on('data', (chunk: Buffer) => {
        if (!this.take(chunk, chunk.length === DATA_CHUNK_BYTES ? 1 : 0)) socket.pause()
      })
      socket.pause() // listening for 'data' set it flowing
    }
  }

  /** The other end, for logs: `127.0.0.1:53124`; empty for a Unix socket. */
  get peer(): string {
    const { remoteAddress, remotePort } = this.socket
    if (remoteAddress === undefined) return ''
    return remoteAddress.includes(':') ? `[${remoteAddress}]:${remotePort}` : `${remoteAddress}:${remotePort}`
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

  /** The write that failed because the peer had gone, while reading goes on to its end. */
  get writeError(): NodeJS.ErrnoException | undefined {
    return this.socket instanceof DrainingSocket ? this.socket.writeError : undefined
  }

  /** Starts to read. What happened to the connection before is reported now: bytes first. */
  start(sink: SocketSink): void {
    if (this.sink) throw new Error('the connection was started before')
    this.sink = sink
    const closed = this.closed
    if (closed) process.nextTick(() => sink.onClosed(closed))
    else this.socket.resume()
  }

  /** There are slots again. Bytes that waited are delivered from inside this call. */
  resume(): void {
    const held = this.held
    if (!held || this.closed) return
    this.held = undefined
    // Held bytes that fill the bridge to its end: more may well be there, so the slot is kept open for it. The socket takes
    // part in the poll of the next turn of the event loop, not in that of this one.
    const more = this.readMode === 'onread' && held.byteOffset + held.length === BRIDGE_BYTES
    if (this.take(held, more ? 2 : 0) && !this.socket.destroyed) this.socket.resume()
  }

  /**
   * Sends bytes, in order. The memory is lent until `done`, which is called once in every case, never from inside this call,
   * and in the order of the writes.
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
   * Ends the connection now: RST, and what was not delivered is lost. A Unix socket knows no RST: its peer sees the end of
   * the stream, or ECONNRESET where bytes of its own were still unread.
   */
  reset(): void {
    if (this.resetting || this.closed) return
    this.resetting = true
    const socket = this.socket
    // In the instant between FIN asked and FIN sent libuv refuses to reset and would leak the descriptor; it lasts one turn of the loop.
    if (socket.writableEnded && !socket.writableFinished && socket.writableLength === 0 && !socket.destroyed) {
      socket.once('finish', () => this.resetNow())
    } else this.resetNow()
  }

  private resetNow(): void {
    const socket = this.socket
    if (socket.destroyed) return
    if (socket.connecting)
      socket.destroy() // resetAndDestroy would wait for the connection first
    else {
      try {
        socket.resetAndDestroy()
      } catch {
        socket.destroy() // a Unix socket
      }
    }
  }

  /** `count` bytes were written to where `target` had said. */
  private landed(count: number): boolean {
    const room = this.room
    if (!room) return this.take(this.bridge.subarray(0, count), count === BRIDGE_BYTES ? 1 : 0)
    this.filled += count
    this.room = undefined
    const full = count === room.length
    this.deliver()
    if (full && this.sink && !this.resetting) {
      // More is likely, so the next read goes to a slot at once; without one the bridge takes it and pauses.
      this.slot = this.sink.nextSlot()
      this.room = this.slot
    }
    return true
  }

  /**
   * Copies bytes into slots. Where others are likely to follow at once, the last slot is not delivered yet, but its rest is
   * offered to the next read; `patience` turns of the event loop later it is delivered in any case.
   * @returns false where slots ran out: the rest is held
   */
  private take(bytes: Uint8Array, patience: 0 | 1 | 2): boolean {
    let at = 0
    while (at < bytes.length) {
      if (!this.slot) {
        this.filled = 0
        this.slot = this.sink?.nextSlot()
        if (!this.slot) {
          this.held = bytes.subarray(at)
          return false
        }
      }
      const slot = this.slot
      const count = Math.min(bytes.length - at, slot.length - this.filled)
      if (at === 0 && count === bytes.length) slot.set(bytes, this.filled)
      else slot.set(bytes.subarray(at, at + count), this.filled)
      at += count
      this.filled += count
      if (this.filled === slot.length) this.deliver()
      if (this.resetting) return false
    }
    if (!this.slot || this.filled === 0) return true
    if (patience === 0) this.deliver()
    else {
      if (this.readMode === 'onread') this.room = this.slot.subarray(this.filled)
      if (!this.flushing) this.flushAfter(patience)
    }
    return true
  }

  private flushAfter(turns: number): void {
    this.flushing = setImmediate(() => {
      this.flushing = undefined
      if (this.filled === 0) return
      if (turns > 1) this.flushAfter(turns - 1)
      else this.deliver()
    })
  }

  /** Hands the filled part of the slot to the sink. */
  private deliver(): void {
    const count = this.filled
    this.slot = undefined
    this.room = undefined
    this.filled = 0
    this.bytesRead += count
    this.sink?.onBytes(count)
  }

  private onEnd(): void {
    if (this.resetting) return
    if (this.filled > 0) this.deliver()
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
    if (this.flushing) clearImmediate(this.flushing)
    if (this.filled > 0 && !this.resetting) this.deliver()
    const error = this.error ?? this.writeError
    this.slot = undefined
    this.room = undefined
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
 * Makes a QemuSocket of a connection that a net.Server has accepted with `pauseOnConnect` and `allowHalfOpen`. The net.Socket is
 * not to be used any more.
 */
export function acceptQemuSocket(accepted: net.Socket, readMode: ReadMode = 'onread'): QemuSocket {
  const handle = readMode === 'onread' ? takeHandle(accepted) : undefined
  if (!handle) return new QemuSocket('data', () => tune(accepted))
  return new QemuSocket('onread', intake => {
    const options = { handle, allowHalfOpen: true, manualStart: true, onread: onreadOption(intake) }
    return tune(new DrainingSocket(options as net.SocketConstructorOpts))
  })
}

/**
 * Starts to connect; the caller waits for `connected` or `failed`, of which exactly one is called. No name is looked up and
 * no second address is tried.
 */
export function connectQemuSocket(
  where: { host: string; port: number; localAddress?: string } | { path: string },
  connected: () => void,
  failed: (error: NodeJS.ErrnoException) => void,
  readMode: ReadMode = 'onread',
): QemuSocket {
  return new QemuSocket(readMode, intake => {
    const options = readMode === 'onread' ? { onread: onreadOption(intake) } : {}
    const socket = new DrainingSocket({ ...options, allowHalfOpen: true } as net.SocketConstructorOpts)
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
