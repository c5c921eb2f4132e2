/**
 * A store of disk images that is larger than memory, used by one session.
 *
 *   node scripts/measure/large-store.ts [--gigabytes 20] [--rounds 3] [--efforts 0,2,3] [--only build|sessions|encode] [--keep]
 *
 * The images are made of the files of the distribution's packages (what is below /usr here), each block unlike all others by
 * a few words, and `template build` makes a set of each. Measured: how long a session takes to open and what both proxies
 * take of memory, by two processes over loopback that have the whole store on the disk; what encoding a guest of which 90 %
 * are pages of an image costs, with that image in memory and with the whole store on the disk. Takes so many gigabytes of
 * disk and three more below .cache/large-store, and gives them back; writes .cache/large-store.json. --only does one part, so
 * that what is timed can be done in short turns of a machine that others use, too; it keeps the store.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import {
  closeSync,
  createReadStream,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { InputFile } from '../../src/capture/input-file.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import { PAGE_SIZE } from '../../src/qemu/wire.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { median } from '../harness/median.ts'
import { pageferry } from '../harness/proxies.ts'
import { endChild } from '../harness/qemu/cleanup.ts'
import { StreamEmitter } from '../harness/qemu/stream-emitter.ts'
import { Random } from '../harness/random.ts'
import { hear } from '../harness/told.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const program = join(root, 'bin/pageferry')
const work = join(root, '.cache/large-store')
const at = (name: string): string => join(work, name)
const corpus = at('corpus')
const results = join(root, '.cache/large-store.json')

const GB = 1e9
const IMAGE_PAGES = Math.floor(GB / PAGE_SIZE)
/** Blocks of files: those of images, and behind them those that are in none. */
const CORPUS_PAGES = 2 * IMAGE_PAGES
const FOREIGN_PAGES = 65_536
const GUEST_PAGES = 200_000
const KNOWN_SHARE = 0.9
/** Pages of a guest that stand one behind the other in an image, as measured: docs/adr/0010-cold-sets.md. */
const RUN_PAGES = 16
const EFFORT_NUMBERS = [0, 2, 3]
const RING_PAGES = 65_536
/** Of /proc, a second. */
const CLOCK_TICKS = 100
const PLACES = 1 << 20

/** Writes the blocks of files below /usr one behind the other. */
function makeCorpus(): void {
  const limit = (CORPUS_PAGES + FOREIGN_PAGES) * PAGE_SIZE
  const out = openSync(`${corpus}.part`, 'w')
  let length = 0
  const folders = ['/usr']
  while (folders.length > 0 && length < limit) {
    const folder = folders.pop()!
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name)
      if (entry.isDirectory()) folders.push(path)
      if (!entry.isFile() || statSync(path).size < PAGE_SIZE || length >= limit) continue
      const bytes = readFileSync(path)
      const whole = bytes.subarray(0, Math.floor(bytes.length / PAGE_SIZE) * PAGE_SIZE)
      writeSync(out, whole)
      length += whole.length
    }
  }
  closeSync(out)
  if (length < limit) throw new Error(`/usr has ${length} bytes in blocks, and ${limit} are needed`)
  truncateSync(`${corpus}.part`, limit)
  renameSync(`${corpus}.part`, corpus)
}

/** Pages by number: of images below `FOREIGN`, of none from there on; all differ. */
class Pages {
  private readonly file = openSync(corpus, 'r')

  /** Pages `first` to `first + count` of an image; the corpus is gone through again and again. */
  read(first: number, count: number, into: Buffer, from = 0, pages = CORPUS_PAGES): Buffer {
    for (let i = 0; i < count; ) {
      const block = (first + i) % pages
      const run = Math.min(count - i, pages - block)
      readSync(this.file, into, i * PAGE_SIZE, run * PAGE_SIZE, (from + block) * PAGE_SIZE)
      i += run
    }
    for (let i = 0; i < count; i++) {
      const page = from + first + i
      into.writeBigUInt64LE(BigInt(page) * 0x9e37_79b9n + 1n, i * PAGE_SIZE + ((page * 152) & 4088))
    }
    return into.subarray(0, count * PAGE_SIZE)
  }

  foreign(index: number, into: Buffer): Buffer {
    return this.read(index, 1, into, CORPUS_PAGES, FOREIGN_PAGES)
  }

  close(): void {
    closeSync(this.file)
  }
}

/** Image by image, each gone once its set is there. */
async function makeStore(pages: Pages, gigabytes: number): Promise<TemplateStore> {
  const store = new TemplateStore(at('store'))
  const [image, buffer] = [at('image.raw'), Buffer.alloc(1024 * PAGE_SIZE)]
  for (let i = 0; i < gigabytes; i++) {
    const out = openSync(image, 'w')
    for (let page = 0; page < IMAGE_PAGES; page += 1024) {
      writeSync(out, pages.read(i * IMAGE_PAGES + page, Math.min(1024, IMAGE_PAGES - page), buffer))
    }
    closeSync(out)
    await pageferry('template', 'build', '--store', store.folder, '--as', 'disk', image)
    process.stderr.write(`set ${i + 1} of ${gigabytes}\n`)
  }
  rmSync(image)
  return store
}

/** The stream of a guest with pages of the first image, in runs, and of none. */
function makeGuest(pages: Pages, path: string): void {
  const random = new Random(13)
  const out = openSync(path, 'w')
  const head = new StreamEmitter().header('pc-i440fx-10.0')
  head
    .ramStart(2, [{ idstr: 'pc.ram', lengthBytes: GUEST_PAGES * PAGE_SIZE }])
    .eos()
    .footer(2)
  writeSync(out, head.bytes())
  const buffer = Buffer.alloc(RUN_PAGES * PAGE_SIZE)
  for (let page = 0, foreign = 0; page < GUEST_PAGES; page += RUN_PAGES) {
    const part = new StreamEmitter().sectionPart(2)
    const known = random.chance(KNOWN_SHARE)
    if (known) pages.read(random.below(IMAGE_PAGES - RUN_PAGES), RUN_PAGES, buffer)
    for (let i = 0; i < RUN_PAGES; i++) {
      const bytes = known ? buffer.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE) : pages.foreign(foreign++, buffer)
      part.page((page + i) * PAGE_SIZE, bytes.subarray(0, PAGE_SIZE), i === 0 ? 'pc.ram' : undefined)
    }
    writeSync(out, part.eos().footer(2).bytes())
  }
  writeSync(out, new StreamEmitter().sectionEnd(2).eos().footer(2).eof().bytes())
  closeSync(out)
}

interface Cost {
  /** Of all threads, and of the one that encodes. */
  readonly cpuSeconds: number
  readonly threadSeconds: number
  readonly seconds: number
  readonly bytes: number
}

/** Sets are loaded or opened before the clocks start, as a session's are. */
async function encode(
  store: TemplateStore,
  guest: string,
  sets: readonly string[],
  cold: readonly string[],
  effort: number,
): Promise<Cost> {
  let startMs = 0
  let before = process.cpuUsage()
  let threadBefore = process.threadCpuUsage()
  const timed = async function* () {
    for await (const chunk of (await InputFile.open(guest)).chunks()) {
      if (startMs === 0) {
        threadBefore = process.threadCpuUsage()
        ;[startMs, before] = [performance.now(), process.cpuUsage()]
      }
      yield chunk
    }
  }
  const ring = { ringPages: RING_PAGES, places: PLACES, ringInAdvance: true }
  const terms = { store, sets, ...(cold.length > 0 && { cold }), ...ring }
  const { fileBytes } = await encodeStream(timed(), () => {}, { ...terms, effort: EFFORTS[effort]! })
  const { user, system } = process.cpuUsage(before)
  const thread = process.threadCpuUsage(threadBefore)
  return {
    cpuSeconds: (user + system) / 1e6,
    threadSeconds: (thread.user + thread.system) / 1e6,
    seconds: (performance.now() - startMs) / 1000,
    bytes: fileBytes,
  }
}

/** A proxy, and when it told what. */
class Site {
  readonly child: ChildProcess
  readonly startedMs = performance.now()
  private readonly toldMs = new Map<string, number>()
  private readonly lines: string[] = []

  constructor(...args: string[]) {
    this.child = spawn(program, [...args, '--json', '--plaintext', '--learn', 'off'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    hear(this.child, ({ event }, line) => {
      if (!this.toldMs.has(event)) this.toldMs.set(event, performance.now())
      this.lines.push(line)
    })
  }

  /** @returns when it was told first, from the start of the process */
  async told(event: string): Promise<number> {
    for (let i = 0; !this.toldMs.has(event); i++) {
      if (i > 6000 || this.child.exitCode !== null) throw new Error(`no ${event}: ${this.lines.slice(-5)}`)
      await new Promise(done => setTimeout(done, 10))
    }
    return this.toldMs.get(event)! - this.startedMs
  }

  field(event: string, name: string): unknown {
    return JSON.parse(this.lines.find(line => line.includes(`"msg":"${event}"`))!)[name]
  }

  /** Seconds that it has computed so far, at the priority that it has. */
  get cpuSeconds(): number {
    const fields = readFileSync(`/proc/${this.child.pid}/stat`, 'latin1').split(') ')[1]!.split(' ')
    return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS
  }

  /** Most that it had of memory at once. */
  get peakBytes(): number {
    return 1024 * Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${this.child.pid}/status`, 'latin1'))![1])
  }
}

/** A session over the whole store, and the guest through it. */
async function session(store: TemplateStore, guest: string) {
  const [local, target] = [at('source.sock'), at('target.sock')]
  for (const path of [local, target]) rmSync(path, { force: true })
  const [sent, arrived] = [createHash('sha256'), createHash('sha256')]
  const length = statSync(guest).size
  let have = 0
  let whole!: () => void
  const all = new Promise<void>(done => (whole = done))
  const server = net.createServer(socket => {
    socket.on('error', () => {})
    socket.on('data', chunk => {
      arrived.update(chunk)
      have += chunk.length
      if (have === length) whole()
    })
  })
  server.listen(target)
  await once(server, 'listening')
  const destination = new Site(
    'destination',
    '--listen',
    'tcp:127.0.0.1:0',
    '--target',
    `unix:${target}`,
    '--store',
    store.folder,
  )
  let source: Site | undefined
  try {
    await destination.told('listening for source proxies')
    const [, port] = /:(\d+)$/.exec(`${destination.field('listening for source proxies', 'at')}`)!
    source = new Site('source', '--listen', `unix:${local}`, '--peer', `127.0.0.1:${port}`, '--store', store.folder)
    const openMs = await source.told('session open')
    const openCpuSeconds = source.cpuSeconds
    const cold = (source.field('session open', 'cold') ?? []) as string[] // none where they were late
    const idle = { source: source.peakBytes, destination: destination.peakBytes }
    const qemu = net.connect(local)
    const startMs = performance.now()
    const stream = createReadStream(guest, { highWaterMark: 1 << 20 })
    stream.on('data', chunk => sent.update(chunk))
    await Promise.all([pipeline(stream, qemu, { end: false }), all])
    const seconds = (performance.now() - startMs) / 1000
    if (sent.digest('hex') !== arrived.digest('hex')) throw new Error('the guest arrived otherwise')
    const peak = { source: source.peakBytes, destination: destination.peakBytes }
    qemu.destroy()
    await source.told('migration ended')
    return {
      openMs,
      openCpuSeconds,
      cold: cold.length,
      seconds,
      wanBytes: source.field('migration ended', 'bytesWan'),
      idle,
      peak,
    }
  } finally {
    if (source) await endChild(source.child)
    await endChild(destination.child)
    server.close()
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      gigabytes: { type: 'string', default: '20' },
      rounds: { type: 'string', default: '3' },
      efforts: { type: 'string', default: EFFORT_NUMBERS.join() },
      only: { type: 'string' },
      keep: { type: 'boolean', default: false },
    },
  })
  const [gigabytes, rounds] = [Number(values.gigabytes), Number(values.rounds)]
  const efforts = values.efforts.split(',').map(Number)
  const does = (part: string): boolean => values.only === undefined || values.only === part
  mkdirSync(work, { recursive: true })
  if (!existsSync(corpus)) makeCorpus()
  const pages = new Pages()
  const store = new TemplateStore(at('store'))
  const isThere = existsSync(store.folder) && (await store.digests()).length === gigabytes
  if (!isThere) {
    rmSync(store.folder, { recursive: true, force: true })
    await makeStore(pages, gigabytes)
  }
  const guest = at('guest.stream')
  if (!existsSync(guest)) makeGuest(pages, guest)
  pages.close()

  const sessions: Awaited<ReturnType<typeof session>>[] = []
  for (let i = 0; does('sessions') && i < rounds; i++) {
    const found = await session(store, guest)
    sessions.push(found)
    process.stderr.write(`${JSON.stringify(found)}\n`)
  }
  const sets = (await store.list()).toSorted((a, b) => a.modified.getTime() - b.modified.getTime())
  const digests = sets.map(({ digest }) => digest) // the first image's first
  const costs: Record<string, Cost[]> = {}
  for (let i = 0; does('encode') && i < rounds; i++) {
    for (const effort of efforts) {
      for (const [where, sets, cold] of [
        ['memory', digests.slice(0, 1), []],
        ['disk', [], digests],
      ] as const) {
        const cost = await encode(store, guest, sets, cold, effort)
        const name = `effort ${effort}, ${where}`
        costs[name] = [...(costs[name] ?? []), cost]
        process.stderr.write(`${name}: ${JSON.stringify(cost)}\n`)
      }
    }
  }
  const megabytes = statSync(guest).size / 1e6
  const speed = (name: string, of: keyof Cost): number => megabytes / median(costs[name]!.map(cost => cost[of]))
  const encoded = efforts.filter(effort => costs[`effort ${effort}, disk`] !== undefined)
  const lines = encoded.map(effort => {
    const [memory, disk] = [`effort ${effort}, memory`, `effort ${effort}, disk`]
    const ratio = (of: keyof Cost): string => (speed(disk, of) / speed(memory, of)).toFixed(2)
    const both = (of: keyof Cost): string =>
      `${speed(memory, of).toFixed(0)}, ${speed(disk, of).toFixed(0)}: ${ratio(of)}`
    return (
      `effort ${effort}: MB/s from memory, from disk: of CPU ${both('cpuSeconds')}; ` +
      `of CPU of the thread that encodes ${both('threadSeconds')}; of time ${both('seconds')}`
    )
  })
  const mb = (pick: (found: (typeof sessions)[number]) => number): string =>
    (Math.max(...sessions.map(pick)) / 1e6).toFixed(0)
  const ofSessions = [
    `${sessions[0]?.cold} of the sets on the disk`,
    `session open after ${sessions.map(({ openMs }) => (openMs / 1000).toFixed(2)).join(', ')} s, of which the source computes ` +
      `${sessions.map(({ openCpuSeconds }) => openCpuSeconds.toFixed(2)).join(', ')}`,
    `memory at most, MB: source ${mb(({ peak }) => peak.source)}, destination ${mb(({ peak }) => peak.destination)}`,
  ]
  process.stdout.write(
    `${[
      `${gigabytes} sets of 1 GB; a guest of ${megabytes.toFixed(0)} MB, ${100 * KNOWN_SHARE} % known`,
      ...(sessions.length > 0 ? ofSessions : []),
      ...lines,
    ].join('\n')}\n`,
  )
  writeFileSync(
    results,
    `${JSON.stringify({ gigabytes, guestBytes: statSync(guest).size, sessions, costs }, null, 2)}\n`,
  )
  if (!values.keep && values.only === undefined) rmSync(work, { recursive: true })
}

await main()
