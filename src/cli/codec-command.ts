/** `pageferry encode`, `decode`, `estimate`: the codec without a network. */

import { basename } from 'node:path'
import { SingleBar } from 'cli-progress'
import Table from 'cli-table3'
import type { Argv, CommandModule } from 'yargs'
import { DiskMirror } from '../capture/disk-mirror.ts'
import { Input } from '../capture/input.ts'
import { InputFile, STANDARD_INPUT } from '../capture/input-file.ts'
import { JOIN_ROTATED } from '../capture/missing.ts'
import { readOneChannel } from '../capture/one-channel.ts'
import { PageInput } from '../capture/pages.ts'
import { COLUMN, COLUMN_NAMES, PAGE_SIZE } from '../codec/wire.ts'
import { EFFORT_MAX, type Effort, parseEffort, RUNGS } from '../compression/effort.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { decodeStream } from '../file/encoded-file-reader.ts'
import { type EncodeResult, encodeStream } from '../file/encoded-file-writer.ts'
import { OutputFile, requireOther } from '../file/output-file.ts'
import { formatCount, formatSize, parseCap, parseCount, parseSize } from '../quantity.ts'
import { floorsOf } from '../store/set-floors.ts'
import type { TemplateStore } from '../store/template-store.ts'
import { discardUnfinished } from '../system/unfinished.ts'
import { digestOfFileName } from '../template/wire.ts'
import { commandThreads, parseThreads } from '../transfer/helpers/thread-count.ts'
import { PLACES, POOL_MEMORY_DEFAULT } from '../transfer/pool.ts'
import { type InputArguments, inputOptions, openOptions } from './input-options.ts'
import { interruptible } from './interruptible.ts'
import { print, printLines, tell } from './output.ts'
import { SET_MEMORY_OPTION } from './set-memory.ts'
import { existingStore, STORE_KEY_OPTION } from './store-key.ts'
import { COMMAND_THREADS_OPTION } from './threads-option.ts'

/** What `encode` and `estimate` use where nothing is said: the ratio of a 100 Mbit/s link. */
const EFFORT_DEFAULT = '3'

interface CodecArguments {
  readonly store: string | undefined
  readonly storeKey: string | undefined
  readonly set: string[]
  readonly poolMemory: string
  readonly setMemory: string
  readonly threads: string
  readonly effort: string
  readonly channel: string | undefined
  readonly json: boolean
}

interface EncodeArguments extends CodecArguments {
  readonly input: string
  readonly output: string
}

interface DecodeArguments {
  readonly input: string
  readonly output: string
  readonly store: string | undefined
  readonly storeKey: string | undefined
  readonly threads: string
  readonly json: boolean
}

interface EstimateArguments extends CodecArguments, InputArguments {
  readonly inputs: string[]
  readonly rate: string | undefined
}

const INPUT =
  'a migration stream, a .pcap or .pcapng capture or a libvirt save image of one; as it is or compressed; - for standard input'
const AT_REST = 'a core, a kdump or mapped-ram file or flat memory of a guest, or a disk image'

function codecOptions(yargs: Argv): Argv<CodecArguments> {
  return yargs
    .option('store', {
      describe: 'Folder of template sets; all sound sets in it are used',
      type: 'string',
      requiresArg: true,
    })
    .option('store-key', STORE_KEY_OPTION)
    .option('set', {
      describe: 'Use only the sets with these digests (first digits)',
      type: 'string',
      array: true,
      requiresArg: true,
      default: [],
    })
    .option('pool-memory', {
      describe: 'Memory for pages that have passed, on either side',
      type: 'string',
      requiresArg: true,
      default: POOL_MEMORY_DEFAULT,
    })
    .option('set-memory', SET_MEMORY_OPTION)
    .option('threads', COMMAND_THREADS_OPTION)
    .option('effort', {
      describe: `How hard to squeeze: 0 (references alone) to ${EFFORT_MAX}`,
      type: 'string',
      requiresArg: true,
      default: EFFORT_DEFAULT,
    })
    .option('channel', {
      describe: 'Which channel of a capture with several, by number; its only main channel where nothing is said',
      type: 'string',
      requiresArg: true,
    })
    .option('json', { describe: 'Print JSON', type: 'boolean', default: false }) as never
}

export const encodeCommand: CommandModule<object, EncodeArguments> = {
  command: 'encode <input>',
  describe: 'Encode a migration stream to a file that holds what the WAN would carry',
  builder: yargs =>
    (codecOptions(yargs) as Argv<EncodeArguments>)
      .positional('input', {
        describe: INPUT,
        type: 'string',
        demandOption: true,
      })
      .option('output', {
        alias: 'o',
        describe: 'File to write, or - for standard output',
        type: 'string',
        requiresArg: true,
        demandOption: true,
      })
      .example('$0 encode web1.stream -o web1.pfy --store S', 'against all sets of the store S')
      .example('$0 encode - -o - < web1.stream | $0 decode - -o - | cmp - web1.stream', 'there and back') as never,
  handler: runEncode,
}

export const decodeCommand: CommandModule<object, DecodeArguments> = {
  command: 'decode <input>',
  describe: 'Decode a file that encode made',
  builder: yargs =>
    yargs
      .positional('input', {
        describe: 'The encoded file, or - for standard input',
        type: 'string',
        demandOption: true,
      })
      .option('output', {
        alias: 'o',
        describe: 'File to write, or - for standard output',
        type: 'string',
        requiresArg: true,
        demandOption: true,
      })
      .option('store', {
        describe: 'Folder with the template sets that encode used',
        type: 'string',
        requiresArg: true,
      })
      .option('store-key', STORE_KEY_OPTION)
      .option('threads', COMMAND_THREADS_OPTION)
      .option('json', { describe: 'Print JSON', type: 'boolean', default: false })
      .example('$0 decode web1.pfy -o web1.stream --store S', 'the stream, byte for byte') as never,
  handler: runDecode,
}

export const estimateCommand: CommandModule<object, EstimateArguments> = {
  command: 'estimate <inputs..>',
  describe: 'Tell what a migration, or the mirror of a disk, would save, and why',
  builder: yargs =>
    (inputOptions(codecOptions(yargs)) as Argv<EstimateArguments>)
      .positional('inputs', {
        describe: `Each: ${INPUT}; or ${AT_REST}`,
        type: 'string',
        array: true,
        demandOption: true,
      })
      .option('rate', {
        describe: 'Link, such as 100Mbit: forecasts the seconds at each effort of auto',
        type: 'string',
        requiresArg: true,
      })
      .example('$0 estimate web2.stream --store S', 'bytes by class')
      .example('$0 estimate web2.stream --store S --rate 100Mbit', 'seconds over such a link')
      .example(
        '$0 estimate web2.qcow2 --store S',
        'what moving its disk would cost: as its mirror, before its memory',
      ) as never,
  handler: runEstimate,
}

/** Digests of the sets to use: those asked for, or all sound ones of the store. @throws TEMPLATE_*, USAGE, IO */
async function chooseSets(
  store: TemplateStore | undefined,
  wanted: readonly string[],
  memoryBytes: number,
): Promise<{ sets: string[]; cold: string[] }> {
  if (store === undefined) {
    if (wanted.length > 0) throw new ProxyError('USAGE', '--set without --store', undefined, 'give --store DIR')
    return { sets: [], cold: [] }
  }
  const asked = await Promise.all(wanted.map(prefix => store.find(prefix)))
  const chosen = (await store.list()).filter(({ digest }) => asked.length === 0 || asked.includes(digest))
  for (const { problem } of chosen) {
    if (problem && asked.length > 0) throw problem
    if (problem) note(problem.message)
  }
  const sound = chosen.filter(({ problem }) => problem === undefined)
  const { hot, cold, others } = floorsOf(sound, Math.floor(memoryBytes / PAGE_SIZE))
  for (const digest of others) note(`set ${digest.slice(0, 12)} is left out: more than can be used at once`)
  return { sets: [...hot], cold: [...cold] }
}

interface Job {
  readonly store: TemplateStore | undefined
  /** Digests of the sets to use; those that turn out to be damaged go. */
  readonly sets: string[]
  /** Those whose pages stay on the disk. */
  readonly cold: string[]
  /** They were asked for one by one: none may be missing. */
  readonly setsAsked: boolean
  readonly ringPages: number
  readonly threads: number
  readonly effort: Effort
  readonly channel: number | undefined
}

async function jobOf(args: CodecArguments): Promise<Job> {
  const store = args.store === undefined ? undefined : await existingStore(args.store, args.storeKey)
  return {
    store,
    ...(await chooseSets(store, args.set, parseSize(args.setMemory, '--set-memory'))),
    setsAsked: args.set.length > 0,
    ringPages: Math.floor(parseSize(args.poolMemory, '--pool-memory') / PAGE_SIZE),
    threads: commandThreads(parseThreads(args.threads)),
    effort: parseEffort(args.effort),
    channel: args.channel === undefined ? undefined : parseCount(args.channel, '--channel', 1),
  }
}

/** Who waits for the work: a progress bar on a terminal, and Ctrl-C. */
interface Attendance {
  readonly signal: AbortSignal
  /** How many bytes there are to read, where that is known. */
  expect(bytes: number | undefined): void
  /** So many more are read. */
  read(bytes: number): void
}

/** Runs with a progress bar on a terminal and a signal that Ctrl-C aborts. */
async function attended<T>(quiet: boolean, work: (attendance: Attendance) => Promise<T>): Promise<T> {
  let bar: SingleBar | undefined
  let total = 0
  let read = 0
  return interruptible(discardUnfinished, 'nothing is left behind; start again', async signal => {
    try {
      return await work({
        signal,
        expect: bytes => {
          if (bytes === undefined || bytes === 0 || quiet || !process.stderr.isTTY) return
          total = bytes
          read = 0
          const format = '{bar} {percentage} %  {eta_formatted} left'
          bar ??= new SingleBar({ format, stream: process.stderr, clearOnComplete: true, fps: 10 })
          bar.start(total, 0)
        },
        read: bytes => {
          read += bytes
          bar?.update(Math.min(read, total))
        },
      })
    } finally {
      bar?.stop()
    }
  })
}

/** What `--channel` and damaged sets leave to say. */
function note(text: string): void {
  tell(`note: ${text}`)
}

/** What became of an input. */
interface Encoded extends EncodeResult {
  /** Of a disk: blocks that its mirror only names, as they are zero; some are sent, beside others. */
  readonly zeroBlocks?: number
}

/** Whether it is estimated as a mirror, and not as a migration. */
function isDisk({ format }: Input): boolean {
  return format === 'disk'
}

/**
 * Encodes a channel of the input. A set whose pages turn out to be damaged is said and left out, as one whose head is,
 * unless it was asked for by name.
 *
 * @param write undefined: only the figures are wanted
 */
async function encodeTo(
  input: Input,
  job: Job,
  { signal, expect, read }: Attendance,
  write: ((bytes: Uint8Array) => Promise<void> | void) | undefined,
  started: () => void = () => {},
): Promise<Encoded> {
  expect(input.lengthBytes)
  // What nobody will decode need not be what QEMU sent to the byte.
  const estimate = write === undefined
  const { channel } = job
  const say = (text: string): void => note(`${input.name}: ${text}`)
  for (;;) {
    try {
      const options = { ...job, places: PLACES, signal }
      if (estimate && isDisk(input) && channel === undefined) {
        const pages = PageInput.of(input, { partial: true, note: ({ text }) => say(text) })
        const mirror = new DiskMirror(pages)
        const server = (): Uint8Array => mirror.answer()
        const result = await encodeStream(mirror.chunks(read), started, { ...options, server })
        return { ...result, zeroBlocks: mirror.zeroBlocks }
      }
      const chunks = readOneChannel(input, { channel, estimate, note: say, readBytes: read })
      return await encodeStream(chunks, write ?? started, options)
    } catch (error) {
      // Sets are loaded before the first byte is read or written.
      const damaged = damagedSet(error) ?? ''
      const floor = [job.sets, job.cold].find(digests => digests.includes(damaged))
      if (job.setsAsked || floor === undefined) throw error
      note((error as ProxyError).message)
      floor.splice(floor.indexOf(damaged), 1)
    }
  }
}

/** The digest of the set that an error is about. */
function damagedSet(error: unknown): string | undefined {
  if (!isProxyError(error) || error.where === undefined) return undefined
  return error.code.startsWith('TEMPLATE_') || error.code === 'IO'
    ? digestOfFileName(basename(error.where.stream))
    : undefined
}

async function runEncode(args: EncodeArguments): Promise<void> {
  const job = await jobOf(args)
  await requireOther(args.output, [args.input])
  const output = new OutputFile(args.output)
  try {
    const startMs = performance.now()
    let takenFor = ''
    const result = await attended(args.json || args.output === '-', async attendance => {
      const input = await Input.open(args.input, { migration: true, signal: attendance.signal })
      takenFor = input.takenFor
      try {
        return await encodeTo(input, job, attendance, bytes => output.write(bytes))
      } finally {
        input.close()
      }
    })
    await output.finish()
    const seconds = (performance.now() - startMs) / 1000
    const { stats, fileBytes, degraded, endsEarly } = result
    const line = {
      input: args.input,
      takenFor,
      rawBytes: stats.rawBytes,
      fileBytes,
      ratio: ratio(fileBytes, stats.rawBytes),
      seconds,
      degraded,
      endsEarly,
    }
    if (args.json) tell(JSON.stringify(line))
    else if (args.output !== '-')
      print(
        `${takenFor}: ${formatSize(stats.rawBytes)} to ${formatSize(fileBytes)}, ${percent(fileBytes, stats.rawBytes)}, in ${seconds.toFixed(1)} s`,
      )
    if (degraded && !args.json) tell(`note: relayed raw from byte ${degraded.position}: ${degraded.reason}`)
    if (endsEarly && !args.json) tell(`note: ${earlyText(stats.rawBytes)}`)
  } finally {
    await output.discard()
  }
}

async function runDecode(args: DecodeArguments): Promise<void> {
  const threads = commandThreads(parseThreads(args.threads))
  await requireOther(args.output, [args.input])
  const output = new OutputFile(args.output)
  try {
    const store = args.store === undefined ? undefined : await existingStore(args.store, args.storeKey)
    const startMs = performance.now()
    const { bytes } = await attended(args.json || args.output === '-', async ({ signal, expect, read }) => {
      const input = await InputFile.open(args.input)
      expect(input.lengthBytes)
      return decodeStream(input.chunks(read, signal), piece => output.write(piece), {
        store,
        name: args.input,
        threads,
        signal,
      })
    })
    await output.finish()
    const seconds = (performance.now() - startMs) / 1000
    if (args.json) tell(JSON.stringify({ input: args.input, bytes, seconds }))
    else if (args.output !== '-') print(`${formatSize(bytes)}, verified batch by batch, in ${seconds.toFixed(1)} s`)
  } finally {
    await output.discard()
  }
}

/** What `estimate --json` prints for one input. */
export interface Estimate {
  readonly input: string
  /** What it was taken for, in words. */
  readonly takenFor: string
  /** What would carry it: of a disk its mirror, of all else a migration. */
  readonly carriedBy: 'migration' | 'mirror'
  readonly qemuBytes: number
  readonly wanBytes: number
  readonly ratio: number
  /** Or blocks of 4 KiB. */
  readonly pages: Readonly<Record<string, number>>
  /** Bytes of the WAN by column of the format. */
  readonly columns: Readonly<Record<string, number>>
  readonly degraded: EncodeResult['degraded']
  readonly endsEarly: boolean
  /** Seconds over the link of --rate, by effort: the slower of link and encoder. */
  readonly forecast?: readonly { readonly effort: number; readonly wanBytes: number; readonly seconds: number }[]
  /** Seconds of QEMU's bytes over that link, without the pair. */
  readonly directSeconds?: number
}

async function runEstimate(args: EstimateArguments): Promise<void> {
  const job = await jobOf(args)
  const rate = args.rate === undefined ? undefined : parseCap(args.rate, '--rate')
  if (args.inputs.filter(input => input === STANDARD_INPUT).length > 1) {
    throw new ProxyError('USAGE', 'standard input twice', undefined, 'it can be read once only')
  }
  const estimates: Estimate[] = []
  await attended(args.json, async attendance => {
    for (const path of args.inputs) {
      const input = await Input.open(path, {
        ...openOptions(args),
        repeatable: rate !== undefined,
        signal: attendance.signal,
      })
      try {
        const result = await encodeTo(input, job, attendance, undefined)
        const forecast = rate === undefined ? undefined : await forecastOf(input, job, rate, attendance)
        estimates.push({
          ...estimateOf(path, input, result),
          ...(forecast ? { forecast, directSeconds: result.stats.rawBytes / rate! } : {}),
        })
      } finally {
        input.close()
      }
    }
  })
  if (args.json) {
    printLines(JSON.stringify(estimates, null, 2))
    return
  }
  for (const estimate of estimates) printEstimate(estimate, job)
}

function estimateOf(path: string, input: Input, result: Encoded): Estimate {
  const { stats, fileBytes, degraded, endsEarly, zeroBlocks } = result
  return {
    input: path,
    takenFor: input.takenFor,
    carriedBy: zeroBlocks === undefined ? 'migration' : 'mirror',
    qemuBytes: stats.rawBytes,
    wanBytes: fileBytes,
    ratio: ratio(fileBytes, stats.rawBytes),
    pages: {
      zero: stats.zeroPages + (zeroBlocks ?? 0),
      fill: stats.fillPages,
      previous: stats.samePages,
      template: stats.templatePages,
      disk: stats.coldPages,
      earlier: stats.earlierPages,
      patched: stats.patchPages,
      compressed: stats.newPages,
      incompressible: stats.densePages,
      opaque: stats.opaquePages,
    },
    columns: Object.fromEntries(COLUMN_NAMES.map((name, column) => [name, stats.columns[column]!])),
    degraded,
    endsEarly,
  }
}

function earlyText(bytes: number): string {
  return `the migration ends early, at byte ${formatCount(bytes)}; ${JOIN_ROTATED}`
}

/**
 * Encodes once at each effort that `auto` takes. The link carries while the CPU encodes, so the slower of both decides. The
 * clock starts when the sets are loaded: a proxy's are before a migration comes.
 */
async function forecastOf(
  input: Input,
  job: Job,
  rate: number,
  attendance: Attendance,
): Promise<NonNullable<Estimate['forecast']>> {
  const forecast = []
  for (const effort of RUNGS) {
    let startMs: number | undefined
    const { fileBytes } = await encodeTo(input, { ...job, effort }, attendance, undefined, () => {
      startMs ??= performance.now()
    })
    const encodeSeconds = (performance.now() - startMs!) / 1000
    forecast.push({ effort: effort.level, wanBytes: fileBytes, seconds: Math.max(encodeSeconds, fileBytes / rate) })
  }
  return forecast
}

function printEstimate(estimate: Estimate, job: Job): void {
  const { input, takenFor, qemuBytes, wanBytes, pages, columns, degraded, forecast, directSeconds } = estimate
  const mirror = estimate.carriedBy === 'mirror'
  const sets = job.sets.length + job.cold.length
  print(`${input}: taken for ${takenFor}`)
  print(
    `${input}: ${formatSize(qemuBytes)} of QEMU, ${formatSize(wanBytes)} on the WAN (${percent(wanBytes, qemuBytes)}), ` +
      `${sets} template set${sets === 1 ? '' : 's'}, effort ${job.effort.level} (${job.effort.name})`,
  )
  const column = (index: number): number => columns[COLUMN_NAMES[index]!]!
  const heads = column(COLUMN.OPS) + column(COLUMN.NUMBERS) + column(COLUMN.HEADERS)
  const patches = column(COLUMN.LENGTHS) + column(COLUMN.SOURCES) + column(COLUMN.SHIFTS)
  const classes = new Table({
    head: ['class', mirror ? 'blocks' : 'pages', 'of QEMU', 'on the WAN'],
    colAligns: ['left', 'right', 'right', 'right'],
    style: { head: [], border: [], compact: true },
  })
  const row = (name: string, count: number, wan: number | undefined): void => {
    if (count === 0 && !wan) return
    classes.push([
      name,
      formatCount(count),
      formatSize(count * PAGE_SIZE),
      wan === undefined ? 'in heads' : formatSize(wan),
    ])
  }
  if (mirror) classes.push(['zero', formatCount(pages.zero!), '', 'in heads'])
  else classes.push(['zero', formatCount(pages.zero!), formatSize(pages.zero! * 9), 'in heads'])
  row('one byte repeated', pages.fill!, undefined)
  row('as last sent', pages.previous!, undefined)
  row('in a template set', pages.template!, undefined)
  if (job.cold.length > 0) row('in one on the disk', pages.disk!, column(COLUMN.COLD))
  row('passed earlier', pages.earlier!, undefined)
  row('partly known', pages.patched!, patches)
  row('literal (partly known, new)', pages.compressed!, column(COLUMN.PAGES) + column(COLUMN.WORDS))
  row('incompressible', pages.incompressible!, column(COLUMN.DENSE))
  classes.push(['heads, references', '', '', formatSize(heads)])
  classes.push([mirror ? 'others' : 'device state and others', '', '', formatSize(column(COLUMN.OTHER))])
  printLines(classes.toString())
  if (degraded) print(`relayed raw from byte ${degraded.position}: ${degraded.reason}`)
  if (estimate.endsEarly) print(earlyText(qemuBytes))
  if (forecast) {
    const least = Math.min(...forecast.map(({ seconds }) => seconds))
    for (const { effort, wanBytes: bytes, seconds } of forecast)
      print(
        `  effort ${effort}: ${formatSize(bytes)}, about ${seconds.toFixed(1)} s${seconds === least ? ' (as auto)' : ''}`,
      )
    print(`  directly: ${formatSize(qemuBytes)}, about ${directSeconds!.toFixed(1)} s`)
  }
  print('')
}

function ratio(part: number, whole: number): number {
  return whole === 0 ? 1 : Math.round((part / whole) * 10000) / 10000
}

function percent(part: number, whole: number): string {
  return whole === 0 ? 'nothing to save' : `${((100 * part) / whole).toFixed(1)} %`
}
