/** Proxies as processes, for what only a process has: disks that fail it, a child that fetches, an end. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { PAGEFERRY } from '../cli/command.ts'
import { proxyThreads } from '../helpers/threads.ts'
import { until } from '../helpers/until.ts'
import { Target, Wan } from './daemons.ts'

/** One that runs, and all that it has told. */
export class Running implements AsyncDisposable {
  readonly lines: Record<string, unknown>[] = []
  readonly child: ChildProcess
  readonly exit: Promise<unknown>

  constructor(...args: string[]) {
    const threads = args.includes('--threads') ? undefined : proxyThreads()
    const more = threads === undefined ? [] : ['--threads', `${threads}`]
    // Most tests need no warm proxy; `serve` has its options from a file.
    if (!args.includes('--rehearsal') && args[0] !== 'serve') more.push('--rehearsal', '0s')
    this.child = spawn(PAGEFERRY, [...args, '--json', '--plaintext', ...more], { stdio: ['ignore', 'pipe', 'inherit'] })
    this.exit = once(this.child, 'exit')
    let rest = ''
    this.child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n')
      rest = lines.pop()!
      for (const line of lines) this.lines.push(JSON.parse(line))
    })
  }

  of(event: string): Record<string, unknown>[] {
    return this.lines.filter(({ msg }) => msg === event)
  }

  async said(event: string, fits: (line: Record<string, unknown>) => boolean = () => true) {
    return await until(
      () => `${event}: ${JSON.stringify(this.lines.slice(-10))}`,
      () => this.of(event).find(fits),
    )
  }

  /** Process id of the process that follows channels. */
  async supplier(): Promise<number> {
    return await until('the process that fetches', () => childrenOf(this.child.pid!).find(isSupplier))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL')
    await this.exit
  }
}

function childrenOf(pid: number): number[] {
  return entriesOf(() => readdirSync(`/proc/${pid}/task`)).flatMap(task =>
    entriesOf(() => readFileSync(`/proc/${pid}/task/${task}/children`, 'latin1').trim().split(' '))
      .filter(Boolean)
      .map(Number),
  )
}

/** None of a process or thread that has ended meanwhile. */
function entriesOf(read: () => string[]): string[] {
  try {
    return read()
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return []
    throw error
  }
}

export function isSupplier(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('supply-process')
  } catch {
    return false
  }
}

/** What each proxy of a pair is started with, beside where it listens and dials. */
export interface PairArguments {
  readonly near: readonly string[]
  readonly far: readonly string[]
}

/** Both proxies as processes, and a target that takes what they bring. */
export class RunningPair implements AsyncDisposable {
  readonly near: Running
  readonly far: Running
  readonly wan: Wan
  readonly target: Target
  private readonly local: string

  private constructor(near: Running, far: Running, wan: Wan, target: Target, local: string) {
    this.near = near
    this.far = far
    this.wan = wan
    this.target = target
    this.local = local
  }

  /** @param folder for sockets */
  static async start(folder: string, { near, far }: PairArguments): Promise<RunningPair> {
    const [local, at] = [join(folder, 'source.sock'), join(folder, 'target.sock')]
    const target = new Target()
    target.server.listen(at)
    await once(target.server, 'listening')
    const destination = new Running('destination', '--listen', 'tcp:127.0.0.1:0', '--target', `unix:${at}`, ...far)
    const [, port] = /:(\d+)$/.exec(String((await destination.said('listening for source proxies')).at))!
    const wan = new Wan(Number(port))
    wan.server.listen(0, '127.0.0.1')
    await once(wan.server, 'listening')
    const peer = `127.0.0.1:${(wan.server.address() as net.AddressInfo).port}`
    const source = new Running('source', '--listen', `unix:${local}`, '--peer', peer, ...near)
    await source.said('listening for QEMU')
    return new RunningPair(source, destination, wan, target, local)
  }

  /**
   * Sends a guest's stream.
   * @returns what arrived, once all is there or the connection is gone, and the bytes that passed on the WAN meanwhile
   */
  async migrate(stream: Buffer): Promise<{ readonly arrived: Buffer; readonly wanBytes: number }> {
    await this.wan.settled()
    const before = this.wan.bytes
    const number = this.target.received.length
    const qemu = net.connect(this.local)
    qemu.on('error', () => {})
    qemu.resume() // or its end is never seen
    qemu.end(stream)
    const arrived = (): Buffer => this.target.received[number] ?? Buffer.alloc(0)
    await until('all bytes, or a connection that is gone', () => arrived().length >= stream.length || qemu.destroyed)
    this.target.sockets[number]?.end()
    if (!qemu.closed) await once(qemu, 'close')
    return { arrived: arrived(), wanBytes: this.wan.bytes - before }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.near[Symbol.asyncDispose]()
    await this.far[Symbol.asyncDispose]()
    await this.target[Symbol.asyncDispose]()
    this.wan.cut()
    this.wan.server.close()
  }
}
