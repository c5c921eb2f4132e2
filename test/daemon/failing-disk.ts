/**
 * A file on a disk that fails on demand: nbdkit's filters beneath a FUSE mount, so the proxies read it as any other file,
 * and the kernel gives what a broken, slow or lost disk gives.
 */
import { type ChildProcess, execFileSync, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { atExit, endChild, spawnOwned } from '../../scripts/harness/qemu/cleanup.ts'
import { until } from '../helpers/until.ts'

/** Why there can be no such disk here; undefined: there can. */
export function noFailingDisks(): string | undefined {
  if (process.getuid?.() !== 0) return 'a file system is mounted: as root only'
  for (const tool of ['nbdfuse', 'nbdkit']) {
    if (spawnSync(tool, ['--version']).error) return `${tool} is not installed (libnbd-bin, nbdkit)`
  }
  return spawnSync('test', ['-c', '/dev/fuse']).status === 0 ? undefined : 'no /dev/fuse'
}

/** A file system in memory, which is soon full. */
export class SmallDisk implements Disposable {
  readonly folder: string
  readonly unmount: () => void

  /** @param size as mount knows it: 4m */
  constructor(folder: string, size: string) {
    this.folder = folder
    mkdirSync(folder, { recursive: true })
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', folder], { stdio: 'ignore' })
    this.unmount = atExit(() => void spawnSync('umount', ['-l', folder]))
  }

  enlarge(size: string): void {
    execFileSync('mount', ['-o', `remount,size=${size}`, this.folder])
  }

  [Symbol.dispose](): void {
    this.unmount()
  }
}

/** Why there can be none here; undefined: there can. */
export function noSmallDisks(under: string): string | undefined {
  if (process.getuid?.() !== 0) return 'a file system is mounted: as root only'
  try {
    new SmallDisk(under, '1m').unmount()
    return undefined
  } catch (error) {
    return `no tmpfs can be mounted: ${(error as Error).message}`
  }
}

/** A folder with one file that is read from such a disk. */
export class FailingDisk implements AsyncDisposable {
  /** Where the file stands, under its own name. */
  readonly folder: string
  private readonly file: string
  private readonly errors: string
  private readonly rate: string
  private readonly server: ChildProcess
  private readonly unmount: () => void

  private constructor(under: string, file: string) {
    this.folder = join(under, 'mounted')
    mkdirSync(this.folder, { recursive: true })
    this.file = join(this.folder, basename(file))
    this.errors = join(under, 'errors')
    this.rate = join(under, 'rate')
    const disk = ['nbdkit', '--exit-with-parent', '-r', '--filter=error', '--filter=rate', 'file', file]
    const faults = [`error-pread-file=${this.errors}`, 'error-pread-rate=100%', 'error=EIO', `rate-file=${this.rate}`]
    this.server = spawnOwned(['nbdfuse', '-r', this.file, '[', ...disk, ...faults, ']'], { stdio: 'ignore' })
    this.unmount = atExit(() => void spawnSync('umount', ['-l', this.folder]))
  }

  /** @param under a folder for it alone */
  static async of(file: string, under: string): Promise<FailingDisk> {
    const disk = new FailingDisk(under, file)
    await until('the file', () => statSync(disk.file, { throwIfNoEntry: false })?.size === statSync(file).size)
    return disk
  }

  /** Has the kernel read all of it: FUSE on a busy machine is slow by itself. */
  warm(): void {
    readFileSync(this.file)
  }

  /** From now on every read fails; what the kernel had of it is forgotten. */
  fail(): void {
    writeFileSync(this.errors, '')
    this.forget()
  }

  /** From now on it gives so many bits a second, the first two seconds' worth at once. */
  slow(bitsPerSecond: number): void {
    writeFileSync(this.rate, `${bitsPerSecond}`)
    this.forget()
  }

  /** Pulls it out: reads under way end, and there is no file any more. */
  async pull(): Promise<void> {
    this.forget()
    await this.end()
  }

  private async end(): Promise<void> {
    if (this.server.exitCode !== null || this.server.signalCode !== null) return
    this.server.kill('SIGKILL')
    await once(this.server, 'exit')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end() // whoever waits for it gets an error, and can end; of a slow disk forgetting takes minutes
    await endChild(this.server)
    this.unmount()
  }

  private forget(): void {
    execFileSync('dd', [`if=${this.file}`, 'iflag=nocache', 'count=0', 'status=none'])
  }
}
