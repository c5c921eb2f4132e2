/** A client of QMP, QEMU's machine protocol: JSON lines over a unix socket. QEMU docs/interop/qmp-spec.rst. */
import { EventEmitter } from 'node:events'
import { connect } from 'node:net'
import type { Duplex } from 'node:stream'

/** No answer of QEMU is near this long; a socket that is not QMP must not fill the memory. */
const LINE_CHARS_MAX = 4 << 20

/** Characters that may come while a command waits for its answer, where it does not wait for ever: events, as a rule none. */
const UNASKED_CHARS_MAX = 16 << 20

/** QEMU answers at once, but for moments in which its main loop waits for a disk or a migration's end. */
const ANSWER_MS = 10_000

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

/** The QMP connection ended, nothing came in time, or what came is not QMP. */
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

/** An object of JSON, of which nothing else is known. */
type Fields = Readonly<Record<string, unknown>>

/** How a connection is used. */
export interface QmpOptions {
  /** False: events are told and forgotten, for whoever asks a QEMU that is not ours. */
  readonly keepsEvents?: boolean
  /** A command that is not answered for so long fails, and the connection ends with it; without it, it waits for ever. */
  readonly answerMs?: number
}

/** One QMP connection, ready for commands. Emits `event` with a QmpEvent, and `close`. */
export class QmpClient extends EventEmitter<{ event: [QmpEvent]; close: [] }> {
  /** Every event so far, in order, where they are kept. */
  readonly events: QmpEvent[] = []
  /** The version that QEMU greeted with, as `7.2.22`. */
  version = ''
  private readonly socket: Duplex
  private readonly pending = new Map<number, Pending>()
  private nextId = 1
  private text = ''
  /** Characters since the last answer. */
  private unasked = 0
  private closed = false
  /** Why the connection ended, where it was us. */
  private failure: QmpConnectionError | undefined
  private greet: (() => void) | undefined
  private readonly keepsEvents: boolean
  private readonly answerMs: number | undefined

  private constructor(socket: Duplex, { keepsEvents = true, answerMs }: QmpOptions) {
    super()
    this.setMaxListeners(0)
    this.socket = socket
    this.keepsEvents = keepsEvents
    this.answerMs = answerMs
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => this.receive(text))
    socket.on('error', () => {}) // close follows
    socket.on('close', () => this.end())
  }

  /**
   * Takes a connected socket, or QEMU's standard input and output, through greeting and capability negotiation.
   * @throws QmpConnectionError when QEMU does not greet within `timeoutMs`
   */
  static async open(socket: Duplex, timeoutMs = ANSWER_MS, options: QmpOptions = {}): Promise<QmpClient> {
    const client = new QmpClient(socket, options)
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => client.fail(`QEMU did not greet for ${timeoutMs / 1000} s`), timeoutMs)
      client.greet = () => {
        clearTimeout(timer)
        resolve()
      }
      client.once('close', () => {
        clearTimeout(timer)
        reject(client.failure ?? new QmpConnectionError('QEMU closed QMP before it greeted'))
      })
    })
    try {
      await client.execute('qmp_capabilities')
    } catch (error) {
      client.close() // nobody else has it
      throw error
    }
    return client
  }

  /** Connects to QEMU's `-qmp unix:PATH,server=on` and opens the connection. @throws QmpConnectionError */
  static async connect(path: string, timeoutMs = ANSWER_MS, options: QmpOptions = {}): Promise<QmpClient> {
    const socket = connect(path)
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', error => reject(new QmpConnectionError(error.message)))
    })
    return QmpClient.open(socket, timeoutMs, options)
  }

  /**
   * Has QEMU carry out one command.
   * @param answerMs in place of what the connection was opened with, for one that QEMU may be slow with
   * @returns what QEMU returned
   * @throws QmpError when QEMU refuses, QmpConnectionError when the connection ends first
   */
  execute<T = unknown>(command: string, args?: Record<string, unknown>, answerMs = this.answerMs): Promise<T> {
    if (this.closed) {
      return Promise.reject(new QmpConnectionError(`${command}: ${this.failure?.message ?? 'QMP is closed'}`))
    }
    const id = this.nextId++
    return new Promise<T>((resolve, reject) => {
      const late = (): void => this.fail(`${command}: no answer for ${answerMs! / 1000} s`)
      const timer = answerMs === undefined ? undefined : setTimeout(late, answerMs)
      const settle =
        <V>(then: (value: V) => void) =>
        (value: V): void => {
          clearTimeout(timer)
          then(value)
        }
      this.pending.set(id, { command, resolve: settle(resolve as (value: unknown) => void), reject: settle(reject) })
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
    const lines = (this.text + text).split('\n')
    this.text = lines.pop()!
    for (const line of lines) {
      if (this.closed || this.failure) return
      if (line.trim() !== '') this.answer(line)
    }
    this.unasked += text.length
    if (this.answerMs !== undefined && this.unasked > UNASKED_CHARS_MAX)
      this.fail(`more than ${UNASKED_CHARS_MAX} characters without an answer`)
    if (this.text.length > LINE_CHARS_MAX) this.fail(`a line of more than ${LINE_CHARS_MAX} characters: not QMP`)
  }

  private answer(line: string): void {
    let answer: Fields | undefined
    try {
      answer = fieldsOf(JSON.parse(line))
    } catch {
      // told below
    }
    if (!answer) {
      const isHuman = line.includes('QEMU') && line.includes('monitor')
      this.fail(
        isHuman ? 'this is the human monitor, not QMP' : `not QMP: it says ${JSON.stringify(line.slice(0, 60))}`,
      )
    } else if (answer.QMP !== undefined) {
      const qemu = fieldsOf(fieldsOf(fieldsOf(answer.QMP)?.version)?.qemu)
      const numbers = [qemu?.major, qemu?.minor, qemu?.micro]
      if (!numbers.every(Number.isSafeInteger)) this.fail('a greeting without a version of QEMU')
      this.version = numbers.join('.')
      if (!this.failure) this.greet?.()
    } else if (typeof answer.event === 'string') {
      const event = { event: answer.event, data: fieldsOf(answer.data) ?? {}, atMs: performance.now() }
      if (this.keepsEvents) this.events.push(event)
      this.emit('event', event)
    } else if (typeof answer.id === 'number') {
      const pending = this.pending.get(answer.id)
      this.unasked = 0
      this.pending.delete(answer.id)
      const error = fieldsOf(answer.error)
      if (error) pending?.reject(new QmpError(pending.command, String(error.class), String(error.desc)))
      else pending?.resolve(answer.return)
    }
  }

  /** Ends the connection: whoever waits is told why. */
  private fail(why: string): void {
    this.failure ??= new QmpConnectionError(why)
    this.socket.destroy()
  }

  private end(): void {
    this.closed = true
    for (const { command, reject } of this.pending.values()) {
      reject(this.failure ?? new QmpConnectionError(`${command}: QMP closed before the answer`))
    }
    this.pending.clear()
    this.emit('close')
  }
}

/** A value as an object of JSON. @returns undefined where it is none */
function fieldsOf(value: unknown): Fields | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Fields) : undefined
}
