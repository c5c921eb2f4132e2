/** A client of QMP, QEMU's machine protocol: JSON lines over a unix socket. QEMU docs/interop/qmp-spec.rst. */
import { EventEmitter } from 'node:events'
import { connect } from 'node:net'
import type { Duplex } from 'node:stream'

/** No answer of QEMU is near this long; a socket that is not QMP must not fill the memory. */
const LINE_MAX = 16 << 20

/** QEMU refused a command. */
export class QmpError extends Error {
  readonly command: string
  /** QEMU's error class, as `GenericError` or `CommandNotFound`. */
  readonly errorClass: string

  constructor(command: string, errorClass: string, description: string) {
    super(`${command}: ${description} (${errorClass})`)
    this.name = 'QmpError'
    this.command = command
    this.errorClass = errorClass
  }
}

/** The QMP connection ended, or nothing came in time. */
export class QmpConnectionError extends Error {
  override name = 'QmpConnectionError'
}

/** Something that QEMU reported of its own accord. */
export interface QmpEvent {
  /** As `STOP`, `RESUME`, `SHUTDOWN`, `MIGRATION`. */
  readonly event: string
  readonly data: Record<string, unknown>
  /** Milliseconds of this process's performance.now() when it was read. */
  readonly atMs: number
}

interface Pending {
  readonly command: string
  readonly resolve: (value: unknown) => void
  readonly reject: (error: Error) => void
}

interface Answer {
  readonly QMP?: { readonly version: { readonly qemu: { major: number; minor: number; micro: number } } }
  readonly id?: number
  readonly return?: unknown
  readonly error?: { readonly class: string; readonly desc: string }
  readonly event?: string
  readonly data?: Record<string, unknown>
}

/** One QMP connection, ready for commands. Emits `event` with a QmpEvent, and `close`. */
export class QmpClient extends EventEmitter<{ event: [QmpEvent]; close: [] }> {
  /** Every event so far, in order. */
  readonly events: QmpEvent[] = []
  /** The version that QEMU greeted with, as `7.2.22`. */
  version = ''
  private readonly socket: Duplex
  private readonly pending = new Map<number, Pending>()
  private nextId = 1
  private text = ''
  private closed = false
  private greet: (() => void) | undefined

  private constructor(socket: Duplex) {
    super()
    this.setMaxListeners(0)
    this.socket = socket
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => this.receive(text))
    socket.on('error', () => {}) // close follows
    socket.on('close', () => this.end())
  }

  /**
   * Takes a connected socket, or QEMU's standard input and output, through greeting and capability negotiation.
   * @throws QmpConnectionError when QEMU does not greet within `timeoutMs`
   */
  static async open(socket: Duplex, timeoutMs = 10_000): Promise<QmpClient> {
    const client = new QmpClient(socket)
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new QmpConnectionError('QEMU did not greet')), timeoutMs)
      client.greet = () => {
        clearTimeout(timer)
        resolve()
      }
      client.once('close', () => {
        clearTimeout(timer)
        reject(new QmpConnectionError('QEMU closed QMP before it greeted'))
      })
    })
    await client.execute('qmp_capabilities')
    return client
  }

  /** Connects to QEMU's `-qmp unix:PATH,server=on` and opens the connection. */
  static async connect(path: string, timeoutMs = 10_000): Promise<QmpClient> {
    const socket = connect(path)
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', error => reject(new QmpConnectionError(`${path}: ${error.message}`)))
    })
    return QmpClient.open(socket, timeoutMs)
  }

  /**
   * Has QEMU carry out one command.
   * @returns what QEMU returned
   * @throws QmpError when QEMU refuses, QmpConnectionError when the connection ends first
   */
  execute<T = unknown>(command: string, args?: Record<string, unknown>): Promise<T> {
    if (this.closed) return Promise.reject(new QmpConnectionError(`${command}: QMP is closed`))
    const id = this.nextId++
    return new Promise<T>((resolve, reject) => {
      this.pending.set(id, { command, resolve: resolve as (value: unknown) => void, reject })
      this.socket.write(
        `${JSON.stringify(args ? { execute: command, arguments: args, id } : { execute: command, id })}\n`,
      )
    })
  }

  /**
   * The next event that `match` accepts, or the first one of those from index `from` of `events` on.
   * @throws QmpConnectionError after `timeoutMs`, or when the connection ends
   */
  waitEvent(
    match: string | ((event: QmpEvent) => boolean),
    timeoutMs = 30_000,
    from = this.events.length,
  ): Promise<QmpEvent> {
    const accept = typeof match === 'string' ? (event: QmpEvent) => event.event === match : match
    const past = this.events.slice(from).find(accept)
    if (past) return Promise.resolve(past)
    return new Promise((resolve, reject) => {
      const settle = (then: () => void) => {
        clearTimeout(timer)
        this.off('event', onEvent)
        this.off('close', onClose)
        then()
      }
      const onEvent = (event: QmpEvent) => {
        if (accept(event)) settle(() => resolve(event))
      }
      const onClose = () => settle(() => reject(new QmpConnectionError('QMP closed before the event')))
      const timer = setTimeout(() => settle(() => reject(new QmpConnectionError('the event did not come'))), timeoutMs)
      this.on('event', onEvent)
      this.on('close', onClose)
    })
  }

  /** Ends the connection; QEMU goes on. */
  close(): void {
    this.socket.destroy()
  }

  private receive(text: string): void {
    this.text += text
    if (this.text.length > LINE_MAX) this.socket.destroy()
    for (let end = this.text.indexOf('\n'); end >= 0; end = this.text.indexOf('\n')) {
      const line = this.text.slice(0, end)
      this.text = this.text.slice(end + 1)
      if (line.trim() !== '') this.answer(JSON.parse(line) as Answer)
    }
  }

  private answer(answer: Answer): void {
    if (answer.QMP) {
      const { major, minor, micro } = answer.QMP.version.qemu
      this.version = `${major}.${minor}.${micro}`
      this.greet?.()
    } else if (answer.event !== undefined) {
      const event = { event: answer.event, data: answer.data ?? {}, atMs: performance.now() }
      this.events.push(event)
      this.emit('event', event)
    } else if (answer.id !== undefined) {
      const pending = this.pending.get(answer.id)
      this.pending.delete(answer.id)
      if (answer.error) pending?.reject(new QmpError(pending.command, answer.error.class, answer.error.desc))
      else pending?.resolve(answer.return)
    }
  }

  private end(): void {
    this.closed = true
    for (const { command, reject } of this.pending.values()) {
      reject(new QmpConnectionError(`${command}: QMP closed before the answer`))
    }
    this.pending.clear()
    this.emit('close')
  }
}
