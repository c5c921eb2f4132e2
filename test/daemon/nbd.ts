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
export const STORAGE_DAEMON_SKIP =
  !has('qemu-storage-daemon') && 'needs qemu-storage-daemon: apt-get install qemu-system-common'
export const QEMU_IMG_SKIP = !has('qemu-img') && 'needs qemu-img: apt-get install qemu-utils'

/** A server that listens on a Unix socket. */
class NbdServer implements AsyncDisposable {
  readonly socket: string
  readonly child: ChildProcess
  private readonly folder: string
  private readonly ended: Promise<unknown>

  /** @param args with which the program serves at a socket */
  protected constructor(program: string, args: (socket: string) => string[]) {
    this.folder = mkdtempSync(join(tmpdir(), 'pageferry-nbd-')) // a socket's path is short
    this.socket = join(this.folder, 's')
    this.child = spawn(program, args(this.socket), { stdio: ['ignore', 'ignore', 'inherit'] })
    this.ended = once(this.child, 'exit')
  }

  protected async listens(): Promise<this> {
    const { child, socket } = this
    await until(`${child.spawnfile} listens`, () => {
      if (child.exitCode !== null) throw new Error(`${child.spawnfile} ended with ${child.exitCode}`)
      try {
        accessSync(socket)
        return true
      } catch {
        return false
      }
    })
    return this
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

export class Nbdkit extends NbdServer {
  /** @param args filters, plugin and its settings */
  static async start(...args: string[]): Promise<Nbdkit> {
    return await new Nbdkit('nbdkit', socket => ['--foreground', '--exit-with-parent', '-U', socket, ...args]).listens()
  }
}

/** QEMU's server by itself, of a raw file in which it makes holes where it is told to. */
export class StorageDaemon extends NbdServer {
  static async start(file: string): Promise<StorageDaemon> {
    return await new StorageDaemon('qemu-storage-daemon', socket => [
      ...['--blockdev', `driver=file,node-name=disk,filename=${file},discard=unmap`],
      ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ...['--export', 'type=nbd,id=export,node-name=disk,name=,writable=on'],
    ]).listens()
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
