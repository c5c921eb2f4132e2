/** What is read of disks through both daemons: encoded on its way back, with servers and clients that nobody here wrote. */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { ColumnPacker } from '../../src/compression/column-packer.ts'
import { FairShares } from '../../src/fair-shares.ts'
import { REPLIES_MEMORY_BYTES } from '../../src/limits.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { FEATURE, FEATURES } from '../../src/wan/wire.ts'
import { until } from '../helpers/until.ts'
import { putPages } from '../template/makers.ts'
import { conversation } from '../vectors/nbd/conversations.ts'
import { closed, Target } from './daemons.ts'
import { DiskPair, digestOf, diskImage } from './disk-pair.ts'
import { NBD_SKIP, Nbdkit, nbdcopy, nbdsh, QEMU_IMG_SKIP, qemuImg } from './nbd.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20
const PAGE = 4096

/** A qemu-nbd that listens on a Unix socket. */
class QemuNbd implements AsyncDisposable {
  readonly socket: string
  private readonly child: ChildProcess
  private readonly folder: string
  private readonly ended: Promise<unknown>

  private constructor(folder: string, child: ChildProcess) {
    this.folder = folder
    this.socket = join(folder, 's')
    this.child = child
    this.ended = once(child, 'exit')
  }

  /** @param folder for its socket, whose path is short: where another one was killed */
  static async start(file: string, folder = mkdtempSync(join(tmpdir(), 'pageferry-nbd-'))): Promise<QemuNbd> {
    const args = ['-f', 'raw', '-r', '-t', '-e', '16', '-k', join(folder, 's'), file]
    const server = new QemuNbd(folder, spawn('qemu-nbd', args, { stdio: 'ignore' }))
    await until('qemu-nbd listens', () => existsSync(server.socket) || server.child.exitCode !== null)
    return server
  }

  /** Dies, and another one takes its place. */
  async replaced(file: string): Promise<QemuNbd> {
    this.child.kill('SIGKILL')
    await this.ended
    rmSync(this.socket)
    return await QemuNbd.start(file, this.folder)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL')
    await this.ended
    rmSync(this.folder, { recursive: true, force: true })
  }
}

t.test('an image that stands in a set is pulled for a few bytes', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const golden = Array.from({ length: 2048 }, () => randomBytes(PAGE))
  const store = new TemplateStore(join(folder, 'store'))
  const set = await putPages(store, golden)
  const disk = Buffer.concat([...golden, Buffer.alloc(MIB), randomBytes(MIB)])
  const [far, back] = [join(folder, 'far'), join(folder, 'back')]
  writeFileSync(far, disk)
  await using kit = await Nbdkit.start('file', far)
  await using pair = await DiskPair.start(`unix:${kit.socket}`, { store, farStore: store })
  await pair.daemons.wan.settled()
  const before = pair.daemons.wan.bytes
  await nbdcopy(pair.uri, back)
  t.equal(digestOf(readFileSync(back)), digestOf(disk))
  const wan = pair.daemons.wan.bytes - before
  t.comment(`${disk.length} bytes read, ${wan} on the WAN, both ways`)
  t.ok(wan < 1.5 * MIB, `${wan} bytes on the WAN`)
  const { near, far: there } = await pair.ended()
  t.match(near.sets, [{ set }])
  t.ok(near.sets![0]!.pages > 1900, `${near.sets![0]!.pages} of 2048 blocks`)
  t.same(there.sets, near.sets, 'counted alike at both sides')
  t.equal(near.bytesBackWan, there.bytesBackWan, 'as is what was on the WAN')
  t.ok(near.bytesBack > disk.length && near.bytesBackWan < wan, `${near.bytesBackWan} of ${near.bytesBack}`)
  t.ok(near.bytesBackWan > MIB, 'and all of it')
})

t.test(
  'qemu-img converts out of the pair, from nbdkit and from qemu-nbd',
  { skip: NBD_SKIP || QEMU_IMG_SKIP },
  async t => {
    const folder = t.testdir()
    const disk = diskImage(12 * MIB + 512)
    const [far, back] = [join(folder, 'far'), join(folder, 'back')]
    writeFileSync(far, disk)
    for (const server of ['nbdkit', 'qemu-nbd']) {
      await using kit = server === 'nbdkit' ? await Nbdkit.start('file', far) : await QemuNbd.start(far)
      await using pair = await DiskPair.start(`unix:${kit.socket}`)
      await pair.daemons.wan.settled()
      const before = pair.daemons.wan.bytes
      await qemuImg('convert', '-f', 'raw', '-O', 'raw', pair.uri, back)
      t.equal(digestOf(readFileSync(back)), digestOf(disk), server)
      const wan = pair.daemons.wan.bytes - before
      t.comment(`${disk.length} bytes read of ${server}, ${wan} on the WAN, both ways`)
      t.ok(wan < 0.55 * disk.length, 'what is noise, and little else')
      t.same(
        pair.told.filter(({ event }) => event === 'relayed raw'),
        [],
      )
    }
  },
)

t.test('reads and writes of any size and place are as those of the server itself', { skip: NBD_SKIP }, async t => {
  const script = [
    'import random, hashlib',
    'r = random.Random(11)',
    'size = h.get_size()',
    'sums = hashlib.sha256()',
    'for i in range(200):',
    '    at = r.randrange(size)',
    '    n = min(size - at, r.choice([1, 511, 4096, 4097, 12288, 70000, 300000]))',
    '    what = r.randrange(10)',
    '    if what < 2: h.pwrite(r.randbytes(n), at)',
    '    elif what == 2: h.pwrite(bytes([i % 7]) * n, at)',
    '    elif what == 3: h.zero(n, at)',
    '    elif what == 4: h.flush()',
    '    elif what == 5: h.pread_structured(n, at, lambda b, o, s, e: sums.update(bytes(b)))',
    '    else: sums.update(h.pread(n, at))',
    // many at once, answered in any order
    'bufs = [nbd.Buffer(65536) for _ in range(24)]',
    'for i, b in enumerate(bufs): h.aio_pread(b, (i * 7 % 24) * 65536)',
    'while h.aio_in_flight() > 0: h.poll(-1)',
    'for b in bufs: sums.update(b.to_bytearray())',
    'try: h.pread(4096, size)',
    'except nbd.Error as e: sums.update(e.errno.encode())',
    'sums.update(h.pread(size, 0))',
    'print(sums.hexdigest())',
  ]
  const direct = await (async () => {
    await using kit = await Nbdkit.start('memory', '3M')
    return await nbdsh(kit.uri, ...script)
  })()
  await using kit = await Nbdkit.start('memory', '3M')
  await using pair = await DiskPair.start(`unix:${kit.socket}`)
  t.equal(await nbdsh(pair.uri, ...script), direct)
  t.same(
    pair.told.filter(({ event }) => event === 'relayed raw'),
    [],
  )
  t.match((await pair.ended()).near, { endedBy: 'both sides closed' })
})

t.test('a WAN that is cut while a disk is read, over and over', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const disk = diskImage(16 * MIB)
  const [far, back] = [join(folder, 'far'), join(folder, 'back')]
  writeFileSync(far, disk)
  await using kit = await Nbdkit.start('file', far)
  await using pair = await DiskPair.start(`unix:${kit.socket}`, { patienceMs: 60_000 })
  const { wan } = pair.daemons
  let copied = false
  const copy = nbdcopy(pair.uri, back).finally(() => {
    copied = true
  })
  let cuts = 0
  for (let at = MIB / 2; cuts < 8; at += MIB / 2) {
    await until('bytes on the WAN', () => wan.bytes > at || copied)
    if (copied) break
    wan.cut()
    cuts++
  }
  await copy
  t.equal(digestOf(readFileSync(back)), digestOf(disk))
  t.ok(cuts >= 4, `${cuts} cuts`)
  t.match((await pair.ended()).near, { endedBy: 'both sides closed' }, 'its client saw nothing but pauses')
})

t.test('without the feature, or without memory for it, all of it comes as it is', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const disk = diskImage(6 * MIB)
  const [far, back] = [join(folder, 'far'), join(folder, 'back')]
  writeFileSync(far, disk)
  await using kit = await Nbdkit.start('file', far)
  const known = FEATURES as string[]
  for (const lacks of ['the feature', 'memory']) {
    if (lacks === 'the feature') known.splice(known.indexOf(FEATURE.DISK_REPLIES), 1)
    try {
      // half of it is an identity's
      const memory = lacks === 'memory' ? { memory: new FairShares(2 * REPLIES_MEMORY_BYTES - 2) } : {}
      await using pair = await DiskPair.start(`unix:${kit.socket}`, memory)
      await pair.daemons.wan.settled()
      const before = pair.daemons.wan.bytes
      await nbdcopy(pair.uri, back)
      t.equal(digestOf(readFileSync(back)), digestOf(disk), lacks)
      t.ok(pair.daemons.wan.bytes - before > 0.9 * disk.length, 'nothing is saved')
      t.match((await pair.ended()).near, { endedBy: 'both sides closed' })
    } finally {
      if (lacks === 'the feature') known.push(FEATURE.DISK_REPLIES)
    }
  }
})

t.test('a client that goes away while it reads; and others go on', { skip: NBD_SKIP || QEMU_IMG_SKIP }, async t => {
  const folder = t.testdir()
  const disk = diskImage(8 * MIB)
  const [far, back] = [join(folder, 'far'), join(folder, 'back')]
  writeFileSync(far, disk)
  await using server = await QemuNbd.start(far) // nbdkit 1.32 dies when a client does
  await using pair = await DiskPair.start(`unix:${server.socket}`)
  const leaves = [
    'import os',
    'bufs = [nbd.Buffer(262144) for _ in range(32)]',
    'for i, b in enumerate(bufs): h.aio_pread(b, i * 262144)',
    'h.poll(-1)',
    'h.poll(-1)',
    'os._exit(0)',
  ]
  await Promise.all([nbdcopy(pair.uri, back), nbdsh(pair.uri, ...leaves), nbdsh(pair.uri, ...leaves)])
  t.equal(digestOf(readFileSync(back)), digestOf(disk))
  await nbdcopy(pair.uri, back)
  t.equal(digestOf(readFileSync(back)), digestOf(disk), 'in the same session')
  t.equal(pair.told.filter(({ event }) => event === 'link.dead' || event === 'link.defect').length, 0)
  t.equal(pair.daemons.count('session open'), 2, 'one, told at both sides')
})

t.test('a server that dies while it is read, and comes back', { skip: NBD_SKIP || QEMU_IMG_SKIP }, async t => {
  const folder = t.testdir()
  const disk = diskImage(24 * MIB)
  const [far, back] = [join(folder, 'far'), join(folder, 'back')]
  writeFileSync(far, disk)
  let server = await QemuNbd.start(far)
  t.teardown(() => server[Symbol.asyncDispose]())
  await using pair = await DiskPair.start(`unix:${server.socket}`)
  for (let run = 1; run <= 3; run++) {
    await pair.daemons.wan.settled()
    const before = pair.daemons.wan.bytes
    const copy = nbdcopy(pair.uri, back).then(
      () => 'copied',
      () => 'failed',
    )
    await until('bytes on the WAN', () => pair.daemons.wan.bytes > before + run * MIB)
    server = await server.replaced(far)
    t.equal(await copy, 'failed', 'its client is told')
  }
  await nbdcopy(pair.uri, back)
  t.equal(digestOf(readFileSync(back)), digestOf(disk), 'the pools are alike all the same')
  t.equal(pair.daemons.count('session open'), 2, 'one, told at both sides')
})

t.test('while a guest waits for pages next to nothing lies in the link before its requests', async t => {
  await using pair = await DiskPair.start('unix:/nobody')
  const { daemons } = pair
  const recovery = await daemons.dial()
  const target = (): number => {
    const { paths } = daemons.link.session as unknown as { paths: { targetMs: number } }
    return paths.targetMs
  }
  recovery.write(Buffer.from('08000a0007067063', 'hex'))
  recovery.write('.ram')
  await until('its QEMU', () => daemons.target.sockets.length === 1)
  t.equal(target(), 5)
  daemons.target.sockets[0]!.resetAndDestroy() // a FIN would leave the other direction open
  await until('its end', () => daemons.arrivals.length === 1)
  await until('the way back to be as it was', () => target() === 50)
})

/** Into transmission, with chunks. */
const OPENING = conversation([
  'S "NBDMAGIC" "IHAVEOPT" 0003',
  'C 00000003 "IHAVEOPT" 00000008 00000000',
  'S 0003e889045565a9 00000008 00000001 00000000',
  'C "IHAVEOPT" 00000007 00000007 00000001 "d" 0000',
  'S 0003e889045565a9 00000007 00000003 0000000c 0000 0000000040000000 0ded',
  'S 0003e889045565a9 00000007 00000001 00000000',
]).steps

/** A READ of 32 KiB at the beginning, for which there is credit, and what is said to it. */
const READ = Buffer.from('256095130000000000000000000000070000000000000000' + '00008000', 'hex')
const ANSWER = Buffer.concat([
  Buffer.from('668e33ef00010001000000000000000700008008' + '0000000000000000', 'hex'),
  Buffer.from(Array.from({ length: 4096 }, (_, i) => `line${i}`.padEnd(8)).join('')).subarray(0, 1 << 15),
])

t.test('a server that breaks off while what it said is packed, and its client with it', async t => {
  const target = new Target()
  target.server.listen(0, '127.0.0.1')
  await once(target.server, 'listening')
  t.teardown(() => target[Symbol.asyncDispose]())
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${target.port}`)
  const { daemons } = pair
  const { prototype } = ColumnPacker
  const { pack } = prototype
  t.teardown(() => {
    prototype.pack = pack
  })
  interface Half {
    readonly flows: Map<number, { isOver: boolean }>
    readonly options: { readonly session: { readonly flows: { get(flow: number): { receive: string } | undefined } } }
  }
  const halves = (): Half[] =>
    [...(daemons.destination as unknown as { runs: Map<unknown, { session: Half }> }).runs.values()].map(
      ({ session }) => session,
    )
  /** Of the destination's half: whether nobody wants the connection any more. */
  const isOver = (): boolean => halves().some(({ flows }) => [...flows.values()].some(flow => flow.isOver))
  /** Whether the source has told that its client broke off. */
  const hasBroken = (): boolean =>
    halves().some(({ flows, options: { session } }) =>
      [...flows.keys()].some(flow => session.flows.get(flow)?.receive === 'reset'),
    )
  const runs = [{ breaks: 'server' }, { breaks: 'both' }, { breaks: 'none' }]
  for (const [run, { breaks }] of runs.entries()) {
    const { promise: isHeld, resolve: letGo } = Promise.withResolvers<void>()
    const client = net.connect(daemons.diskPort, '127.0.0.1')
    client.on('error', () => {})
    let heard = 0
    client.on('data', chunk => {
      heard += chunk.length
    })
    const server = await until('the server is dialled', () => target.sockets[run])
    const said = { client: 0, server: 0 }
    for (const { from, bytes } of [...OPENING, { from: 'client', bytes: READ } as const]) {
      const other = from === 'client' ? 'server' : 'client'
      await until('its turn', () => (from === 'client' ? heard : target.received[run]!.length) >= said[other])
      ;(from === 'client' ? client : server).write(bytes)
      said[from] += bytes.length
    }
    await until('the READ', () => target.received[run]!.length >= said.client)
    let packed = 0
    if (breaks !== 'none') {
      prototype.pack = async function (...job) {
        packed++
        await isHeld
        return pack.apply(this, job)
      }
    }
    server.write(ANSWER)
    if (breaks !== 'none') {
      await until('something to pack', () => packed > 0)
      prototype.pack = pack
      server.resetAndDestroy()
      await until('the break', isOver)
      if (breaks === 'both') {
        client.resetAndDestroy()
        await until('the other break', () => hasBroken() || daemons.count('link.dead') > 0)
      }
      letGo()
      await closed(client)
    } else await until('the answer', () => heard === said.server + ANSWER.length)
    client.destroy()
  }
  t.equal(daemons.count('session open'), 2, 'one, told at both sides')
  t.equal(daemons.count('link.defect') + daemons.count('link.dead'), 0)
})
