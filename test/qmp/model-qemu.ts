/**
 * A QEMU as its QMP shows it, without a guest: settings that are kept, a migration that goes its way by as many questions
 * as are asked, and what a test has it do wrong. Both sides of a migration are one each, and know each other.
 */
import net from 'node:net'

/** What it says to a command. */
export type Reaction =
  | { readonly return: unknown }
  | { readonly error: string }
  /** Nothing, for ever; the connection ends; these characters as they are. */
  | 'silent'
  | 'close'
  | { readonly raw: string }

type Fields = Record<string, unknown>

export interface ModelOptions {
  readonly version?: '7.2.22' | '10.0.13'
  /** It runs its guest by itself. */
  readonly isTcg?: boolean
  readonly capabilities?: Readonly<Record<string, boolean>>
  readonly parameters?: Readonly<Fields>
  /** It waits for a guest: `defer`, or it listens already. */
  readonly incoming?: 'defer' | 'listens'
  /** Where, in its own words. */
  readonly listensAt?: readonly unknown[]
  /** What each question in turn is told of a migration that runs; the last one for ever. */
  readonly course?: readonly (string | Fields)[]
  /** Mirrors that it has, by name: how many looks each takes to end, and with which error. */
  readonly mirrors?: Readonly<
    Record<string, { readonly looks?: number; readonly error?: string; readonly isReady?: boolean }>
  >
  /** The same from the switch to postcopy on. */
  readonly postcopy?: readonly (string | Fields)[]
  /** What it does in place of what QEMU does. @param count how often the command came before */
  readonly instead?: (command: string, count: number, args: Fields) => Reaction | undefined
}

const CAPABILITIES = {
  ...{ 'return-path': false, events: false, 'auto-converge': false, multifd: false, xbzrle: false },
  ...{ 'postcopy-ram': false, 'pause-before-switchover': false },
}
const PARAMETERS = {
  ...{ 'max-bandwidth': 128 << 20, 'downtime-limit': 300, 'multifd-channels': 2, 'tls-creds': '' },
  ...{ 'multifd-compression': 'none', 'cpu-throttle-initial': 20, 'cpu-throttle-increment': 10 },
}
/** Parameters that 7.2 does not have. */
const LATER = { 'avail-switchover-bandwidth': 0 }

/** An address as QEMU tells it. */
export const inet = (host: string, port: number): Fields => ({ type: 'inet', host, port: String(port) })

const pass = (status: string, pass: number, remaining: number): Fields => ({
  status,
  'total-time': 1000 * pass,
  ram: { total: 1 << 30, remaining, transferred: (1 << 30) - remaining, 'dirty-sync-count': pass, mbps: 800 },
})
/** A migration of three passes that completes. */
export const COMPLETES: readonly Fields[] = [
  { status: 'setup' },
  pass('active', 1, 900 << 20),
  pass('active', 1, 300 << 20),
  pass('active', 2, 50 << 20),
  pass('active', 3, 5 << 20),
  pass('device', 3, 0),
  { ...pass('completed', 3, 0), downtime: 42 },
]
/** One that never ends by itself. */
export const GOES_ON: readonly Fields[] = [
  { status: 'setup' },
  pass('active', 1, 900 << 20),
  pass('active', 2, 800 << 20),
]

const POSTCOPY = ['active', 'postcopy-active', 'postcopy-active', { ...pass('completed', 3, 0), downtime: 9 }]

/** One QEMU. */
export class ModelQemu {
  readonly options: ModelOptions
  readonly capabilities: Record<string, boolean>
  readonly parameters: Fields
  state: string
  listens: boolean
  /** Of a migration of its own: it looks so many more times as `course` says. */
  course: readonly (string | Fields)[] | undefined
  /** The other side of its migration: gets the guest. */
  destination: ModelQemu | undefined
  /** Every command, with its arguments. */
  readonly log: string[] = []
  private readonly counts = new Map<string, number>()
  private looks = 0
  /** What it has said by itself, and nobody has heard. */
  events: { readonly event: string; readonly data: Fields }[] = []
  readonly mirrors: Set<string>
  private readonly ending = new Map<string, number>()
  /** Its server of disks. */
  stopped = false

  constructor(options: ModelOptions = {}) {
    this.options = options
    this.mirrors = new Set(Object.keys(options.mirrors ?? {}))
    this.capabilities = { ...CAPABILITIES, ...options.capabilities }
    this.parameters = { ...PARAMETERS, ...(options.version !== '7.2.22' && LATER), ...options.parameters }
    this.state = options.incoming === undefined ? 'running' : 'inmigrate'
    this.listens = options.incoming === 'listens'
  }

  get version(): string {
    return this.options.version ?? '10.0.13'
  }

  /** All settings, as a value to compare. */
  get settings(): Fields {
    return { ...this.capabilities, ...this.parameters }
  }

  answer(command: string, args: Fields = {}): Reaction {
    const count = this.counts.get(command) ?? 0
    this.counts.set(command, count + 1)
    this.log.push(Object.keys(args).length > 0 ? `${command} ${JSON.stringify(args)}` : command)
    return this.options.instead?.(command, count, args) ?? this.react(command, args)
  }

  /** Goes another way from the next question on. */
  goOn(course: readonly (string | Fields)[]): void {
    this.course = course
    this.looks = 0
  }

  private react(command: string, args: Fields): Reaction {
    switch (command) {
      case 'qmp_capabilities':
        return { return: {} }
      case 'query-status':
        return { return: { status: this.state, running: this.state === 'running' } }
      case 'query-migrate':
        return { return: this.look() }
      case 'query-kvm':
        return { return: { enabled: !this.options.isTcg, present: true } }
      case 'query-migrate-capabilities':
        return { return: Object.entries(this.capabilities).map(([capability, state]) => ({ capability, state })) }
      case 'query-migrate-parameters':
        return { return: { ...this.parameters } }
      case 'migrate-set-capabilities': {
        if (this.isMigrating) return { error: 'There is a migration process in progress' }
        const some = args.capabilities as { capability: string; state: boolean }[]
        for (const { capability } of some)
          if (!Object.hasOwn(this.capabilities, capability)) return { error: `Invalid parameter '${capability}'` }
        for (const { capability, state } of some) this.capabilities[capability] = state
        return { return: {} }
      }
      case 'migrate-set-parameters': {
        const unknown = Object.keys(args).find(
          name => !Object.hasOwn({ ...this.parameters, 'max-cpu-throttle': 0 }, name),
        )
        if (unknown !== undefined) return { error: `Parameter '${unknown}' is unexpected` }
        Object.assign(this.parameters, args)
        return { return: {} }
      }
      case 'query-block-jobs':
        for (const [name, left] of this.ending) {
          this.ending.set(name, left - 1)
          if (left > 0) continue
          this.ending.delete(name)
          this.mirrors.delete(name)
          const { error } = this.options.mirrors![name]!
          const data = { type: 'mirror', device: name, ...(error !== undefined && { error }) }
          this.events.push({ event: 'BLOCK_JOB_COMPLETED', data })
        }
        return {
          return: [...this.mirrors].map(device => {
            const { isReady = true } = this.options.mirrors![device]!
            return { type: 'mirror', device, ready: isReady }
          }),
        }
      case 'block-job-cancel': {
        const name = String(args.device)
        if (!this.mirrors.has(name)) return { error: `Block job '${name}' not found` }
        this.ending.set(name, this.options.mirrors![name]!.looks ?? 0)
        return { return: {} }
      }
      case 'nbd-server-stop':
        if (this.stopped) return { error: 'NBD server not running' }
        this.stopped = true
        return { return: {} }
      case 'migrate-continue':
        this.goOn(this.options.course!.slice(this.options.course!.indexOf('pre-switchover') + 1))
        return { return: {} }
      case 'migrate-incoming':
        if (this.listens) return { error: 'The incoming migration has already been started' }
        this.listens = true
        return { return: {} }
      case 'migrate':
        this.goOn(this.options.course ?? COMPLETES)
        return { return: {} }
      case 'migrate_cancel':
        this.goOn(['cancelling', 'cancelled'])
        return { return: {} }
      case 'migrate-start-postcopy':
        if (!this.capabilities['postcopy-ram']) return { error: 'Enable postcopy with migrate_set_capability first' }
        this.goOn(this.options.postcopy ?? POSTCOPY)
        return { return: {} }
    }
    return { error: `The command ${command} has not been found` }
  }

  private get isMigrating(): boolean {
    const status = this.course && statusOf(this.course[Math.min(this.looks, this.course.length) - 1] ?? this.course[0]!)
    return status !== undefined && !['completed', 'failed', 'cancelled'].includes(status)
  }

  private look(): Fields {
    if (this.course === undefined)
      return this.listens ? { 'socket-address': this.options.listensAt ?? [inet('127.0.0.1', 4444)] } : {}
    const now = this.course[Math.min(this.looks++, this.course.length - 1)]!
    const status = statusOf(now)
    if (status === 'pre-switchover') this.state = 'paused'
    if (status === 'device' || status === 'postcopy-active') this.state = 'finish-migrate'
    if (status === 'completed') {
      this.state = 'postmigrate'
      if (this.destination) this.destination.state = 'running'
    }
    if (status === 'failed' || status === 'cancelled') this.state = 'running'
    return typeof now === 'string' ? { status: now } : now
  }
}

function statusOf(now: string | Fields): string {
  return typeof now === 'string' ? now : String(now.status)
}

/** Serves one at a Unix socket, to as many as ask, its state for all of them. @returns ends it */
export async function serveModel(model: ModelQemu, path: string): Promise<() => void> {
  const sockets = new Set<net.Socket>()
  const [major, minor, micro] = model.version.split('.').map(Number)
  const server = net.createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {}).on('close', () => sockets.delete(socket))
    socket.write(
      `${JSON.stringify({ QMP: { version: { qemu: { major, minor, micro }, package: '' }, capabilities: [] } })}\n`,
    )
    let text = ''
    socket.setEncoding('utf8').on('data', (chunk: string) => {
      const lines = (text + chunk).split('\n')
      text = lines.pop()!
      for (const line of lines) {
        const { execute, arguments: args, id } = JSON.parse(line) as { execute: string; arguments?: Fields; id: number }
        const reaction = model.answer(execute, args)
        if (reaction === 'silent') continue
        if (reaction === 'close') socket.destroy()
        else if ('raw' in reaction) socket.write(reaction.raw)
        else if ('error' in reaction)
          socket.write(`${JSON.stringify({ error: { class: 'GenericError', desc: reaction.error }, id })}\n`)
        else socket.write(`${JSON.stringify({ return: reaction.return, id })}\n`)
      }
    })
  })
  await new Promise<void>(done => server.listen(path, done))
  return () => {
    server.close()
    for (const socket of sockets) socket.destroy()
  }
}
