/**
 * The codec on files and real streams: `pageferry encode` and `decode` as a user runs them, files that are damaged, and
 * every recorded channel against the second decoder. CODEC_ALL=1 takes all efforts and all of the lab's streams.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { InputFile } from '../../src/capture/input-file.ts'
import { EFFORTS } from '../../src/compression/effort.ts'
import { ERROR_EXIT, isProxyError } from '../../src/errors.ts'
import { decodeStream } from '../../src/file/encoded-file-reader.ts'
import { encodeStream } from '../../src/file/encoded-file-writer.ts'
import { OutputFile } from '../../src/file/output-file.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/limits.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { encodeFrame } from '../../src/wan/frames.ts'
import { until } from '../helpers/until.ts'
import { doctored } from '../qemu-wire/doctored.ts'
import { simpleMain, simpleMultifd, simplePreempt } from '../qemu-wire/simple-decoder.ts'
import { random, run, type ScenarioChannel, SIMD, secondOpinion, type Terms, templatePages } from './harness.ts'
import { decodeFile } from './second-decoder.ts'

const ALL = process.env.CODEC_ALL === '1'
t.setTimeout(ALL ? 7_200_000 : 600_000) // the machine may be busy
const here = (path: string) => fileURLToPath(new URL(path, import.meta.url))
const root = here('../../')
const scratch = mkdtempSync(join(tmpdir(), 'pageferry-codec-'))
t.teardown(() => rmSync(scratch, { recursive: true, force: true }))

const unhandled: unknown[] = []
process.on('unhandledRejection', reason => unhandled.push(reason))

/** Random bytes that are the same each time. */
function noise(length: number, seed = 1): Buffer {
  const rand = random(seed)
  return Buffer.from(Uint8Array.from({ length }, () => rand(256)))
}

interface MigrationNote {
  readonly name: string
  readonly capabilities: readonly string[]
  readonly streams: readonly { readonly channel: string; readonly file?: string; readonly broken?: boolean }[]
}
const folders = [here('../vectors/qemu/streams/'), here('../../pcap-fixtures/')]
const notesOf = (folder: string): MigrationNote[] => JSON.parse(readFileSync(`${folder}index.json`, 'utf8'))
const stream = (file: string) => zstdDecompressSync(readFileSync(here(`../../pcap-fixtures/streams/${file}.zst`)))

// ---- in the process

interface FileOptions {
  readonly effort?: number
  readonly store?: TemplateStore
  readonly sets?: readonly string[]
  readonly ringPages?: number
  readonly places?: number
  /** Bytes of each piece that comes in. */
  readonly piece?: number
}

async function* pieces(bytes: Uint8Array, piece: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += piece) yield Uint8Array.from(bytes.subarray(at, at + piece))
}

async function encoded(input: Uint8Array, options: FileOptions = {}): Promise<Buffer> {
  const out: Uint8Array[] = []
  await encodeStream(
    pieces(input, options.piece ?? 65536),
    bytes => {
      out.push(Buffer.from(bytes))
    },
    {
      store: options.store,
      sets: options.sets ?? [],
      ringPages: options.ringPages ?? 256,
      places: options.places ?? 1024,
      effort: EFFORTS[options.effort ?? 3]!,
    },
  )
  return Buffer.concat(out)
}

async function decoded(file: Uint8Array, options: FileOptions = {}): Promise<Buffer> {
  const out: Uint8Array[] = []
  await decodeStream(
    pieces(file, options.piece ?? 65536),
    async bytes => {
      out.push(Buffer.from(bytes))
      await Promise.resolve()
    },
    { store: options.store, name: 'a file' },
  )
  return Buffer.concat(out)
}

/** The code of the error that a damaged file ends in, or 'same' or 'other' for what came out. Anything else is thrown. */
async function ending(file: Uint8Array, original: Uint8Array, options: FileOptions = {}): Promise<string> {
  try {
    return (await decoded(file, options)).equals(original) ? 'same' : 'other'
  } catch (error) {
    if (isProxyError(error)) return error.code
    throw error
  }
}

t.test('files: random, empty, short, and a real stream cut anywhere', async t => {
  const real = stream('qemu-10-return-path.main')
  const multifd = stream('qemu-10-multifd.2-multifd')
  const rand = random(3)
  const cuts = [
    1,
    3,
    4,
    7,
    8,
    40,
    215,
    231,
    4327,
    4330,
    4336,
    8468,
    100_000,
    540_672,
    540_673,
    1 + rand(real.length),
    real.length,
  ]
  const inputs: [string, Uint8Array][] = [
    ['random', noise(700_000)],
    ['empty', new Uint8Array(0)],
    ['one byte', Uint8Array.of(0x51)],
    ['text', Buffer.from('the quick brown fox '.repeat(500))],
    ['zeros', new Uint8Array(1_200_000)],
    ['a magic and nothing', Buffer.from('QEVM')],
    ...cuts.map((cut): [string, Uint8Array] => [`cut at ${cut}`, real.subarray(0, cut)]),
    ['its middle', real.subarray(300_000, 700_000)],
    ['multifd, cut', multifd.subarray(0, 1 + rand(multifd.length))],
  ]
  for (const [i, [name, input]] of inputs.entries()) {
    const options = { effort: i % 5, piece: [1 + rand(50), 4096, 100_001, 1 << 20][i % 4]! }
    const file = await encoded(input, { ...options, piece: Math.max(options.piece, input.length >> 12) })
    t.ok((await decoded(file, { piece: [100_000, 1 << 20, 777, 65536][i % 4]! })).equals(input), name)
    t.ok(decodeFile(file).equals(input), `${name}: second decoder`)
  }
})

t.test('files that end early, anywhere', async t => {
  const input = noise(100)
  const file = await encoded(input, { ringPages: 0, places: 0, effort: 0 })
  t.equal(await ending(file, input), 'same')
  const wrong: string[] = []
  for (let length = 0; length < file.length; length++) {
    const end = await ending(file.subarray(0, length), input, { piece: 300 })
    if (end !== 'BATCH_TRUNCATED') wrong.push(`${length}: ${end}`)
  }
  t.same(wrong, [], `${file.length} lengths`)
  await t.rejects(decoded(new Uint8Array(0)), {
    code: 'BATCH_TRUNCATED',
    what: /empty/,
    where: { stream: 'a file', offset: 0 },
  })
  await t.rejects(decoded(file.subarray(0, 40)), { code: 'BATCH_TRUNCATED', what: /ends early/, where: { offset: 40 } })

  // a large one: within frames of a batch, between them, before FIN and BYE
  const real = stream('qemu-10-return-path.main')
  const large = await encoded(real, { effort: 1 })
  for (const length of [
    1000,
    16_384 * 3 + 500,
    16_400 * 7,
    large.length - 34,
    large.length - 18,
    large.length - 17,
    large.length - 1,
  ]) {
    t.equal(await ending(large.subarray(0, length), real), 'BATCH_TRUNCATED', `${length} of ${large.length}`)
    t.throws(() => decodeFile(large.subarray(0, length)), 'second decoder')
  }
})

t.test('files with another byte in them', async t => {
  const input = Buffer.concat([Buffer.from('a few words, '.repeat(9)), noise(60)])
  const file = await encoded(input, { ringPages: 2, places: 4, effort: 3 })
  const ends: Record<string, number> = {}
  for (let at = 0; at < file.length; at++) {
    const damaged = Buffer.from(file)
    damaged[at]! ^= [1, 0x20, 0x80][at % 3]!
    const end = await ending(damaged, input)
    ends[end] = (ends[end] ?? 0) + 1
  }
  t.notOk(ends.other, JSON.stringify(ends))
  t.ok(ends.PROTOCOL_SYNTAX! > 50 && ends.BATCH_FORMAT! > 10 && ends.BATCH_CHECKSUM! > 10)
  const codes = [
    'same',
    'PROTOCOL_SYNTAX',
    'PROTOCOL_VERSION',
    'LIMIT_EXCEEDED',
    'BATCH_FORMAT',
    'BATCH_CHECKSUM',
    'BATCH_TRUNCATED',
    'TEMPLATE_MISSING',
  ]
  t.same(
    Object.keys(ends).filter(code => !codes.includes(code)),
    [],
  )
  t.same(unhandled, [])
})

/** Cuts a file into its hello and frames. */
function framesOf(file: Buffer): Buffer[] {
  const parts = [file.subarray(0, 16 + file.readUInt32BE(12))]
  for (let at = parts[0]!.length; at < file.length; ) {
    const length = 16 + file.readUInt16BE(at + 4)
    parts.push(file.subarray(at, at + length))
    at += length
  }
  return parts
}

t.test('files that no encoder writes', async t => {
  const input = noise(20_000)
  const file = await encoded(input, { ringPages: 0, places: 0, effort: 0 })
  const [hello, open, first, second, fin, bye, ...more] = framesOf(file) as [
    Buffer,
    Buffer,
    Buffer,
    Buffer,
    Buffer,
    Buffer,
  ]
  t.same(more, [], 'hello, OPEN, two BATCH, FIN, BYE')
  const ends = async (name: string, parts: readonly Uint8Array[], code: string, what?: RegExp): Promise<void> => {
    const bytes = Buffer.concat(parts)
    await t.rejects(decoded(bytes), { code, ...(what ? { what } : {}) }, name)
    t.throws(() => decodeFile(bytes), `${name}: second decoder`)
  }
  const none = new Uint8Array(0)
  const payload = (frame: Buffer) => frame.subarray(16)
  const json = (value: unknown) => Buffer.from(JSON.stringify(value))
  const helloWith = (change: object): Buffer => {
    const body = json({ ...JSON.parse(hello.subarray(16).toString()), ...change })
    const head = Buffer.from(hello.subarray(0, 16))
    head.writeUInt32BE(body.length, 12)
    return Buffer.concat([head, body])
  }
  const rest = [open, first, second, fin, bye]
  const ended = [fin, encodeFrame(19, 0, 0, 0, new Uint8Array(2))]
  t.ok((await decoded(Buffer.concat([hello, ...rest]))).equals(input))
  await ends('a picture', [Buffer.from('\x89PNG\r\n\x1a\n'), noise(100)], 'PROTOCOL_SYNTAX', /not an encoded file/)
  await ends('the stream itself', [stream('qemu-10-multifd.main')], 'PROTOCOL_SYNTAX', /not an encoded file/)
  const other = Buffer.from(hello)
  other.writeUInt16BE(2, 8)
  await ends('version 2', [other, ...rest], 'PROTOCOL_VERSION', /another version/)
  const minor = Buffer.from(hello)
  minor.writeUInt16BE(7, 10)
  t.ok((await decoded(Buffer.concat([minor, ...rest]))).equals(input), 'version 1.7')
  const endless = Buffer.from(hello)
  endless.writeUInt32BE(0xffffffff, 12)
  await ends('a hello of 4 GiB', [endless, ...rest], 'LIMIT_EXCEEDED')
  await ends('a ring of 2^53 pages', [helloWith({ ring: 2 ** 53 - 1 }), ...rest], 'LIMIT_EXCEEDED')
  await t.rejects(
    decoded(Buffer.concat([helloWith({ ring: 2 ** 22, places: 2 ** 26 }), ...rest])),
    { code: 'LIMIT_EXCEEDED' },
    'a ring of 16 GiB',
  )
  await ends('7 places', [helloWith({ places: 7 }), ...rest], 'PROTOCOL_SYNTAX')
  await ends('a set that nobody has', [helloWith({ sets: ['ab'.repeat(32)] }), ...rest], 'TEMPLATE_MISSING')
  await t.rejects(
    decoded(Buffer.concat([helloWith({ features: ['lanes'] }), ...rest])),
    { code: 'PROTOCOL_VERSION' },
    'a feature of a later version',
  )
  await ends('a seed of another session', [helloWith({ seed: '00'.repeat(8) }), ...rest], 'BATCH_CHECKSUM')
  await ends(
    'no OPEN',
    [hello, encodeFrame(3, 1, 1, 1, payload(first)), encodeFrame(3, 0, 1, 2, payload(second))],
    'PROTOCOL_SYNTAX',
  )
  await ends('a second OPEN', [hello, open, encodeFrame(1, 0, 1, 2, payload(open))], 'PROTOCOL_SYNTAX', /second flow/)
  await ends(
    'another migration',
    [hello, encodeFrame(1, 0, 1, 1, json({ target: 'file', migration: 2, kind: 'file' })), ...rest.slice(1)],
    'PROTOCOL_SYNTAX',
  )
  await ends(
    'an OPEN that is no JSON',
    [hello, encodeFrame(1, 0, 1, 1, Buffer.from('{{')), ...rest.slice(1)],
    'PROTOCOL_SYNTAX',
  )
  await ends('another flow', [hello, open, encodeFrame(3, 1, 2, 2, payload(first))], 'PROTOCOL_SYNTAX', /flow 2/)
  await ends('a frame twice', [hello, open, first, first], 'PROTOCOL_SYNTAX', /frame 2 where 3/)
  await ends('a frame left out', [hello, open, second, fin, bye], 'PROTOCOL_SYNTAX', /frame 3 where 2/)
  await ends('FIN within a batch', [hello, open, first, encodeFrame(4, 0, 1, 3, none), bye], 'PROTOCOL_SYNTAX', /FIN/)
  await ends('FIN before all', [hello, encodeFrame(4, 0, 1, 1, none), bye], 'PROTOCOL_SYNTAX', /FIN/)
  await ends('BYE within a batch', [hello, open, first, bye], 'BATCH_TRUNCATED', /gave up/)
  await ends(
    'BYE with a code',
    [hello, open, first, second, fin, encodeFrame(19, 0, 0, 0, Uint8Array.of(0, 9))],
    'BATCH_TRUNCATED',
    /gave up/,
  )
  await ends(
    'a batch behind FIN',
    [hello, open, first, second, fin, encodeFrame(3, 0, 1, 5, payload(second))],
    'PROTOCOL_SYNTAX',
    /behind FIN/,
  )
  await ends('a frame behind BYE', [hello, ...rest, encodeFrame(4, 0, 1, 5, none)], 'PROTOCOL_SYNTAX')
  await ends('a byte behind BYE', [hello, ...rest, Uint8Array.of(0)], 'PROTOCOL_SYNTAX', /behind the end/)
  await ends('DATA', [hello, open, encodeFrame(2, 0, 1, 2, Uint8Array.of(1)), ...ended], 'PROTOCOL_SYNTAX', /type 2/)
  const later = [encodeFrame(0x80, 0, 1, 2, Uint8Array.of(1)), encodeFrame(0xff, 0, 9, 0, none)]
  await ends(
    'a type of a later version has taken its number',
    [hello, open, ...later, first],
    'PROTOCOL_SYNTAX',
    /frame 2 where 3/,
  )
  const moved = [encodeFrame(3, 1, 1, 3, payload(first)), encodeFrame(3, 0, 1, 4, payload(second))]
  const whole = Buffer.concat([hello, open, ...later, ...moved, encodeFrame(4, 0, 1, 5, none), ...later.slice(1), bye])
  t.ok((await decoded(whole)).equals(input), 'types of a later version that may be ignored')
  t.ok(Buffer.from(decodeFile(whole)).equals(input), 'and so by the second decoder')
  await ends('one that may not be', [hello, open, encodeFrame(0x7f, 0, 1, 2, none)], 'PROTOCOL_SYNTAX', /type 127/)
  const short = encodeFrame(3, 1, 1, 2, payload(first).subarray(1))
  await ends(
    'a part that is not full',
    [hello, open, short, encodeFrame(3, 0, 1, 3, payload(second))],
    'PROTOCOL_SYNTAX',
    /short/,
  )
  await ends('an empty BATCH', [hello, open, encodeFrame(3, 0, 1, 2, none)], 'PROTOCOL_SYNTAX')
  const part = new Uint8Array(FRAME_PAYLOAD_BYTES_MAX)
  const long = Array.from({ length: 70 }, (_, i) => encodeFrame(3, 1, 1, 2 + i, part))
  await ends('a batch without end', [hello, open, ...long], 'BATCH_FORMAT', /too long/)
  await ends(
    'a frame of 64 KiB',
    [hello, open, Uint8Array.of(3, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0)],
    'LIMIT_EXCEEDED',
  )
  t.same(unhandled, [])
})

// ---- the command

interface Ended {
  readonly status: number | null
  readonly stdout: Buffer
  readonly stderr: string
}

let running = 0
const waiting: (() => void)[] = []
const children = new Set<ChildProcess>()
t.teardown(() => {
  for (const child of children) child.kill('SIGKILL')
})

/** Runs `pageferry ARGS`, three at a time. @param stdout a descriptor that its output goes to */
async function pageferry(args: readonly string[], input?: Uint8Array, stdout?: number): Promise<Ended> {
  if (running >= 3) await new Promise<void>(go => waiting.push(go))
  running++
  try {
    return await new Promise<Ended>((done, failed) => {
      const child = spawn(join(root, 'bin/pageferry'), args, {
        cwd: scratch,
        stdio: ['pipe', stdout ?? 'pipe', 'pipe'],
      })
      children.add(child)
      const out: Buffer[] = []
      const errors: Buffer[] = []
      child.stdout?.on('data', chunk => out.push(chunk))
      child.stderr!.on('data', chunk => errors.push(chunk))
      child.stdin!.on('error', () => {}) // it may end before it has read all
      child.on('error', failed)
      child.on('close', status => {
        children.delete(child)
        done({ status, stdout: Buffer.concat(out), stderr: Buffer.concat(errors).toString() })
      })
      child.stdin!.end(input)
    })
  } finally {
    running--
    waiting.shift()?.()
  }
}

const put = (name: string, bytes: Uint8Array): string => {
  writeFileSync(join(scratch, name), bytes)
  return name
}
const get = (name: string) => readFileSync(join(scratch, name))
const parts = () => readdirSync(scratch).filter(name => name.includes('.part-'))

/** What the command does, without its start: from file to file. The error's code and text, or ''. */
async function fileToFile(work: 'encode' | 'decode', from: string, to: string, store?: string): Promise<string> {
  const output = new OutputFile(resolve(scratch, to))
  try {
    const templates = store === undefined ? undefined : new TemplateStore(join(scratch, store))
    const input = (await InputFile.open(resolve(scratch, from))).chunks()
    if (work === 'decode') await decodeStream(input, bytes => output.write(bytes), { store: templates, name: from })
    else {
      const sets = templates ? await templates.digests() : []
      const options = { store: templates, sets, ringPages: 1024, places: 4096, effort: EFFORTS[2]! }
      await encodeStream(input, bytes => output.write(bytes), options)
    }
    await output.finish()
    return ''
  } catch (error) {
    if (isProxyError(error)) return `${ERROR_EXIT[error.code]} ${error.message}`
    throw error
  } finally {
    await output.discard()
  }
}

t.test('the command: there and back', async t => {
  const real = stream('qemu-7.2-precopy.main')
  const captures = ['pcap-fixtures/qemu-7.2-precopy.pcap', 'pcap-fixtures/streams/qemu-10-return-path.main.zst']
  const built = await pageferry(['template', 'build', '--store', 'store', ...captures.map(path => join(root, path))])
  t.equal(built.status, 0, built.stderr)

  put('real', real)
  const encode = await pageferry(['encode', 'real', '-o', 'real.pfy', '--store', 'store'])
  t.same([encode.status, encode.stderr], [0, ''])
  t.match(encode.stdout.toString(), / to .* in /)
  const set = (digest: string) => readFileSync(join(scratch, 'store', `${digest}.pfset`))
  t.ok(decodeFile(get('real.pfy'), set).equals(real), 'second decoder, from the set file')
  const plain = await encoded(real)
  t.ok(get('real.pfy').length < plain.length / 2, `${get('real.pfy').length} bytes with sets, ${plain.length} without`)

  // through pipes
  const header = real.subarray(0, 8)
  const [decode, short] = await Promise.all([
    pageferry(['decode', '-', '-o', '-', '--store', 'store'], get('real.pfy')),
    pageferry(['encode', '-', '-o', '-', '--json', '--effort', '1'], header),
  ])
  t.same([decode.status, decode.stderr], [0, ''])
  t.ok(decode.stdout.equals(real))
  t.match(JSON.parse(short.stderr), { rawBytes: 8, fileBytes: short.stdout.length })
  t.ok(decodeFile(short.stdout).equals(header))

  const inputs = {
    random: noise(300_000),
    empty: new Uint8Array(0),
    byte: Uint8Array.of(7),
    cut: real.subarray(0, 543_210),
  }
  for (const [name, input] of Object.entries(inputs)) {
    put(name, input)
    const store = name === 'cut' ? 'store' : undefined
    t.equal(await fileToFile('encode', name, `${name}.pfy`, store), '')
    t.equal(await fileToFile('decode', `${name}.pfy`, `${name}.back`, store), '')
    t.ok(get(`${name}.back`).equals(input), name)
  }
  t.same(parts(), [])

  // sets that are not there, or not whole
  const missing = await pageferry(['decode', 'real.pfy', '-o', 'missing.back'])
  t.equal(missing.status, 4)
  t.match(missing.stderr, /^error: 1 template set is needed\nhint: give --store with [0-9a-f]{12}\n$/)
  mkdirSync(join(scratch, 'empty-store'))
  t.match(await fileToFile('decode', 'real.pfy', 'missing.back', 'empty-store'), /^4 TEMPLATE_MISSING/)
  mkdirSync(join(scratch, 'damaged-store'), { mode: 0o700 })
  const [name] = readdirSync(join(scratch, 'store')).filter(file => file.endsWith('.pfset'))
  copyFileSync(join(scratch, 'store', name!), join(scratch, 'damaged-store', name!))
  const damaged = readFileSync(join(scratch, 'damaged-store', name!))
  damaged[damaged.length - 1]! ^= 1
  writeFileSync(join(scratch, 'damaged-store', name!), damaged)
  t.match(await fileToFile('decode', 'real.pfy', 'missing.back', 'damaged-store'), /^4 TEMPLATE_DAMAGED: page \d+ /)
  t.notOk(existsSync(join(scratch, 'missing.back')))
  t.same(parts(), [])
})

// devices of our own: what is told to write to one must not replace it
const device = (name: string, minor: string): string =>
  spawnSync('mknod', [join(scratch, name), 'c', '1', minor]).status === 0 ? name : `/dev/${name}`
const full = device('full', '7')
const nowhere = device('null', '3')
const unsafe = process.getuid?.() === 0 && full !== 'full' ? 'root who cannot make devices of its own' : false

t.test('the command: what goes wrong', { skip: unsafe }, async t => {
  const input = noise(300_000)
  put('input', input)
  const file = await encoded(input, { effort: 0 })
  const damaged = Buffer.from(file)
  damaged[file.length - 1000]! ^= 1
  put('good.pfy', file)
  put('cut.pfy', file.subarray(0, -100))
  put('damaged.pfy', damaged)
  const files: readonly ['encode' | 'decode', string, string, RegExp][] = [
    ['decode', 'input', 'out', /^6 PROTOCOL_SYNTAX: not an encoded file \(input, byte 0\); give a file that/],
    ['decode', 'damaged.pfy', 'out', /^5 BATCH_CHECKSUM: .* the file is damaged/],
    [
      'decode',
      'good.pfy',
      'no-such-folder/out',
      /^1 IO: cannot write .*no-such-folder\/out: it does not exist \(ENOENT\).* check the path$/,
    ],
    ['decode', 'good.pfy', '.', /^1 IO: cannot write .*: it is a folder \(EISDIR\)/],
    ['decode', '.', 'out', /^1 IO: cannot read .*: it is a folder/],
    [
      'decode',
      'good.pfy',
      full,
      /^1 IO: cannot write .*full: no space left on the device \(ENOSPC\).* nothing is left behind; make room$/,
    ],
    ['encode', 'input', full, /^1 IO: cannot write .*full: no space/],
    ['encode', 'no-such-file', 'out', /^1 IO: cannot read .*no-such-file: it does not exist/],
  ]
  for (const [work, from, to, message] of files)
    t.match(await fileToFile(work, from, to), message, `${work} ${from} ${to}`)
  t.ok(statSync(resolve(scratch, full)).isCharacterDevice(), 'the device is still one')
  t.equal(await fileToFile('decode', 'good.pfy', nowhere), '')
  t.ok(statSync(resolve(scratch, nowhere)).isCharacterDevice(), 'and so is this')
  put('old', Uint8Array.of(1))
  symlinkSync('old', join(scratch, 'link'))
  t.equal(await fileToFile('decode', 'good.pfy', 'link'), '')
  t.ok(get('old').equals(input), 'a link leads to the new file')

  const cases: readonly [args: string, status: number, stderr: RegExp][] = [
    ['decode input -o out', 6, /^error: not an encoded file \(input, byte 0\)\nhint: give a file that .*\n$/],
    [
      `decode good.pfy -o ${full}`,
      1,
      /^error: cannot write .*full.*ENOSPC.*\nhint: nothing is left behind; make room\n$/,
    ],
    ['encode input -o out --effort 9', 2, /^error: --effort 9\nhint: give 0 to 5\n$/],
    ['encode input', 2, /^error: .*\nhint: .*--help/],
  ]
  await Promise.all(
    cases.map(async ([args, status, stderr]) => {
      const ended = await pageferry(args.split(' '))
      t.equal(ended.status, status, args)
      t.match(ended.stderr, stderr, args)
      t.equal(ended.stdout.length, 0, 'nothing on standard output')
    }),
  )
  const json = await pageferry(['decode', 'cut.pfy', '-o', 'out', '--json'])
  t.equal(json.status, 5)
  t.match(JSON.parse(json.stderr), { error: { code: 'BATCH_TRUNCATED', where: { stream: 'cut.pfy' } } })
  t.notOk(existsSync(join(scratch, 'out')))

  // standard output that is full, or that nobody reads
  const descriptor = openSync(resolve(scratch, full), 'w')
  const ended = await pageferry(['decode', 'good.pfy', '-o', '-'], undefined, descriptor)
  closeSync(descriptor)
  t.equal(ended.status, 1)
  t.match(ended.stderr, /^error: cannot write -: no space left on the device \(ENOSPC\).*\nhint: .*\n$/)
  const command = `${join(root, 'bin/pageferry')} decode good.pfy -o - 2>errors | head -c 5 >head; cat errors`
  const pipe = spawnSync('sh', ['-c', command], { cwd: scratch })
  t.equal(pipe.stdout.toString(), '', 'a reader that has enough is no error')
  t.ok(get('head').equals(input.subarray(0, 5)))

  // interrupted while its input goes on
  const child = spawn(join(root, 'bin/pageferry'), ['encode', '-', '-o', 'interrupted'], { cwd: scratch })
  children.add(child)
  const exit = new Promise(done => child.on('close', done))
  let told = ''
  child.stderr.on('data', chunk => {
    told += chunk
  })
  child.stdin.on('error', () => {})
  child.stdin.write(stream('qemu-7.2-precopy.main'))
  const feed = setInterval(() => child.stdin.write(input), 20)
  await until('a part of the file', () => parts().length > 0)
  child.kill('SIGINT')
  const status = await exit
  clearInterval(feed)
  t.equal(status, 130, 'interrupted')
  t.match(told, /^error: interrupted/)
  t.notOk(existsSync(join(scratch, 'interrupted')))
  t.same(parts(), [], 'no partial file is left')
})

// ---- every recorded channel

/** Pages by what the encoder made of them. */
const pagesOf = ({ stats }: { stats: import('../../src/codec/stats.ts').BatchStats }) =>
  stats.fillPages +
  stats.samePages +
  stats.templatePages +
  stats.earlierPages +
  stats.patchPages +
  stats.newPages +
  stats.densePages

t.test('every channel of every recorded migration', async t => {
  const terms: Terms = { templates: templatePages(8), ring: 512, places: 4096 }
  for (const folder of folders) {
    const notes = existsSync(`${folder}index.json`) ? notesOf(folder) : []
    t.ok(notes.length > 0, folder)
    for (const [turn, note] of notes.entries()) {
      const recorded = note.streams.filter(({ channel, file }) => channel !== 'return' && file)
      let main = -1
      const channels = recorded.map(({ channel, file }, i): ScenarioChannel => {
        if (channel === 'main') main = i
        const bytes = zstdDecompressSync(readFileSync(folder + file))
        return { kind: channel as ChannelKind, bytes, ...(channel === 'recovery' ? { after: main } : {}) }
      })
      const bytes = channels.reduce((sum, one) => sum + one.bytes.length, 0)
      for (const effort of EFFORTS) {
        // the highest takes a second a megabyte
        if (!ALL && (effort.level === 5 ? bytes > 200_000 : (turn + effort.level) % 3 > 0)) continue
        const outcome = await run({
          terms,
          channels,
          encoder: SIMD,
          decoder: effort.level % 2 ? SIMD : 'twin',
          packing: effort,
          seed: turn,
          pushMax: 200_000,
          whole: effort.level < 4,
        })
        t.equal(outcome.wrong, '', `${note.name}, effort ${effort.level}: ${channels.map(({ kind }) => kind).join()}`)
        if (ALL || effort.level === (3 - (turn % 3)) % 3)
          t.equal(secondOpinion(terms, channels, outcome), '', 'second decoder')
        if (effort.level < 4)
          counts(
            t,
            note,
            channels,
            outcome.channels.map(({ flow }) => flow),
          )
      }
    }
  }
})

t.test('unknown sections between those of ram: the same bytes, and as many pages found', async t => {
  const terms: Terms = { templates: templatePages(8), ring: 512, places: 4096 }
  const whole = stream('qemu-10-return-path.main')
  const pages = simpleMain(whole).lines.filter(line => line.startsWith('page')).length
  for (const hostile of [false, true]) {
    const channels: ScenarioChannel[] = [{ kind: 'main', bytes: doctored(whole, random(7), hostile) }]
    const packing = EFFORTS[3]!
    const outcome = await run({
      terms,
      channels,
      encoder: SIMD,
      decoder: 'twin',
      packing,
      seed: 1,
      pushMax: 200_000,
      whole: true,
    })
    t.equal(outcome.wrong, '')
    t.equal(secondOpinion(terms, channels, outcome), '', 'second decoder')
    const found = pagesOf(outcome.channels[0]!.flow)
    if (!hostile) t.equal(found, pages)
  }
})

/** The records that became pages and zero pages against those that the simple decoder of QEMU's wire finds. */
function counts(
  t: { same(a: unknown, b: unknown, name: string): unknown },
  note: MigrationNote,
  channels: readonly ScenarioChannel[],
  flows: readonly { stats: import('../../src/codec/stats.ts').BatchStats }[],
): void {
  const layout = {
    ...(note.capabilities.includes('x-ignore-shared') ? { each: 8 } : {}),
    ...(note.name.includes('hugepages') ? { first: 8 } : {}),
  }
  let known: { names: string[]; ram: number } = { names: [], ram: -1 }
  for (const [i, { kind, bytes }] of channels.entries()) {
    let lines: readonly string[]
    if (kind === 'main') {
      const simple = simpleMain(bytes, layout)
      known = simple
      lines = simple.lines
    } else if (kind === 'recovery') lines = simpleMain(bytes, layout, known).lines
    else if (kind === 'preempt') lines = simplePreempt(bytes, known.names)
    else if (/zlib|zstd/.test(note.name)) continue
    else lines = simpleMultifd(bytes)
    const count = (what: RegExp) => lines.filter(line => what.test(line)).length
    const { stats } = flows[i]!
    t.same(
      [stats.zeroPages, pagesOf(flows[i]!), stats.opaquePages],
      [count(/^zero /), count(/^page /), count(/^opaque /)],
      `${kind}: zero pages, pages, opaque pages`,
    )
  }
}

const lab = here('../../.cache/lab/streams/')
const names = existsSync(lab) ? readdirSync(lab).filter(name => name.endsWith('.stream')) : []

t.test('streams of the guest lab', { skip: names.length > 0 ? false : 'no streams of scripts/lab/' }, async t => {
  const chosen = ALL ? names : ['nginx.stream', 'postgres-limited.stream'].filter(name => names.includes(name))
  for (const [i, name] of chosen.entries()) {
    const path = lab + name
    const length = Math.min(ALL ? Number.POSITIVE_INFINITY : 64 << 20, statSync(path).size)
    const descriptor = openSync(path, 'r')
    const input = Buffer.alloc(length)
    readSync(descriptor, input)
    closeSync(descriptor)
    const file = await encoded(input, { effort: ALL ? 3 : i * 2, ringPages: 4096, places: 1 << 18, piece: 1 << 20 })
    const sum = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
    t.equal(sum(await decoded(file, { piece: 1 << 20 })), sum(input), `${name}: ${length} to ${file.length}`)
    t.ok(decodeFile(file).equals(input), `${name}: second decoder`)
  }
})
