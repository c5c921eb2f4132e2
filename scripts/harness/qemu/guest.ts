/**
 * A guest under a real QEMU, always TCG, for tests and demonstrations: started, watched on its serial console,
 * migrated, compared, and ended by its process id whatever happens.
 *
 *   await using source = await QemuGuest.start({ qemu, workload: { workload: 'busy' } })
 *   await using destination = await QemuGuest.start({ ...source.options, incoming: 'defer' })
 *   await source.waitSerial(/ready/)
 *   await source.migrate(await destination.listen())
 */
import type { ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, renameSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { QmpClient, QmpConnectionError } from '../../../src/qmp/qmp-client.ts'
import { endChild, spawnOwned, temporaryFolder } from './cleanup.ts'
import { type Heartbeat, parseHeartbeat } from './heartbeat.ts'
import type { MemorySnapshot } from './memory.ts'
import { guestFiles, type QemuVersion } from './versions.ts'

/** QEMU ended by itself, with what it said last. */
export class QemuExitedError extends Error {
  override name = 'QemuExitedError'
  readonly exitCode: number | null
  readonly signal: string | null
  /** The last 4 KB of QEMU's stderr. */
  readonly stderrTail: string

  constructor(guest: string, exitCode: number | null, signal: string | null, stderrTail: string) {
    super(`${guest}: QEMU exited with ${signal ?? exitCode}${stderrTail.trim() ? `: ${stderrTail.trim()}` : ''}`)
    this.exitCode = exitCode
    this.signal = signal
    this.stderrTail = stderrTail
  }
}

/** Something that a guest or QEMU was to do did not happen in time. */
export class GuestTimeoutError extends Error {
  override name = 'GuestTimeoutError'
}

/** A migration ended in another state than `completed`. */
export class MigrationFailedError extends Error {
  override name = 'MigrationFailedError'
  readonly info: MigrationInfo

  constructor(guest: string, info: MigrationInfo) {
    super(`${guest}: migration ${info.status}${info['error-desc'] ? `: ${info['error-desc']}` : ''}`)
    this.info = info
  }
}

/** What the busybox guest does; each word is explained in scripts/harness/guest/init. */
export interface Workload {
  readonly workload?: 'idle' | 'busy'
  /** MB/s that `busy` rewrites; default 4. */
  readonly rate?: number
  /** Size of the file it rewrites, in MB; default 16. */
  readonly busymb?: number
  /** Seed of memory files; without it there are none. */
  readonly content?: number
  /** Their size in MB; default 8. */
  readonly contentmb?: number
  /** Heartbeat period in ms; default 100, 0 for none. */
  readonly hb?: number
}

/** How to start a guest. A destination takes its source's options plus `incoming`. */
export interface GuestOptions {
  readonly qemu: QemuVersion
  /** What messages call it; default `guest`. */
  readonly name?: string
  /** Default `pc`, whose version is QEMU's newest; `pc-i440fx-7.2` runs on 7.2 and 10. */
  readonly machine?: string
  /** Default 128. */
  readonly memoryMb?: number
  /** Start the busybox guest with this workload; default idle. Not together with bootSector. */
  readonly workload?: Workload
  /** Start this boot sector (512 bytes, and more for it to load) from a floppy disk instead. */
  readonly bootSector?: Uint8Array
  /** QEMU's -incoming: `defer`, then listen(), or a URI. */
  readonly incoming?: string
  /** -S: the guest does not run before cont(); a destination stays stopped after the migration. */
  readonly paused?: boolean
  /** Arguments that boot something else, a disk say, in place of the busybox guest. */
  readonly boot?: readonly string[]
  /** QEMU's -accel; default TCG with 64 MB for translated code. */
  readonly accel?: string
  /** Network namespace to run QEMU in. */
  readonly netns?: string
  /**
   * Begin where an earlier guest with the same options said `ready`, in half a second: its state is kept in
   * .cache/guest, and made when it is not there. All guests that begin so are twins, down to the kernel's random
   * numbers. Runs at once, or stays stopped with `paused`. Not for destinations.
   */
  readonly booted?: boolean
  /** More arguments for QEMU. */
  readonly args?: readonly string[]
}

/** Capabilities and parameters for migrate-set-capabilities and migrate-set-parameters. */
export interface MigrationSettings {
  readonly capabilities?: Readonly<Record<string, boolean>>
  readonly parameters?: Readonly<Record<string, unknown>>
}

/** What query-migrate returns. QEMU qapi/migration.json, MigrationInfo. */
export interface MigrationInfo {
  readonly status?: string
  readonly 'total-time'?: number
  readonly downtime?: number
  readonly 'setup-time'?: number
  readonly 'error-desc'?: string
  readonly ram?: { readonly transferred: number; readonly remaining: number; readonly total: number } & Record<
    string,
    number
  >
  readonly 'socket-address'?: readonly {
    readonly type: string
    readonly host?: string
    readonly port?: string
    readonly path?: string
  }[]
}

/** A completed migration, as the source QEMU tells it. */
export interface MigrationStats {
  readonly totalMs: number
  /** QEMU's own figure: from stopping the guest to its last byte handed to the kernel. */
  readonly downtimeMs: number
  readonly setupMs: number
  /** Bytes that QEMU wrote: what the migration costs without a proxy. */
  readonly transferredBytes: number
  /** Passes over dirty pages. */
  readonly passes: number
  readonly info: MigrationInfo
}

/** How to wait for a migration. */
export interface MigrateOptions extends MigrationSettings {
  /** Default 120 s. */
  readonly timeoutMs?: number
  /** Sees each answer to query-migrate, every 20 ms at first, then more rarely. */
  readonly onProgress?: (info: MigrationInfo) => void
}

const mib = 1 << 20
/** QEMU talks by then, on a machine as busy as can be. */
const STARTS_MS = 180_000

/** One QEMU process and its guest. */
export class QemuGuest implements AsyncDisposable {
  readonly options: GuestOptions
  readonly name: string
  readonly memoryBytes: number
  /** The whole command line. */
  readonly command: readonly string[]
  /** Set once QEMU has connected. */
  qmp!: QmpClient
  /** Every heartbeat read from this QEMU's serial console. */
  readonly heartbeats: Heartbeat[] = []
  /** Everything else that came on the serial console. */
  serial = ''
  private readonly folder: { readonly path: string; readonly remove: () => void }
  private readonly child: ChildProcess
  private readonly exited: Promise<never>
  private stderr = ''
  private serialSocket: Socket | undefined
  private line = ''
  private snapshots = 0
  private readonly serialWaiters = new Set<() => void>()

  private constructor(options: GuestOptions, folder: { path: string; remove: () => void }, command: readonly string[]) {
    this.options = options
    this.name = options.name ?? 'guest'
    this.memoryBytes = (options.memoryMb ?? 128) * mib
    this.folder = folder
    this.command = command
    this.child = spawnOwned(
      options.netns === undefined ? command : ['ip', 'netns', 'exec', options.netns, ...command],
      {
        stdio: ['ignore', 'ignore', 'pipe'],
      },
    )
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr = (this.stderr + text).slice(-4096)
    })
    this.exited = new Promise<never>((_, reject) => {
      const gone = (code: number | null, signal: string | null, text: string) =>
        reject(new QemuExitedError(this.name, code, signal, text))
      this.child.once('error', error => gone(null, null, error.message))
      this.child.once('close', (code, signal) => gone(code, signal, this.stderr))
    })
    this.exited.catch(() => {}) // seen by whoever waits for something at that moment
  }

  /**
   * Starts QEMU and waits until its QMP answers.
   * @throws QemuExitedError when it ends first
   */
  static async start(options: GuestOptions): Promise<QemuGuest> {
    return options.booted && options.incoming === undefined ? startBooted(options) : QemuGuest.startCold(options)
  }

  private static async startCold(options: GuestOptions): Promise<QemuGuest> {
    const folder = temporaryFolder('guest')
    // QEMU connects to us, so that no text is lost before anyone listens, and nobody polls for a socket.
    const doors: Door[] = []
    const open = async (name: string) => {
      const door = await Door.open(join(folder.path, name))
      doors.push(door)
      return door
    }
    let guest: QemuGuest | undefined
    try {
      const [serial, qmp] = [await open('serial'), await open('qmp')]
      const command = [
        ...[options.qemu.command, '-accel', options.accel ?? 'tcg,tb-size=64'],
        ...['-nodefaults', '-no-user-config', '-display', 'none'],
        ...['-machine', options.machine ?? 'pc', '-m', `${options.memoryMb ?? 128}M`, '-name', options.name ?? 'guest'],
        ...['-chardev', `socket,id=serial,path=${serial.path}`, '-serial', 'chardev:serial'],
        ...['-chardev', `socket,id=qmp,path=${qmp.path}`, '-mon', 'chardev=qmp,mode=control'],
        ...(options.boot ?? (await bootArguments(options, folder.path))),
        ...(options.paused ? ['-S'] : []),
        ...(options.incoming === undefined ? [] : ['-incoming', options.incoming]),
        ...(options.args ?? []),
      ]
      guest = new QemuGuest(options, folder, command)
      guest.readSerial(await guest.orExit(serial.visitor, STARTS_MS, 'QEMU did not open its serial console'))
      guest.qmp = await guest.orExit(qmp.visitor.then(QmpClient.open), STARTS_MS, 'QEMU did not open QMP')
      return guest
    } catch (error) {
      await guest?.quit()
      folder.remove()
      throw error
    } finally {
      for (const door of doors) door.close()
    }
  }

  /** QEMU's process id. */
  get pid(): number {
    return this.child.pid!
  }

  /** Has QEMU ended, by itself or by quit()? */
  get ended(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null
  }

  /**
   * Waits until the serial console shows `pattern`, at or after index `from` of `serial`. Heartbeats are not in there.
   * @throws GuestTimeoutError with the last lines, QemuExitedError
   */
  waitSerial(pattern: RegExp, timeoutMs = 60_000, from = 0): Promise<RegExpExecArray> {
    return this.whenSerial(
      () => pattern.exec(this.serial.slice(from)),
      timeoutMs,
      () => `no ${pattern} on the serial console, which ends ${JSON.stringify(this.serial.slice(-300))}`,
    )
  }

  /**
   * Waits until `more` heartbeats have come from now on.
   * @throws GuestTimeoutError, QemuExitedError
   */
  async waitHeartbeats(more: number, timeoutMs = 180_000): Promise<void> {
    const want = this.heartbeats.length + more
    const look = () => this.heartbeats.length >= want || null
    await this.whenSerial(look, timeoutMs, () => `${want - this.heartbeats.length} of ${more} heartbeats are missing`)
  }

  /** Types a line on the serial console. */
  type(line: string): void {
    this.serialSocket!.write(`${line}\n`)
  }

  /** Types a command of scripts/harness/guest/init and waits for its answer: what `answer` matches first from now on. */
  ask(line: string, answer: RegExp, timeoutMs = 60_000): Promise<RegExpExecArray> {
    const from = this.serial.length
    this.type(line)
    return this.waitSerial(answer, timeoutMs, from)
  }

  /**
   * MD5 sums of the guest's memory files, taken by the guest itself. Those of `busy` change while that workload runs.
   */
  async sums(timeoutMs = 60_000): Promise<Record<string, string>> {
    const { input, index } = await this.ask('sum', /^sum end$/m, timeoutMs)
    const lines = input.slice(0, index).matchAll(/^sum (\S+) ([0-9a-f]{32})$/gm)
    return Object.fromEntries([...lines].map(line => [line[1]!, line[2]!]))
  }

  /**
   * Stops the busy workload and has the guest compare its file with what the workload wrote, block by block.
   * @returns whether every block is right, and how many were written
   */
  async checkBusy(timeoutMs = 60_000): Promise<{ readonly ok: boolean; readonly blocks: number }> {
    await this.ask('stop', /^ok stop$/m, timeoutMs)
    const found = await this.ask('check', /^check (ok|bad) (\d+)$/m, timeoutMs)
    return { ok: found[1] === 'ok', blocks: Number(found[2]) }
  }

  /** QEMU's run state: running, paused, inmigrate, postmigrate and others. QEMU qapi/run-state.json, RunState. */
  async status(): Promise<string> {
    return (await this.qmp.execute<{ status: string }>('query-status')).status
  }

  /**
   * Waits until the run state is one of `wanted`.
   * @throws GuestTimeoutError, QemuExitedError
   */
  async waitStatus(wanted: string | readonly string[], timeoutMs = 180_000): Promise<string> {
    const end = performance.now() + timeoutMs
    for (;;) {
      const status = await this.orExit(this.status())
      if (wanted.includes(status)) return status
      if (performance.now() > end) throw new GuestTimeoutError(`${this.name} is ${status}, not ${wanted}`)
      await sleep(10)
    }
  }

  /** Stops the guest's processors. */
  async stop(): Promise<void> {
    await this.qmp.execute('stop')
  }

  /** Lets the guest run (on). */
  async cont(): Promise<void> {
    await this.qmp.execute('cont')
  }

  /** Sets capabilities first, then parameters, as multifd's parameters need. A destination needs some of them too. */
  async configure(settings: MigrationSettings): Promise<void> {
    const capabilities = Object.entries(settings.capabilities ?? {}).map(([capability, state]) => ({
      capability,
      state,
    }))
    if (capabilities.length > 0) await this.qmp.execute('migrate-set-capabilities', { capabilities })
    if (settings.parameters) await this.qmp.execute('migrate-set-parameters', { ...settings.parameters })
  }

  /**
   * Has a destination started with `incoming: 'defer'` listen.
   * @returns the URI to migrate to, with the port that QEMU took
   */
  async listen(uri = 'tcp:127.0.0.1:0', settings: MigrationSettings = {}): Promise<string> {
    await this.configure(settings)
    await this.qmp.execute('migrate-incoming', { uri })
    return this.incomingAddress()
  }

  /** The URI at which a destination listens. */
  async incomingAddress(): Promise<string> {
    const [address] = (await this.migrationInfo())['socket-address'] ?? []
    if (!address) throw new Error(`${this.name} does not listen`)
    if (address.type === 'unix') return `unix:${address.path}`
    return `tcp:${address.host!.includes(':') ? `[${address.host}]` : address.host}:${address.port}`
  }

  /** query-migrate. */
  migrationInfo(): Promise<MigrationInfo> {
    return this.qmp.execute<MigrationInfo>('query-migrate')
  }

  /**
   * Migrates to `uri` and waits until QEMU calls it completed.
   * @throws MigrationFailedError for any other end, GuestTimeoutError, QmpError, QemuExitedError
   */
  async migrate(uri: string, options: MigrateOptions = {}): Promise<MigrationStats> {
    await this.startMigration(uri, options)
    return this.waitMigration(options)
  }

  /** Starts a migration to `uri`; waitMigration() follows it. */
  async startMigration(uri: string, settings: MigrationSettings = {}): Promise<void> {
    await this.configure(settings)
    await this.qmp.execute('migrate', { uri })
  }

  /** Waits for the migration under way, as migrate() does. */
  async waitMigration(options: Omit<MigrateOptions, keyof MigrationSettings> = {}): Promise<MigrationStats> {
    const start = performance.now()
    const timeoutMs = options.timeoutMs ?? 120_000
    for (;;) {
      const info = await this.orExit(this.migrationInfo())
      options.onProgress?.(info)
      if (info.status === 'completed') return migrationStats(info)
      if (info.status === 'failed' || info.status === 'cancelled') throw new MigrationFailedError(this.name, info)
      const passedMs = performance.now() - start
      if (passedMs > timeoutMs) {
        throw new GuestTimeoutError(`${this.name}: migration ${info.status} after ${Math.round(passedMs)} ms`)
      }
      await sleep(passedMs < 2000 ? 20 : 100)
    }
  }

  /**
   * Writes all of the guest's memory to a file, which is removed when this guest quits. Compare it by compareMemory()
   * with the other side's while both are stopped. Of a guest with more than 3 GiB the first three: the rest lies behind
   * the devices, from 4 GiB on.
   */
  async snapshot(): Promise<MemorySnapshot> {
    const path = join(this.folder.path, `memory-${this.snapshots++}`)
    const lengthBytes = Math.min(this.memoryBytes, 3 * 1024 * mib)
    await this.orExit(this.qmp.execute('pmemsave', { val: 0, size: lengthBytes, filename: path }))
    return { path, lengthBytes }
  }

  /** Ends QEMU and removes its files. Never fails; may be called again. */
  async quit(): Promise<void> {
    await endChild(this.child)
    this.qmp?.close()
    this.serialSocket?.destroy()
    this.folder.remove()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.quit()
  }

  /** What `promise` gives, unless QEMU exits first, which then is the error: QMP's end is only its consequence. */
  private async orExit<T>(promise: Promise<T>, timeoutMs?: number, late?: string): Promise<T> {
    const timer = new AbortController()
    const waits: Promise<T>[] = [promise, this.exited]
    if (timeoutMs !== undefined) {
      waits.push(
        sleep(timeoutMs, undefined, { signal: timer.signal }).then(() => {
          throw new GuestTimeoutError(`${this.name}: ${late}`)
        }),
      )
    }
    try {
      return await Promise.race(waits)
    } catch (error) {
      if (!(error instanceof QmpConnectionError)) throw error
      return await Promise.race([this.exited, sleep(1000).then(() => Promise.reject(error))])
    } finally {
      timer.abort()
      for (const wait of waits) wait.catch(() => {})
    }
  }

  private async whenSerial<T>(look: () => T | null, timeoutMs: number, late: () => string): Promise<T> {
    let wake = () => {}
    const found = new Promise<T>(resolve => {
      wake = () => {
        const value = look()
        if (value !== null) resolve(value)
      }
    })
    this.serialWaiters.add(wake)
    wake()
    try {
      return await this.orExit(found, timeoutMs, 'too late')
    } catch (error) {
      throw error instanceof GuestTimeoutError ? new GuestTimeoutError(`${this.name}: ${late()}`) : error
    } finally {
      this.serialWaiters.delete(wake)
    }
  }

  private readSerial(socket: Socket): void {
    this.serialSocket = socket
    socket.on('error', () => {}) // QEMU's end is reported by its process
    socket.setEncoding('latin1').on('data', (text: string) => {
      const atMs = performance.now()
      const lines = (this.line + text).split('\n')
      this.line = lines.pop()!
      for (const line of lines) {
        const heartbeat = parseHeartbeat(line, atMs)
        if (heartbeat) this.heartbeats.push(heartbeat)
        else this.serial += `${line}\n`
      }
      for (const wake of this.serialWaiters) wake()
    })
  }
}

/** Starts a guest from a saved state that is made first where there is none. */
async function startBooted(options: GuestOptions): Promise<QemuGuest> {
  const { booted: _, name: _name, netns: _netns, paused, ...rest } = options
  const { initramfs, kernel } = await guestFiles()
  const files = [createHash('sha256').update(readFileSync(initramfs)).digest('hex'), statSync(kernel).size]
  const { command, version } = rest.qemu
  const state = `${dirname(initramfs)}/state-${createHash('sha256')
    .update(JSON.stringify([files, command, version, { ...rest, bootSector: rest.bootSector?.toString() }]))
    .digest('hex')
    .slice(0, 16)}`
  if (!existsSync(state)) {
    await using first = await QemuGuest.start(rest)
    if (!rest.bootSector) await first.waitSerial(/^ready/m, 180_000)
    await first.stop()
    await first.migrate(`exec:cat > '${state}.${process.pid}'`, { parameters: { 'max-bandwidth': 0 } })
    renameSync(`${state}.${process.pid}`, state) // whole or not at all, also when two make it at once
  }
  const guest = await QemuGuest.start({ ...options, paused: true, incoming: `exec:cat '${state}'` })
  // An incoming QEMU is not yet a source: it becomes one when it has read its state.
  await guest.waitStatus(['paused', 'prelaunch'])
  if (!paused) await guest.cont()
  guest.serial = 'ready\n'
  return guest
}

/** A unix socket that waits for one connection. */
class Door {
  readonly path: string
  readonly visitor: Promise<Socket>
  private readonly server: Server

  private constructor(path: string, server: Server) {
    this.path = path
    this.server = server
    this.visitor = new Promise(resolve => server.once('connection', resolve))
  }

  static async open(path: string): Promise<Door> {
    const server = createServer()
    const door = new Door(path, server)
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(path, resolve)
    })
    return door
  }

  close(): void {
    this.server.close()
  }
}

async function bootArguments(options: GuestOptions, folder: string): Promise<string[]> {
  if (options.bootSector) {
    const path = join(folder, 'boot.img')
    writeFileSync(path, options.bootSector)
    truncateSync(path, 1_474_560) // a floppy disk of 1.44 MB, which the BIOS knows
    return ['-drive', `file=${path},format=raw,if=floppy,readonly=on`]
  }
  const { kernel, initramfs } = await guestFiles()
  const words = Object.entries(options.workload ?? {}).map(([word, value]) => `${word}=${value}`)
  // without no_timer_check a guest that a busy host lets wait panics at its boot: "IO-APIC + timer doesn't work"
  const fixed = ['console=ttyS0', 'quiet', 'no_timer_check']
  return ['-kernel', kernel, '-initrd', initramfs, '-append', [...fixed, ...words].join(' ')]
}

function migrationStats(info: MigrationInfo): MigrationStats {
  return {
    totalMs: info['total-time'] ?? 0,
    downtimeMs: info.downtime ?? 0,
    setupMs: info['setup-time'] ?? 0,
    transferredBytes: info.ram?.transferred ?? 0,
    passes: info.ram?.['dirty-sync-count'] ?? 0,
    info,
  }
}
