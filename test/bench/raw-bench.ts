/**
 * `node test/bench/raw-bench.ts [--guest random,nginx] [--megabytes 2000] [--rounds 3] [--effort 0,auto] [--link 10Gbit]
 * [--program DIR,DIR]`: a guest's stream over a link that is as fast as the pair, without a pair, through the plainest pair
 * that TLS and Node allow (`relay`: no frames, no checks), and through proxies: seconds, and CPU seconds a GB of each process
 * and of its busiest thread (what a host with cores to spare is held by). `random` is a guest of random memory; a captured
 * stream is played several times over, its pages xored, so that none matches one before. Root for --link. `--minutes N`:
 * starts nothing behind that; `--out FILE`: JSON as docs/measured has it, written after each guest, whose others it keeps.
 */
import { type ChildProcess, execFileSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { median } from '../../scripts/harness/median.ts'
import { endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { parseLink } from '../../scripts/harness/wan/link.ts'
import { PacketLink } from '../../scripts/harness/wan/packet-link.ts'
import type { RawLink, RawWay } from '../../scripts/measure/cost-files.ts'
import { keepJson, provenance } from '../../scripts/measure/provenance.ts'
import { syntheticGuest } from '../../scripts/measure/synthetic-guest.ts'
import { makePsk, writeCredentialFiles } from '../../src/link/keygen.ts'
import { root, streamPath } from './replay.ts'

const PAGE = 4096
const SECTION_PAGES = 4096

/** argv: host, port, file. Reads to the end, so that the far side's FIN is seen. Says when it began. */
const FEEDER = `
import os, socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print(time.monotonic(), flush=True)
with open(sys.argv[3], 'rb') as f:
    left, at = os.fstat(f.fileno()).st_size, 0
    while at < left: at += os.sendfile(s.fileno(), f.fileno(), at, left - at)
s.shutdown(socket.SHUT_WR)
while s.recv(4096): pass
`
/** argv: host. Says its port, then of each connection when it had ended, and its bytes. MSG_TRUNC: the kernel drops them instead of copying. */
const SINK = `
import socket, sys, time
l = socket.socket(); l.bind((sys.argv[1], 0)); l.listen(1)
print(l.getsockname()[1], flush=True)
b = bytearray(1 << 20)
while True:
    s, _ = l.accept()
    got = 0
    while True:
        n = s.recv_into(b, len(b), socket.MSG_TRUNC)
        if n == 0: break
        got += n
    print(time.monotonic(), got, flush=True)
    s.close()
`
/** argv: listen|dial, host to bind, host and port to go on to, folder of a key. What any pair on Node costs at least. */
const RELAY = `
import net from 'node:net'; import tls from 'node:tls'; import fs from 'node:fs'
const [side, bind, host, port, folder] = process.argv.slice(1), CHUNK = 262144, CHUNKS = 16, area = Buffer.alloc(CHUNK * CHUNKS)
const dead = s => s.on('error', () => {})
if (side === 'dial') net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, accepted => {
  const out = dead(tls.connect({ port: +port, host, rejectUnauthorized: false, minVersion: 'TLSv1.3', ciphers: 'TLS_AES_128_GCM_SHA256' }, () => {
    let at = 0, busy = 0, paused = false; const handle = accepted._handle; accepted._handle = null; handle.reading = false
    const sock = dead(new net.Socket({ handle, allowHalfOpen: true, onread: { buffer: () => area.subarray(at * CHUNK, (at + 1) * CHUNK), callback: n => {
      const view = area.subarray(at * CHUNK, at * CHUNK + n); busy++; at = (at + 1) % CHUNKS
      out.write(view, () => { busy--; if (paused) { paused = false; sock.resume() } })
      if (busy < CHUNKS - 1) return true
      paused = true; return false } } }))
    sock.on('end', () => out.end()).resume() }))
}).listen(0, bind, function () { console.log(this.address().port) })
else tls.createServer({ key: fs.readFileSync(folder + '/key.pem'), cert: fs.readFileSync(folder + '/cert.pem'), allowHalfOpen: true, minVersion: 'TLSv1.3' }, s => {
  dead(s).pause(); const out = dead(net.connect({ port: +port, host }, () => {
    s.on('data', chunk => { if (!out.write(chunk)) s.pause() }).on('end', () => out.end()).resume(); out.on('drain', () => s.resume()) }))
}).listen(0, bind, function () { console.log(this.address().port) })
`

const { values: options } = parseArgs({
  options: {
    guest: { type: 'string', default: 'random,nginx' },
    megabytes: { type: 'string', default: '2000' },
    rounds: { type: 'string', default: '3' },
    effort: { type: 'string', default: '0,auto' },
    without: { type: 'string', default: 'direct,relay' },
    program: { type: 'string', default: root },
    link: { type: 'string' },
    profile: { type: 'string' },
    minutes: { type: 'string', default: '60' },
    out: { type: 'string' },
  },
})

const list = (text: string): string[] => text.split(',').filter(word => word !== '')

/** Of one process, while the stream passed. */
interface Use {
  readonly cpu: number
  readonly busiest: number
}

interface Sample {
  readonly seconds: number
  readonly processes: readonly Use[]
  readonly said: string
}

/** CPU seconds of each thread so far. */
function threads(pid: number): Map<string, number> {
  const all = new Map<string, number>()
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    all.set(task, Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[0]) / 1e9)
  }
  return all
}

function used(before: Map<string, number>, after: Map<string, number>): Use {
  const each = [...after].map(([task, seconds]) => seconds - (before.get(task) ?? 0))
  return { cpu: each.reduce((sum, one) => sum + one, 0), busiest: Math.max(...each) }
}

async function rest(pids: readonly number[]): Promise<void> {
  if (options.profile) return setTimeout(4000) // taking samples is work, too
  const all = (): number => pids.reduce((sum, pid) => sum + [...threads(pid).values()].reduce((a, b) => a + b, 0), 0)
  for (let before = -1, now = all(); now - before > 0.005; ) {
    await setTimeout(500)
    before = now
    now = all()
  }
}

async function line(lines: Interface, found: (text: string) => boolean): Promise<string> {
  return new Promise((resolve, reject) => {
    lines.once('close', () => reject(new Error('a program ended early')))
    lines.on('line', text => {
      if (found(text)) resolve(text)
    })
  })
}

/** A guest's stream of at least so many bytes. */
function makeStream(guest: string, path: string, bytesMin: number): number {
  const fd = openSync(path, 'w')
  let length = 0
  const put = (bytes: Uint8Array): void => {
    for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at)
    length += bytes.length
  }
  if (guest === 'random') {
    const pages = Math.ceil(bytesMin / (PAGE + 8))
    const start = new StreamEmitter()
    put(
      start
        .header('pc-i440fx-10.0')
        .ramStart(2, [{ idstr: 'pc.ram', lengthBytes: pages * PAGE }])
        .eos()
        .footer(2)
        .bytes(),
    )
    const page = new Uint8Array(PAGE)
    for (let first = 0; first < pages; first += SECTION_PAGES) {
      const section = new StreamEmitter()
      section.sectionPart(2)
      for (let i = first; i < Math.min(pages, first + SECTION_PAGES); i++) {
        randomFillSync(page)
        section.page(i * PAGE, page, i === first ? 'pc.ram' : undefined)
      }
      put(section.eos().footer(2).bytes())
    }
    put(new StreamEmitter().sectionEnd(2).eos().footer(2).eof().bytes())
  } else {
    // its memory again and again, one behind the other in one larger guest
    const stream = streamPath(guest)
    const copies = Math.ceil(bytesMin / statSync(stream).size)
    for (const piece of syntheticGuest(Array.from({ length: copies }, (_, key) => ({ stream, key })))) put(piece)
  }
  closeSync(fd)
  return length
}

type Variant = { readonly what: string; readonly effort: string; readonly program: string }

type RawGuest = RawLink['guests'][number]

function guestOf(
  guest: string,
  bytes: number,
  variants: readonly Variant[],
  samples: readonly (readonly Sample[])[],
): RawGuest {
  const ways = variants.map(({ what, effort, program }, i): RawWay => {
    const of = samples[i]!
    const use = (side: number): Use | undefined =>
      of[0]!.processes[side] && {
        cpu: median(of.map(one => one.processes[side]!.cpu)),
        busiest: median(of.map(one => one.processes[side]!.busiest)),
      }
    const seconds = of.map(one => one.seconds)
    return {
      ...{ what, effort, program: program === '' ? '' : basename(program) },
      ...{ seconds: median(seconds), secondsMin: Math.min(...seconds), secondsMax: Math.max(...seconds) },
      ...{ source: use(0), destination: use(1) },
    }
  })
  return { guest, bytes, rounds: samples[0]!.length, ways }
}

/** Beside the other guests that were measured at the same commit over the same link. */
function keepGuest(path: string, about: Omit<RawLink, 'guests'>, row: RawGuest): void {
  const before = existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as RawLink) : undefined
  const isAlike = before?.commit === about.commit && before.link === about.link
  const others = isAlike ? before.guests.filter(({ guest }) => guest !== row.guest) : []
  keepJson(path, { ...about, guests: [...others, row] } satisfies RawLink)
}

const folder = temporaryFolder('raw-bench')
writeCredentialFiles(folder.path, makePsk(['near', '127.0.0.1', '192.0.2.1'], ['far', '127.0.0.1', '192.0.2.2']))
execFileSync(
  'openssl',
  [
    ...[
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:prime256v1',
      '-nodes',
      '-days',
      '2',
      '-subj',
      '/CN=x',
    ],
    ...['-keyout', join(folder.path, 'key.pem'), '-out', join(folder.path, 'cert.pem')],
  ],
  { stdio: 'ignore' },
)

async function main(): Promise<void> {
  await using link = options.link ? await PacketLink.open(parseLink(options.link)) : undefined
  const [near, far] = link
    ? [link.source, link.destination].map(site => ({
        address: site.address,
        spawn: (command: readonly string[], env: NodeJS.ProcessEnv) =>
          site.spawn(command, { stdio: ['ignore', 'pipe', 'inherit'], env }),
      }))
    : [0, 1].map(() => ({
        address: '127.0.0.1',
        spawn: (command: readonly string[], env: NodeJS.ProcessEnv) =>
          spawnOwned([...command], { stdio: ['ignore', 'pipe', 'inherit'], env }),
      }))
  const run = async (variant: Variant, path: string, bytes: number): Promise<Sample> => {
    const children: ChildProcess[] = []
    const start = (site: typeof near, command: readonly string[]) => {
      const env = {
        ...process.env,
        ...(options.profile && { NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${options.profile}` }),
      }
      const child = site!.spawn(command, env)
      children.push(child)
      return { child, lines: createInterface({ input: child.stdout! }) }
    }
    const spoken = (one: { lines: Interface }): Promise<string> => line(one.lines, () => true)
    try {
      const isDirect = variant.what === 'direct'
      const sink = start(far, ['python3', '-c', SINK, isDirect ? far!.address : '127.0.0.1'])
      let port = await spoken(sink)
      let host = isDirect ? far!.address : '127.0.0.1'
      const pair: { child: ChildProcess; lines: Interface }[] = []
      if (variant.what === 'relay') {
        const node = [process.execPath, '--input-type=module', '-e', RELAY]
        pair[1] = start(far, [...node, 'listen', far!.address, host, port, folder.path])
        pair[0] = start(near, [...node, 'dial', '127.0.0.1', far!.address, await spoken(pair[1])])
        port = await spoken(pair[0])
      } else if (!isDirect) {
        const program = join(variant.program, 'bin/pageferry')
        const tls = (side: string): string[] => ['--tls-creds', join(folder.path, side), '--json']
        pair[1] = start(far, [
          ...[
            program,
            'destination',
            ...tls('far'),
            '--listen',
            `tcp:${far!.address}:0`,
            '--target',
            `tcp:${host}:${port}`,
          ],
        ])
        const at = (text: string): string => (JSON.parse(text) as { at: string }).at
        const peer = at(await line(pair[1].lines, text => text.includes('listening for')))
        pair[0] = start(near, [
          ...[
            program,
            'source',
            ...tls('near'),
            '--listen',
            'tcp:127.0.0.1:0',
            '--peer',
            peer,
            '--effort',
            variant.effort,
          ],
        ])
        const open = line(pair[0].lines, text => text.includes('session open'))
        port = at(await line(pair[0].lines, text => text.includes('listening for'))).replace(/.*:/, '')
        await open
        host = '127.0.0.1'
      }
      const pids = pair.map(({ child }) => child.pid!)
      await rest(pids)
      const before = pids.map(threads)
      const ended = spoken(sink)
      const told =
        pair[0] && !isDirect && variant.what !== 'relay'
          ? line(pair[0].lines, text => text.includes('migration ended'))
          : undefined
      const feeder = start(near, ['python3', '-c', FEEDER, host, port, path])
      const began = Number(await spoken(feeder))
      const [endedAt, got] = (await ended).split(' ').map(Number)
      const after = pids.map(threads)
      if (got !== bytes) throw new Error(`${got} bytes of ${bytes} came out`)
      const summary = told ? (JSON.parse(await told) as Record<string, unknown>) : undefined
      if (options.profile) for (const { child } of pair) await endChild(child, 20_000)
      return {
        seconds: endedAt! - began,
        processes: pids.map((_, i) => used(before[i]!, after[i]!)),
        said: summary ? JSON.stringify(summary) : '',
      }
    } finally {
      for (const child of children) child.kill('SIGKILL')
      await Promise.all(children.map(child => endChild(child)))
    }
  }
  const variants: Variant[] = list(options.without).map(what => ({ what, effort: '', program: '' }))
  for (const program of list(options.program))
    for (const effort of list(options.effort)) variants.push({ what: 'pair', effort, program })
  const told = provenance(
    `node test/bench/raw-bench.ts --guest ${options.guest} --megabytes ${options.megabytes} --rounds ${options.rounds} --effort ${options.effort}${options.link ? ` --link ${options.link}` : ''}`,
  )
  const endMs = performance.now() + Number(options.minutes) * 60_000
  for (const guest of list(options.guest)) {
    if (performance.now() > endMs) {
      process.stderr.write(`${guest}: the time was over\n`)
      continue
    }
    const guestMs = performance.now()
    const path = join(folder.path, `${guest}.stream`)
    writeFileSync(path, '')
    const bytes = makeStream(guest, path, Number(options.megabytes) * 1e6)
    const samples = variants.map(() => [] as Sample[])
    for (let round = 0; round < Number(options.rounds); round++) {
      // a round as long as the one before, or none
      if (round > 0 && performance.now() + (performance.now() - guestMs) / round > endMs) break
      for (const [i, variant] of variants.entries()) {
        const got = await run(variant, path, bytes)
        samples[i]!.push(got)
        const each = got.processes.map(({ cpu, busiest }) => `${cpu.toFixed(2)} (${busiest.toFixed(2)})`).join(' + ')
        process.stderr.write(
          `${guest} ${variant.what} ${variant.effort} ${variant.program}: ${got.seconds.toFixed(2)} s, CPU ${each}${process.env.VERBOSE ? got.said : ''}\n`,
        )
      }
    }
    const gigabytes = bytes / 1e9
    const table = new Table({
      head: [
        'way',
        'effort',
        'program',
        's',
        '(min to max)',
        'of direct',
        'CPU s/GB: source',
        'busiest thread',
        'destination',
        'busiest thread',
        'GB/s it bounds',
      ],
      style: { head: [], border: [], compact: true },
    })
    const direct = median(samples[0]!.map(({ seconds }) => seconds))
    for (const [i, { what, effort, program }] of variants.entries()) {
      const of = samples[i]!
      const seconds = of.map(one => one.seconds)
      const use = (side: number, key: keyof Use): number =>
        of[0]!.processes[side] ? median(of.map(one => one.processes[side]![key])) / gigabytes : Number.NaN
      table.push([
        ...[
          what,
          effort,
          program.replace(root, ''),
          median(seconds).toFixed(2),
          `${Math.min(...seconds).toFixed(2)} to ${Math.max(...seconds).toFixed(2)}`,
        ],
        ...[(median(seconds) / direct).toFixed(2), use(0, 'cpu').toFixed(2), use(0, 'busiest').toFixed(2)],
        ...[
          use(1, 'cpu').toFixed(2),
          use(1, 'busiest').toFixed(2),
          (1 / Math.max(use(0, 'busiest'), use(1, 'busiest'))).toFixed(2),
        ],
      ])
    }
    process.stdout.write(
      `${table.toString()}\n${guest}, ${gigabytes.toFixed(2)} GB, ${options.link ?? 'loopback'}; medians of ${samples[0]!.length}\n`,
    )
    if (options.out)
      keepGuest(options.out, { ...told, link: options.link ?? 'loopback' }, guestOf(guest, bytes, variants, samples))
    rmSync(path)
  }
  folder.remove()
}

await main()
