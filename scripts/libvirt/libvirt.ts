/**
 * `make test-libvirt`: real `virsh migrate --live` between two libvirts on this machine, through the pair.
 *
 *   node scripts/libvirt/libvirt.ts [--link 100Mbit,40ms] [--system-qemu] [--only TEXT]
 *
 * Two hosts, each with a libvirtd of its own in network, mount, pid and uts namespaces, and a WAN between them, packet by
 * packet. One guest moves there and back in every way that the recipe of docs/operations.md names. After each move its
 * memory is compared from outside (libvirt has it arrive stopped), or, where it must arrive running, checked by the guest
 * itself; its heartbeat goes on. Nothing is left behind. Exit status 1 when anything is not as it must be; where there
 * can be no libvirt, it says why, with status 0.
 */
import { execFile, execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs, promisify } from 'node:util'
import Table from 'cli-table3'
import { formatSize } from '../../src/quantity.ts'
import { temporaryFolder } from '../harness/qemu/cleanup.ts'
import { reportHeartbeats } from '../harness/qemu/heartbeat.ts'
import { compareMemory } from '../harness/qemu/memory.ts'
import { guestFiles, type QemuVersion, qemu10, systemQemu } from '../harness/qemu/versions.ts'
import type { Told } from '../harness/told.ts'
import { parseLink } from '../harness/wan/link.ts'
import { PacketLink, packetLinkSupport } from '../harness/wan/packet-link.ts'
import { Disk, type DiskKind } from './disk.ts'
import { Console, Domain } from './domain.ts'
import { LibvirtHost, VirshError } from './host.ts'
import { type DiskTransfer, PAGEFERRY, ProxyProcess } from './proxy.ts'

const run = promisify(execFile)
const MEMORY_MB = 128
/** MB/s that the guest writes. */
const RATE = 2
const HEARTBEAT_MS = 50
const BOOT_MS = 300_000
const MOVE_MS = 180_000
const GUEST = 'web1'
/** A return path that only answered a ping and said that all is there; postcopy asks for pages besides. */
const BACK_WITHOUT_REQUESTS = 16

/** On both hosts: libvirt knows one path for both. */
const UNIX_SOCKET = '/run/pageferry/migrate.sock'

/** Where a disk goes to a host, by its name: another port and path than the other way, as both proxies have both roles. */
const DISK_PORTS: Readonly<Record<string, number>> = { ams: 10_811, fra: 10_810 }
const diskAddress = (to: string) => `tcp:127.0.0.1:${DISK_PORTS[to]}`
/** Sockets for memory and disks, as KubeVirt names them: a word for the guest, and the port that libvirt would take. */
const MEMORY = 49_152
const DISKS = 49_153
const socketTo = (to: string, port: number) => `/run/pageferry/${GUEST}-to-${to}-${port}-source.sock`

/** One way to move the guest. */
interface Move {
  readonly name: string
  /** What `virsh migrate --live` is given beyond guest and destination. */
  readonly flags: readonly string[]
  /** Arrives running, as postcopy must. */
  readonly running?: boolean
  /** `virsh migrate-postcopy` in the middle: the guest arrives running, and asks for pages. */
  readonly asks?: boolean
  /** Is stopped before. */
  readonly stopped?: boolean
  /** Goes past the pair. */
  readonly past?: boolean
  /** Runs at the source while virsh does; virsh must then fail, and the guest go on where it is. */
  readonly cancel?: boolean
  /** virsh must refuse it at once, and say this. */
  readonly refused?: RegExp
  /** virsh must fail, and the guest go on where it is. */
  readonly fails?: boolean
  /** The guest gets a disk first, in place of the one that it has. */
  readonly plugs?: DiskKind
  /** The disk goes too, by --disks-uri with such an address. */
  readonly disk?: 'tcp' | 'unix'
}

interface Outcome {
  readonly move: Move
  readonly route: string
  readonly result: string
  readonly wanBytes?: number
  readonly fromQemu?: number
  readonly seconds?: number
  readonly downtimeMs?: number
  readonly memory?: string
  readonly disk?: string
}

/** Past the pair, for comparison; and through `pageferry source` and `destination`, with flags of virsh. */
const FIRST: readonly Move[] = [
  { name: 'without the pair', past: true, flags: [] },
  { name: 'without the pair, back', past: true, flags: [] },
  { name: 'one way', flags: ['--listen-address', '127.0.0.1', '--migrateuri', 'tcp://127.0.0.1'] },
  { name: 'without the pair, back again', past: true, flags: [] },
  { name: 'unix sockets', flags: ['--migrateuri', `unix://${UNIX_SOCKET}`] },
]

/** Through `pageferry serve` at both sites; addresses as their libvirts' qemu.conf has them. */
const BOTH_WAYS: readonly Move[] = [
  { name: 'no flags', flags: [] },
  { name: 'flags', flags: ['--listen-address', '127.0.0.3', '--migrateuri', 'tcp://127.0.0.2'] },
  { name: 'p2p', flags: ['--p2p'] },
  { name: 'multifd', flags: ['--parallel', '--parallel-connections', '4'] },
  { name: 'multifd, p2p', flags: ['--p2p', '--parallel', '--parallel-connections', '4'] },
  { name: 'postcopy, then migrate-postcopy', flags: ['--postcopy'], asks: true },
  { name: 'postcopy, p2p', flags: ['--p2p', '--postcopy'], asks: true },
  { name: 'postcopy after a pass', flags: ['--postcopy', '--postcopy-after-precopy'], running: true },
  { name: 'auto-converge', flags: ['--auto-converge', '--abort-on-error'] },
  { name: 'persistent', flags: ['--persistent', '--undefinesource', '--change-protection'] },
  { name: 'bandwidth', flags: ['--bandwidth', '100000'] },
  { name: 'timeout', flags: ['--timeout', '2', '--timeout-suspend'] },
  { name: 'stopped guest', flags: [], stopped: true },
  { name: 'xbzrle', flags: ['--comp-methods', 'xbzrle'] },
  { name: 'cancelled', flags: [], cancel: true },
  { name: 'after that', flags: [] },
  { name: 'tunnelled', flags: ['--p2p', '--tunnelled', '--migrateuri', 'tcp://127.0.0.2'], refused: /tunnelled/ },
  { name: 'disk without --disks-uri', flags: ['--copy-storage-all'], plugs: 'raw', fails: true },
  { name: 'disk, past the pair', flags: ['--copy-storage-all'], disk: 'tcp', past: true },
  ...disks('--copy-storage-all'),
  ...disks('--copy-storage-inc', 'overlay'),
]

/** There and back, by either kind of address, with and without the guest's writes waiting for the other site. */
function disks(copy: string, plugs?: DiskKind): Move[] {
  const moves: Move[] = []
  for (const more of [[], ['--copy-storage-synchronous-writes']])
    for (const disk of ['tcp', 'unix'] as const)
      for (const way of ['', ', back'])
        moves.push({
          ...{ name: `disk, ${[copy, ...more].join(' ').replaceAll('--copy-storage-', '')}, ${disk}${way}`, disk },
          flags: [copy, ...more],
          ...(plugs !== undefined && moves.length === 0 ? { plugs } : {}),
        })
  return moves
}

/** Everything that was not as it must be. */
const wrong: string[] = []
const startMs = performance.now()
function step(text: string): void {
  console.log(`${`${((performance.now() - startMs) / 1000).toFixed(0)} s`.padStart(6)}  ${text}`)
}

class Run implements AsyncDisposable {
  readonly outcomes: Outcome[] = []
  private readonly link: PacketLink
  private readonly hosts: readonly [LibvirtHost, LibvirtHost]
  private readonly domain: Domain
  private readonly qemu: QemuVersion
  private readonly proxies = new Map<LibvirtHost, ProxyProcess>()
  private here: LibvirtHost
  private console!: Console
  private sums = ''
  private readonly folder: string
  private xmlPath = ''
  private disk: Disk | undefined

  constructor(
    link: PacketLink,
    hosts: readonly [LibvirtHost, LibvirtHost],
    domain: Domain,
    qemu: QemuVersion,
    folder: string,
  ) {
    this.folder = folder
    this.link = link
    this.hosts = hosts
    this.here = hosts[0]
    this.domain = domain
    this.qemu = qemu
  }

  private get there(): LibvirtHost {
    return this.here === this.hosts[0] ? this.hosts[1] : this.hosts[0]
  }

  /** Boots the guest at the first host. */
  async boot(): Promise<void> {
    this.xmlPath = join(this.folder, 'guest.xml')
    writeFileSync(this.xmlPath, this.domain.xml)
    await this.here.virsh('create', this.xmlPath)
    this.console = await Console.open(this.here)
    await this.console.ready(BOOT_MS)
    this.sums = await this.console.sums()
  }

  async startProxy(host: LibvirtHost, args: readonly string[], until: Told['event']): Promise<void> {
    this.proxies.set(host, await ProxyProcess.start(host.site, args, until))
  }

  async stopProxies(): Promise<void> {
    for (const proxy of this.proxies.values()) await proxy[Symbol.asyncDispose]()
    this.proxies.clear()
  }

  /** Tries one move, and says how it went. */
  async try(move: Move): Promise<void> {
    const route = `${this.here.name} to ${this.there.name}`
    try {
      const outcome = { move, route, ...(await this.perform(move)) }
      this.outcomes.push(outcome)
      step(`${move.name} (${route}): ${outcome.result}`)
    } catch (error) {
      wrong.push(`${move.name} (${route}): ${(error as Error).message}`)
      this.outcomes.push({ move, route, result: 'FAILED' })
      step(`${move.name} (${route}): FAILED: ${(error as Error).message}`)
      for (const host of this.hosts) console.error(`${host.name}:\n${host.log}\n${this.proxies.get(host)?.log ?? ''}`)
      await this.find()
    }
  }

  private async perform(move: Move): Promise<Omit<Outcome, 'move' | 'route'>> {
    const { here, there, domain } = this
    const command = ['migrate', '--live', GUEST, there.uri, ...move.flags]
    if (move.refused) return this.refused(command, move.refused)
    if (move.past) command.push('--listen-address', '0.0.0.0', '--migrateuri', `tcp://${there.site.address}`)
    if (move.plugs) await this.plug(new Disk(move.plugs))
    const disk = move.disk === undefined ? undefined : this.disk!
    if (move.flags.some(flag => flag.startsWith('--copy-storage'))) await this.disk!.empty(there)
    if (disk) {
      const address = move.past ? `tcp://${there.site.address}:49300` : `tcp://${diskAddress(there.name).slice(4)}`
      if (move.disk === 'tcp') command.push('--disks-uri', address)
      else {
        command.push('--migrateuri', `unix://${socketTo(there.name, MEMORY)}`)
        command.push('--disks-uri', `unix://${socketTo(there.name, DISKS)}`)
      }
    }
    // QEMU before 9 loses dirty pages of a running guest without KVM: there, the guest is stopped first.
    const postcopy = move.running === true || move.asks === true
    const stays = move.cancel === true || move.fails === true
    const stopped = move.stopped === true || (!this.qemu.tcgTracksDirtyPages && !stays)
    if (stopped) await here.virsh('suspend', GUEST)
    else if (!postcopy && !stays) command.push('--suspend') // it arrives stopped
    if (move.cancel || move.fails) return this.stays(command, move.cancel === true)
    if (move.flags.includes('--persistent')) await here.virsh('define', this.xmlPath)

    using left = await domain.memory(here)
    const bytesBefore = await this.wanBytes()
    const beganMs = performance.now()
    const moving = here.virshFor(MOVE_MS, ...command)
    if (move.asks) await Promise.race([moving, this.underWay().then(() => here.virsh('migrate-postcopy', GUEST))])
    let ended = false
    const end = () => {
      ended = true
    }
    moving.then(end, end)
    const writing = disk?.write(here, GUEST, () => ended)
    writing?.catch(end) // told when virsh has come to its end
    await moving
    const writes = await writing
    const seconds = (performance.now() - beganMs) / 1000
    const wanBytes = (await this.wanBytes()) - bytesBefore
    this.here = there
    const sourceBeats = this.console.heartbeats
    this.console[Symbol.dispose]()
    this.console = await Console.open(there)

    let memory: string
    if (postcopy) {
      await this.console.beats(5)
      const sums = await this.console.sums()
      if (sums !== this.sums || !(await this.console.checkBusy(RATE)))
        throw new Error('the guest finds its memory changed')
      memory = 'equal (guest)'
    } else {
      using right = await domain.memory(there)
      const { pages, differingPages } = await compareMemory(left, right)
      if (differingPages > 0) throw new Error(`${differingPages} of ${pages} pages of memory differ`)
      memory = `${pages} pages equal`
      await there.virsh('resume', GUEST)
      await this.console.beats(5)
    }
    if (reportHeartbeats(sourceBeats, this.console.heartbeats).disorder > 0)
      throw new Error('the heartbeat does not go on')
    await disk?.compare(here, there)
    const mirror = disk && !move.past ? await this.proxies.get(here)!.disk() : undefined
    if (disk && !move.past && mirror?.endedBy !== 'both sides closed')
      throw new Error(`its disk did not go through the pair: ${mirror?.endedBy}`)
    const summary = move.past ? undefined : await this.proxies.get(here)!.summary()
    if (!move.past && !summary) throw new Error('it did not go through the pair')
    if (move.asks && summary && summary.bytesBack <= BACK_WITHOUT_REQUESTS)
      throw new Error('it arrived before postcopy began')
    return {
      ...{ result: 'arrived', wanBytes, seconds, memory },
      ...(summary ? { fromQemu: summary.bytesIn, result: `arrived: ${summary.channels}` } : {}),
      ...(disk ? { disk: diskText(disk, there, writes!, mirror) } : {}),
      ...(await this.downtime()),
    }
  }

  /** Gives the guest a disk, with something on it, in place of the one that it has. */
  private async plug(disk: Disk): Promise<void> {
    const file = join(this.folder, 'disk.xml')
    if (this.disk) {
      writeFileSync(file, this.disk.xml)
      await this.here.virsh('detach-device', GUEST, file)
      // The guest has no driver that would let go of it: QEMU takes it away at the next reset, or when it arrives elsewhere.
    }
    this.disk = disk
    await disk.fill(this.here)
    writeFileSync(file, disk.xml)
    await this.here.virsh('attach-device', GUEST, file)
  }

  /** Waits until a good part of the guest's memory has left. */
  private async underWay(): Promise<void> {
    for (;;) {
      const info = await this.here.qmp<{ ram?: { transferred: number } }>(GUEST, 'query-migrate')
      if ((info.ram?.transferred ?? 0) > 20e6) return
      await sleep(50)
    }
  }

  /** virsh is to refuse it, and the guest not to notice. */
  private async refused(command: readonly string[], why: RegExp): Promise<Omit<Outcome, 'move' | 'route'>> {
    const error = await this.here.virsh(...command).then(
      () => undefined,
      (error: Error) => error,
    )
    if (!(error instanceof VirshError) || !why.test(error.message)) throw new Error(`not refused: ${error?.message}`)
    await this.console.beats(3)
    return { result: 'refused, as it must be' }
  }

  /** It fails by itself, or by `virsh domjobabort` in the middle: the guest goes on where it was. */
  private async stays(command: readonly string[], cancel: boolean): Promise<Omit<Outcome, 'move' | 'route'>> {
    const { here, there } = this
    const moving = here.virshFor(MOVE_MS, ...command).then(
      () => 'arrived',
      (error: Error) => error.message,
    )
    if (cancel) {
      await Promise.race([moving, this.underWay()])
      await here.virsh('domjobabort', GUEST)
    }
    const result = await moving
    if (result === 'arrived') throw new Error('it arrived')
    if (!cancel) console.log(`        ${result}`)
    if ((await here.virsh('domstate', GUEST)) !== 'running') await here.virsh('resume', GUEST)
    await this.console.beats(10)
    if ((await there.virsh('list', '--name')) !== '') throw new Error('the destination QEMU is still there')
    if (cancel) await this.proxies.get(here)!.summary()
    return { result: `${cancel ? 'domjobabort' : 'fails'}; goes on here` }
  }

  /** What libvirt counted. */
  private async downtime(): Promise<{ downtimeMs?: number }> {
    const info = await this.here.virsh('domjobinfo', '--completed', GUEST)
    const [, milliseconds] = /^Total downtime: +(\d+) +ms$/m.exec(info) ?? []
    return milliseconds === undefined ? {} : { downtimeMs: Number(milliseconds) }
  }

  /** After a failure: where is the guest? */
  private async find(): Promise<void> {
    for (const host of this.hosts) {
      const state = await host.virsh('domstate', GUEST).catch(() => 'gone')
      if (state === 'gone' || state === 'shut off') continue
      this.here = host
      if (state === 'paused') await host.virsh('resume', GUEST)
      this.console[Symbol.dispose]()
      this.console = await Console.open(host)
      await this.console.beats(1)
      return
    }
    throw new Error('the guest is lost')
  }

  private async wanBytes(): Promise<number> {
    const { sentBytes, backSentBytes } = await this.link.counters()
    return sentBytes + backSentBytes
  }

  /** `pageferry doctor` reads the domain's settings; virsh takes every command that it prints. */
  async doctor(): Promise<string> {
    const report = await run(PAGEFERRY, ['doctor', '--json', '--qmp', Domain.qmpPath(this.here)], {
      timeout: 60_000,
    }).catch((error: Error & { code?: number; stdout: string }) => {
      if (error.code !== 11) throw error
      return error
    })
    const { advice } = JSON.parse(report.stdout) as { advice: { setting: string; virsh: string }[] }
    const said: string[] = []
    for (const { setting, virsh } of advice) {
      const [, json] = /^virsh qemu-monitor-command DOMAIN '(.*)'$/.exec(virsh) ?? []
      if (json === undefined) said.push(`${setting}: ${virsh}`)
      else {
        const answer = JSON.parse(await this.here.virsh('qemu-monitor-command', GUEST, json)) as { return?: object }
        if (!answer.return) throw new Error(`doctor: ${virsh}: ${JSON.stringify(answer)}`)
        said.push(`${setting}: virsh qemu-monitor-command takes it`)
      }
    }
    return said.join('; ')
  }

  table(): string {
    const table = new Table({
      head: ['virsh migrate --live', '', 'on the WAN', 'from QEMU', 'virsh took', 'downtime', 'memory', 'disk'],
      colAligns: ['left', 'left', 'right', 'right', 'right', 'right', 'left'],
      style: { head: [], border: [], compact: true },
    })
    const size = (bytes: number | undefined) => (bytes === undefined ? '' : formatSize(bytes))
    for (const { move, result, wanBytes, fromQemu, seconds, downtimeMs, memory, disk } of this.outcomes) {
      const took = seconds === undefined ? '' : `${seconds.toFixed(1)} s`
      const downtime = downtimeMs === undefined ? '' : `${downtimeMs} ms`
      const uris =
        move.disk === 'unix' ? ['--migrateuri', 'unix://', '--disks-uri', 'unix://'] : ['--disks-uri', 'tcp://']
      const uri = move.disk === undefined || move.past ? [] : uris
      const what = [...move.flags, ...uri].join(' ') || `(${move.name})`
      table.push([what, result, size(wanBytes), size(fromQemu), took, downtime, memory ?? '', disk ?? ''])
    }
    return table.toString()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.console?.[Symbol.dispose]()
    await this.stopProxies()
  }
}

function diskText(disk: Disk, host: LibvirtHost, writes: number, mirror: DiskTransfer | undefined): string {
  const carried = mirror ? `${formatSize(mirror.bytesIn)} of QEMU, ${formatSize(mirror.bytesWan)} on the WAN; ` : ''
  return `equal; ${carried}${writes} writes meanwhile; takes ${formatSize(disk.allocated(host))}`
}

/** Why there can be no libvirt here, if so. */
async function skipReason(): Promise<string | undefined> {
  const support = await packetLinkSupport()
  if ('skip' in support) return support.skip
  try {
    await run('sh', ['-c', 'unshare --mount --uts --pid --fork --mount-proc mount -t tmpfs tmpfs /run'])
  } catch {
    return 'no mount, pid and uts namespaces here'
  }
  try {
    await run('sh', [fileURLToPath(new URL('install.sh', import.meta.url))], { timeout: 600_000 })
  } catch (error) {
    return (error as { stderr?: string }).stderr?.trim() || (error as Error).message
  }
  return undefined
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      link: { type: 'string', default: '100Mbit,40ms' },
      'system-qemu': { type: 'boolean', default: false },
      only: { type: 'string', default: '' },
    },
  })
  const skip = await skipReason()
  const ten = values['system-qemu'] ? { skip: '--system-qemu' } : await qemu10()
  const system = await systemQemu()
  const qemu = ten.qemu ?? system.qemu
  if (skip !== undefined || !qemu) {
    console.log(`skipped: ${skip ?? system.skip}`)
    return
  }
  const { path: folder, remove } = temporaryFolder('libvirt')
  try {
    await using link = await PacketLink.open(parseLink(values.link))
    const addresses = 'migration_address = "127.0.0.3"\nmigration_host = "127.0.0.2"\n'
    const hideModules = qemu !== system.qemu
    // Only one of two sites needs another range of ports than libvirt's default.
    await using ams = await LibvirtHost.start(link.source, {
      ...{ name: 'ams', uuid: '6a1f0f8c-6f5e-4a43-8a62-2a8f6f6a0a01', hideModules },
      qemuConf: `${addresses}migration_port_min = 49216\nmigration_port_max = 49279`,
    })
    await using fra = await LibvirtHost.start(link.destination, {
      ...{ name: 'fra', uuid: '6a1f0f8c-6f5e-4a43-8a62-2a8f6f6a0a02', hideModules, qemuConf: addresses },
    })
    const { kernel, initramfs } = await guestFiles()
    const emulator = qemu.command.includes('/')
      ? qemu.command
      : execFileSync('which', [qemu.command], { encoding: 'utf8' }).trim()
    const workload = `workload=busy rate=${RATE} busymb=8 content=13 contentmb=16 hb=${HEARTBEAT_MS}`
    const domain = new Domain({ name: GUEST, emulator, kernel, initramfs, memoryMb: MEMORY_MB, workload })
    await using moves = new Run(link, [ams, fra], domain, qemu, folder)
    console.log(
      `libvirt ${await ams.virsh('--version')}, QEMU ${qemu.version} without KVM, a ${MEMORY_MB} MB guest over ${values.link}`,
    )
    step('booting the guest')
    await moves.boot()
    step(`doctor: ${await moves.doctor()}`)

    const keys = join(folder, 'keys')
    await run(PAGEFERRY, [
      'keygen',
      'x509',
      '--dir',
      keys,
      '--name',
      'ams.example.net',
      '--peer-name',
      'fra.example.net',
    ])
    const tls = (site: LibvirtHost, peer: LibvirtHost) => [
      ...['--tls-creds', join(keys, `${site.name}.example.net`), '--peer-name', `${peer.name}.example.net`],
    ]
    const wanPort = 9444
    await moves.startProxy(
      fra,
      [
        ...['destination', '--listen', `tcp:${fra.site.address}:${wanPort}`, ...tls(fra, ams)],
        ...['--target', 'tcp:127.0.0.1:49152-49215', '--target', `local=unix:${fra.path(UNIX_SOCKET)}`],
      ],
      'listening for source proxies',
    )
    await moves.startProxy(
      ams,
      [
        ...['source', '--peer', `${fra.site.address}:${wanPort}`, ...tls(ams, fra)],
        ...['--listen', 'tcp:127.0.0.1:49152-49215', '--listen', `local=unix:${ams.path(UNIX_SOCKET)}`],
      ],
      'session open',
    )
    for (const move of FIRST) await moves.try(move)
    await moves.stopProxies()

    const site = async (here: LibvirtHost, there: LibvirtHost, herePorts: string, therePorts: string) => {
      const config = join(folder, `${here.name}.yaml`)
      writeFileSync(
        config,
        `tls-creds: ${join(keys, `${here.name}.example.net`)}
peers:
  ${there.name}: { address: "${there.site.address}:${wanPort}", peer-name: ${there.name}.example.net }
listeners:
  - { at: "tcp:127.0.0.2:${therePorts}", peer: ${there.name} }
  - { at: "${diskAddress(there.name)}", peer: ${there.name}, disks: true }
  - { at: "unix:${here.path(socketTo(there.name, MEMORY))}", peer: ${there.name}, target: local }
  - { at: "unix:${here.path(socketTo(there.name, DISKS))}", peer: ${there.name}, disks: true, target: local }
wan: { listen: ["tcp:${here.site.address}:${wanPort}"] }
targets:
  default: tcp:127.0.0.3:${herePorts}
  local: unix:${here.path(socketTo(here.name, MEMORY))}
disks:
  default: ${diskAddress(here.name)}
  local: unix:${here.path(socketTo(here.name, DISKS))}
`,
      )
      await moves.startProxy(here, ['serve', '--config', config], 'serving')
    }
    await site(ams, fra, '49216-49279', '49152-49215')
    await site(fra, ams, '49152-49215', '49216-49279')
    for (const move of BOTH_WAYS) {
      // there, only a guest that is stopped arrives whole
      const impossible = !qemu.tcgTracksDirtyPages && (move.running || move.asks)
      if (move.name.includes(values.only) && !impossible) await moves.try(move)
    }
    console.log(`\n${moves.table()}`)
  } finally {
    remove()
  }
  if (wrong.length > 0) {
    console.log(`\nNot as it must be:\n${wrong.map(what => `  ${what}`).join('\n')}`)
    process.exitCode = 1
  }
}

try {
  await main()
} catch (error) {
  console.error(`error: ${(error as Error).message}`)
  process.exitCode = 1
}
