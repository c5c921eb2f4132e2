/**
 * Connections between a QEMU and a proxy on its host, in virtual time. The proxy's end looks like QemuSocket and behaves
 * as its documents say: it keeps the slot it was given until bytes come, holds what it has no slot for, calls `done` when
 * the kernel has taken the bytes, reads on after a failed write.
 */
import type { Random } from '../../scripts/harness/random.ts'
import type { QemuSocket, SocketClosed, SocketSink, WriteDone } from '../../src/relay/qemu-socket.ts'
import type { Process, VirtualTime } from '../helpers/virtual-time.ts'

/** Bytes that a host's kernel holds of one direction. */
const KERNEL_BYTES = 64 * 1024
const BRIDGE_BYTES = 4096

/** What a QEMU sees of its end. */
export interface QemuSink {
  onBytes(bytes: Uint8Array): void
  onFin(): void
  onReset(): void
}

interface Write {
  readonly view: Uint8Array
  readonly done: WriteDone
  at: number
}

function failure(code: string): NodeJS.ErrnoException {
  return Object.assign(new Error(code), { code })
}

export class LocalConnection {
  readonly proxy: ProxyEnd
  readonly qemu: QemuEnd
  readonly time: VirtualTime
  readonly random: Random

  constructor(time: VirtualTime, random: Random, process: Process, peer: string) {
    this.time = time
    this.random = random
    this.proxy = new ProxyEnd(this, process, peer)
    this.qemu = new QemuEnd(this)
  }

  /** The proxy's end, as its code has it. */
  get socket(): QemuSocket {
    return this.proxy as unknown as QemuSocket
  }
}

/** QEMU's end. */
export class QemuEnd {
  sink: QemuSink | undefined
  /** Handed to the kernel, not yet read by the proxy. */
  outbox: Uint8Array[] = []
  outboxBytes = 0
  /** The proxy has been given so many of its bytes. */
  readBytes = 0
  finOut = false
  /** This end is closed: what still comes for it is answered with RST. */
  gone = false
  /** RST was sent, or came. */
  broken = false
  /** The proxy's process died: what was under way is lost, and the kernel ends it as it will. */
  orphaned = false
  /** Came from the proxy, and was not read. */
  unread: Uint8Array[] = []
  unreadBytes = 0
  private finIn = false
  private readDue = false
  private pausedUntilMs = 0
  private readonly link: LocalConnection

  constructor(link: LocalConnection) {
    this.link = link
  }

  /** Bytes that the kernel would take now. */
  get room(): number {
    return this.gone || this.broken || this.finOut ? 0 : KERNEL_BYTES - this.outboxBytes
  }

  write(bytes: Uint8Array): void {
    if (this.gone || this.broken || this.finOut || bytes.length === 0) return
    this.outbox.push(bytes)
    this.outboxBytes += bytes.length
    this.link.proxy.readSoon()
  }

  /** QEMU reads nothing for a while. */
  pause(ms: number): void {
    this.pausedUntilMs = this.link.time.nowMs + ms
  }

  /** Closes the file: FIN behind what was written, or RST where bytes were not read. */
  close(): void {
    if (this.gone || this.broken) return
    this.gone = true
    if (this.unreadBytes > 0) {
      this.rst()
      return
    }
    this.finOut = true
    this.link.proxy.readSoon()
  }

  /** Sends no more, and reads on. */
  shutdown(): void {
    if (this.gone || this.broken) return
    this.finOut = true
    this.link.proxy.readSoon()
  }

  /** RST: what the proxy has not read is lost, or not, by chance. */
  rst(): void {
    if (this.broken) return
    this.gone = true
    this.broken = true
    if (this.link.random.chance(0.5)) {
      this.outbox = []
      this.outboxBytes = 0
    }
    this.link.proxy.readSoon()
    this.link.proxy.writeSoon()
  }

  /** The proxy's kernel delivers. */
  arrive(bytes: Uint8Array): void {
    if (this.gone) {
      this.rst()
      return
    }
    this.unread.push(bytes)
    this.unreadBytes += bytes.length
    this.readSoon()
  }

  arriveFin(): void {
    this.finIn = true
    this.readSoon()
  }

  /** RST of the proxy, or of its kernel. */
  arriveReset(): void {
    const told = this.gone || this.broken
    this.broken = true
    this.outbox = []
    this.outboxBytes = 0
    if (!told) this.link.time.afterAs(undefined, this.link.random.next(), () => this.sink?.onReset())
  }

  /** The process at the other end is gone: what is still sent there meets a RST. */
  outboxGone(): void {
    this.finOut = true
  }

  private readSoon(): void {
    if (this.readDue) return
    this.readDue = true
    const { time, random } = this.link
    const wait = Math.max(0, this.pausedUntilMs - time.nowMs) + random.next() * 0.2
    time.afterAs(undefined, wait, () => {
      this.readDue = false
      this.read()
    })
  }

  private read(): void {
    if (this.gone || this.broken) return
    if (this.pausedUntilMs > this.link.time.nowMs) {
      this.readSoon()
      return
    }
    const first = this.unread.shift()
    if (first) {
      this.unreadBytes -= first.length
      this.link.proxy.writeSoon()
      this.sink?.onBytes(first)
      if (this.unread.length > 0 || this.finIn) this.readSoon()
    } else if (this.finIn) {
      this.finIn = false
      this.sink?.onFin()
    }
  }
}

/** The proxy's end: QemuSocket, as far as the halves use it. */
export class ProxyEnd {
  readonly peer: string
  private readonly link: LocalConnection
  private readonly process: Process
  private sink: SocketSink | undefined
  private slot: Uint8Array | undefined
  private held: Uint8Array | undefined
  private ended = false
  private finishing = false
  private finSent = false
  private resetting = false
  private closed: SocketClosed | undefined
  private writes: Write[] = []
  private writeError: NodeJS.ErrnoException | undefined
  private readDue = false
  private writeDue = false

  constructor(link: LocalConnection, process: Process, peer: string) {
    this.link = link
    this.process = process
    this.peer = peer
  }

  get isClosed(): boolean {
    return this.closed !== undefined
  }

  start(sink: SocketSink): void {
    this.sink = sink
    const { closed } = this
    if (closed) this.soon(() => sink.onClosed(closed))
    else this.readSoon()
  }

  resume(): void {
    const { held } = this
    if (!held || this.closed) return
    this.held = undefined
    if (this.take(held)) this.readSoon()
  }

  write(view: Uint8Array, done: WriteDone): void {
    const refused =
      this.writeError ?? (this.finishing || this.resetting || this.closed !== undefined ? failure('EPIPE') : undefined)
    if (refused) this.soon(() => done(refused))
    else {
      this.writes.push({ view, done, at: 0 })
      this.writeSoon()
    }
  }

  finish(): void {
    if (this.finishing || this.resetting) return
    this.finishing = true
    this.writeSoon()
  }

  reset(): void {
    if (this.resetting || this.closed) return
    this.resetting = true
    this.link.qemu.arriveReset()
    this.soon(() => this.close({ how: 'local' }))
  }

  /** The process is gone: its kernel closes the connection. */
  die(): void {
    if (this.closed || this.resetting) return
    this.closed = { how: 'local' }
    const { qemu } = this.link
    qemu.orphaned = true
    if (qemu.outboxBytes > 0 || this.writes.length > 0) qemu.arriveReset()
    else {
      qemu.arriveFin()
      qemu.outboxGone()
    }
  }

  readSoon(): void {
    if (this.readDue) return
    this.readDue = true
    this.soon(() => {
      this.readDue = false
      this.read()
    })
  }

  writeSoon(): void {
    if (this.writeDue) return
    this.writeDue = true
    this.soon(() => {
      this.writeDue = false
      this.writeSome()
    })
  }

  private soon(run: () => void): void {
    const { time, random } = this.link
    time.afterAs(this.process, random.next() * 0.1, run)
  }

  private read(): void {
    if (!this.sink || this.resetting || this.closed || this.held || this.ended) return
    const { qemu, random } = this.link
    const [first] = qemu.outbox
    if (first) {
      const count = Math.min(first.length, this.slot?.length ?? BRIDGE_BYTES, random.pick([1, 100, 5000, 65536]))
      const bytes = first.subarray(0, count)
      if (count === first.length) qemu.outbox.shift()
      else qemu.outbox[0] = first.subarray(count)
      qemu.outboxBytes -= count
      if (this.slot) {
        this.slot.set(bytes)
        this.slot = undefined
        qemu.readBytes += count
        this.sink.onBytes(count)
      } else if (!this.take(bytes)) return
      if (!this.resetting) this.slot = this.askSlot()
      this.readSoon()
    } else if (qemu.broken) this.close({ how: 'reset', error: failure('ECONNRESET') })
    else if (qemu.finOut) this.end()
  }

  private end(): void {
    this.slot = undefined
    const failed = this.writeError
    if (failed && failed.code !== 'EPIPE') {
      this.close({ how: 'reset', error: failed })
      return
    }
    this.ended = true
    this.sink!.onEnd()
    if (failed) this.close({ how: 'reset', error: failed })
    else if (this.finSent) this.close({ how: 'finished' })
  }

  private askSlot(): Uint8Array | undefined {
    const slot = this.sink?.nextSlot()
    return slot && slot.length > 0 ? slot : undefined
  }

  private take(bytes: Uint8Array): boolean {
    let at = 0
    while (at < bytes.length) {
      if (this.resetting || this.closed) return false
      const slot = this.askSlot()
      if (!slot) {
        this.held = bytes.subarray(at)
        return false
      }
      const count = Math.min(bytes.length - at, slot.length)
      slot.set(bytes.subarray(at, at + count))
      at += count
      this.link.qemu.readBytes += count
      this.sink!.onBytes(count)
    }
    return true
  }

  private writeSome(): void {
    if (this.closed || this.resetting) return
    const { qemu, random } = this.link
    if (qemu.broken && !this.writeError && this.writes.length > 0)
      this.writeError = failure(random.pick(['EPIPE', 'ECONNRESET']))
    if (this.writeError) {
      const failed = this.writeError
      for (const { done } of this.writes.splice(0)) done(failed)
      if (this.ended) this.close({ how: 'reset', error: failed })
      else this.readSoon()
      return
    }
    const [write] = this.writes
    if (write) {
      const room = KERNEL_BYTES - qemu.unreadBytes
      const count = Math.min(room, write.view.length - write.at)
      if (count > 0) {
        qemu.arrive(write.view.slice(write.at, write.at + count))
        write.at += count
      }
      if (write.at === write.view.length) {
        this.writes.shift()
        write.done()
        if (this.writes.length > 0 || this.finishing) this.writeSoon()
      }
    } else if (this.finishing && !this.finSent) {
      this.finSent = true
      qemu.arriveFin()
      if (this.ended) this.close({ how: 'finished' })
    }
  }

  private close(closed: SocketClosed): void {
    if (this.closed) return
    this.closed = closed
    this.slot = undefined
    this.held = undefined
    const lost = closed.error ?? failure('EPIPE')
    if (closed.how !== 'finished' && closed.how !== 'local') this.link.qemu.arriveReset()
    for (const { done } of this.writes.splice(0)) done(lost)
    this.sink?.onClosed(closed)
  }
}
