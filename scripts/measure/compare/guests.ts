/**
 * The guests of the comparison: those of the lab, booted once under QEMU 10, and kept stopped, each as the stream of its
 * state and the disk as it was at that moment. Every run begins there, so that all methods migrate the same guest.
 */
import { spawnSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { temporaryFolder } from '../../harness/qemu/cleanup.ts'
import { type GuestOptions, QemuGuest } from '../../harness/qemu/guest.ts'
import { guestFiles, type QemuVersion } from '../../harness/qemu/versions.ts'
import { parseLink } from '../../harness/wan/link.ts'

const root = fileURLToPath(new URL('../../..', import.meta.url))
const lab = join(root, '.cache/lab')
const extras = fileURLToPath(new URL('guest', import.meta.url))
const SETTLE_SECONDS = 45
const BOOT_MS = 600_000

/** A guest that is compared. */
export interface ComparedGuest {
  readonly name: string
  /** For a reader of the results. */
  readonly workload: string
  readonly memoryMb: number
  /** Streams of the lab that its template set is made of: never its own. */
  readonly templates: readonly string[]
  /** A stream of the lab of another guest with the same kernel, for who knows that and the golden image; none for k2. */
  readonly other?: string
  /** It changes more than the marks' link carries. */
  readonly neverConverges?: boolean
  /** undefined: the busybox guest of the tests. */
  readonly debian?: {
    readonly kernel: 'k1' | 'k2'
    /** The lab's workload. */
    readonly labWorkload: string
    /** A load of the comparison's own: a file of scripts/measure/compare/guest, with words to replace. */
    readonly load?: {
      readonly file: string
      readonly replace?: Readonly<Record<string, string>>
      /** It is the first process, in place of systemd: so it is up in seconds, also on a busy machine. */
      readonly init?: boolean
    }
  }
}

/** At 100 Mbit/s and above: two to three times what a guest takes directly that does converge. */
const CONVERGE_MS = 45_000
/** On thinner links a first pass alone takes longer, but a comparison is to end. */
const CONVERGE_MS_MAX = 120_000

/** How long a migration over a link may take until it counts as one that does not converge. */
export function convergeLimitMs(link: string): number {
  return Math.min(CONVERGE_MS_MAX, CONVERGE_MS * Math.max(1, 100e6 / parseLink(link).bitsPerSecond))
}

/** For the targets that ratio benchmarks have too, and everything that is not of the lab. */
const FOUR = ['idle', 'nginx', 'redis', 'compiling']
/** For the guests among those four. */
const OTHERS = ['nginx-k2', 'postgres', 'python']

function debian(
  name: string,
  workload: string,
  labWorkload: string,
  options: Partial<Pick<ComparedGuest, 'templates' | 'neverConverges' | 'other'>> &
    Partial<NonNullable<ComparedGuest['debian']>> = {},
): ComparedGuest {
  const { templates = FOUR, neverConverges = false, kernel = 'k1', load } = options
  const machine = { kernel, labWorkload, ...(load === undefined ? {} : { load }) }
  // the plainest guest that there is, unless this is one of its kind; of k2 the lab has this guest alone
  const other = options.other ?? (labWorkload === 'idle' ? 'nginx' : 'idle')
  const known = kernel === 'k1' ? { other } : {}
  return { name, workload, memoryMb: 768, templates, ...known, neverConverges, debian: machine }
}

function table(megabytes: number): NonNullable<NonNullable<ComparedGuest['debian']>['load']> {
  return { file: 'table', replace: { TABLE_MB: `${megabytes}` } }
}

/** Every guest, in the order in which they are run. */
export const GUESTS: readonly ComparedGuest[] = [
  debian('nginx-k2', 'nginx under wrk, on another kernel build than the templates', 'nginx', { kernel: 'k2' }),
  debian('nginx', 'nginx under wrk', 'nginx', { templates: OTHERS }),
  debian('postgres', 'PostgreSQL under pgbench', 'postgres'),
  debian('python', 'a Python process changing its heap', 'python'),
  debian('never-converging', 'a table of 24 MB under 8000 updates a second: 32 MB/s of changed pages', 'idle', {
    load: table(24),
    neverConverges: true,
  }),
  debian('random', '320 MB of random data, otherwise idle', 'idle', { load: { file: 'random' } }),
  debian('redis', 'redis under redis-benchmark', 'redis', { templates: OTHERS }),
  debian('idle', 'nothing', 'idle', { templates: OTHERS }),
  debian('compiling', 'gcc compiling busybox', 'compiling', { templates: OTHERS }),
  debian('never-converging-96MB', 'a table of 96 MB under 8000 updates a second', 'idle', {
    load: table(96),
    neverConverges: true,
  }),
]

/** The one that moves with its disk. */
export const DISK_GUEST = 'nginx'

/** The small guest of the tests: boots in seconds, needs no lab. */
export const BUSYBOX: ComparedGuest = {
  name: 'busybox',
  workload: 'rewrites 2 MB a second',
  memoryMb: 128,
  templates: [],
}

/** A guest of the comparison by its name. @throws Error */
export function guestNamed(name: string): ComparedGuest {
  const found = [...GUESTS, BUSYBOX].find(guest => guest.name === name)
  if (!found) throw new Error(`no guest is called '${name}'; there are ${GUESTS.map(guest => guest.name).join(', ')}`)
  return found
}

/** A guest that was started, stopped as it was kept, and what a destination for it is started with, on the same disk. */
export interface StartedGuest {
  readonly source: QemuGuest
  readonly destination: GuestOptions
}

/** A guest that can be started from where it was kept. */
export class PreparedGuest {
  readonly guest: ComparedGuest
  private readonly options: GuestOptions
  private readonly folder: string | undefined

  /** Its state as QEMU's stream; undefined for the busybox guest. */
  get state(): string | undefined {
    return this.folder === undefined ? undefined : join(this.folder, 'state')
  }

  /** @param folder of its state and disk; undefined for the busybox guest, whose state the tests' harness keeps */
  constructor(guest: ComparedGuest, options: GuestOptions, folder: string | undefined) {
    this.guest = guest
    this.options = options
    this.folder = folder
  }

  /**
   * Starts it, stopped, as it was kept, and gives what a destination for it is started with: on the same disk, which is
   * below `folder` and as new.
   * @param caching of its disk, as QEMU calls it; default: `unsafe`, which syncs nothing
   */
  async start(
    folder: string,
    at: Pick<GuestOptions, 'netns'>,
    caching: 'unsafe' | 'writeback' = 'unsafe',
  ): Promise<StartedGuest> {
    if (this.folder === undefined) {
      const source = await QemuGuest.start({ ...this.options, ...at, name: 'source', booted: true, paused: true })
      return { source, destination: this.options }
    }
    const disk = join(folder, 'disk.qcow2')
    overlay(disk, join(this.folder, 'disk.qcow2'), 'qcow2')
    const boot = onDisk(this.options.boot!, disk).map(word => word.replace('cache=unsafe', `cache=${caching}`))
    const options = { ...this.options, boot }
    const state = `exec:cat '${join(this.folder, 'state')}'`
    const source = await QemuGuest.start({ ...options, ...at, name: 'source', paused: true, incoming: state })
    try {
      await source.waitStatus(['paused', 'prelaunch'], 120_000)
    } catch (error) {
      await source.quit()
      throw error
    }
    return { source, destination: options }
  }
}

const DISK = 'DISK'

function onDisk(boot: readonly string[], disk: string): string[] {
  return boot.map(word => word.replace(DISK, disk))
}

function command(program: string, ...args: string[]): void {
  const { status, stderr, error } = spawnSync(program, args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`${program} ${args[0]}: ${error?.message ?? stderr.trim()}`)
}

function overlay(path: string, base: string, format: 'raw' | 'qcow2'): void {
  rmSync(path, { force: true })
  command('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', format, path)
}

/** The lab's initramfs with the comparison's own files behind it: the kernel takes both. */
function makeInitrd(guest: NonNullable<ComparedGuest['debian']>, path: string): void {
  const { path: folder, remove } = temporaryFolder('initrd')
  try {
    mkdirSync(join(folder, 'conf'))
    mkdirSync(join(folder, 'pageferry'))
    cpSync(join(extras, 'param.conf'), join(folder, 'conf/param.conf'))
    for (const file of ['heartbeat', 'heartbeat.service']) cpSync(join(extras, file), join(folder, 'pageferry', file))
    if (guest.load) {
      let text = readFileSync(join(extras, guest.load.file), 'utf8')
      for (const [word, value] of Object.entries(guest.load.replace ?? {})) text = text.replaceAll(word, value)
      writeFileSync(join(folder, 'pageferry/load'), text)
      cpSync(join(extras, 'load.service'), join(folder, 'pageferry/load.service'))
    }
    const pack = "find conf/param.conf pageferry | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet > '$OUT'"
    command('sh', '-c', `cd '${folder}' && ${pack.replace('$OUT', join(folder, 'more'))}`)
    const first = readFileSync(join(lab, 'base', guest.kernel, 'initrd.img'))
    const padding = Buffer.alloc((4 - (first.length % 4)) % 4)
    writeFileSync(path, Buffer.concat([first, padding, readFileSync(join(folder, 'more'))]))
  } finally {
    remove()
  }
}

/** What a kept guest was made with; another one is made again. */
function fingerprint(guest: ComparedGuest, qemu: QemuVersion): string {
  const image = statSync(join(lab, 'base/disk.raw')).mtime.toISOString()
  const { load } = guest.debian!
  const files = ['heartbeat', 'param.conf', ...(load ? [load.file] : [])].map(file =>
    readFileSync(join(extras, file), 'utf8'),
  )
  return JSON.stringify({ image, qemu: qemu.version, memoryMb: guest.memoryMb, debian: guest.debian, files })
}

/**
 * Gives a guest as it is kept below `cache`, and boots and keeps it first where it is not there: two to three minutes
 * without KVM.
 */
export async function prepareGuest(
  guest: ComparedGuest,
  qemu: QemuVersion,
  accel: 'kvm' | 'tcg',
  cache: string,
  report: (text: string) => void,
): Promise<PreparedGuest> {
  const { debian: machine, memoryMb } = guest
  if (!machine) {
    await guestFiles()
    const workload = { workload: 'busy', rate: 2, busymb: 4, content: 7, contentmb: 4, hb: 20 } as const
    return new PreparedGuest(guest, { qemu, memoryMb, workload }, undefined)
  }
  const folder = join(cache, guest.name)
  const kernel = join(lab, 'base', machine.kernel)
  const initrd = join(folder, 'initrd.img')
  const { load } = machine
  const fixed = 'root=/dev/vda rw console=ttyS0 quiet panic=-1'
  const named = `systemd.hostname=${guest.name} lab.workload=${machine.labWorkload}`
  const words = load?.init ? `${fixed} no_timer_check init=/bin/sh -- /run/pageferry/load` : `${fixed} ${named}`
  const boot = [
    ...['-smp', '1', '-kernel', join(kernel, 'vmlinuz'), '-initrd', initrd, '-append', words],
    ...['-drive', `file=${DISK},if=none,id=disk,format=qcow2,cache=unsafe`, '-device', 'virtio-blk-pci,drive=disk'],
    ...['-netdev', 'user,id=net,restrict=on', '-device', 'virtio-net-pci,netdev=net'],
    ...['-device', 'virtio-rng-pci', '-vga', 'std'],
  ]
  const options: GuestOptions = { qemu, memoryMb, accel: accel === 'kvm' ? 'kvm' : 'tcg', boot }
  const made = fingerprint(guest, qemu)
  const note = join(folder, 'made.json')
  if (existsSync(note) && readFileSync(note, 'utf8') === made) return new PreparedGuest(guest, options, folder)

  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  makeInitrd(machine, initrd)
  const disk = join(folder, 'disk.qcow2')
  // its backing file is kept by this name: a guest made in one checkout serves another that shares the lab
  overlay(disk, realpathSync(join(lab, 'base/disk.raw')), 'raw')
  report(`${guest.name}: booting`)
  await using running = await QemuGuest.start({ ...options, name: guest.name, boot: onDisk(boot, disk) })
  if (!load?.init) await running.waitSerial(/LAB-READY/, BOOT_MS)
  if (load) await running.waitSerial(/PAGEFERRY-LOAD/, BOOT_MS)
  await running.waitHeartbeats(10, BOOT_MS)
  const settleSeconds = load?.init ? 5 : SETTLE_SECONDS
  report(`${guest.name}: its load runs; kept in ${settleSeconds} s`)
  await sleep(settleSeconds * 1000)
  await running.stop()
  const state = join(folder, 'state')
  await running.migrate(`exec:cat > '${state}.part'`, { parameters: { 'max-bandwidth': 0 } })
  // `completed` can come before cat has seen the end of the stream; QEMU waits for it when it ends.
  await running.quit()
  renameSync(`${state}.part`, state)
  writeFileSync(note, made)
  report(`${guest.name}: kept, ${(statSync(state).size / 1e6).toFixed(0)} MB`)
  return new PreparedGuest(guest, options, folder)
}
