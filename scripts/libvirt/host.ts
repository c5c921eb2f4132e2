/**
 * A libvirt host at one site of a packet link: host.sh in pid, mount and uts namespaces of its own. This machine's own
 * libvirt, where there is one, neither sees it nor is seen by it.
 */
import { type ChildProcess, execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { endChild } from '../harness/qemu/cleanup.ts'
import type { Site } from '../harness/wan/packet-link.ts'

const run = promisify(execFile)
const program = fileURLToPath(new URL('host.sh', import.meta.url))
/** QEMU's modules of this system: QEMU 10 beside it must not find those of another version, and libvirt has it look. */
const SYSTEM_MODULES = '/usr/lib/x86_64-linux-gnu/qemu'
const START_MS = 30_000

/** How to start a host. */
export interface HostOptions {
  readonly name: string
  /** libvirt refuses to migrate between hosts of one UUID. */
  readonly uuid: string
  /** Lines for libvirt's qemu.conf. */
  readonly qemuConf: string
  /** QEMU is not the system's own. */
  readonly hideModules: boolean
}

/** virsh said no. */
export class VirshError extends Error {
  override name = 'VirshError'
}

export class LibvirtHost implements AsyncDisposable {
  readonly name: string
  readonly site: Site
  private readonly child: ChildProcess
  private said = ''
  private init = 0

  private constructor(site: Site, options: HostOptions) {
    this.name = options.name
    this.site = site
    const arguments_ = [options.name, options.uuid, site.address, options.qemuConf]
    this.child = site.spawn(
      [
        ...['unshare', '--mount', '--uts', '--pid', '--mount-proc', '--fork', '--kill-child', 'sh', program],
        ...[...arguments_, ...(options.hideModules ? [SYSTEM_MODULES] : [])],
      ],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    )
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.said = (this.said + text).slice(-2000)
    })
  }

  /** Starts libvirtd and waits until it answers. */
  static async start(site: Site, options: HostOptions): Promise<LibvirtHost> {
    const host = new LibvirtHost(site, options)
    const end = performance.now() + START_MS
    for (;;) {
      const { pid, exitCode } = host.child
      if (exitCode !== null) throw new Error(`libvirtd of ${host.name} ended with ${exitCode}: ${host.said.trim()}`)
      try {
        host.init = Number(readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').trim().split(' ')[0])
        await host.virsh('list')
        return host
      } catch (error) {
        if (performance.now() > end)
          throw new Error(`no answer of libvirtd at ${host.name}: ${(error as Error).message}`)
        await sleep(100)
      }
    }
  }

  /** A file of this host, as this process reaches it. */
  path(inside: string): string {
    return `/proc/${this.init}/root${inside}`
  }

  /** Runs a command among this host's files. @throws what execFile does */
  async execute(...command: string[]): Promise<void> {
    await run('nsenter', ['--mount', `--target=${this.init}`, ...command])
  }

  /** How the other host's libvirt connects here. */
  get uri(): string {
    return `qemu+tcp://${this.site.address}/system`
  }

  /**
   * Runs virsh at this site, connected to this host's libvirtd.
   * @returns its stdout, without white space around
   * @throws VirshError with what it said
   */
  async virsh(...args: string[]): Promise<string> {
    return this.virshFor(60_000, ...args)
  }

  /** The same, ended after so long. */
  async virshFor(timeoutMs: number, ...args: string[]): Promise<string> {
    const connect = `qemu:///system?socket=${this.path('/run/libvirt/libvirt-sock')}`
    try {
      const command = ['netns', 'exec', this.site.netns, 'virsh', '--quiet', '--connect', connect, ...args]
      return (await run('ip', command, { timeout: timeoutMs, maxBuffer: 1 << 24 })).stdout.trim()
    } catch (error) {
      const { stderr, message, killed } = error as Error & { stderr?: string; killed?: boolean }
      const late = killed ? ` (ended after ${timeoutMs / 1000} s)` : ''
      throw new VirshError(`virsh ${args[0]}: ${stderr?.trim().replaceAll('\n', ' ') || message}${late}`)
    }
  }

  /** Sends a command to a domain's QEMU. @returns what `return` holds */
  async qmp<T>(domain: string, execute: string, arguments_?: object): Promise<T> {
    const command = JSON.stringify(arguments_ ? { execute, arguments: arguments_ } : { execute })
    return (JSON.parse(await this.virsh('qemu-monitor-command', domain, command)) as { return: T }).return
  }

  /** The last lines of libvirtd's log, for when something went wrong. */
  get log(): string {
    try {
      return readFileSync(this.path('/var/log/libvirt/libvirtd.log'), 'utf8').split('\n').slice(-4).join('\n')
    } catch {
      return this.said
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endChild(this.child, 500)
  }
}
