/**
 * `make bench-ratio`: what the codec leaves of captured migrations of Debian guests, beside zstd with the same knowledge,
 * in one run on the same bytes. Needs the lab's streams (`make lab`). Writes test/bench/images.csv, what the guests' disk
 * image brings, and test/bench/ratio.csv, which are kept under review: a change of ratio is seen there.
 *
 *   node test/bench/ratio.ts --images     the former alone
 */
import { spawnSync } from 'node:child_process'
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { InputFile } from '../../src/capture/input-file.ts'
import { PageInput } from '../../src/capture/pages.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { buildSet } from '../../src/store/build.ts'
import { TemplateStore } from '../../src/store/template-store.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const streams = join(root, '.cache/lab/streams')
const work = join(root, '.cache/bench-ratio')

/** Templates never come from the target guest. */
const OTHERS = ['idle', 'nginx', 'redis', 'compiling']
const TARGETS = ['nginx-k2', 'postgres', 'python']
/** The disk that all guests boot from, before any of them has written to it; both kernels are in its /boot. */
const IMAGE = join(root, '.cache/lab/base/disk.raw')
/** Of one kernel build. */
const IMAGE_TARGETS = ['nginx', 'postgres']
const IMAGE_OTHERS = ['idle', 'redis', 'compiling', 'python']
/** The ring is as large as the prototype's, which kept every page of the session. */
const RING_PAGES = 131_072
const PLACES = 1 << 20

interface Row {
  readonly case: string
  readonly stream: string
  readonly by: string
  readonly bytes: number
  readonly percent: number
  readonly cpuSeconds: number
  /** Of the raw stream, a second of CPU. */
  readonly megabytesPerSecond: number
}

let rows: Row[] = []
const path = (name: string): string => join(streams, `${name}.stream`)

function add(kase: string, stream: string, by: string, bytes: number, raw: number, cpuSeconds: number): void {
  const row = {
    case: kase,
    stream,
    by,
    bytes,
    percent: Math.round((10000 * bytes) / raw) / 100,
    cpuSeconds: Math.round(cpuSeconds * 100) / 100,
    megabytesPerSecond: Math.round(raw / 1e6 / cpuSeconds),
  }
  rows.push(row)
  process.stderr.write(`${row.case}: ${row.stream} by ${row.by}: ${row.percent} %, ${row.megabytesPerSecond} MB/s\n`)
}

/** A set of the named guests' pages, in a store of its own. */
async function build(name: string, guests: readonly string[], minVms: number): Promise<TemplateStore> {
  const store = new TemplateStore(join(work, name))
  const inputs: PageInput[] = []
  for (const guest of guests) inputs.push(await PageInput.open(path(guest)))
  await buildSet(inputs, { minVms, maxBytes: undefined, memoryBytes: 1 << 30 }, store)
  return store
}

interface Encoding {
  readonly store: TemplateStore | undefined
  /** Digests of its sets that stay on the disk, as they would at both sides; the others are in memory. */
  readonly cold?: readonly string[]
  readonly ringPages?: number
  readonly places?: number
  readonly effort: number
}

/** @returns bytes on the WAN and CPU seconds; the pool is loaded before the clock starts, as a proxy's is */
async function encode(
  stream: string,
  { store, cold = [], ringPages = RING_PAGES, places = PLACES, effort }: Encoding,
): Promise<{ bytes: number; seconds: number }> {
  const before = { user: 0, system: 0 }
  let started = false
  const timed = async function* () {
    for await (const chunk of (await InputFile.open(stream)).chunks()) {
      if (!started) {
        started = true
        Object.assign(before, process.cpuUsage())
      }
      yield chunk
    }
  }
  const sets = store ? (await store.digests()).filter(digest => !cold.includes(digest)) : []
  const { fileBytes } = await encodeStream(timed(), () => {}, {
    store,
    sets,
    ...(cold.length > 0 && { cold }),
    ringPages,
    places,
    effort: EFFORTS[effort]!,
  })
  const { user, system } = process.cpuUsage(before)
  return { bytes: fileBytes, seconds: (user + system) / 1e6 }
}

/**
 * zstd with a reference of raw bytes, as a skilled user would rig it up: it takes the window from the length of what it
 * packs, whatever `--long` says, so zeros make that as long as the reference. undefined where zstd is not installed, or the
 * reference is longer than its longest window.
 */
function zstd(raw: string, reference: string, level: number): { bytes: number; seconds: number } | undefined {
  const out = join(work, 'peer.zst')
  const stream = join(work, 'peer.stream')
  copyFileSync(raw, stream)
  truncateSync(stream, Math.max(statSync(raw).size, statSync(reference).size))
  const command = `TIMEFORMAT='%U %S'; time zstd -q -${level} --long=31 --patch-from="$1" "$2" -f -o "$3"`
  const run = spawnSync('bash', ['-c', command, 'bash', reference, stream, out], { encoding: 'utf8' })
  const times = /([\d.]+) ([\d.]+)\s*$/.exec(run.stderr)
  if (run.status !== 0 || !times) return undefined
  return { bytes: statSync(out).size, seconds: Number(times[1]) + Number(times[2]) }
}

async function setFile(store: TemplateStore): Promise<string> {
  return store.pathOf((await store.digests())[0]!)
}

async function ladder(
  kase: string,
  stream: string,
  store: TemplateStore,
  reference: string,
  efforts: readonly number[],
): Promise<void> {
  const raw = statSync(path(stream)).size
  for (const level of [3, 9]) {
    const peer = zstd(path(stream), reference, level)
    if (peer) add(kase, stream, `zstd -${level} --long=31 --patch-from`, peer.bytes, raw, peer.seconds)
  }
  for (const effort of efforts) {
    const { bytes, seconds } = await encode(path(stream), { store, effort })
    add(kase, stream, `effort ${effort} (${EFFORTS[effort]!.name})`, bytes, raw, seconds)
  }
}

/** Where a stream's first dirty page is sent again: the first page record at or below one before it. */
function firstRoundEnd(stream: string): number {
  const bytes = readFileSync(stream)
  let end = bytes.length
  let before = -1
  let block = -1
  const none = (): void => {}
  const parser = new MainStreamParser({
    block: none,
    zeroRecord: (start, _end, b, offset) => look(start, b, offset),
    pageRecord: (start, _end, b, offset) => look(start, b, offset),
    opaquePage: none,
    phase: none,
    degraded: none,
  })
  const look = (start: number, b: number, offset: number): void => {
    if (b === block && offset <= before) end = Math.min(end, start)
    if (b < block) end = Math.min(end, start)
    block = b
    before = offset
  }
  parser.push(bytes, 0, bytes.length)
  return end
}

async function dirtyRounds(stream: string, store: TemplateStore): Promise<void> {
  const cut = firstRoundEnd(path(stream))
  const head = join(work, 'first-round.stream')
  writeFileSync(head, readFileSync(path(stream)).subarray(0, cut))
  const raw = statSync(path(stream)).size - cut
  for (const [by, options] of [
    ['without previous versions', { ringPages: 0, places: 0 }],
    ['with previous versions', {}],
    ['with previous versions, ring of 64 MiB', { ringPages: 16384 }],
  ] as const) {
    const whole = await encode(path(stream), { store, effort: 3, ...options })
    const first = await encode(head, { store, effort: 3, ...options })
    add(
      'dirty rounds: the pages sent again',
      stream,
      `effort 3, ${by}`,
      whole.bytes - first.bytes,
      raw,
      Math.max(0.01, whole.seconds - first.seconds),
    )
  }
}

/** What the image brings, with the kernels that are found in it: alone, and with guests of it. */
async function images(): Promise<void> {
  const image = new TemplateStore(join(work, 'image'))
  const rule = { maxBytes: undefined, memoryBytes: 1 << 30 }
  await buildSet([await PageInput.open(IMAGE, { as: 'disk', kernels: true })], { ...rule, minVms: 1 }, image)
  const [imageSet] = await image.digests()
  const blocks = new TemplateStore(join(work, 'image-blocks'))
  await buildSet([await PageInput.open(IMAGE, { as: 'disk' })], { ...rule, minVms: 1 }, blocks)
  process.stderr.write(`the image: ${statSync(image.pathOf(imageSet!)).size} bytes of pages\n`)
  for (const target of IMAGE_TARGETS) {
    const [other] = IMAGE_TARGETS.filter(name => name !== target)
    const others = [...IMAGE_OTHERS, other!]
    await withImage('the image', target, image)
    await withImage('the image, on the disk', target, image, [imageSet!])
    await withImage('the image without the kernels in it', target, blocks)
    for (const [kase, guests, minVms] of [
      ['one other guest', [other!], 1],
      ['pages of 2 or more of 5 other guests', others, 2],
      ['everything of 5 other guests', others, 1],
    ] as const) {
      const store = await build(`${target}-${guests.length}-${minVms}`, guests, minVms)
      await withImage(kase, target, store)
      copyFileSync(image.pathOf(imageSet!), join(store.folder, basename(image.pathOf(imageSet!))))
      await withImage(`${kase}, and the image`, target, store)
      await withImage(`${kase}, and the image on the disk`, target, store, [imageSet!])
      rmSync(store.folder, { recursive: true })
    }
  }
}

/** A target at effort 3 with all sets of a store; beside zstd with the same pages, unless that was done with them in memory. */
async function withImage(
  kase: string,
  stream: string,
  store: TemplateStore,
  cold: readonly string[] = [],
): Promise<void> {
  const raw = statSync(path(stream)).size
  if (cold.length === 0) {
    const reference = join(work, 'reference')
    rmSync(reference, { force: true })
    for (const digest of await store.digests()) appendFileSync(reference, readFileSync(store.pathOf(digest)))
    const peer = zstd(path(stream), reference, 3)
    if (peer) add(kase, stream, 'zstd -3 --long=31 --patch-from', peer.bytes, raw, peer.seconds)
  }
  const { bytes, seconds } = await encode(path(stream), { store, cold, effort: 3 })
  add(kase, stream, `effort 3 (${EFFORTS[3]!.name})`, bytes, raw, seconds)
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { images: { type: 'boolean', default: false } } })
  const forGuests = [...OTHERS, ...TARGETS, 'nginx-k2-again', 'nginx-k2-limited', 'postgres-limited']
  const needed = [...IMAGE_TARGETS, ...IMAGE_OTHERS, ...(values.images ? [] : forGuests)]
  const missing = [...new Set(needed)].filter(name => !existsSync(path(name)))
  if (missing.length > 0) {
    process.stderr.write(`no streams ${missing.join(', ')}: run \`make lab\` first\n`)
    process.exitCode = 1
    return
  }
  rmSync(work, { recursive: true, force: true })
  mkdirSync(work, { recursive: true })
  await images()
  writeRows('images.csv')
  if (!values.images) {
    rows = []
    await guests()
    writeRows('ratio.csv')
  }
  rmSync(work, { recursive: true, force: true })
}

/** What pages of other guests bring, at every effort. */
async function guests(): Promise<void> {
  const shared = await build('shared', OTHERS, 2)
  const all = await build('all', OTHERS, 1)
  const same = await build('same', ['nginx-k2'], 1)
  for (const target of TARGETS)
    await ladder('pages of 2 or more of 4 other guests', target, shared, await setFile(shared), [0, 1, 2, 3, 4, 5])
  for (const target of TARGETS) {
    const guests = [...OTHERS, ...TARGETS.filter(other => other !== target)]
    const most = await build(`not-${target}`, guests, 2)
    process.stderr.write(
      `templates of 2 or more of ${guests.join(', ')}: ${statSync(await setFile(most)).size} bytes\n`,
    )
    await ladder('pages of 2 or more of 6 other guests', target, most, await setFile(most), [2, 3, 4, 5])
  }
  await ladder('all unique pages of 4 other guests', 'nginx-k2', all, await setFile(all), [2, 3, 4])
  await ladder('the same guest a minute later', 'nginx-k2-again', same, await setFile(same), [2, 3, 4])
  for (const stream of ['nginx-k2-limited', 'postgres-limited']) await dirtyRounds(stream, shared)
}

/** Shows the rows that there are, and writes them to this file. */
function writeRows(name: string): void {
  const table = new Table({
    head: ['case', 'stream', 'by', '% of QEMU', 'MB/s of CPU'],
    colAligns: ['left', 'left', 'left', 'right', 'right'],
    style: { head: [], border: [], compact: true },
  })
  for (const row of rows) table.push([row.case, row.stream, row.by, row.percent.toFixed(2), row.megabytesPerSecond])
  process.stdout.write(`${table.toString()}\n`)
  const quote = (value: string | number): string =>
    typeof value === 'string' && /[",]/.test(value) ? `"${value.replaceAll('"', '""')}"` : String(value)
  const lines = rows.map(row => Object.values(row).map(quote).join(','))
  writeFileSync(join(root, 'test/bench', name), `${Object.keys(rows[0]!).join(',')}\n${lines.join('\n')}\n`)
}

await main()
