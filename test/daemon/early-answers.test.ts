/** Writes of disks that are answered beside the source, through both daemons, with servers and clients that nobody here wrote. */
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { Events, type SiteEvent } from '../../src/daemon/events.ts'
import { until } from '../helpers/until.ts'
import { closed, Daemons, type DaemonsOptions, Target } from './daemons.ts'
import { DiskClient } from './disk-client.ts'
import { NBD_SKIP, Nbdkit, nbdcopy, nbdsh, QEMU_IMG_SKIP, qemuImg } from './nbd.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20

class Early implements AsyncDisposable {
  readonly told: SiteEvent[] = []
  daemons!: Daemons

  static async start(at: string, options: DaemonsOptions = {}): Promise<Early> {
    const early = new Early()
    const events = new Events()
    events.subscribe(event => early.told.push(event))
    early.daemons = await Daemons.start({
      ...{ disks: at, diskAnswers: 'early', ringPages: 8192, effort: 1, events },
      ...options,
    })
    return early
  }

  get uri(): string {
    return `nbd://127.0.0.1:${this.daemons.diskPort}`
  }

  of<E extends SiteEvent['event']>(event: E): Extract<SiteEvent, { event: E }>['fields'][] {
    return this.told.filter(one => one.event === event).map(({ fields }) => fields as never)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.daemons[Symbol.asyncDispose]()
  }
}

const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

/** Half noise, half zeroes. */
function image(bytes: number): Buffer {
  const disk = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; at += MIB) randomBytes(Math.min(MIB / 2, bytes - at)).copy(disk, at)
  return disk
}

t.test('nbdcopy, and the WAN is cut in it', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const disk = image(12 * MIB + 1536)
  const [near, far] = [join(folder, 'near'), join(folder, 'far')]
  writeFileSync(near, disk)
  writeFileSync(far, Buffer.alloc(disk.length))
  await using kit = await Nbdkit.start('file', far)
  await using pair = await Early.start(`unix:${kit.socket}`, { patienceMs: 60_000 })
  const { wan } = pair.daemons
  let copied = false
  const copy = nbdcopy(near, pair.uri, '--flush').finally(() => {
    copied = true
  })
  for (let at = MIB / 2; at < 4 * MIB; at += MIB / 2) {
    await until('bytes on the WAN', () => wan.bytes > at || copied)
    if (!copied) wan.cut()
  }
  await copy
  t.equal(digest(readFileSync(far)), digest(disk))
  t.same(pair.of('relayed raw'), [])
  t.same(pair.of('early answers were wrong'), [])
  const ended = await until('its end', () => pair.of('disk transfer ended')[0])
  t.match(ended, { endedBy: 'both sides closed', connections: 1 }, 'one connection: a FLUSH covers no others')
})

t.test('what is owed is told while the server says nothing', { skip: NBD_SKIP }, async t => {
  await using kit = await Nbdkit.start('--filter=delay', 'memory', '1M', 'delay-write=3600')
  await using pair = await Early.start(`unix:${kit.socket}`)
  const owed = () => pair.daemons.source.status().session!.disks[0]!.owed
  const client = await DiskClient.open(pair.daemons.diskPort)
  t.same(owed(), { writes: 0, bytes: 0 })
  for (let i = 0; i < 3; i++) await client.write(i * 65536, randomBytes(50_000))
  t.same(owed(), { writes: 3, bytes: 150_000 }, 'its client has the answers')
})

for (const [form, ...options] of [['structured'], ['simple', '--no-sr']]) {
  t.test(`all commands, and a server that is slow (${form})`, { skip: NBD_SKIP }, async t => {
    await using kit = await Nbdkit.start(...options, '--filter=delay', 'memory', '3M', 'wdelay=3ms')
    await using pair = await Early.start(`unix:${kit.socket}`)
    const printed = await nbdsh(
      pair.uri,
      'import random',
      'r = random.Random(11)',
      'size = h.get_size()',
      'assert not h.can_multi_conn()',
      'model = bytearray(size)',
      'for i in range(150):',
      '    at = r.choice([r.randrange(size), 4096 * r.randrange(8)])',
      '    n = min(size - at, r.choice([1, 511, 512, 4095, 4096, 4097, 12288, 70000]))',
      '    what = r.randrange(12)',
      '    if what < 7:',
      '        data = r.randbytes(n) if what < 4 else bytes([i % 7]) * n',
      '        h.pwrite(data, at, nbd.CMD_FLAG_FUA if i % 9 == 0 else 0)',
      '        model[at:at+n] = data',
      '    elif what == 7: h.zero(n, at); model[at:at+n] = bytes(n)',
      '    elif what == 8: h.trim(n, at); model[at:at+n] = h.pread(n, at)',
      '    elif what == 9: h.flush(); h.cache(n, at)',
      '    else: assert h.pread(n, at) == model[at:at+n]',
      '    try:',
      '        if i % 50 == 0: h.pwrite(b"x" * 512, size - 1)',
      '        assert i % 50 != 0',
      '    except nbd.Error as e: pass',
      'h.flush()',
      'assert h.pread(size, 0) == model',
      'print(size)',
    )
    t.equal(printed.trim(), String(3 * MIB))
    t.same(pair.of('relayed raw'), [])
    t.same(pair.of('early answers were wrong'), [])
  })
}

t.test('qemu-img converts into the pair', { skip: NBD_SKIP || QEMU_IMG_SKIP }, async t => {
  const near = join(t.testdir(), 'near')
  writeFileSync(near, image(12 * MIB))
  await using kit = await Nbdkit.start('memory', String(12 * MIB))
  await using pair = await Early.start(`unix:${kit.socket}`)
  await qemuImg('convert', '-n', '-f', 'raw', '-O', 'raw', near, pair.uri)
  t.match(await qemuImg('compare', '-f', 'raw', '-F', 'raw', near, kit.uri), /identical/)
  t.same(pair.of('early answers were wrong'), [])
})

t.test('a server that fails a write: the FLUSH says so, and nothing ends well', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir({ trigger: '' })
  await using kit = await Nbdkit.start(
    ...['--filter=error', 'memory', '3M'],
    ...['error-pwrite=ENOSPC', 'error-pwrite-rate=1', `error-pwrite-file=${join(folder, 'trigger')}`],
  )
  await using pair = await Early.start(`unix:${kit.socket}`)
  const printed = await nbdsh(
    pair.uri,
    'h.pwrite(b"a" * 512, 0)', // answered here
    'said = []',
    'for f in [h.flush, lambda: h.pwrite(b"b" * 512, 512), lambda: h.pread(512, 0), h.flush]:',
    '    try: f(); said.append("well")',
    '    except nbd.Error as e: said.append(e.errno)',
    'print(said)',
  )
  t.equal(printed.trim(), "['ENOSPC', 'ENOSPC', 'ENOSPC', 'ENOSPC']")
  t.match(pair.of('early answers were wrong')[0], { error: /at 0 with error 28/ })
  const ended = await until('its end', () => pair.of('disk transfer ended')[0])
  t.match(ended.endedBy, /broke off|disconnects/)
})

// --- a server by hand

const greeting = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])])
const asksForExport = Buffer.concat([Buffer.from([0, 0, 0, 3]), Buffer.from('IHAVEOPT\0\0\0\x01\0\0\0\x01d', 'latin1')])
const exported = Buffer.from([0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x6d])
const request = (type: number, cookie: number, length = 0): Buffer => {
  const head = Buffer.alloc(28)
  head.writeUInt32BE(0x25609513, 0)
  head.writeUInt16BE(type, 6)
  head.writeUInt32BE(cookie, 12)
  head.writeUInt32BE(length, 24)
  return type === 1 ? Buffer.concat([head, Buffer.alloc(length, cookie)]) : head
}

/** Client and server have agreed on an export. */
async function agreed(pair: Early, far: Target) {
  far.onConnection = socket => socket.write(greeting)
  const number = far.sockets.length
  const near = net.connect({ port: pair.daemons.diskPort, host: '127.0.0.1', allowHalfOpen: true })
  const heard: Buffer[] = []
  near.on('data', chunk => heard.push(chunk))
  near.on('error', () => {})
  const got = () => Buffer.concat(heard)
  await until('the greeting', () => got().length === greeting.length)
  near.write(asksForExport)
  await until('what is asked for', () => far.received[number]?.length === asksForExport.length)
  far.sockets[number]!.write(exported)
  await until('the export', () => got().length === greeting.length + exported.length)
  return { near, server: far.sockets[number]!, got: () => got().subarray(greeting.length + exported.length), number }
}

async function byHand(): Promise<Target> {
  const target = new Target()
  target.server.listen(0, '127.0.0.1')
  await once(target.server, 'listening')
  return target
}

t.test('a server that stalls or goes, and a session that is lost', async t => {
  await using far = await byHand()
  await using pair = await Early.start(`tcp:127.0.0.1:${far.port}`)
  for (const how of ['reset', 'closes', 'session'] as const) {
    const { near, server, got, number } = await agreed(pair, far)
    near.write(request(1, 5, 4096))
    await until('an early answer', () => got().length === 16)
    near.write(request(3, 6))
    await until('the write', () => far.received[number]!.length === asksForExport.length + 28 + 4096)
    t.equal(got().length, 16, `${how}: the FLUSH waits`)
    const gone = closed(near)
    if (how === 'reset') server.resetAndDestroy()
    else if (how === 'closes') server.end()
    else await pair.daemons.loseSession()
    await gone
    t.equal(got().length, 16, 'and is not answered')
    if (how === 'closes') t.match(pair.of('early answers were wrong')[0], { error: /1 writes/ })
    server.destroy()
  }
})

t.test('a client that leaves behind writes: they arrive, and its end behind them', async t => {
  await using far = await byHand()
  await using pair = await Early.start(`tcp:127.0.0.1:${far.port}`)
  const { near, server, got, number } = await agreed(pair, far)
  const writes = [1, 2, 3].map(cookie => request(1, cookie, 100_000))
  near.end(Buffer.concat([...writes, request(2, 0)])) // all of one place
  await until('early answers', () => got().length === 48)
  const begun = asksForExport.length
  const first = await until('the first', () => {
    const bytes = far.received[number]!.subarray(begun)
    return bytes.length >= 100_028 && bytes
  })
  const answer = (head: Buffer): Buffer =>
    Buffer.concat([Buffer.from([0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]), head.subarray(8, 16)])
  let at = 0
  for (let bytes = first; ; ) {
    const head = bytes.subarray(at, at + 28)
    if (head.readUInt16BE(6) === 2) break
    at += 100_028
    server.write(answer(head))
    bytes = await until('what follows', () => {
      const all = far.received[number]!.subarray(begun)
      const next = all.subarray(at, at + 28)
      return next.length === 28 && (next.readUInt16BE(6) === 2 || all.length >= at + 100_028) && all
    })
  }
  t.equal(far.received[number]!.at(-29), 3, 'the last one is what stands there')
  server.end()
  await closed(near)
  t.equal(got().length, 48, 'no answer of the server is left over')
  t.same(pair.of('early answers were wrong'), [])
})

t.test('neither side is understood, in the middle of a head: both go on as they are', async t => {
  await using far = await byHand()
  await using pair = await Early.start(`tcp:127.0.0.1:${far.port}`)
  const { near, server, got, number } = await agreed(pair, far)
  near.write(request(1, 5, 512))
  await until('an early answer', () => got().length === 16)
  const written = asksForExport.length + 28 + 512
  const wrote = await until('the write', () => far.received[number]!.length === written && far.received[number])
  // its answer, and the beginning of something that nobody asked for
  const answer = [Buffer.from('6744669800000000', 'hex'), wrote.subarray(-512 - 20, -512 - 12)]
  server.write(Buffer.concat([...answer, Buffer.from('gD')]))
  await until('the answer, and no more', () => pair.daemons.source.status().session?.disks[0]?.requests === 0)
  near.write('no request, whatever else it may be')
  await until('what the client said', () => String(far.received[number]!.subarray(written)).includes('whatever'))
  server.write(' and so on')
  await until('what the server said', () => String(got().subarray(16)) === 'gD and so on')
  const gone = closed(near)
  near.end()
  server.end()
  await gone
  t.equal(pair.daemons.count('session open'), 2, 'one, told at both sides')
  t.same(pair.of('early answers were wrong'), [])
})
