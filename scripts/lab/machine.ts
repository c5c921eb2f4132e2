// One running QEMU of the lab: start it, wait for a line on its serial port, migrate it into a file, end it.

import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { QmpClient } from '../../src/qmp/qmp-client.ts'

/** How one guest is started. All paths are absolute. */
export interface MachineOptions {
  readonly qemu: string
  readonly accel: 'kvm' | 'tcg'
  readonly memoryMb: number
  readonly hostname: string
  readonly workload: string
  readonly kernel: string
  readonly initrd: string
  /** A qcow2 overlay over the base disk. */
  readonly disk: string
  /** Folder of the guest's logs. */
  readonly folder: string
}

/** What a migration was like, as QEMU counted it. */
export interface Migration {
  readonly seconds: number
  /** QEMU's dirty-sync-count: passes over the dirty bitmap, the first included. */
  readonly dirtySyncs: number
  /** Pages sent with their bytes, pages of this kind sent again included. */
  readonly normalPages: number
  readonly zeroPages: number
  readonly downtimeMs: number
}

interface QueryVersion {
  readonly qemu: { readonly major: number; readonly minor: number; readonly micro: number }
  readonly package: string
}

interface QueryMigrate {
  status?: string
  'error-desc'?: string
  'total-time'?: number
  downtime?: number
  ram?: { 'dirty-sync-count': number; normal: number; duplicate: number; remaining: number }
}

/** The arguments of QEMU for one guest, without the program. */
export function machineArguments(o: MachineOptions): string[] {
  const kernelLine = [
    'root=/dev/vda rw console=ttyS0 quiet panic=-1',
    `systemd.hostname=${o.hostname}`,
    `lab.workload=${o.workload}`,
  ]
  return [
    ...['-M', 'pc', '-accel', o.accel, '-m', `${o.memoryMb}`, '-smp', '1', '-name', o.hostname],
    ...['-kernel', o.kernel, '-initrd', o.initrd, '-append', kernelLine.join(' ')],
    ...['-drive', `file=${o.disk},if=none,id=disk,format=qcow2,cache=unsafe`, '-device', 'virtio-blk-pci,drive=disk'],
    // A network card as every guest has one, on a network that leads nowhere.
    ...['-netdev', 'user,id=net,restrict=on', '-device', 'virtio-net-pci,netdev=net'],
    ...['-device', 'virtio-rng-pci', '-display', 'none', '-no-reboot'],
    // else QEMU 10 tries every sound driver, those of the system's QEMU too, and ends at the first of another build
    ...['-audiodev', 'none,id=none'],
    ...['-serial', `file:${join(o.folder, 'serial.log')}`, '-qmp', 'stdio'],
  ]
}

export class Machine {
  /** Set by open(). */
  qmp!: QmpClient
  private readonly child: ChildProcess
  private readonly streams: string
  private readonly serialLog: string
  private readonly errorLog: string
  private readonly exited: Promise<void>

  /** Starts QEMU in `streams`, the folder that captures are written to. */
  constructor(o: MachineOptions, streams: string) {
    this.streams = streams
    this.serialLog = join(o.folder, 'serial.log')
    this.errorLog = join(o.folder, 'qemu.log')
    rmSync(this.serialLog, { force: true })
    const errors = openSync(this.errorLog, 'w')
    this.child = spawn(o.qemu, machineArguments(o), { cwd: streams, stdio: ['pipe', 'pipe', errors] })
    closeSync(errors)
    this.exited = new Promise(resolve => {
      this.child.once('exit', () => resolve())
      this.child.once('error', () => resolve())
    })
  }

  /** Greets QEMU. @returns its version as one line. @throws Error where it did not start. */
  async open(): Promise<string> {
    try {
      const stdio = Duplex.from({ readable: this.child.stdout!, writable: this.child.stdin! })
      this.qmp = await QmpClient.open(stdio, 60_000)
      const { qemu, package: build } = await this.qmp.execute<QueryVersion>('query-version')
      return `${qemu.major}.${qemu.minor}.${qemu.micro} ${build}`.trim()
    } catch (error) {
      throw new Error(`QEMU did not start: ${readTail(this.errorLog) || String(error)}`)
    }
  }

  /** Waits until the guest has written `line` to its serial port. */
  async serialLine(line: string, secondsMax: number): Promise<void> {
    const start = Date.now()
    for (;;) {
      const text = existsSync(this.serialLog) ? readFileSync(this.serialLog, 'latin1') : ''
      if (text.includes(line)) return
      if (text.includes('LAB-FAILED')) throw new Error(`the guest gave up: ${readTail(this.serialLog)}`)
      if (this.hasExited()) throw new Error(`QEMU ended: ${readTail(this.errorLog)} ${readTail(this.serialLog)}`)
      if (Date.now() - start > secondsMax * 1000)
        throw new Error(`no '${line}' within ${secondsMax} s; serial port: ${readTail(this.serialLog)}`)
      await sleep(500)
    }
  }

  /**
   * Migrates the guest into a file and leaves it paused.
   *
   * @param name file in the folder of the constructor; letters, digits, dot and minus: it goes through a shell
   * @param bytesPerSecond 0 for as fast as it goes. Otherwise the guest is also kept in dirty rounds for a while, because
   * they are what a limited capture is for: QEMU's own 300 ms of allowed downtime would end a light load's after two or three
   * @param report called about once a second with QEMU's progress
   */
  async migrateToFile(name: string, bytesPerSecond: number, report: (text: string) => void): Promise<Migration> {
    if (!/^[A-Za-z0-9.-]+$/.test(name)) throw new Error(`not a plain file name: ${name}`)
    const target = join(this.streams, name)
    rmSync(`${target}.part`, { force: true })
    rmSync(`${target}.all`, { force: true })
    const [firstDowntimeMs, roundsAtFirst] = bytesPerSecond > 0 ? [10, 20] : [300, 8]
    let allowedMs = firstDowntimeMs
    await this.qmp.execute('migrate-set-parameters', { 'max-bandwidth': bytesPerSecond, 'downtime-limit': allowedMs })
    const start = Date.now()
    // The name changes when cat has seen the end of the stream: QEMU's 'completed' can come earlier.
    await this.qmp.execute('migrate', { uri: `exec:cat > ${name}.part && mv ${name}.part ${name}.all` })
    let state: QueryMigrate
    let lastReport = start
    for (;;) {
      await sleep(200)
      state = await this.qmp.execute<QueryMigrate>('query-migrate')
      if (state.status === 'completed') break
      if (state.status === 'failed' || state.status === 'cancelled')
        throw new Error(`migration ${state.status}: ${state['error-desc'] ?? readTail(this.errorLog)}`)
      const now = Date.now()
      if (now - start > 900_000) throw new Error('the migration did not end within 15 minutes')
      // A guest that dirties faster than the limit lets through would never end: then allow a longer pause, bit by bit.
      const syncs = state.ram?.['dirty-sync-count'] ?? 0
      const wantedMs = syncs > roundsAtFirst ? Math.min(60_000, 150 * 2 ** (syncs - roundsAtFirst)) : firstDowntimeMs
      if (wantedMs > allowedMs) {
        allowedMs = wantedMs
        await this.qmp.execute('migrate-set-parameters', { 'downtime-limit': allowedMs })
      }
      if (now - lastReport >= 5000 && state.ram) {
        lastReport = now
        report(`round ${syncs}, ${Math.round(state.ram.remaining / 1e6)} MB remaining`)
      }
    }
    const seconds = (Date.now() - start) / 1000
    for (let waited = 0; !existsSync(`${target}.all`); waited += 100) {
      if (waited > 60_000) throw new Error(`the stream ${name} was not closed`)
      await sleep(100)
    }
    if (statSync(`${target}.all`).size === 0) throw new Error(`the stream ${name} is empty`)
    renameSync(`${target}.all`, target)
    return {
      seconds,
      dirtySyncs: state.ram?.['dirty-sync-count'] ?? 0,
      normalPages: state.ram?.normal ?? 0,
      zeroPages: state.ram?.duplicate ?? 0,
      downtimeMs: state.downtime ?? 0,
    }
  }

  /** Lets a guest that was migrated away run on. */
  async resume(): Promise<void> {
    await this.qmp.execute('cont')
  }

  /** Ends QEMU, the guest's disk with it: politely, then not. */
  async close(): Promise<void> {
    if (!this.hasExited()) this.qmp?.execute('quit').catch(() => {})
    await Promise.race([this.exited, sleep(5000, undefined, { ref: false })])
    if (!this.hasExited()) {
      this.kill()
      await Promise.race([this.exited, sleep(5000, undefined, { ref: false })])
    }
  }

  /** Ends QEMU at once; safe to call at any time. */
  kill(): void {
    if (!this.hasExited()) this.child.kill('SIGKILL')
  }

  private hasExited(): boolean {
    return this.child.pid === undefined || this.child.exitCode !== null || this.child.signalCode !== null
  }
}

/**
 * Tries whether KVM really runs a guest: boots a kernel that has no disk, which panics and so ends QEMU in a second or
 * two. That /dev/kvm exists and opens proves nothing: on some hosts it does, and the guest never gets to run.
 */
export async function kvmWorks(qemu: string, kernel: string, secondsMax: number): Promise<boolean> {
  if (!existsSync('/dev/kvm')) return false
  const child = spawn(
    qemu,
    [
      ...[
        '-M',
        'pc',
        '-accel',
        'kvm',
        '-m',
        '256',
        '-nodefaults',
        '-display',
        'none',
        '-no-reboot',
        '-serial',
        'stdio',
      ],
      ...['-kernel', kernel, '-append', 'console=ttyS0 panic=-1'],
    ],
    { stdio: ['ignore', 'pipe', 'ignore'] },
  )
  let text = ''
  child.stdout.setEncoding('latin1').on('data', (part: string) => {
    text += part
  })
  const ended = new Promise<boolean>(resolve => {
    child.once('error', () => resolve(false))
    child.once('exit', code => resolve(code === 0))
  })
  const kill = () => child.kill('SIGKILL')
  process.once('exit', kill)
  const works = await Promise.race([ended, sleep(secondsMax * 1000, false, { ref: false })])
  process.removeListener('exit', kill)
  if (child.exitCode === null) kill()
  return works && text.includes('Kernel panic')
}

function readTail(file: string): string {
  return existsSync(file) ? readFileSync(file, 'latin1').trim().split('\n').slice(-3).join(' | ').slice(-400) : ''
}
