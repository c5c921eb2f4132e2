/** Servers and clients of NBD that nobody here wrote: nbdkit, and libnbd's nbdsh and nbdcopy. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { until } from '../helpers/until.ts'

const run = promisify(execFile)

function has(command: string): boolean {
  return process.env.PATH!.split(':').some(folder => existsSync(join(folder, command)))
}

const missing = ['nbdkit', 'nbdsh', 'nbdcopy'].filter(command => !has(command))
/** Why what needs them is skipped; false: it is not. */
export const NBD_SKIP = missing.length > 0 && `needs ${missing.join(', ')}: apt-get install nbdkit libnbd-bin`
export const QEMU_IMG_SKIP = !has('qemu-img') && 'needs qemu-img: apt-get install qemu-utils'

/** An nbdkit that listens on a Unix socket. */
export class Nbdkit implements AsyncDisposable {
  readonly socket: string
  readonly child: ChildProcess
  private readonly folder: string
  private readonly ended: Promise<unknown>

  private constructor(folder: string, child: ChildProcess) {
    this.folder = folder
    this.socket = join(folder, 's')
    this.child = child
    this.ended = once(child, 'exit')
  }

  /** @param args filters, plugin and its settings */
  static async start(...args: string[]): Promise<Nbdkit> {
    const folder = mkdtempSync(join(tmpdir(), 'pageferry-nbd-')) // a socket's path is short
    const child = spawn('nbdkit', ['--foreground', '--exit-with-parent', '-U', join(folder, 's'), ...args], {
      stdio: ['ignore', 'ignore', 'inherit'],
    })
    const nbdkit = new Nbdkit(folder, child)
    await until('nbdkit listens', () => {
      if (child.exitCode !== null) throw new Error(`nbdkit ended with ${child.exitCode}`)
      try {
        accessSync(nbdkit.socket)
        return true
      } catch {
        return false
      }
    })
    return nbdkit
  }

  /** As libnbd and QEMU name it. */
  get uri(): string {
    return `nbd+unix:///?socket=${this.socket}`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL')
    await this.ended
    rmSync(this.folder, { recursive: true })
  }
}

/** Runs Python with libnbd's `h`, connected to `uri`. @returns what it prints */
export async function nbdsh(uri: string, ...lines: string[]): Promise<string> {
  // the system's Python has the module, whichever comes first elsewhere
  const env = { ...process.env, PATH: '/usr/bin:/bin' }
  const { stdout } = await run('nbdsh', ['-u', uri, '-c', lines.join('\n')], { env })
  return stdout
}

/** Copies from one to the other: URIs or files. */
export async function nbdcopy(from: string, to: string, ...options: string[]): Promise<void> {
  await run('nbdcopy', [...options, from, to])
}

export async function qemuImg(...args: string[]): Promise<string> {
  const { stdout } = await run('qemu-img', args)
  return stdout
}
