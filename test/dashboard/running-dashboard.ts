/** `pageferry dashboard` as a process, beside a pair of proxies that runs, with a set that both sides have. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { TemplateStore } from '../../src/store/template-store.ts'
import { PAGEFERRY } from '../cli/command.ts'
import { RunningPair } from '../daemon/running.ts'
import { page, putPages } from '../template/makers.ts'
import { TEMPLATE_PAGES } from './fed-guest.ts'

export interface ShownPairOptions {
  /** More arguments of the source proxy. */
  readonly near?: readonly string[]
  readonly listen?: string
}

export class ShownPair implements AsyncDisposable {
  readonly folder: string
  readonly pair: RunningPair
  readonly command: ChildProcess
  /** What the command printed: its address. */
  readonly address: string

  private constructor(folder: string, pair: RunningPair, command: ChildProcess, address: string) {
    this.folder = folder
    this.pair = pair
    this.command = command
    this.address = address
  }

  static async start({ near = [], listen }: ShownPairOptions = {}): Promise<ShownPair> {
    const folder = mkdtempSync(join(tmpdir(), 'pageferry-dashboard-'))
    const stores = [join(folder, 'near'), join(folder, 'far')] as const
    for (const store of stores) {
      mkdirSync(store)
      const pages = Array.from({ length: TEMPLATE_PAGES }, (_, i) => page(i + 1))
      await putPages(new TemplateStore(store), pages)
    }
    const always = ['--learn', 'off']
    const pair = await RunningPair.start(folder, {
      near: ['--store', stores[0], '--control', join(folder, 'control'), ...always, ...near],
      far: ['--store', stores[1], ...always],
    })
    const { target } = pair
    target.onConnection = socket => {
      const number = target.sockets.indexOf(socket)
      socket.on('data', () => {
        target.received[number] = Buffer.alloc(0) // nobody compares it here
      })
      socket.on('end', () => socket.end())
    }
    await pair.near.said('session open')
    const args = [
      'dashboard',
      '--control',
      join(folder, 'control'),
      ...(listen === undefined ? [] : ['--listen', listen]),
    ]
    const command = spawn(PAGEFERRY, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    const [line] = (await once(createInterface({ input: command.stdout! }), 'line')) as [string]
    return new ShownPair(folder, pair, command, /(?:http|unix):\S+/.exec(line)![0])
  }

  /** Where a guest connects. */
  get local(): string {
    return join(this.folder, 'source.sock')
  }

  get control(): string {
    return join(this.folder, 'control')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.command.exitCode === null && this.command.signalCode === null) {
      this.command.kill('SIGKILL')
      await once(this.command, 'exit')
    }
    await this.pair[Symbol.asyncDispose]()
    rmSync(this.folder, { recursive: true, force: true })
  }
}
