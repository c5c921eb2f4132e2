/** A host with a real systemd: systemd-host.sh in namespaces of its own, with the shipped units. Needs root. */
import { type ChildProcess, execFile, execFileSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { atExit, endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { until } from '../helpers/until.ts'

const run = promisify(execFile)
const root = fileURLToPath(new URL('../..', import.meta.url))
const program = fileURLToPath(new URL('systemd-host.sh', import.meta.url))
const START_MS = 60_000

/** A line of a proxy's log. */
export interface Line {
  readonly msg: string
  readonly level: number
  readonly [field: string]: unknown
}

export class SystemdHost implements AsyncDisposable {
  /** Of the host, as `ip netns` and QemuGuest call it. */
  readonly netns: string
  private readonly child: ChildProcess
  private readonly undo: (() => void)[] = []
  private init = 0
  private said = ''

  private constructor() {
    const folder = temporaryFolder('systemd')
    const cgroup = makeCgroup()
    // registered before the child, so that it runs behind the child's end
    this.undo.push(
      folder.remove,
      atExit(() => removeCgroup(cgroup)),
    )
    this.netns = `pageferry-systemd-${process.pid}`
    const enter = ['sh', '-c', 'echo $$ > "$0/cgroup.procs" && exec "$@"', cgroup]
    const namespaces = ['unshare', '--mount', '--uts', '--pid', '--net', '--cgroup', '--fork', '--kill-child']
    this.child = spawnOwned([...enter, ...namespaces, 'sh', program, folder.path, root], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.said = (this.said + text).slice(-2000)
    })
  }

  /**
   * Starts systemd, with the units of systemd/ and `files` beside them, and waits until it is up.
   * @returns the reason, where there can be none here
   */
  static async start(): Promise<SystemdHost | string> {
    if (process.getuid?.() !== 0) return 'a systemd of its own needs root'
    if (!existsSync('/lib/systemd/systemd')) return 'systemd is not installed'
    let host: SystemdHost
    try {
      host = new SystemdHost()
    } catch (error) {
      return `there is no cgroup for a systemd: ${(error as Error).message}`
    }
    try {
      await host.up()
      return host
    } catch (error) {
      const reason = `systemd does not run in namespaces here: ${(error as Error).message} ${host.console}`
      await host[Symbol.asyncDispose]()
      return reason.replaceAll('\n', ' | ')
    }
  }

  private async up(): Promise<void> {
    const { child } = this
    const end = performance.now() + START_MS
    for (;;) {
      if (child.exitCode !== null) throw new Error(`it ended with ${child.exitCode}`)
      try {
        this.init = Number(readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'latin1').trim().split(' ')[0])
        if (readFileSync(`/proc/${this.init}/comm`, 'latin1') === 'systemd\n') {
          await this.run('systemctl', 'is-active', 'multi-user.target')
          break
        }
      } catch (error) {
        if (performance.now() > end) throw error
      }
      if (performance.now() > end) throw new Error('it did not come up')
      await sleep(100)
    }
    execFileSync('ip', ['netns', 'attach', this.netns, String(this.init)])
    this.undo.push(atExit(() => execFileSync('ip', ['netns', 'del', this.netns])))
    for (const unit of readdirSync(join(root, 'systemd')).filter(name => /\.(service|socket)$/.test(name)))
      cpSync(join(root, 'systemd', unit), this.path(`/etc/systemd/system/${unit}`))
  }

  /** What systemd and the script said last. */
  get console(): string {
    try {
      return `${this.said}${readFileSync(this.path('/dev/console'), 'utf8')}`.trim().slice(-1500)
    } catch {
      return this.said.trim()
    }
  }

  /** A file of the host, as this process reaches it. */
  path(inside: string): string {
    return `/proc/${this.init}/root${inside}`
  }

  /** Writes a file of the host, and the folders that it lies in. */
  write(inside: string, content: string | Uint8Array, mode = 0o644): void {
    mkdirSync(dirname(this.path(inside)), { recursive: true })
    writeFileSync(this.path(inside), content, { mode })
  }

  private entering(command: readonly string[]): string[] {
    return [...['--target', `${this.init}`, '--mount', '--uts', '--pid', '--net', '--'], ...command]
  }

  /** Runs a program at the host, as root. @returns its stdout, without white space around */
  async run(...command: string[]): Promise<string> {
    const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C.UTF-8' }
    return (await run('nsenter', this.entering(command), { env, timeout: 120_000 })).stdout.trim()
  }

  /** Properties of a unit, as `systemctl show` has them. */
  async show(unit: string, ...names: string[]): Promise<Record<string, string>> {
    const text = await this.run('systemctl', 'show', unit, `--property=${names.join()}`)
    return Object.fromEntries(text.split('\n').map(line => [line.split('=', 1)[0]!, line.replace(/^[^=]*=/, '')]))
  }

  /** Follows the journal of a unit whose lines are JSON. */
  follow(unit: string): Journal {
    const command = ['journalctl', '--follow', '--lines=all', '--output=cat', `--unit=${unit}`]
    const child = spawnOwned(['nsenter', ...this.entering(command)], { stdio: ['ignore', 'pipe', 'ignore'] })
    this.undo.push(() => void child.kill())
    return new Journal(child)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endChild(this.child, 0)
    for (const undo of this.undo.reverse()) undo()
  }
}

/** What a unit says. */
export class Journal {
  readonly lines: Line[] = []
  /** What is no line of a proxy: systemd's own, stack traces. */
  other = ''

  constructor(child: ChildProcess) {
    createInterface({ input: child.stdout! }).on('line', line => {
      if (line.startsWith('{')) this.lines.push(JSON.parse(line) as Line)
      else this.other += `${line}\n`
    })
  }

  /** The first line with this event, of those from `from` on, that `accept` takes. */
  async said(msg: string, accept: (line: Line) => boolean = () => true, from = 0): Promise<Line> {
    return until(
      () => `a line '${msg}': ${JSON.stringify(this.lines.slice(-6))} ${this.other.slice(-500)}`,
      () => this.lines.slice(from).find(line => line.msg === msg && accept(line)),
    )
  }
}

/** A cgroup below ours. */
function makeCgroup(): string {
  const mount = /^\S+ (\S+) cgroup2 /m.exec(readFileSync('/proc/self/mounts', 'utf8'))?.[1]
  const own = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1]
  if (mount === undefined || own === undefined) throw new Error('cgroup2 is not mounted')
  return mkdtempSync(join(mount, own, 'pageferry-'))
}

/** Removes a cgroup whose processes are on their way out, and those below it. */
function removeCgroup(folder: string): void {
  const below = readdirSync(folder, { recursive: true, withFileTypes: true }).filter(entry => entry.isDirectory())
  const paths = [folder, ...below.map(({ parentPath, name }) => join(parentPath, name))]
  paths.sort((a, b) => b.length - a.length)
  for (let tries = 100; paths.length > 0; ) {
    try {
      rmdirSync(paths[0]!)
      paths.shift()
    } catch (error) {
      if (tries-- === 0) throw error
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20)
    }
  }
}
