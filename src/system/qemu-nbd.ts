/** QEMU's own reader of disk images, started as a process that serves one of them over a socket of ours alone. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { ProxyError } from '../errors.ts'

/** qemu-nbd opens an image in milliseconds; a backing chain over a network in some more. */
const WAIT_MS = 10_000
/** It tells nobody that it listens, so it is asked so often. */
const POLL_MS = 20
/** Kept of what it says: the last lines, which say why it ended. */
const TOLD_CHARS_MAX = 500

/** A qemu-nbd that serves an image. It ends when its connection closes, or is gone with us. */
export class QemuNbd {
  private readonly path: string
  private readonly server: ChildProcess
  private told = ''
  private connected: Socket | undefined

  private constructor(path: string, format: string, snapshot: string | undefined, at: string) {
    this.path = path
    const args = ['--read-only', `--format=${format}`, `--socket=${at}`, ...snapshotArgs(snapshot), '--', path]
    this.server = spawn('qemu-nbd', args, { stdio: ['ignore', 'ignore', 'pipe'] })
    this.server.stderr!.on('data', chunk => {
      this.told = (this.told + chunk).slice(-TOLD_CHARS_MAX)
    })
  }

  /**
   * @param format as qemu-nbd calls it
   * @param snapshot id or name of one within the image; undefined: the disk as it is now
   * @throws IO where qemu-nbd is not there, or does not like the image
   */
  static async start(path: string, format: string, snapshot?: string): Promise<QemuNbd> {
    const folder = await mkdtemp(join(tmpdir(), 'pageferry-disk-'))
    const at = join(folder, 'nbd')
    const nbd = new QemuNbd(path, format, snapshot, at)
    try {
      nbd.connected = await nbd.connectTo(at)
      return nbd
    } catch (cause) {
      nbd.stop()
      throw nbd.failure(cause)
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  }

  /** The connection to it. */
  get socket(): Duplex {
    return this.connected!
  }

  /** Why it cannot be read from, as it said itself. */
  failure(cause: unknown): ProxyError {
    if (cause instanceof ProxyError) return cause
    const { path } = this
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT'
    const said = this.told.trim().split('\n').at(-1)
    const why = missing ? 'qemu-nbd is not installed' : said || (cause as Error).message
    const action = missing ? 'install qemu-utils, or qemu-img convert -O raw FILE RAW elsewhere' : 'qemu-img check FILE'
    return new ProxyError('IO', `cannot read ${path}: ${why}`, { stream: path }, action, { cause })
  }

  /** Ends the connection once what was written to it is sent, and the process. */
  stop(): void {
    this.connected?.destroySoon()
    this.server.kill()
  }

  /** The server listens some time after it was started, or ends before that. */
  private async connectTo(at: string): Promise<Socket> {
    const { server } = this
    let over: Error | undefined | false = false
    server.once('error', error => {
      over = error
    })
    server.once('close', () => {
      over ||= undefined
    })
    for (const untilMs = performance.now() + WAIT_MS; performance.now() < untilMs; await sleep(POLL_MS)) {
      if (over !== false) throw over ?? new Error(`qemu-nbd ended with ${server.exitCode ?? server.signalCode}`)
      const socket = connect(at)
      const connected = await new Promise<boolean>(done => {
        socket.once('connect', () => done(true)).once('error', () => done(false))
      })
      if (connected) return socket
    }
    throw new Error(`qemu-nbd did not listen within ${WAIT_MS / 1000} s`)
  }
}

/** Its own syntax begins with `snapshot.`; there a comma is written twice. */
function snapshotArgs(snapshot: string | undefined): string[] {
  if (snapshot === undefined) return []
  const name = snapshot.startsWith('snapshot.') ? `snapshot.name=${snapshot.replaceAll(',', ',,')}` : snapshot
  return [`--load-snapshot=${name}`]
}
