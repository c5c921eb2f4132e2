/** Disks through both daemons over loopback, with servers and clients that nobody here wrote. */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import type net from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { syntheticStream } from '../../scripts/harness/qemu/stream-emitter.ts'
import { Random } from '../../scripts/harness/random.ts'
import { statusText } from '../../src/cli/status-text.ts'
import { sentenceOf } from '../../src/cli/summary-text.ts'
import { DISK_CONNECTIONS_MAX } from '../../src/limits.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { FEATURE, FEATURES } from '../../src/wan/wire.ts'
import { until } from '../helpers/until.ts'
import type { Step } from '../nbd-wire/harness.ts'
import { recordings } from '../nbd-wire/recordings.ts'
import { putPages } from '../template/makers.ts'
import { closed, MAIN, Target } from './daemons.ts'
import { DiskClient } from './disk-client.ts'
import { DiskPair, digestOf, diskImage } from './disk-pair.ts'
import { NBD_SKIP, Nbdkit, nbdcopy, nbdsh, QEMU_IMG_SKIP, qemuImg } from './nbd.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20
const PAGE = 4096

/** A disk's server by hand, at a port. */
async function server(): Promise<Target> {
  const target = new Target()
  target.server.listen(0, '127.0.0.1')
  await once(target.server, 'listening')
  return target
}

t.test('nbdcopy pushes a disk and pulls it back', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const disk = diskImage(12 * MIB + 1536)
  const [near, far, back] = ['near', 'far', 'back'].map(name => join(folder, name)) as [string, string, string]
  writeFileSync(near, disk)
  writeFileSync(far, Buffer.alloc(disk.length))
  await using kit = await Nbdkit.start('file', far)
  await using pair = await DiskPair.start(`unix:${kit.socket}`)
  await nbdcopy(near, pair.uri, '--flush')
  t.equal(digestOf(readFileSync(far)), digestOf(disk))
  const pushed = await pair.ended()
  t.match(pushed.near, { target: 'default', exports: [''], endedBy: 'both sides closed', id: pushed.far.id })
  t.equal(pushed.near.bytesIn, pushed.far.bytesOut)
  t.equal(pushed.near.bytesBack, pushed.far.bytesBack)
  t.equal(pushed.near.bytesBackWan, pushed.far.bytesBackWan)
  t.ok(pushed.near.connections >= 1 && pushed.near.connections === pushed.far.connections)
  t.ok(pushed.near.bytesWan < 0.7 * pushed.near.bytesIn, `${pushed.near.bytesWan} of ${pushed.near.bytesIn} on the WAN`)
  t.same(pair.of('relayed raw'), [], 'all of it is understood')
  t.equal(pair.of('disk export')[0]?.bytes, disk.length)
  const sentences = pair.told.map(event => sentenceOf(event)?.text).filter(text => text !== undefined)
  const [arrived, left] = sentences.sort((a, b) => a.length - b.length) as [string, string]
  t.match(left, /^disk transfer 1 ended: \d connections?: [\d.]+ MB from clients, [\d.]+ MB on the WAN \(\d+\.\d %\), /)
  t.match(left, /; blocks: .*\d+ whole.*; both sides closed$/)
  t.match(
    arrived,
    /^disk transfer 1 ended: \d connections?: [\d.]+ MB to the server, .* back, .* s; both sides closed$/,
  )

  pair.told.length = 0
  await nbdcopy(pair.uri, back)
  t.equal(digestOf(readFileSync(back)), digestOf(disk))
  const pulled = await pair.ended()
  t.ok(pulled.near.bytesBack > 6 * MIB, 'what the server says goes back as it is')
  t.equal(pulled.near.id === pushed.near.id, false)
})

t.test('how far a copy is, in its middle', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const disk = randomBytes(64 * MIB)
  const near = join(folder, 'near')
  writeFileSync(near, disk)
  // the server answers what lies below the middle, and nothing of the rest
  const half = 32 * MIB
  const asked = half + 16 * (256 << 10) // of 256 KiB each, as nbdcopy asks
  const pwrite = `if [ $4 -lt ${half} ]; then exec cat > /dev/null; fi; while kill -0 $PPID 2> /dev/null; do sleep 1; done`
  const methods = [`get_size=echo ${disk.length}`, 'thread_model=echo parallel', `pwrite=${pwrite}`]
  await using kit = await Nbdkit.start('eval', ...methods)
  await using pair = await DiskPair.start(`unix:${kit.socket}`)
  const { source, destination } = pair.daemons
  const copy = spawn('nbdcopy', ['--connections=1', '--requests=16', '--request-size=262144', near, pair.uri], {
    stdio: 'ignore',
  })
  try {
    const ended = once(copy, 'exit')
    const [transfer] = await until('16 requests that get no answer', () => {
      const disks = source.status().session?.disks
      const far = destination.status().sessions[0]?.disks[0]
      // all that it can ask has gone to the server: answers that are under way make room for more
      const isHeld = disks?.[0]?.requests === 16 && far?.bytes === disks[0].bytes && disks[0].bytes > asked
      return isHeld ? disks : undefined
    })
    const [told] = transfer!.exports
    t.match(told, { name: '', bytes: disk.length, pass: 1 })
    t.equal(transfer!.exports.length, 1)
    t.equal(told!.bytesWritten, asked)
    const [least, most] = [told!.bytesWritten - 24 * (256 << 10), told!.bytesWritten].map(bytes => bytes / disk.length)
    t.ok(told!.share! >= least! && told!.share! <= most!, `${least} <= ${told!.share} <= ${most}`)
    t.ok(transfer!.bytesPerSecond > 0 && transfer!.wanBytesPerSecond > 0)
    const text = statusText(
      {
        ...{ api: 1, version: '1', process: 1, started: new Date().toISOString() },
        sources: [source.status()],
        destination: undefined,
      },
      new Date(),
    )
    t.match(
      text,
      /; 16 requests not answered\n {4}[\d.]+ Mbit\/s from its clients, [\d.]+ Mbit\/s of it on the WAN; back /,
    )
    t.match(text, /\n {4}export \(without a name\) of 67\.1 MB: 37\.7 MB written; pass 1, 5\d %/)
    copy.kill('SIGKILL')
    await ended
  } finally {
    copy.kill('SIGKILL')
  }
})

t.test('writes of any size and place, with all that a client may ask for', { skip: NBD_SKIP }, async t => {
  await using kit = await Nbdkit.start('memory', '3M')
  await using pair = await DiskPair.start(`unix:${kit.socket}`)
  const printed = await nbdsh(
    pair.uri,
    'import random, hashlib',
    'r = random.Random(7)',
    'size = h.get_size()',
    'model = bytearray(size)',
    'for i in range(150):',
    '    at = r.randrange(size)',
    '    n = min(size - at, r.choice([1, 511, 512, 4095, 4096, 4097, 12288, 70000]))',
    '    what = r.randrange(10)',
    '    if what < 6:',
    '        data = r.randbytes(n) if what < 3 else bytes([i % 7]) * n',
    '        h.pwrite(data, at, nbd.CMD_FLAG_FUA if i % 9 == 0 else 0)',
    '        model[at:at+n] = data',
    '    elif what == 6: h.zero(n, at); model[at:at+n] = bytes(n)',
    '    elif what == 7: h.trim(n, at); model[at:at+n] = h.pread(n, at)',
    '    elif what == 8: h.flush(); h.cache(n, at)',
    '    else: assert h.pread(n, at) == model[at:at+n]',
    'assert h.pread(size, 0) == model',
    'print(size)',
  )
  t.equal(printed.trim(), String(3 * MIB))
  const { near } = await pair.ended()
  t.same(pair.of('relayed raw'), [])
  t.match(near, { endedBy: 'both sides closed', connections: 1 })
})

t.test('qemu-img converts into the pair and compares through it', { skip: NBD_SKIP || QEMU_IMG_SKIP }, async t => {
  const folder = t.testdir()
  const near = join(folder, 'near')
  writeFileSync(near, diskImage(12 * MIB))
  await using kit = await Nbdkit.start('memory', String(12 * MIB))
  await using pair = await DiskPair.start(`unix:${kit.socket}`)
  await qemuImg('convert', '-n', '-f', 'raw', '-O', 'raw', near, pair.uri)
  t.match(await qemuImg('compare', '-f', 'raw', '-F', 'raw', near, kit.uri), /identical/)
  t.match(await qemuImg('compare', '-f', 'raw', '-F', 'raw', near, pair.uri), /identical/, 'read through the pair')
  t.same(pair.of('relayed raw'), [])
})

t.test('a WAN that is cut in the middle, over and over', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const disk = diskImage(12 * MIB)
  const [near, far] = [join(folder, 'near'), join(folder, 'far')]
  writeFileSync(near, disk)
  writeFileSync(far, Buffer.alloc(disk.length))
  await using kit = await Nbdkit.start('file', far)
  await using pair = await DiskPair.start(`unix:${kit.socket}`, { patienceMs: 60_000 })
  const { wan } = pair.daemons
  let copied = false
  const copy = nbdcopy(near, pair.uri, '--flush').finally(() => {
    copied = true
  })
  let cuts = 0
  for (let at = MIB / 2; cuts < 6; at += MIB / 2) {
    await until('bytes on the WAN', () => wan.bytes > at || copied)
    if (copied) break
    wan.cut()
    cuts++
  }
  await copy
  t.equal(digestOf(readFileSync(far)), digestOf(disk))
  t.ok(cuts >= 4, `${cuts} cuts`)
  t.ok(pair.of('WAN connection lost').length >= 1)
  const { near: told } = await pair.ended()
  t.match(told, { endedBy: 'both sides closed' }, 'its client saw nothing but pauses')
})

t.test('memory behind a disk finds its blocks', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const disk = randomBytes(4 * MIB)
  const near = join(folder, 'near')
  writeFileSync(near, disk)
  await using kit = await Nbdkit.start('memory', String(disk.length))
  // a page cache: blocks of the disk, in another order
  const pages = Array.from({ length: disk.length / PAGE }, (_, i) => {
    const block = (i * 37) % (disk.length / PAGE)
    return { idstr: 'pc.ram', offset: i * PAGE, body: disk.subarray(block * PAGE, block * PAGE + PAGE) }
  })
  const stream = syntheticStream([{ idstr: 'pc.ram', lengthBytes: disk.length }], [pages])
  const wanBytes: number[] = []
  for (const first of [false, true]) {
    await using pair = await DiskPair.start(`unix:${kit.socket}`)
    const { daemons } = pair
    if (first) {
      await nbdcopy(near, pair.uri)
      await pair.ended()
    }
    const qemu = await daemons.dial()
    qemu.resume()
    qemu.end(stream)
    await until('the stream', () => daemons.target.received[0]?.length === stream.length)
    t.equal(digestOf(daemons.target.received[0]!), digestOf(Buffer.from(stream)))
    daemons.target.sockets[0]!.end()
    const summary = await until('its summary', () => daemons.summaries[0])
    wanBytes.push(summary.bytesWan)
    if (first) t.ok(summary.pages.earlier > 1000, `${summary.pages.earlier} pages stood in the disk`)
  }
  const [alone, behind] = wanBytes as [number, number]
  t.comment(`${stream.length} bytes of memory: ${alone} on the WAN, behind the disk ${behind}`)
  t.ok(behind < 0.02 * alone)
})

t.test('what a set brings to a disk is counted at both sides', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const golden = Array.from({ length: 512 }, () => randomBytes(PAGE))
  const store = new TemplateStore(join(folder, 'store'))
  const set = await putPages(store, golden)
  const disk = Buffer.concat([randomBytes(MIB), ...golden.slice(100), randomBytes(MIB)])
  const near = join(folder, 'near')
  writeFileSync(near, disk)
  await using kit = await Nbdkit.start('memory', String(disk.length))
  await using pair = await DiskPair.start(`unix:${kit.socket}`, { store, farStore: store })
  await nbdcopy(near, pair.uri)
  await pair.ended()
  const [departed, arrived] = pair.of('disk transfer ended')
  // what its socket cut while nothing followed goes as it is
  t.match(departed!.sets, [{ set }])
  const { pages } = departed!.sets![0]!
  t.ok(pages > 350 && pages <= 412, `${pages} of 412 pages`)
  t.same(arrived!.sets, departed!.sets)
})

/** Plays a conversation over two sockets, each party as it heard the other, in pieces. @returns what each got */
async function play(near: net.Socket, far: net.Socket, steps: readonly Step[], seed: number) {
  const random = new Random(seed)
  const heard = { client: [] as Buffer[], server: [] as Buffer[] }
  const got = { client: 0, server: 0 }
  const sockets = { client: near, server: far }
  for (const who of ['client', 'server'] as const) {
    sockets[who].on('data', (chunk: Buffer) => {
      heard[who].push(chunk)
      got[who] += chunk.length
    })
  }
  const said = { client: 0, server: 0 }
  for (const { from, bytes } of steps) {
    const other = from === 'client' ? 'server' : 'client'
    if (got[from] < said[other]) await until(`what the ${other} said`, () => got[from] >= said[other])
    for (let at = 0; at < bytes.length; ) {
      const take = Math.min(bytes.length - at, 1 + Math.floor(random.next() * (random.next() < 0.5 ? 40 : 70_000)))
      sockets[from].write(bytes.subarray(at, at + take))
      at += take
      if (random.next() < 0.3) await new Promise(done => setImmediate(done))
    }
    said[from] += bytes.length
  }
  await until('all of it', () => got.server >= said.client && got.client >= said.server)
  return { server: Buffer.concat(heard.server), client: Buffer.concat(heard.client) }
}

const sideOf = (steps: readonly Step[], side: Step['from']): Buffer =>
  Buffer.concat(steps.filter(({ from }) => from === side).map(({ bytes }) => bytes))

t.test('every conversation that was recorded, in pieces, and the WAN is cut meanwhile', async t => {
  await using far = await server()
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${far.port}`, { patienceMs: 60_000 })
  let seed = 1
  const cutting = setInterval(() => pair.daemons.wan.cut(), 300)
  t.teardown(() => clearInterval(cutting))
  for (const { name, connections } of recordings) {
    const wrong: string[] = []
    for (const steps of connections) {
      const number = far.sockets.length
      const near = await pair.dial()
      const socket = await until('the server is dialled', () => far.sockets[number])
      const heard = await play(near, socket, steps, seed++)
      for (const side of ['client', 'server'] as const) {
        const other = side === 'client' ? 'server' : 'client'
        if (!heard[other].equals(sideOf(steps, side))) wrong.push(`what the ${side} said`)
      }
      near.end()
      socket.end()
      await Promise.all([closed(near), closed(socket)])
    }
    t.same(wrong, [], name)
  }
  const raw = pair.of('relayed raw').map(({ reason }) => reason)
  t.ok(
    raw.some(reason => reason.startsWith('TLS within the connection')),
    'STARTTLS is said',
  )
  t.ok(raw.includes('oldstyle handshake'))
})

t.test('a client that only waits is greeted; who says nothing that NBD is passes as it is', async t => {
  await using far = await server()
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${far.port}`)
  far.onConnection = socket => socket.write('SSH-2.0-who is there?')
  const near = await pair.dial()
  t.equal(await pair.greeting(near), 'SSH-2.0-who is there?')
  near.end('nobody')
  await until('its words', () => String(far.received[0]) === 'nobody')
  far.sockets[0]!.end()
  await closed(near)
  t.equal(pair.of('relayed raw').length, 1, 'said once')
  t.match(pair.of('relayed raw')[0], { kind: 'disk', reason: 'not an NBD server' })
})

t.test('a server that is not there, and a target that nobody gave', async t => {
  await using far = await server()
  const { port } = far
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${port}`)
  const { daemons } = pair
  far.server.close()
  await once(far.server, 'close')
  await closed(pair.connect().resume())
  t.match(pair.of('target refused')[0], { error: /ECONNREFUSED/, hint: /nbd-server-start.*--disks/ })
  daemons.destination.setTargets(new Map())
  await closed(pair.connect().resume())
  t.match(pair.of('target refused')[1], {
    error: 'no target "default" for disks here',
    hint: /--disks default=ADDRESS/,
  })
  const { near } = await pair.ended()
  t.match(near.endedBy, /broke off/)
  t.equal(pair.told.find(({ event }) => event === 'disk transfer ended')?.level, 'warn')
})

t.test(
  'a server that dies is a break, one whose client has said that it is done is none',
  { skip: NBD_SKIP },
  async t => {
    for (const dies of [true, false]) {
      await using kit = await Nbdkit.start('memory', '1M')
      await using pair = await DiskPair.start(`unix:${kit.socket}`)
      const client = await DiskClient.open(pair.daemons.diskPort)
      await client.write(0, Buffer.alloc(PAGE, 'a'))
      await client.flush()
      // nothing of its client waits for it: QEMU's mirrors are silent for hours
      if (dies) kit.child.kill('SIGKILL')
      else await client.close()
      const { near } = await pair.ended()
      const level = pair.told.find(
        ({ event, fields }) => event === 'disk transfer ended' && 'bytesWan' in fields,
      )?.level
      t.same(
        [near.endedBy, level],
        dies ? ['the server closed before its client did', 'warn'] : ['both sides closed', 'info'],
      )
    }
  },
)

t.test('one more connection than there may be is refused, and memory has its place beside them', async t => {
  await using far = await server()
  far.onConnection = socket => socket.write('NBDMAGIC')
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${far.port}`)
  const near: net.Socket[] = []
  while (near.length < DISK_CONNECTIONS_MAX) near.push((await pair.dial()).resume())
  await until('all are dialled', () => far.sockets.length === DISK_CONNECTIONS_MAX)
  await closed(pair.connect().resume())
  t.match(pair.of('connection refused')[0], { reason: `${DISK_CONNECTIONS_MAX} connections of disks are open` })
  const { source, destination } = pair.daemons
  const about = { api: 1, version: '1', process: 1, started: new Date().toISOString() } as const
  const text = statusText({ ...about, sources: [source.status()], destination: destination.status() }, new Date())
  const line = `disks \\S+-1 \\(default\\), ${DISK_CONNECTIONS_MAX} connections for [\\d.]+ s: [\\d.]+ (kB|bytes) of the server back, 0 bytes`
  t.match(text, new RegExp(`  clients of disks connect to tcp:127.0.0.1:${pair.daemons.diskPort}\n`))
  t.match(text, new RegExp(`  ${line} from its clients, 0 bytes on the WAN, effort \\d`))
  t.match(text, new RegExp(`    ${line} to the server`))
  const qemu = await pair.daemons.dial()
  qemu.write(MAIN)
  await until('a migration beside them', () => pair.daemons.target.received[0]?.equals(MAIN))
  for (const socket of near.splice(0, 1)) socket.resetAndDestroy()
  await until('one has left', () => pair.daemons.source.status().session?.disks[0]?.connections === near.length)
  const again = await pair.dial()
  await pair.greeting(again)
  t.equal(pair.of('disk transfer starts').length, 1, 'all are one transfer')
  for (const socket of [...near, again]) socket.destroy()
})

t.test('a peer that is older: disks are refused, memory goes on', async t => {
  const known = FEATURES as string[]
  known.splice(known.indexOf(FEATURE.DISKS), 1)
  t.teardown(() => known.push(FEATURE.DISKS))
  await using far = await server()
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${far.port}`)
  await closed(pair.connect().resume())
  t.match(pair.of('connection refused')[0], { reason: 'the other proxy is older, and cannot carry disks' })
  t.equal(far.sockets.length, 0)
  const qemu = await pair.daemons.dial()
  qemu.write(MAIN)
  await until('a migration', () => pair.daemons.target.received[0]?.equals(MAIN))
})

t.test('what a session that is lost means to a disk', async t => {
  await using far = await server()
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${far.port}`, { patienceMs: 60_000 })
  const near = await pair.dial()
  far.onConnection = socket => socket.write('NBDMAGIC')
  const early = await pair.dial()
  await pair.greeting(early)
  near.resume()
  await pair.daemons.loseSession()
  await Promise.all([closed(near), closed(early.resume())])
  t.pass('its client and its server see a broken connection')
  await Promise.all(far.sockets.map(socket => closed(socket)))
  const next = await pair.dial()
  t.equal(await pair.greeting(next), 'NBDMAGIC', 'and the next connection finds the next session')
  next.destroy()
})

t.test('a connection that crosses the end of a session goes on in the next one', async t => {
  await using far = await server()
  far.onConnection = socket => {
    socket.write('NBDMAGIC')
    socket.on('end', () => socket.end())
  }
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${far.port}`)
  const { daemons } = pair
  await until('a session', () => pair.of('session open').length === 2)
  daemons.drainUnsaid()
  const near = await pair.dial()
  const brief = await pair.dial()
  brief.end()
  t.equal(await pair.greeting(near), 'NBDMAGIC')
  t.equal(pair.of('connections wait for another session').length, 1)
  await closed(brief.resume())
  await until('one is left', () => daemons.source.status().session?.disks[0]?.connections === 1)
  near.end('bye')
  await until('its words', () => far.received.some(words => String(words) === 'bye'))
  await closed(near.resume())
  await until('none is left', () => daemons.source.status().session?.disks.length === 0)
})

t.test('a WAN that stays away', async t => {
  await using far = await server()
  far.onConnection = socket => socket.write('NBDMAGIC')
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${far.port}`, { patienceMs: 5000, patiencePostcopyMs: 60_000 })
  const near = await pair.dial()
  await pair.greeting(near)
  pair.daemons.wan.cut(true)
  await Promise.all([closed(near.resume()), closed(far.sockets[0]!)])
  await until('both sides tell', () => pair.of('disk transfer given up').length === 2)
  pair.daemons.wan.restore() // the session waits on, for guests in postcopy
  const { near: told } = await pair.ended()
  t.match(told.endedBy, /no connection to the other proxy/)
  t.same(pair.of('migration given up'), [])
})

t.test('a drain waits for disks, and takes further connections of them', async t => {
  await using far = await server()
  far.onConnection = socket => socket.write('NBDMAGIC')
  await using pair = await DiskPair.start(`tcp:127.0.0.1:${far.port}`)
  const { source } = pair.daemons
  const first = await pair.dial()
  await pair.greeting(first)
  let ended = false
  void source.ended.then(() => {
    ended = true
  })
  await source.stop()
  const second = await pair.dial()
  await pair.greeting(second)
  t.notOk(ended)
  for (const socket of [first, second]) socket.end()
  for (const socket of far.sockets) socket.end()
  await source.ended
  t.equal(pair.of('disk transfer starts').length, 1)
})
