// The guest lab: boots Debian guests with different workloads and keeps the migration streams that QEMU sends for them.
// docs/lab.md says what for. node scripts/lab/lab.ts --help

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type Capture, type Guest, guests } from './guests.ts'
import { kvmWorks, Machine, type MachineOptions, machineArguments } from './machine.ts'
import { Manifest } from './manifest.ts'
import { installTools, run } from './tools.ts'

const here = dirname(fileURLToPath(import.meta.url))
const checkout = join(here, '../..')
const cache = join(checkout, '.cache')
const lab = join(cache, 'lab')
const base = join(lab, 'base')
const streams = join(lab, 'streams')

const usage = `usage: lab.ts [options] [GUEST...]

Captures the migration streams of Debian guests into .cache/lab/streams, with a manifest.json. What is there is skipped.
As root, on Debian 12. Guests, in this order where none is named:
${guests.map(guest => `  ${guest.name.padEnd(18)} ${guest.captures.map(capture => capture.stream).join(', ')}`).join('\n')}

  --memory MB      of each guest (768)
  --rate MBPS      max-bandwidth of the limited captures, in 1,000,000 bytes a second (15)
  --accel NAME     auto, kvm or tcg; auto boots a kernel under KVM to see whether it really runs (auto)
  --again          capture the guests again, also where their streams are there
  --base-only      build the base image and stop
  --rebuild        build the base image again first; streams of the old one no longer count as there
  --list           print what is there and stop
  --help           print this
`

const started = Date.now()
function progress(text: string): void {
  const seconds = Math.round((Date.now() - started) / 1000)
  const clock = `${String(Math.floor(seconds / 60)).padStart(3)}:${String(seconds % 60).padStart(2, '0')}`
  console.log(`${clock}  ${text}`)
}

/** What the lab needs of the host. */
const TOOLS = [
  ['qemu-system-x86_64', 'qemu-system-x86'],
  ['qemu-img', 'qemu-utils'],
  ['debootstrap', 'debootstrap'],
  ['mke2fs', 'e2fsprogs'],
  ['unshare', 'util-linux'],
] as const

/** Lets one lab at a time run in this checkout: two would write the same files, and share too little CPU. */
function lock(): void {
  const file = join(lab, 'lock')
  try {
    writeFileSync(file, `${process.pid}\n`, { flag: 'wx' })
  } catch {
    const owner = readFileSync(file, 'utf8').trim()
    if (existsSync(`/proc/${owner}`)) throw new Error(`another lab is running here, process ${owner}`)
    writeFileSync(file, `${process.pid}\n`)
  }
  process.once('exit', () => rmSync(file, { force: true }))
}

/** What a stream must have been captured with to count as done. */
interface Settings {
  readonly memoryMb: number
  readonly limitedBytesPerSecond: number
  /** When the base disk was made. */
  readonly image: string
}

const memoryOf = (guest: Guest, settings: Settings): number => guest.memoryMb ?? settings.memoryMb
const rateOf = (capture: Capture, settings: Settings) => (capture.limited ? settings.limitedBytesPerSecond : 0)

/** Whether all streams of a guest are there, captured with these settings. */
function isDone(guest: Guest, manifest: Manifest, settings: Settings): boolean {
  return guest.captures.every(capture => {
    const entry = manifest.get(capture.stream)
    return (
      entry?.image === settings.image &&
      entry.memoryMb === memoryOf(guest, settings) &&
      entry.bytesPerSecondMax === rateOf(capture, settings)
    )
  })
}

/** A copy of the base disk with this checkout's scripts: a base that was built before a guest came is good for it, too. */
function withScripts(disk: string, folder: string): string {
  const copy = join(folder, 'root.raw')
  run('cp', '--sparse=always', '--reflink=auto', disk, copy)
  const scripts = join(here, 'guest/opt/lab')
  const commands = readdirSync(scripts).flatMap(name => [
    `rm /opt/lab/${name}`,
    `write ${join(scripts, name)} /opt/lab/${name}`,
    `sif /opt/lab/${name} mode 0100755`,
  ])
  const file = join(folder, 'debugfs.commands')
  writeFileSync(file, `${commands.join('\n')}\n`)
  run('debugfs', '-w', '-f', file, copy)
  return copy
}

/** Boots one guest and captures its streams. */
async function captureGuest(guest: Guest, manifest: Manifest, settings: Settings, accel: 'kvm' | 'tcg'): Promise<void> {
  const qemu = guest.qemu === 10 ? join(cache, 'qemu10/qemu10') : 'qemu-system-x86_64'
  const folder = join(lab, 'run', guest.name)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  const kernelFolder = join(base, guest.kernel)
  const options: MachineOptions = {
    qemu,
    accel,
    memoryMb: memoryOf(guest, settings),
    hostname: guest.name,
    workload: guest.workload,
    kernel: join(kernelFolder, 'vmlinuz'),
    initrd: join(kernelFolder, 'initrd.img'),
    disk: join(folder, 'disk.qcow2'),
    folder,
  }
  const root = guest.onlyNamed ? withScripts(join(base, 'disk.raw'), folder) : join(base, 'disk.raw')
  run('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', root, '-F', 'raw', options.disk)
  const machine = new Machine(options, streams)
  const kill = () => machine.kill()
  process.once('exit', kill)
  try {
    const version = await machine.open()
    progress(`${guest.name}: booting (QEMU ${version}, ${accel})`)
    await machine.serialLine('LAB-START', 1200)
    progress(`${guest.name}: up, starting ${guest.workload}`)
    await machine.serialLine('LAB-READY', 2700)
    let after: string | null = null
    for (const capture of guest.captures) {
      if (after !== null) await machine.resume()
      progress(`${guest.name}: ${guest.workload} runs; capturing ${capture.stream} in ${capture.settleSeconds} s`)
      await new Promise(resolve => setTimeout(resolve, capture.settleSeconds * 1000))
      const file = `${capture.stream}.stream`
      const rate = rateOf(capture, settings)
      const migration = await machine.migrateToFile(file, rate, text => progress(`${capture.stream}: ${text}`))
      const words = [qemu, ...machineArguments(options)].map(word => word.replaceAll(`${checkout}/`, ''))
      const entry = await manifest.add(
        {
          name: capture.stream,
          file,
          qemu: version,
          command: words.map(word => (/[ ]/.test(word) ? `'${word}'` : word)).join(' '),
          accel,
          image: settings.image,
          kernel: readFileSync(join(kernelFolder, 'version'), 'utf8').trim(),
          workload: guest.workload,
          memoryMb: options.memoryMb,
          bytesPerSecondMax: rate,
          after,
        },
        migration,
      )
      const megabytes = (entry.bytes / 1e6).toFixed(1)
      progress(`${entry.name}: ${megabytes} MB in ${entry.seconds.toFixed(1)} s, ${entry.dirtySyncs} dirty syncs`)
      after = capture.stream
    }
  } finally {
    await machine.close()
    process.removeListener('exit', kill)
    for (const file of [options.disk, join(folder, 'root.raw')]) rmSync(file, { force: true }) // its logs stay
  }
}

function printList(manifest: Manifest): void {
  for (const entry of manifest.list()) {
    const size = `${(entry.bytes / 1e6).toFixed(1)} MB`.padStart(10)
    const time = `${entry.seconds.toFixed(1)} s`.padStart(8)
    console.log(`${entry.name.padEnd(18)}${size}${time}  QEMU ${entry.qemu.split(' ')[0]}, ${entry.kernel}`)
  }
}

function positive(text: string, option: string): number {
  const value = Number(text)
  if (!(value > 0)) throw new Error(`${option} takes a number above 0, not '${text}'`)
  return value
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      memory: { type: 'string', default: '768' },
      rate: { type: 'string', default: '15' },
      accel: { type: 'string', default: 'auto' },
      again: { type: 'boolean', default: false },
      'base-only': { type: 'boolean', default: false },
      rebuild: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    console.log(usage.trimEnd())
    return 0
  }
  for (const name of positionals)
    if (!guests.some(guest => guest.name === name)) throw new Error(`no guest is called '${name}'; --help names them`)
  if (!['auto', 'kvm', 'tcg'].includes(values.accel)) throw new Error(`--accel takes auto, kvm or tcg`)
  const memoryMb = Math.round(positive(values.memory, '--memory'))
  const limitedBytesPerSecond = Math.round(positive(values.rate, '--rate') * 1e6)

  mkdirSync(streams, { recursive: true })
  const manifest = new Manifest(streams)
  if (values.list) {
    printList(manifest)
    return 0
  }
  lock()
  installTools(TOOLS, progress)
  if (values.rebuild) rmSync(base, { recursive: true, force: true })
  const disk = join(base, 'disk.raw')
  if (!existsSync(disk)) {
    progress('building the base image')
    run(join(here, 'build-base.sh'), base)
  }
  if (values['base-only']) return 0
  const settings: Settings = { memoryMb, limitedBytesPerSecond, image: statSync(disk).mtime.toISOString() }

  const wanted =
    positionals.length > 0
      ? guests.filter(guest => positionals.includes(guest.name))
      : guests.filter(guest => !guest.onlyNamed)
  let accel = values.accel as 'auto' | 'kvm' | 'tcg'
  let failed = 0
  for (const guest of wanted) {
    if (!values.again && isDone(guest, manifest, settings)) {
      progress(`${guest.name}: done before`)
      continue
    }
    try {
      if (accel === 'auto') {
        accel = (await kvmWorks('qemu-system-x86_64', join(base, 'k1/vmlinuz'), 20)) ? 'kvm' : 'tcg'
        progress(`KVM ${accel === 'kvm' ? 'runs guests' : 'does not run guests here: TCG'}`)
      }
      if (guest.qemu === 10) run(join(checkout, 'scripts/fetch-qemu10.sh'), join(cache, 'qemu10'))
      await captureGuest(guest, manifest, settings, accel)
    } catch (error) {
      failed += 1
      progress(`${guest.name}: FAILED: ${(error as Error).message}`)
    }
  }
  printList(manifest)
  if (failed > 0) console.error(`error: ${failed} of ${wanted.length} guests failed\nhint: logs are in .cache/lab/run`)
  return failed > 0 ? 1 : 0
}

for (const [signal, status] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const)
  process.once(signal, () => process.exit(status)) // the exit handlers end QEMU

try {
  process.exitCode = await main()
} catch (error) {
  console.error(`error: ${(error as Error).message}`)
  process.exitCode = 1
}
