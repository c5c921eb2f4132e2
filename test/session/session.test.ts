/**
 * The wire of hellos and frames by vectors, the tables of states by walking every pair, a hostile peer, and 10,000
 * seeded runs over failing links. What the windows do is in window.test.ts.
 */
import t from 'tap'
import { readU16, readU64 } from '../../src/bytes/big-endian.ts'
import { isProxyError, ProxyError } from '../../src/errors.ts'
import { FairShares } from '../../src/fair-shares.ts'
import * as limits from '../../src/limits.ts'
import type { SessionOptions, SessionState } from '../../src/session/api.ts'
import type { ReceiveWindow } from '../../src/session/receive-window.ts'
import { Session } from '../../src/session/session.ts'
import {
  RECEIVE_TABLE,
  type ReceiveInput,
  SEND_TABLE,
  SESSION_TABLE,
  type SendInput,
  type SessionInput,
} from '../../src/session/states.ts'
import { WarmUp } from '../../src/session/warm-up.ts'
import { errorCodeOf, wireCode } from '../../src/wan/codes.ts'
import { encodeFrame, type Frame, FrameDecoder } from '../../src/wan/frames.ts'
import {
  agreedFeatures,
  clientHelloOf,
  encodeClientHello,
  encodeRefusal,
  encodeServerHello,
  HelloDecoder,
  isRefusal,
  serverHelloOf,
} from '../../src/wan/hello.ts'
import * as wire from '../../src/wan/wire.ts'
import { type SilentSink, sinkOf } from '../helpers/silent-sink.ts'
import { PLANTS } from './plants.ts'
import { simulate } from './simulation.ts'

t.setTimeout(590_000) // the machine may be busy

const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'))
const ascii = (text: string): Uint8Array => new TextEncoder().encode(text)

function join(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts))
}

/** The code of what is thrown; 'none' where nothing is. */
function codeOf(run: () => void): string {
  try {
    run()
  } catch (error) {
    if (isProxyError(error)) return error.code
    throw error
  }
  return 'none'
}

t.test('the numbers of the wire', async t => {
  t.same(wire.FRAME, {
    OPEN: 1,
    DATA: 2,
    BATCH: 3,
    FIN: 4,
    RESET: 5,
    CREDIT: 6,
    END: 7,
    WANT: 8,
    PAGE: 9,
    ACK: 16,
    PING: 17,
    PONG: 18,
    BYE: 19,
    DRAIN: 20,
    PAD: 255,
  })
  t.same(wire.CODE, {
    NONE: 0,
    QEMU_LOST: 1,
    TARGET_REFUSED: 2,
    PEER_LOST: 3,
    PROTOCOL_SYNTAX: 4,
    PROTOCOL_STATE: 5,
    BATCH_FORMAT: 6,
    BATCH_CHECKSUM: 7,
    LIMIT_EXCEEDED: 8,
    INTERNAL: 9,
    SHUTDOWN: 10,
    CANCELLED: 11,
  })
  t.same([...wire.MAGIC], [0x50, 0x47, 0x46, 0x59, 0x0d, 0x0a, 0x1a, 0x0a])
  t.equal(wire.ALPN, 'pageferry/1')
  t.same([wire.VERSION_MAJOR, wire.VERSION_MINOR, wire.HELLO_HEAD_BYTES, wire.FRAME_HEAD_BYTES], [1, 0, 16, 16])
  t.same([wire.FRAME_CHECKED_BYTES, wire.FLAG_MORE, wire.FRAME_OPTIONAL, wire.SEQUENCE_END], [12, 1, 128, 2 ** 48])
  t.same(wire.FEATURES, ['cold-sets', 'disks', 'disk-replies', 'kept-blocks'])
  t.same(wire.REFUSALS, [
    'PROTOCOL_VERSION',
    'PROTOCOL_SYNTAX',
    'PROTOCOL_STATE',
    'PEER_AUTH',
    'LIMIT_EXCEEDED',
    'PEER_LOST',
    'INTERNAL',
  ])
  t.same(
    [
      limits.HELLO_BODY_BYTES_MAX,
      limits.HELLO_SETS_MAX,
      limits.CONNECTIONS_MAX,
      limits.FRAME_PAYLOAD_BYTES_MAX,
      limits.OPEN_BYTES_MAX,
      limits.FLOWS_MAX,
      limits.BATCH_RAW_BYTES_MAX,
      limits.BATCH_WIRE_BYTES_MAX,
      limits.UNACKED_BYTES_MAX,
      limits.UNACKED_FRAMES_MAX,
      limits.CREDIT_INITIAL_BYTES,
    ],
    [65536, 256, 16, 16368, 4096, 1280, 1 << 20, (1 << 20) + 65536, 64 << 20, 65536, 65536],
  )
  t.same(
    (['QEMU_LOST', 'TARGET_REFUSED', 'BATCH_CHECKSUM', 'USAGE', 'IO'] as const).map(wireCode),
    [1, 2, 7, 9, 9],
    'error codes that the wire has no number for are INTERNAL',
  )
  t.same([0, 1, 3, 9, 10, 11, 4711].map(errorCodeOf), [
    'QEMU_LOST',
    'QEMU_LOST',
    'PEER_LOST',
    'INTERNAL',
    'QEMU_LOST',
    'QEMU_LOST',
    'INTERNAL',
  ])
})

// Frames ---------------------------------------------------------------------------------------------------------------

/** Heads written out by hand from protocol.md §3; the check by Python's zlib.crc32. */
const FRAMES: { name: string; bytes: string; trace: string }[] = [
  { name: 'DATA', bytes: '02000007000300000000000192231f4f 616263', trace: '2 0 7 1 616263' },
  {
    name: 'BATCH: the check leaves its payload out; a sequence number above 2^32',
    bytes: '030100070003010000000002bd1e0e82 78797a',
    trace: '3 1 7 1099511627778 78797a',
  },
  { name: 'FIN, the highest flow', bytes: '0400ffff000000000000000349d277f5', trace: '4 0 65535 3 ' },
  { name: 'RESET', bytes: '05000007000600000000000452f6e397 0001676f6e65', trace: '5 0 7 4 0001676f6e65' },
  { name: 'CREDIT', bytes: '0600000700080000000000051637b53b 0000000000200000', trace: '6 0 7 5 0000000000200000' },
  {
    name: 'OPEN',
    bytes: `01000007002b000000000006172274c2${Buffer.from('{"target":"vm","migration":1,"kind":"main"}').toString('hex')}`,
    trace: `1 0 7 6 ${Buffer.from('{"target":"vm","migration":1,"kind":"main"}').toString('hex')}`,
  },
  {
    name: 'ACK',
    bytes: '10000000001000000000000031935237 00000000000000090000000000000004',
    trace: '16 0 0 0 00000000000000090000000000000004',
  },
  { name: 'PING', bytes: '110000000008000000000000a875709f 0001020304050607', trace: '17 0 0 0 0001020304050607' },
  { name: 'BYE', bytes: '130000000002000000000000e59e48f6 0000', trace: '19 0 0 0 0000' },
  {
    name: 'a type of a later version',
    bytes: 'c800000000050000000000007ab7227b 6c61746572',
    trace: '200 0 0 0 6c61746572',
  },
]

/** What a decoder makes of the pieces, and how it ends. */
function decode(...pieces: Uint8Array[]): string[] {
  const trace: string[] = []
  const decoder = new FrameDecoder(frame => {
    const { type, flags, flow, sequence, payload } = frame
    trace.push(`${type} ${flags} ${flow} ${sequence} ${Buffer.from(payload).toString('hex')}`)
  })
  for (const piece of pieces) {
    const code = codeOf(() => decoder.push(piece))
    if (code !== 'none') {
      trace.push(code)
      break
    }
  }
  return trace
}

/** Where the input gives another trace when it is cut there; [] where nowhere. */
function cutsThatDiffer(input: Uint8Array, trace: string[]): number[] {
  const differ: number[] = []
  for (let cut = 0; cut <= input.length; cut++) {
    const got = decode(input.slice(0, cut), input.slice(cut))
    if (JSON.stringify(got) !== JSON.stringify(trace)) differ.push(cut)
  }
  const bytes = [...input].map(byte => new Uint8Array([byte]))
  if (JSON.stringify(decode(...bytes)) !== JSON.stringify(trace)) differ.push(-1)
  return differ
}

t.test('frames', async t => {
  for (const { name, bytes, trace } of FRAMES) {
    const input = hex(bytes)
    t.same(cutsThatDiffer(input, [trace]), [], `${name}: the same wherever it is cut`)
    const [type, flags, flow, sequence, payload] = trace.split(' ')
    const made = encodeFrame(Number(type), Number(flags), Number(flow), Number(sequence), hex(payload ?? ''))
    t.same(Buffer.from(made).toString('hex'), Buffer.from(input).toString('hex'), `${name}: encoded`)
  }
  const all = join(...FRAMES.map(({ bytes }) => hex(bytes)))
  t.same(
    cutsThatDiffer(
      all,
      FRAMES.map(({ trace }) => trace),
    ),
    [],
    'all of them in a row, wherever they are cut',
  )
  const large = encodeFrame(wire.FRAME.BATCH, 0, 1, 9, new Uint8Array(16368).fill(7))
  t.same(
    decode(large.slice(0, 20), large.slice(20, 9000), large.slice(9000)),
    decode(large),
    'a payload in three pieces',
  )
})

t.test('frames that are refused', async t => {
  const cases: [string, string, string[]][] = [
    ['a payload above 16368 bytes, as soon as its length is there', '020000074001', ['LIMIT_EXCEEDED']],
    ['an OPEN above 4096 bytes', '010000071001', ['LIMIT_EXCEEDED']],
    ['a FIN with a payload', '040000070001', ['LIMIT_EXCEEDED']],
    ['a RESET above 514 bytes', '050000070203', ['LIMIT_EXCEEDED']],
    ['a CREDIT of 9 bytes', '060000070009', ['LIMIT_EXCEEDED']],
    ['a CREDIT of 7 bytes', '060000070007', ['PROTOCOL_SYNTAX']],
    ['an ACK of 8 bytes', '100000000008', ['PROTOCOL_SYNTAX']],
    ['DATA without a byte', '020000070000', ['PROTOCOL_SYNTAX']],
    ['a BYE without a code', '130000000001', ['PROTOCOL_SYNTAX']],
    ['an unknown type above 16368 bytes', 'c80000004001', ['LIMIT_EXCEEDED']],
    ['a wrong check', '02000007000300000000000192231f4e 616263', ['PROTOCOL_SYNTAX']],
    ['a damaged payload', '02000007000300000000000192231f4f 616262', ['PROTOCOL_SYNTAX']],
    ['a damaged flow', '02000006000300000000000192231f4f 616263', ['PROTOCOL_SYNTAX']],
    ['a damaged head of BATCH', '030000070003010000000002bd1e0e82 78797a', ['PROTOCOL_SYNTAX']],
  ]
  for (const [name, bytes, trace] of cases) t.same(cutsThatDiffer(hex(bytes), trace), [], name)
  const decoder = new FrameDecoder(() => t.fail('a frame behind an error'))
  t.equal(
    codeOf(() => decoder.push(hex('020000074001'))),
    'LIMIT_EXCEEDED',
  )
  t.equal(
    codeOf(() => decoder.push(hex(FRAMES[0]!.bytes))),
    'LIMIT_EXCEEDED',
    'a decoder that failed stays failed',
  )
  // Each bit of a frame with a check matters.
  const whole = hex(FRAMES[3]!.bytes)
  let missed = 0
  for (let bit = 0; bit < whole.length * 8; bit++) {
    const damaged = whole.slice()
    damaged[bit >> 3]! ^= 1 << (bit & 7)
    const trace = decode(damaged, new Uint8Array(20_000))
    if (!['PROTOCOL_SYNTAX', 'LIMIT_EXCEEDED'].includes(trace[0]!)) missed++
  }
  t.equal(missed, 0, 'every damaged bit is noticed')
})

// Hellos ---------------------------------------------------------------------------------------------------------------

const CLIENT = {
  agent: 'pageferry 0.1.0',
  session: '00112233445566778899aabbccddeeff',
  connection: 0,
  connections: 2,
  token: null,
  received: 0,
  credit: 65536,
  sets: ['aa'.repeat(32), 'bb'.repeat(32), 'cc'.repeat(32)],
  ring: 65536,
  places: 1 << 20,
  seed: '0123456789abcdef',
}
const SERVER = {
  agent: 'pageferry 0.1.0',
  token: '5a'.repeat(32),
  received: 17,
  credit: 65536,
  sets: ['aa'.repeat(32), 'cc'.repeat(32)],
  ring: 1024,
  places: 1 << 16,
  targets: ['vm1', 'tcp:49152'],
}
const helloBytes = (body: string, head = '504746590d0a1a0a 0001 0000') => {
  const json = ascii(body)
  return join(hex(head), new Uint8Array([0, 0, json.length >> 8, json.length & 255]), json)
}

function decodeHello(...pieces: Uint8Array[]): string {
  const decoder = new HelloDecoder()
  let result = 'incomplete'
  for (const piece of pieces) {
    const code = codeOf(() => {
      const hello = decoder.push(piece)
      if (hello) result = `${JSON.stringify(hello.body)}+${hello.rest.length}`
    })
    if (code !== 'none') return code
  }
  return result
}

t.test('hellos', async t => {
  t.same(Buffer.from(encodeClientHello(CLIENT)), Buffer.from(helloBytes(JSON.stringify(CLIENT))), 'client')
  t.same(Buffer.from(encodeServerHello(SERVER)), Buffer.from(helloBytes(JSON.stringify(SERVER))), 'server')
  const refusal = encodeRefusal('x', 'PEER_AUTH', 'wrong name')
  t.same(
    Buffer.from(refusal),
    Buffer.from(helloBytes('{"agent":"x","refuse":{"code":"PEER_AUTH","text":"wrong name"}}')),
  )

  const input = join(helloBytes('{"a":1}'), ascii('frames'))
  for (let cut = 0; cut <= input.length; cut++) {
    // What comes in pieces behind the hello belongs to the frames.
    const got = decodeHello(input.slice(0, cut), ...(cut < 23 ? [input.slice(cut)] : []))
    const rest = cut < 23 ? 6 : cut - 23
    if (got !== `{"a":1}+${rest}`) t.fail(`cut at ${cut}: ${got}`)
  }
  const cases: [string, Uint8Array, string][] = [
    ['another protocol, at its first byte', ascii('S'), 'PROTOCOL_SYNTAX'],
    ['TLS where plain TCP is spoken', hex('16 0301'), 'PROTOCOL_SYNTAX'],
    ['line ends that were converted', hex('504746590a1a'), 'PROTOCOL_SYNTAX'],
    ['another major version', hex('504746590d0a1a0a 0002'), 'PROTOCOL_VERSION'],
    ['a body above 65536 bytes, before it comes', hex('504746590d0a1a0a 0001 0000 00010001'), 'LIMIT_EXCEEDED'],
    ['no body', hex('504746590d0a1a0a 0001 0000 00000000'), 'PROTOCOL_SYNTAX'],
    ['no JSON', helloBytes('{"a"'), 'PROTOCOL_SYNTAX'],
    ['no object', helloBytes('[1]'), 'PROTOCOL_SYNTAX'],
    ['null', helloBytes('null'), 'PROTOCOL_SYNTAX'],
    ['brackets without end', helloBytes('['.repeat(60_000)), 'PROTOCOL_SYNTAX'],
    ['no UTF-8', join(hex('504746590d0a1a0a 0001 0000 00000004'), hex('7b22ff7d')), 'PROTOCOL_SYNTAX'],
    ['a later minor version', helloBytes('{}', '504746590d0a1a0a 0001 0009'), '{}+0'],
  ]
  for (const [name, bytes, result] of cases) {
    t.equal(decodeHello(bytes), result, name)
    t.equal(decodeHello(...[...bytes].map(byte => new Uint8Array([byte]))), result, `${name}, byte by byte`)
  }
})

t.test('fields of hellos', async t => {
  t.same(clientHelloOf({ ...CLIENT, later: 1 }), CLIENT, 'unknown fields are ignored')
  const wanting = { ...CLIENT, features: ['lanes', 'of-a-later-version'] }
  t.same(clientHelloOf(wanting), wanting)
  t.same(agreedFeatures(wanting), {}, 'none of these is known yet')
  t.same(agreedFeatures({ ...CLIENT, features: ['lanes', 'cold-sets'] }), { features: ['cold-sets'] })
  t.same(clientHelloOf({ ...CLIENT, features: [] }), CLIENT)
  t.same(serverHelloOf({ ...SERVER, features: ['lanes'] }, wanting), { ...SERVER, features: ['lanes'] })
  t.equal(
    codeOf(() => serverHelloOf({ ...SERVER, features: ['regions'] }, wanting)),
    'PROTOCOL_SYNTAX',
    'not offered',
  )
  t.same(serverHelloOf({ ...SERVER }, CLIENT), SERVER)
  const [far, near] = ['dd'.repeat(32), 'ff'.repeat(32)]
  const cold = { ...CLIENT, features: ['cold-sets'], cold: [far, near] }
  t.same(clientHelloOf(cold), cold)
  t.same(clientHelloOf({ ...CLIENT, cold: 1 }), CLIENT, 'without its feature it is a field of another version')
  t.same(clientHelloOf({ ...cold, cold: [] }), { ...CLIENT, features: ['cold-sets'] })
  const answer = { ...SERVER, sets: CLIENT.sets.slice(1), features: ['cold-sets'], cold: [CLIENT.sets[0]!, near] }
  t.same(serverHelloOf(answer, cold), answer, 'what the client would have in memory may stay on the disk')
  for (const [what, change] of [
    ['not offered', { cold: ['ee'.repeat(32)] }],
    ['in another order', { cold: [near, CLIENT.sets[0]] }],
    ['in memory too', { cold: [CLIENT.sets[1]] }],
    ['twice', { cold: [near, near] }],
    ['no digest', { cold: ['dd'] }],
    ['no array', { cold: near }],
  ] as const) {
    t.equal(
      codeOf(() => serverHelloOf({ ...answer, ...change }, cold)),
      'PROTOCOL_SYNTAX',
      what,
    )
  }
  t.equal(
    codeOf(() => clientHelloOf({ ...cold, cold: CLIENT.sets })),
    'PROTOCOL_SYNTAX',
  )
  const keeps = { ...CLIENT, features: ['kept-blocks'], kept: 1000 }
  t.same(clientHelloOf(keeps), keeps)
  t.same(clientHelloOf({ ...CLIENT, kept: 'x' }), CLIENT, 'likewise')
  t.same(clientHelloOf({ ...keeps, kept: 0 }), { ...CLIENT, features: ['kept-blocks'] })
  const kept = { ...SERVER, features: ['kept-blocks'], kept: 999 }
  t.same(serverHelloOf(kept, keeps), kept)
  for (const wrong of [1001, 1.5, '1', null]) {
    t.equal(
      codeOf(() => serverHelloOf({ ...kept, kept: wrong }, keeps)),
      'PROTOCOL_SYNTAX',
      `kept ${wrong}`,
    )
  }
  t.not(
    codeOf(() => clientHelloOf({ ...keeps, kept: 2 ** 24 + 1 })),
    'none',
    'more than any side keeps',
  )
  const no = serverHelloOf({ agent: 'x', refuse: { code: 'PEER_LOST', text: 'unknown session' } })
  t.ok(isRefusal(no) && no.refuse.code === 'PEER_LOST')
  const later = serverHelloOf({ agent: 'x', refuse: { code: 'A_LATER_CODE', text: '' } })
  t.ok(isRefusal(later) && later.refuse.code === 'PROTOCOL_STATE', 'an unknown no is a no')

  const bad: [Record<string, unknown>, string][] = [
    [{ session: 'xx' }, 'PROTOCOL_SYNTAX'],
    [{ session: CLIENT.session.toUpperCase() }, 'PROTOCOL_SYNTAX'],
    [{ connection: 2 }, 'LIMIT_EXCEEDED'],
    [{ connection: -1 }, 'LIMIT_EXCEEDED'],
    [{ connection: 0.5 }, 'PROTOCOL_SYNTAX'],
    [{ connections: 17 }, 'LIMIT_EXCEEDED'],
    [{ connections: 0 }, 'LIMIT_EXCEEDED'],
    [{ connections: undefined }, 'PROTOCOL_SYNTAX'],
    [{ token: 'ab' }, 'PROTOCOL_SYNTAX'],
    [{ token: undefined }, 'PROTOCOL_SYNTAX'],
    [{ received: 2 ** 48 }, 'LIMIT_EXCEEDED'],
    [{ received: '0' }, 'PROTOCOL_SYNTAX'],
    [{ credit: undefined }, 'PROTOCOL_VERSION'],
    [{ features: 'lanes' }, 'PROTOCOL_SYNTAX'],
    [{ features: ['Lanes'] }, 'PROTOCOL_SYNTAX'],
    [{ features: [''] }, 'PROTOCOL_SYNTAX'],
    [{ features: [1] }, 'PROTOCOL_SYNTAX'],
    [{ features: ['a', 'a'] }, 'PROTOCOL_SYNTAX'],
    [{ features: ['x'.repeat(65)] }, 'LIMIT_EXCEEDED'],
    [{ features: new Array(65).fill('x') }, 'LIMIT_EXCEEDED'],
    [{ credit: 32767 }, 'LIMIT_EXCEEDED'],
    [{ credit: 2 ** 28 + 1 }, 'LIMIT_EXCEEDED'],
    [{ credit: '65536' }, 'PROTOCOL_SYNTAX'],
    [{ sets: 'aa' }, 'PROTOCOL_SYNTAX'],
    [{ sets: ['aa'] }, 'PROTOCOL_SYNTAX'],
    [{ sets: [CLIENT.sets[0], CLIENT.sets[0]] }, 'PROTOCOL_SYNTAX'],
    [{ sets: new Array(257).fill(CLIENT.sets[0]) }, 'LIMIT_EXCEEDED'],
    [{ ring: 2 ** 22 + 1 }, 'LIMIT_EXCEEDED'],
    [{ places: 3 }, 'PROTOCOL_SYNTAX'],
    [{ places: 2 ** 27 }, 'LIMIT_EXCEEDED'],
    [{ seed: '' }, 'PROTOCOL_SYNTAX'],
    [{ agent: 'a'.repeat(65) }, 'LIMIT_EXCEEDED'],
    [{ agent: null }, 'PROTOCOL_SYNTAX'],
  ]
  for (const [change, code] of bad) {
    t.equal(
      codeOf(() => clientHelloOf({ ...CLIENT, ...change })),
      code,
      JSON.stringify(change).slice(0, 60),
    )
  }
  t.equal(
    codeOf(() => clientHelloOf(Object.create(CLIENT))),
    'PROTOCOL_SYNTAX',
    'inherited fields do not count',
  )
  const badServer: [Record<string, unknown>, string][] = [
    [{ sets: [...SERVER.sets].reverse() }, 'PROTOCOL_SYNTAX'],
    [{ sets: ['dd'.repeat(32)] }, 'PROTOCOL_SYNTAX'],
    [{ ring: CLIENT.ring + 1 }, 'PROTOCOL_SYNTAX'],
    [{ places: CLIENT.places * 2 }, 'PROTOCOL_SYNTAX'],
    [{ targets: new Array(257).fill('x') }, 'LIMIT_EXCEEDED'],
    [{ targets: ['x'.repeat(129)] }, 'LIMIT_EXCEEDED'],
    [{ targets: [''] }, 'PROTOCOL_SYNTAX'],
    [{ token: null }, 'PROTOCOL_SYNTAX'],
    [{ refuse: 1 }, 'PROTOCOL_SYNTAX'],
  ]
  for (const [change, code] of badServer) {
    t.equal(
      codeOf(() => serverHelloOf({ ...SERVER, ...change }, CLIENT)),
      code,
      JSON.stringify(change).slice(0, 60),
    )
  }
  const many = encodeServerHello({ ...SERVER, targets: new Array(1000).fill('x'.repeat(128)) })
  t.ok(many.length < 65536, 'a server with many targets names the first of them')
})

// A session that is talked to by hand ---------------------------------------------------------------------------------

/** What flows begin with here, both ways. */
const CREDIT = 1 << 20
const INFO = { target: 'vm', migration: 1, kind: 'main' }

/** One session; the test is its peer. */
class Bench {
  readonly log: string[] = []
  readonly session: Session
  readonly role: 'client' | 'server'
  dead: ProxyError | null = null
  now = 0
  private sequence = 0
  /** Frames that were pulled, as "type flow length". */
  readonly pulled: string[] = []
  lastSequence = 0
  sequencedFrames = 0
  frames: Frame[] = []

  constructor(
    role: 'client' | 'server',
    sink: Partial<SilentSink> = {},
    attach = true,
    options: Partial<SessionOptions> = {},
  ) {
    this.role = role
    const note =
      (name: string) =>
      (...args: unknown[]) => {
        this.log.push([name, ...args.filter(arg => typeof arg !== 'object')].join(' '))
      }
    const hears = sinkOf({
      onOpen: note('open'),
      onData: (flow, payload) => this.log.push(`data ${flow} ${payload.length}`),
      onBatch: (flow, parts, rawLength) =>
        this.log.push(`batch ${flow} ${parts.reduce((sum, part) => sum + part.length, 0)} ${rawLength}`),
      onFin: note('fin'),
      onReset: note('reset'),
      onTaken: note('taken'),
      onRefused: note('refused'),
      onEnd: note('end'),
      onCredit: note('credit'),
      onWant: note('want'),
      onPage: note('page'),
      onDrain: note('drain'),
      onBye: note('bye'),
      onDead: error => {
        this.dead = error
        this.log.push(`dead ${error.code}`)
      },
      onLost: note('lost'),
      ...sink,
    })
    this.session = new Session({ role, initialCredit: CREDIT, ...options, transport: hears })
    this.session.serve(hears)
    if (!attach) return
    this.session.attach(0, 0, 0, CREDIT)
    this.pull() // the first PING
    this.frames = []
  }

  /** A frame of the peer; sequenced ones are numbered in turn. */
  say(type: number, flow = 0, payload: Uint8Array = new Uint8Array(0), flags = 0, connection = 0): this {
    const sequenced = type < 16 || (type >= 128 && flow > 0)
    return this.sayNumbered(sequenced ? ++this.sequence : 0, type, flow, payload, flags, connection)
  }

  sayNumbered(sequence: number, type: number, flow: number, payload: Uint8Array, flags = 0, connection = 0): this {
    this.session.receive(connection, { type, flags, flow, sequence, payload }, this.now)
    return this
  }

  /** Pulls all there is. @returns what it was: "type flow length", without ACK, PING, PONG */
  pull(connection = 0, maxBytes = 1 << 30): string[] {
    const out: Uint8Array[] = []
    const bytes = this.session.pull(connection, maxBytes, this.now, out)
    const got: string[] = []
    let total = 0
    const decoder = new FrameDecoder(frame => {
      this.frames.push({ ...frame })
      if (frame.sequence > 0) this.sequencedFrames++
      this.lastSequence = Math.max(this.lastSequence, frame.sequence)
      if (frame.type < 16 || frame.type > 18) got.push(`${frame.type} ${frame.flow} ${frame.payload.length}`)
    })
    for (const view of out) {
      decoder.push(view)
      total += view.length
    }
    if (total !== bytes) throw new Error(`pull says ${bytes} and gives ${total}`)
    this.pulled.push(...got)
    return got
  }

  ack(sequence = this.lastSequence, frames = this.sequencedFrames, connection = 0): this {
    const payload = Buffer.alloc(16)
    payload.writeBigUInt64BE(BigInt(sequence), 0)
    payload.writeBigUInt64BE(BigInt(frames), 8)
    return this.say(wire.FRAME.ACK, 0, new Uint8Array(payload), 0, connection)
  }
}

const { FRAME } = wire
const u64 = (value: number): Uint8Array => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return new Uint8Array(bytes)
}
const openPayload = (info: object = INFO) => ascii(JSON.stringify(info))
const REFUSED_PAYLOAD = join(hex('000a'), ascii('not now'))
const RESET_PAYLOAD = join(hex('0001'), ascii('gone'))

/** A batch as far as a session looks into it. */
function batch(rawLength: number, bytes: number): Uint8Array {
  const head = [1]
  let value = rawLength
  for (; value > 127; value >>>= 7) head.push((value & 127) | 128)
  head.push(value)
  return join(new Uint8Array(head), new Uint8Array(Math.max(0, bytes - head.length)))
}

t.test('pages of sets that are asked for', t => {
  const page = new Uint8Array(4096).fill(7)
  const told: unknown[] = []
  const server = new Bench('server', { onPage: (number, bytes) => told.push([number, bytes?.length]) })
  server.session.coldPages.ask([5, 2 ** 40])
  t.same(server.pull(), ['8 0 16'])
  t.same(Buffer.from(server.frames[0]!.payload).toString('hex'), '00000000000000050000010000000000')
  server.say(FRAME.PAGE, 0, join(u64(5), page)).say(FRAME.PAGE, 0, u64(2 ** 40))
  t.same(told.splice(0), [
    [5, 4096],
    [2 ** 40, undefined],
  ])

  const client = (): Bench => new Bench('client', { onWant: numbers => told.push(...numbers) })
  const asked = client().say(FRAME.WANT, 0, join(u64(5), u64(6)))
  t.same(told.splice(0), [5, 6])
  asked.session.coldPages.answer(5, page)
  page.fill(0) // it was copied
  asked.session.coldPages.answer(6, undefined)
  t.same(asked.pull(), ['9 0 4104', '9 0 8'])
  t.ok(asked.frames[0]!.payload.subarray(8).every(byte => byte === 7))

  const busy = client().say(FRAME.WANT, 0, u64(5))
  const bulk = busy.session.openFlow(INFO)
  busy.session.sendBatch(bulk, 5, [batch(5, 10)])
  busy.session.coldPages.answer(5, page)
  const small = busy.session.openFlow(INFO)
  busy.session.sendData(small, ascii('urgent'))
  t.same(
    busy.pull().map(frame => frame.split(' ')[0]),
    [FRAME.OPEN, FRAME.OPEN, FRAME.DATA, FRAME.PAGE, FRAME.BATCH].map(String),
    'behind what is urgent, before batches',
  )

  const want = (count: number): Uint8Array => join(...Array.from({ length: count }, (_, i) => u64(i)))
  const full = client().say(FRAME.WANT, 0, want(256))
  for (let i = 0; i < 3; i++) full.session.coldPages.answer(i, page)
  t.equal(full.say(FRAME.WANT, 0, want(1)).dead?.code, 'LIMIT_EXCEEDED', 'so many at once, and answers that wait count')
  const more = client().say(FRAME.WANT, 0, want(256))
  for (let i = 0; i < 256; i++) more.session.coldPages.answer(i, page)
  while (more.pull().length > 0) more.ack()
  t.equal(more.say(FRAME.WANT, 0, want(256)).dead, null, 'but not those that were sent')
  t.end()
})

t.test('every state of a session and every input', async t => {
  // Written out once more, so that a slip in the table is seen.
  const expected: Record<SessionState, string> = {
    opening: 'attach live, lose -, close stranded, flushed -, bye -, die closed',
    live: 'attach live, lose broken, close closing, flushed -, bye closed, die closed',
    broken: 'attach live, lose -, close stranded, flushed -, bye -, die closed',
    closing: 'attach closing, lose stranded, close closing, flushed closed, bye closed, die closed',
    stranded: 'attach closing, lose -, close stranded, flushed closed, bye -, die closed',
    closed: 'attach closed, lose closed, close closed, flushed -, bye closed, die closed',
  }
  /** A session in each state, with a frame that is owed, so that closing takes time. */
  const make: Record<SessionState, () => Bench> = {
    opening: () => {
      const bench = new Bench('client', {}, false)
      bench.session.openFlow(INFO)
      return bench
    },
    live: () => {
      const bench = new Bench('client')
      bench.session.openFlow(INFO)
      bench.pull()
      return bench
    },
    broken: () => {
      const bench = make.live()
      bench.session.detach(0, 0)
      return bench
    },
    closing: () => {
      const bench = make.live()
      bench.session.close(0)
      return bench
    },
    stranded: () => {
      const bench = make.closing()
      bench.session.detach(0, 0)
      return bench
    },
    closed: () => {
      const bench = make.live()
      bench.session.abort(new ProxyError('INTERNAL', 'test', undefined, ''), 0)
      return bench
    },
  }
  const error = new ProxyError('INTERNAL', 'test', undefined, '')
  const apply: Record<SessionInput, (bench: Bench) => void> = {
    attach: bench => bench.session.attach(1, 0, 0),
    lose: bench => bench.session.detach(0, 0),
    close: bench => bench.session.close(0),
    flushed: bench => {
      if (bench.session.state === 'closing') bench.ack()
      else (bench.session as unknown as { life: { enter(input: string): void } }).life.enter('flushed')
    },
    bye: bench => bench.say(FRAME.BYE, 0, hex('0000')),
    die: bench => bench.session.abort(error, 0),
  }
  for (const state of Object.keys(SESSION_TABLE) as SessionState[]) {
    const row = Object.entries(SESSION_TABLE[state])
    t.equal(row.map(([input, next]) => `${input} ${next ?? '-'}`).join(', '), expected[state], `table: ${state}`)
    for (const [input, next] of row as [SessionInput, SessionState | null][]) {
      const bench = make[state]()
      t.equal(bench.session.state, state)
      if (next !== null) {
        apply[input](bench)
        t.equal(bench.session.state, next, `${state}: ${input}`)
      } else if (input === 'flushed') {
        t.equal(
          codeOf(() => apply.flushed(bench)),
          'INTERNAL',
          `${state}: flushed is a defect`,
        )
      } else {
        // No connection, so nothing that a peer or a socket does can bring this input.
        apply[input](bench)
        t.equal(bench.session.state, state, `${state}: ${input} cannot come`)
      }
    }
  }
})

t.test('every state of a flow and every frame of the peer', async t => {
  const rows = Object.entries(RECEIVE_TABLE).map(
    ([state, row]) =>
      `${state}: ${Object.entries(row)
        .map(([input, next]) => `${input} ${next ?? '-'}`)
        .join(', ')}`,
  )
  t.same(rows, [
    'none: open open, data -, batch -, fin -, reset -, credit -, end -',
    'asked: open -, data open, batch open, fin fin, reset reset, credit open, end -',
    'open: open -, data open, batch open, fin fin, reset reset, credit open, end -',
    'fin: open -, data -, batch -, fin -, reset reset, credit fin, end none',
    'reset: open -, data -, batch -, fin -, reset -, credit -, end none',
  ])
  const send: Record<ReceiveInput, (bench: Bench) => void> = {
    open: bench => bench.say(FRAME.OPEN, 1, openPayload()),
    data: bench => bench.say(FRAME.DATA, 1, ascii('x')),
    batch: bench => bench.say(FRAME.BATCH, 1, batch(5, 10)),
    fin: bench => bench.say(FRAME.FIN, 1),
    reset: bench => bench.say(FRAME.RESET, 1, RESET_PAYLOAD),
    credit: bench => bench.say(FRAME.CREDIT, 1, u64(2 << 20)),
    end: bench => bench.say(FRAME.END, 1),
  }
  for (const role of ['client', 'server'] as const) {
    for (const sent of ['open', 'fin', 'reset'] as const) {
      for (const received of ['none', 'asked', 'open', 'fin', 'reset'] as const) {
        if (received === 'asked' && role === 'server') continue // the client's own state
        for (const input of Object.keys(send) as ReceiveInput[]) {
          const bench = new Bench(role)
          if (received !== 'none') {
            if (role === 'client') bench.session.openFlow(INFO)
            else bench.say(FRAME.OPEN, 1, openPayload())
            bench.pull()
            if (received === 'open' && role === 'client') bench.say(FRAME.CREDIT, 1, u64(1 << 20))
            if (received === 'fin' || received === 'reset') send[received](bench)
            if (sent === 'fin') bench.session.finFlow(1)
            if (sent === 'reset') bench.session.resetFlow(1, 1, 'gone')
            bench.pull()
          }
          bench.log.length = 0
          send[input](bench)
          // What must come of it, apart from the code: the rules of protocol.md §3.
          const gone = role === 'server' && sent !== 'open' && (received === 'fin' || received === 'reset')
          let fine = RECEIVE_TABLE[received][input] !== null
          if (gone) fine = input === 'open' || input === 'reset' || input === 'credit'
          else if (input === 'open') fine = role === 'server' && received === 'none'
          else if (input === 'end')
            fine = role === 'client' && sent !== 'open' && (received === 'fin' || received === 'reset')
          const what = `${role}, sent ${sent}, received ${received}: ${input}`
          const dead = bench.dead ? bench.dead.code : 'none'
          if (dead !== (fine ? 'none' : 'PROTOCOL_STATE')) t.fail(`${what}: ${dead} ${bench.dead?.what}`)
          const told = bench.log.filter(line => !line.startsWith('dead')).map(line => line.split(' ')[0])
          let expected: string[] = []
          if (fine && !gone) {
            if (sent === 'reset' && input !== 'batch' && received !== 'none') expected = []
            else if (input === 'credit') expected = sent === 'open' ? ['credit'] : []
            else if (input !== 'end') expected = [input]
            const endsNow = role === 'server' && received !== 'none' && sent !== 'open'
            if (endsNow && (input === 'fin' || input === 'reset')) expected.push('end')
            if (input === 'end') expected = ['end']
            if (received === 'asked' && sent !== 'reset') expected.unshift('taken')
          } else if (gone && input === 'open') {
            expected = ['open']
          }
          if (told.join() !== expected.join()) t.fail(`${what}: told ${told}, expected ${expected}`)
        }
      }
    }
  }
  t.pass('2 roles, 3 states of sending, 5 of receiving, 7 frames')
})

t.test('every state of a flow and everything handed in', async t => {
  const rows = Object.entries(SEND_TABLE).map(
    ([state, row]) =>
      `${state}: ${Object.entries(row)
        .map(([input, next]) => `${input} ${next ?? '-'}`)
        .join(', ')}`,
  )
  t.same(rows, [
    'open: data open, batch open, fin fin, reset reset',
    'fin: data -, batch -, fin -, reset reset',
    'reset: data reset, batch -, fin reset, reset reset',
  ])
  const hand: Record<SendInput, (session: Session) => void> = {
    data: session => session.sendData(1, ascii('x')),
    batch: session => session.sendBatch(1, 5, [batch(5, 10)]),
    fin: session => session.finFlow(1),
    reset: session => session.resetFlow(1, 1, 'gone'),
  }
  for (const received of ['open', 'fin', 'reset'] as const) {
    for (const sent of ['open', 'fin', 'reset'] as const) {
      for (const input of Object.keys(hand) as SendInput[]) {
        const bench = new Bench('client')
        bench.session.openFlow(INFO)
        if (sent !== 'open') hand[sent](bench.session)
        bench.pull()
        if (received === 'fin') bench.say(FRAME.FIN, 1)
        if (received === 'reset') bench.say(FRAME.RESET, 1, RESET_PAYLOAD)
        const next = SEND_TABLE[sent][input]
        const what = `sent ${sent}, received ${received}: ${input}`
        t.equal(
          codeOf(() => hand[input](bench.session)),
          next === null ? 'INTERNAL' : 'none',
          what,
        )
        const type = { data: FRAME.DATA, batch: FRAME.BATCH, fin: FRAME.FIN, reset: FRAME.RESET }[input]
        const dropped = sent === 'reset' || (input === 'data' && received === 'reset')
        const pulled = bench.pull().map(line => Number(line.split(' ')[0]))
        t.same(pulled, next === null || dropped ? [] : [type], `${what}: what goes out`)
        t.equal(bench.dead, null)
      }
    }
  }
})

t.test('a peer that breaks the rules', async t => {
  const server = () => new Bench('server').say(FRAME.OPEN, 1, openPayload())
  const cases: [string, string, () => Bench][] = [
    [
      'more data than its credit',
      'PROTOCOL_STATE',
      () => {
        const bench = server()
        for (let i = 0; i < 64; i++) bench.say(FRAME.DATA, 1, new Uint8Array(16368))
        bench.say(FRAME.DATA, 1, new Uint8Array(64 * 16))
        if (bench.dead) t.fail('the initial credit is 1 MiB')
        return bench.say(FRAME.DATA, 1, ascii('x'))
      },
    ],
    [
      'batches beyond its credit',
      'PROTOCOL_STATE',
      () =>
        server()
          .say(FRAME.BATCH, 1, batch(1 << 20, 20))
          .say(FRAME.BATCH, 1, batch(1, 20)),
    ],
    ['a batch above 1 MiB raw', 'LIMIT_EXCEEDED', () => server().say(FRAME.BATCH, 1, batch((1 << 20) + 1, 20))],
    ['a batch of no raw bytes', 'BATCH_FORMAT', () => server().say(FRAME.BATCH, 1, batch(0, 20))],
    ['a batch of another format', 'BATCH_FORMAT', () => server().say(FRAME.BATCH, 1, hex('0205'))],
    ['a raw length without end', 'BATCH_FORMAT', () => server().say(FRAME.BATCH, 1, hex('01ffffffffff'))],
    ['a batch that ends within its raw length', 'BATCH_FORMAT', () => server().say(FRAME.BATCH, 1, hex('01ff'))],
    ['a part that is not full', 'PROTOCOL_SYNTAX', () => server().say(FRAME.BATCH, 1, batch(5, 100), 1)],
    [
      'a batch without end',
      'LIMIT_EXCEEDED',
      () => {
        const bench = server()
        for (let i = 0; i < 69; i++) bench.say(FRAME.BATCH, 1, new Uint8Array(16368), 1)
        return bench
      },
    ],
    [
      'a batch within a batch',
      'PROTOCOL_SYNTAX',
      () =>
        server()
          .say(FRAME.OPEN, 2, openPayload())
          .say(FRAME.BATCH, 1, new Uint8Array(16368), 1)
          .say(FRAME.BATCH, 2, batch(5, 100)),
    ],
    [
      'DATA within the batch of its flow',
      'PROTOCOL_SYNTAX',
      () => server().say(FRAME.BATCH, 1, new Uint8Array(16368), 1).say(FRAME.DATA, 1, ascii('x')),
    ],
    ['a frame from far ahead', 'LIMIT_EXCEEDED', () => server().sayNumbered(1 + 65536 + 1, FRAME.DATA, 1, ascii('x'))],
    [
      'more ahead of a missing frame than may be under way',
      'LIMIT_EXCEEDED',
      () => {
        const bench = server()
        const payload = new Uint8Array(16368)
        for (let i = 0; i < 4100 && !bench.dead; i++) bench.sayNumbered(3 + i, FRAME.DATA, 1, payload)
        return bench
      },
    ],
    [
      'more flows than there may be',
      'LIMIT_EXCEEDED',
      () => {
        const bench = server()
        for (let flow = 2; flow <= 1280; flow++) bench.say(FRAME.OPEN, flow, openPayload())
        if (bench.dead) t.fail('1280 flows are allowed')
        return bench.say(FRAME.OPEN, 1281, openPayload())
      },
    ],
    ['flow 0', 'PROTOCOL_SYNTAX', () => server().say(FRAME.OPEN, 0, openPayload())],
    ['OPEN that is no JSON', 'PROTOCOL_SYNTAX', () => server().say(FRAME.OPEN, 2, ascii('{]'))],
    [
      'OPEN without a target',
      'PROTOCOL_SYNTAX',
      () => server().say(FRAME.OPEN, 2, openPayload({ ...INFO, target: '' })),
    ],
    [
      'OPEN of migration 0',
      'PROTOCOL_SYNTAX',
      () => server().say(FRAME.OPEN, 2, openPayload({ ...INFO, migration: 0 })),
    ],
    [
      'OPEN of migration 2^32',
      'PROTOCOL_SYNTAX',
      () => server().say(FRAME.OPEN, 2, openPayload({ ...INFO, migration: 2 ** 32 })),
    ],
    ['OPEN from the server', 'PROTOCOL_STATE', () => new Bench('client').say(FRAME.OPEN, 1, openPayload())],
    ['END from the client', 'PROTOCOL_STATE', () => server().say(FRAME.END, 1)],
    ['an unknown type', 'PROTOCOL_SYNTAX', () => server().sayNumbered(2, 99, 1, ascii('x'))],
    ['an unknown type without a number', 'PROTOCOL_SYNTAX', () => server().sayNumbered(0, 99, 1, ascii('x'))],
    ['type 0', 'PROTOCOL_SYNTAX', () => server().sayNumbered(2, 0, 1, ascii('x'))],
    ['a type between the kinds', 'PROTOCOL_SYNTAX', () => server().sayNumbered(2, 10, 1, ascii('x'))],
    ['DATA without a number', 'PROTOCOL_SYNTAX', () => server().sayNumbered(0, FRAME.DATA, 1, ascii('x'))],
    ['PING with a number', 'PROTOCOL_SYNTAX', () => server().sayNumbered(2, FRAME.PING, 0, u64(1))],
    [
      'credit that shrinks',
      'PROTOCOL_STATE',
      () =>
        server()
          .say(FRAME.CREDIT, 1, u64(3 << 20))
          .say(FRAME.CREDIT, 1, u64(2 << 20)),
    ],
    ['credit above 2^53', 'PROTOCOL_STATE', () => server().say(FRAME.CREDIT, 1, hex('ffffffffffffffff'))],
    ['an ACK of what was not sent', 'PROTOCOL_STATE', () => server().ack(1, 0)],
    ['an ACK of more frames than were sent', 'PROTOCOL_STATE', () => server().ack(0, 1)],
    ['an ACK above 2^53', 'PROTOCOL_STATE', () => server().say(FRAME.ACK, 0, hex('ffffffffffffffff0000000000000000'))],
    [
      'a hello that claims what was not sent',
      'PROTOCOL_STATE',
      () => {
        const bench = server()
        bench.session.attach(1, 7, 0)
        return bench
      },
    ],
  ]
  for (const [name, code, run] of cases) {
    const bench = run()
    t.equal(bench.dead?.code, code, name)
    t.equal(bench.session.state, 'closed')
    const bye = bench.pull()
    t.match(bye[0], /^19 0 /, `${name}: BYE says why`)
    t.equal((bench.frames.at(-1)!.payload[0]! << 8) | bench.frames.at(-1)!.payload[1]!, wireCode(bench.dead!.code))
    t.ok(bench.session.isDone(0))
    t.same(bench.pull(), [], 'nothing behind it')
  }

  const fine = server()
  fine.say(200, 1, ascii('later')).say(200, 0, ascii('later')).say(FRAME.DATA, 1, ascii('x'))
  t.same(fine.log, ['open 1', 'data 1 1'], 'optional frames of later versions keep their place and do nothing')
  fine.say(FRAME.PING, 0, u64(1)).say(FRAME.PING, 0, u64(2)).pull()
  t.same(
    fine.frames.filter(frame => frame.type === FRAME.PONG).map(frame => frame.payload[7]),
    [2],
    'a flood of PINGs is answered once',
  )
})

t.test('OPEN over and over', async t => {
  const open = (bench: Bench, from: number, count: number, between: () => void): Bench => {
    for (let i = from; i < from + count && !bench.dead; i++) {
      const flow = (i % 65535) + 1
      bench.say(FRAME.OPEN, flow, openPayload()).say(FRAME.RESET, flow, RESET_PAYLOAD)
      bench.session.resetFlow(flow, 1, 'in turn')
      between()
    }
    return bench
  }
  const unread = open(new Bench('server'), 0, 1 << 20, () => {})
  t.equal(unread.dead?.code, 'LIMIT_EXCEEDED', 'a peer that reads nothing')
  t.ok(unread.log.length < 3 * limits.FLOWS_UNENDED_MAX, `${unread.log.length} events`)

  const read = new Bench('server')
  const readAll = (): void => {
    read.pull()
    read.ack()
  }
  open(read, 0, limits.OPENS_BURST, readAll)
  t.equal(read.log.filter(line => line.startsWith('open')).length, limits.OPENS_BURST, 'a burst is taken')
  read.frames = []
  open(read, limits.OPENS_BURST, 100, readAll)
  t.equal(read.log.filter(line => line.startsWith('open')).length, limits.OPENS_BURST, 'what is more is refused')
  t.equal(read.dead, null)
  const resets = read.frames.filter(({ type }) => type === FRAME.RESET)
  t.same([resets.length, readU16(resets[0]!.payload, 0)], [100, 8])
  t.notOk(read.session.flowCount, 'and comes to its end all the same')
  read.now += 3000
  open(read, 2 * limits.OPENS_BURST, 150, readAll)
  t.equal(read.log.filter(line => line.startsWith('open')).length, limits.OPENS_BURST + 150, 'then so many a second')
  open(read, 0, 1 << 20, readAll)
  t.equal(read.dead?.code, 'LIMIT_EXCEEDED', 'who goes on is let go')
})

t.test('a migration is refused at its first channel, never at a later one', async t => {
  const bench = new Bench('server')
  let next = 0
  const channel = (migration: number): number => {
    const flow = (next++ % 65535) + 1
    bench.say(FRAME.OPEN, flow, openPayload({ ...INFO, migration }))
    bench.pull()
    bench.ack()
    return flow
  }
  const isTaken = (flow: number): boolean => bench.log.some(line => line.startsWith(`open ${flow}`))
  const end = (flow: number): void => {
    bench.say(FRAME.RESET, flow, RESET_PAYLOAD)
    bench.session.resetFlow(flow, 1, 'in turn')
    bench.pull()
    bench.ack()
  }
  // Four guests with 257 channels each, started anew each second, as their operator tries again and again.
  let begun = 0
  let refused = 0
  for (let round = 0; round < 10; round++) {
    const flows: number[] = []
    for (let guest = 0; guest < 4; guest++) {
      const migration = 1 + round * 4 + guest
      const first = channel(migration)
      flows.push(first)
      if (!isTaken(first)) {
        refused++
        continue
      }
      begun++
      for (let more = 1; more < 257; more++) {
        const flow = channel(migration)
        flows.push(flow)
        if (!isTaken(flow)) t.fail(`migration ${migration} is refused at channel ${more + 1}`)
      }
    }
    for (const flow of flows) end(flow)
    bench.now += 1000
  }
  t.equal(bench.dead, null)
  t.ok(begun >= 8 && refused > 0, `${begun} began, ${refused} were refused at their first channel`)
})

t.test('nor where the flows of all sessions of an identity come to their bound', async t => {
  const places = new FairShares(2 * 600)
  const benches = [1, 2].map(() => {
    const bench = new Bench('server', {}, true, { flowPlaces: places.share('a') })
    bench.session.attach(0, 0, 0)
    return bench
  }) as [Bench, Bench]
  let flow = 0
  const open = (bench: Bench, migration: number, channels: number): number => {
    const before = bench.log.length
    for (let i = 0; i < channels; i++) bench.say(FRAME.OPEN, ++flow, openPayload({ ...INFO, migration }))
    return bench.log.slice(before).filter(line => line.startsWith('open')).length
  }
  const [first, second] = benches
  t.equal(open(first, 1, 257), 257)
  t.equal(open(second, 1, 257), 257)
  t.equal(open(first, 2, 1), 0, 'a further one might lack places for its later channels')
  t.equal(open(first, 1, 1), 1, 'one that runs has places')
  t.equal(open(new Bench('server', {}, true, { flowPlaces: places.share('a') }), 1, 1), 1, 'a session has at least one')
})

t.test('flows that an identity has open are bounded over all of its sessions', async t => {
  const places = new FairShares(7)
  const [first, second, other] = ['a', 'a', 'b'].map(identity => {
    const bench = new Bench('server', {}, true, { flowPlaces: places.share(identity) })
    bench.session.attach(0, 0, 0)
    return bench
  }) as [Bench, Bench, Bench]
  const opened = (bench: Bench): number => bench.log.filter(line => line.startsWith('open')).length
  for (let flow = 1; flow <= 3; flow++) {
    first.say(FRAME.OPEN, flow, openPayload())
    second.say(FRAME.OPEN, flow, openPayload())
    other.say(FRAME.OPEN, flow, openPayload())
  }
  t.same([opened(first), opened(second), opened(other)], [2, 1, 2], 'at most as many as are free')
  t.same([first.dead, second.dead], [null, null])
  first.say(FRAME.RESET, 1, Buffer.of(0, 0))
  first.session.resetFlow(1, 0, '')
  second.say(FRAME.OPEN, 9, openPayload())
  t.equal(opened(second), 2, 'one that ended makes room')
  other.session.close(0)
  other.session.abort(new ProxyError('PEER_LOST', 'test', undefined, 'test'), 0)
  t.equal(places.used, 3, 'and so does a session')
})

t.test('frames ahead of a missing one take memory that is bounded', async t => {
  const memory = new FairShares(0).share('a')
  const bench = new Bench('server', {}, true, { memory })
  bench.session.attach(1, 0, 0)
  bench.say(FRAME.OPEN, 1, openPayload())
  const chunk = new Uint8Array(16384)
  let sequence = 2
  while (bench.log.length === 1 && sequence < 65536) {
    bench.sayNumbered(++sequence, FRAME.DATA, 1, chunk.subarray(0, 100), 0, 1)
  }
  t.same(bench.log, ['open 1', 'lost 1'], 'where there is none its connection goes, and the session lives')
  const held = bench.session.stats().reordered
  t.ok(held < limits.HELD_FREE_BYTES / 3, `${held} bytes: each costs more than itself`)
  t.equal(bench.dead, null)
  bench.sayNumbered(2, FRAME.DATA, 1, chunk.subarray(0, 100))
  t.equal(bench.log.length, sequence, 'all that was held is there')
})

t.test('before anybody serves a session what is told of it waits, or is not missed', t => {
  const told: string[] = []
  const sink = sinkOf({
    onWant: numbers => told.push(`want ${numbers}`),
    onDrain: () => told.push('drain'),
    onStalled: sinceMs => told.push(`stalled ${sinceMs}`),
  })
  const client = new Session({ role: 'client', transport: sink })
  client.attach(0, 0, 0)
  const hear = (type: number, sequence = 0, payload: Uint8Array = new Uint8Array(0)): void =>
    client.receive(0, { type, flags: 0, flow: 0, sequence, payload }, 0)
  hear(FRAME.WANT, 1, join(u64(3), u64(4)))
  hear(FRAME.DRAIN)
  hear(FRAME.WANT, 2, u64(5))
  client.coldPages.answer(3, undefined)
  client.pull(0, 1 << 20, 0, [])
  client.tick(1000)
  t.same(told, [])
  client.serve(sink)
  t.same(told.splice(0), ['want 3,4', 'drain', 'want 5'], 'in their order')
  client.tick(2000)
  hear(FRAME.WANT, 3, u64(6))
  t.same(told, ['stalled 0', 'want 6'])
  t.throws(() => client.serve(sink), { code: 'INTERNAL' }, 'once')
  const server = new Session({ role: 'server', transport: sink })
  server.attach(0, 0, 0)
  const open = { type: FRAME.OPEN, flags: 0, flow: 1, sequence: 1, payload: openPayload() }
  t.throws(() => server.receive(0, open, 0), { code: 'INTERNAL' }, 'a flow is for nobody')
  t.end()
})

t.test('since when a peer acknowledges nothing is told while it can be reached', t => {
  const told: number[] = []
  const bench = new Bench('client', { onStalled: sinceMs => told.push(sinceMs) })
  const { session } = bench
  const at = (ms: number): number[] => {
    for (; bench.now < ms; bench.now += 500) {
      bench.say(FRAME.PING, 0, u64(bench.now))
      session.tick(bench.now)
      bench.pull()
    }
    return [...new Set(told.splice(0))]
  }
  t.same(at(5000), [], 'nothing is waited for')
  const flow = session.openFlow(INFO)
  session.sendData(flow, ascii('hello'))
  bench.pull()
  t.same(at(10_000), [5000])
  session.detach(0, bench.now)
  t.same(at(14_000), [], 'that of a lost connection is another')
  session.attach(0, 0, bench.now)
  bench.sequencedFrames = 0
  bench.pull()
  t.same(at(20_000), [9000], 'and does not count')
  session.attach(1, 1, bench.now)
  t.same(at(22_000), [20_000], 'a frame was acknowledged')
  t.end()
})

t.test('a peer that takes everything and acknowledges nothing', async t => {
  const bench = new Bench('client')
  const { session } = bench
  const flow = session.openFlow(INFO)
  session.sendData(flow, ascii('hello'))
  bench.pull()
  let losses = 0
  for (bench.now = 0; bench.now < 600_000 && !bench.dead; bench.now += 500) {
    bench.say(FRAME.PING, 0, u64(bench.now))
    session.tick(bench.now)
    bench.pull()
    if (bench.log.at(-1) !== 'lost 0') continue
    losses++
    bench.log.length = 0
    bench.now += 60_000 // its own patience counts this
    session.attach(0, 0, bench.now)
    bench.sequencedFrames = 0
    bench.pull()
  }
  t.equal(losses, 6, 'connections that carry nothing are given up')
  t.equal(bench.dead?.code, 'PEER_LOST')
  t.match(bench.dead?.what, /acknowledged nothing for 120 s/)
  t.ok(bench.now >= 480_000 && bench.now < 485_000, `${bench.now}: two minutes with, six without a connection`)

  const slow = new Bench('client')
  slow.session.sendData(slow.session.openFlow(INFO), new Uint8Array(200_000))
  for (let i = 1; i < 100; i++) {
    slow.pull()
    slow.now += 10_000
    slow.say(FRAME.PING, 0, u64(i))
    slow.ack(Math.min(i, slow.lastSequence), Math.min(i, slow.sequencedFrames))
    slow.session.tick(slow.now)
  }
  t.notOk(
    slow.log.some(line => /lost|dead/.test(line)),
    'a frame in ten seconds is progress',
  )
})

t.test('what is kept pins no more memory than it counts', async t => {
  const kept: Uint8Array[] = []
  const bench = new Bench('server', { onData: (_flow, payload) => kept.push(payload) })
  bench.say(FRAME.OPEN, 1, openPayload())
  const lengths = [1, 100, 8184, limits.FRAME_PAYLOAD_BYTES_MAX]
  // as sockets give it, too: what a Buffer calls slice is a view
  for (const chunk of [new Uint8Array(65536), Buffer.alloc(65536)]) {
    kept.length = 0
    for (const length of lengths) bench.say(FRAME.DATA, 1, chunk.subarray(0, length))
    t.same(
      kept.map(payload => payload.buffer.byteLength),
      lengths,
      'a part of a chunk is copied',
    )
  }
  const record = new Uint8Array(16384)
  bench.say(FRAME.DATA, 1, record.subarray(wire.FRAME_HEAD_BYTES))
  t.equal(kept.at(-1)!.buffer, record.buffer, 'what is all of a TLS record is not')
})

// What goes out, and when ---------------------------------------------------------------------------------------------

t.test('urgent frames overtake, and the order of a flow stays', async t => {
  const bench = new Bench('client')
  const { session } = bench
  const bulk = session.openFlow(INFO)
  const small = session.openFlow(INFO)
  bench.pull()
  session.sendBatch(bulk, 100_000, [batch(100_000, 40_000)])
  session.sendData(bulk, ascii('behind its batch'))
  session.sendData(small, ascii('urgent'))
  session.finFlow(bulk)
  session.finFlow(small)
  const opened = session.openFlow(INFO)
  t.same(
    bench.pull(),
    ['2 2 6', '4 2 0', '1 3 40', '3 1 16368', '3 1 16368', '3 1 7264', '2 1 16', '4 1 0'].map(line =>
      line.replace('1 3 40', `1 3 ${JSON.stringify(INFO).length}`),
    ),
    'data, FIN and OPEN of others first; of the same flow behind its batch',
  )
  t.equal(opened, 3)
  t.same(
    bench.frames.filter(frame => frame.type === FRAME.BATCH).map(frame => frame.flags),
    [1, 1, 0],
  )
})

t.test('data overtakes a batch that is half sent', async t => {
  const bench = new Bench('client')
  const { session } = bench
  const bulk = session.openFlow(INFO)
  const small = session.openFlow(INFO)
  bench.pull()
  session.sendBatch(bulk, 100_000, [batch(100_000, 40_000)])
  t.same(bench.pull(0, 1000), ['3 1 16368'])
  session.sendData(small, ascii('urgent'))
  t.same(bench.pull(), ['2 2 6', '3 1 16368', '3 1 7264'])
})

t.test('room that was less than wanted is told of when there is more', async t => {
  const bench = new Bench('server')
  const { session } = bench
  bench.say(FRAME.OPEN, 1, openPayload())
  bench.pull()
  const room = session.dataRoom(1, 140_000)
  t.ok(room > 0 && room < 140_000, `a fresh flow takes ${room} bytes`)
  session.sendData(1, new Uint8Array(room))
  t.same(bench.log, ['open 1'])
  bench.pull()
  t.same(bench.log, ['open 1', 'credit 1'], 'without a CREDIT of the peer, whose credit is far from used up')
  t.equal(session.dataRoom(1, 100), 100)
  session.sendData(1, new Uint8Array(100))
  bench.pull()
  t.same(bench.log, ['open 1', 'credit 1'], 'whoever was given all that it wanted is told nothing')
})

t.test('flows share the room for what waits, and are told in turns', async t => {
  const bench = new Bench('server')
  const { session } = bench
  bench.say(FRAME.OPEN, 1, openPayload()).say(FRAME.OPEN, 2, openPayload())
  bench.pull()
  session.sendData(1, new Uint8Array(session.dataRoom(1, 1 << 20)))
  t.equal(session.dataRoom(2, 1), 0, 'one flow has taken all of it')
  bench.log.length = 0
  bench.pull()
  t.same(bench.log, ['credit 1', 'credit 2'])
})

t.test('answers that nobody acknowledges take memory that is bounded', async t => {
  for (const budget of [0, 4 << 20]) {
    const memory = new FairShares(budget).share('a')
    const bench = new Bench('server', {}, true, { memory })
    const { session } = bench
    bench.say(FRAME.OPEN, 1, openPayload()).say(FRAME.CREDIT, 1, u64(1 << 30))
    const send = (): number => {
      const room = session.dataRoom(1, 8 << 20)
      session.sendData(1, new Uint8Array(room))
      bench.pull()
      return room
    }
    // The windows open wide ...
    for (let round = 0; round < 200; round++) {
      send()
      bench.now += 20
      bench.ack()
    }
    // ... and then nothing is acknowledged any more.
    let unread = 0
    for (let round = 0; round < 200; round++) {
      unread += send()
      bench.say(FRAME.PING, 0, u64(1))
    }
    t.ok(unread <= limits.ANSWERS_FREE_BYTES + budget / 2 + 65536, `budget ${budget}: ${unread} bytes are kept`)
    t.ok(unread > (limits.ANSWERS_FREE_BYTES + budget / 2) / 2, `budget ${budget}: ${unread} bytes are kept`)
    bench.log.length = 0
    bench.ack()
    t.same(bench.log, ['credit 1'], 'an ACK tells that there is room')
    for (let round = 0; round < 20; round++) {
      bench.pull()
      bench.ack()
    }
    t.equal(memory.held, 0, 'what was acknowledged is given back')
  }
})

t.test('RESET drops data, but not before a batch', async t => {
  const bench = new Bench('client')
  const { session } = bench
  const flow = session.openFlow(INFO)
  bench.pull()
  session.sendData(flow, new Uint8Array(40_000))
  session.sendBatch(flow, 50, [batch(50, 20)])
  session.sendData(flow, new Uint8Array(40_000))
  t.equal(session.stats().queued, 80_020)
  session.resetFlow(flow, 1, 'gone')
  t.same(
    bench.pull(),
    ['2 1 16368', '2 1 16368', '2 1 7264', '3 1 20', '5 1 6'],
    'the pool has changed with the batch, and the bytes before it must not be a hole',
  )
  t.equal(session.stats().queued, 0)
  t.equal(session.credit(flow), 0)
  bench.say(FRAME.DATA, flow, ascii('late')).say(FRAME.BATCH, flow, batch(5, 10)).say(FRAME.FIN, flow)
  t.same(bench.log, ['batch 1 10 5'], 'what still arrives is dropped, except batches')
  bench.say(FRAME.END, flow)
  t.same(bench.log.slice(1), ['end 1'])
})

t.test('a peer that resets a flow', async t => {
  const bench = new Bench('client')
  const { session } = bench
  const flow = session.openFlow(INFO)
  session.sendData(flow, ascii('waits'))
  bench.pull(0, 10) // OPEN only
  bench.say(FRAME.RESET, flow, RESET_PAYLOAD)
  t.same(bench.log, ['taken 1', 'reset 1 1 gone'])
  session.sendBatch(flow, 50, [batch(50, 20)]) // was being encoded
  session.sendData(flow, ascii('late'))
  t.same(bench.pull(), ['3 1 20'], 'the batch goes, the data does not')
  session.resetFlow(flow, 0, '')
  t.same(bench.pull(), ['5 1 2'])
})

t.test('flow numbers', async t => {
  const bench = new Bench('client')
  const { session } = bench
  for (let i = 1; i <= 1280; i++) t.equal(session.openFlow(INFO), i) || t.bailout()
  t.equal(
    codeOf(() => session.openFlow(INFO)),
    'LIMIT_EXCEEDED',
  )
  session.finFlow(5)
  bench.pull()
  bench.say(FRAME.FIN, 5)
  t.equal(session.flowCount, 1280, 'not free before END')
  bench.say(FRAME.END, 5)
  t.equal(session.openFlow(INFO), 1281, 'numbers go on before they come again')
  t.equal(
    codeOf(() => session.openFlow(INFO)),
    'LIMIT_EXCEEDED',
  )
})

t.test('DRAIN', async t => {
  const bench = new Bench('server')
  bench.session.drain()
  t.same(bench.pull(), ['20 0 0'])
  bench.session.attach(1, 0, 0)
  t.same(bench.pull(1), ['20 0 0'], 'on each connection')
  bench.say(FRAME.OPEN, 1, openPayload())
  t.same(bench.log, [], 'an OPEN that crosses it is not told')
  t.match(bench.pull(), [/^5 1 /], 'and answered with RESET')
  t.equal(bench.frames.at(-1)!.payload[1], 10)
  bench.say(FRAME.OPEN, 2, openPayload())
  t.same([bench.log, bench.frames.at(-1)!.type], [[], FRAME.RESET], 'a migration of refused flows does not run')
  const client = new Bench('client')
  client.say(FRAME.DRAIN).say(FRAME.DRAIN)
  t.same(client.log, ['drain'])
  const open = (session: Session, migration: number) => codeOf(() => session.openFlow({ ...INFO, migration }))
  t.equal(open(client.session, 1), 'PROTOCOL_STATE')
  const own = new Bench('client')
  own.session.drain()
  t.equal(open(own.session, 1), 'PROTOCOL_STATE')
})

t.test('DRAIN lets a migration that runs have further flows', async t => {
  const bench = new Bench('server').say(FRAME.OPEN, 1, openPayload())
  bench.session.drain()
  bench.pull()
  bench.say(FRAME.OPEN, 2, openPayload()).say(FRAME.OPEN, 3, openPayload({ ...INFO, migration: 2 }))
  t.same(bench.log, ['open 1', 'open 2'])
  t.same(bench.pull(), ['6 2 8', '5 3 25'])
  bench.session.resetFlow(1, 1, 'gone')
  bench.session.resetFlow(2, 1, 'gone')
  bench.pull()
  bench.say(FRAME.OPEN, 4, openPayload())
  t.same(bench.log, ['open 1', 'open 2'], 'one whose flows are all reset does not run')

  const client = new Bench('client')
  client.session.openFlow(INFO)
  client.say(FRAME.DRAIN)
  const open = (migration: number) => codeOf(() => client.session.openFlow({ ...INFO, migration }))
  t.same([open(1), open(2)], ['none', 'PROTOCOL_STATE'])
  for (const flow of [1, 2]) client.say(FRAME.RESET, flow, REFUSED_PAYLOAD)
  t.equal(open(1), 'PROTOCOL_STATE')
})

t.test('taking and refusing a flow', async t => {
  const server = new Bench('server').say(FRAME.OPEN, 1, openPayload())
  server.session.sendData(1, ascii('before anything else'))
  t.same(server.pull(), ['6 1 8', '2 1 20'])
  t.same(server.frames.at(-2)!.payload, u64(1 << 20))
  server.say(FRAME.OPEN, 2, openPayload())
  server.session.resetFlow(2, 2, 'refused')
  t.same(server.pull(), ['5 2 9'], 'a target that refuses at once')
  server.say(FRAME.OPEN, 3, openPayload()).say(FRAME.DATA, 3, new Uint8Array(16368))
  for (let i = 0; i < 20; i++) server.say(FRAME.DATA, 3, new Uint8Array(16368))
  server.session.consumed(3, 21 * 16368) // its credit is due before it was taken
  t.same(server.pull(), ['6 3 8', '6 3 8'])
  t.same(
    server.frames.slice(-2).map(frame => Buffer.from(frame.payload).readUIntBE(2, 6)),
    [1392304, 1392304],
  )

  const client = new Bench('client')
  for (let flow = 1; flow <= 4; flow++) client.session.openFlow(INFO)
  client.pull()
  client.say(FRAME.RESET, 1, REFUSED_PAYLOAD)
  client
    .say(FRAME.CREDIT, 2, u64(1 << 20))
    .say(FRAME.CREDIT, 2, u64(1 << 20))
    .say(FRAME.RESET, 2, REFUSED_PAYLOAD)
  client.session.resetFlow(3, 1, 'gone')
  client.say(FRAME.RESET, 3, REFUSED_PAYLOAD)
  client.session.resetFlow(4, 1, 'gone')
  client.say(FRAME.CREDIT, 4, u64(1 << 20))
  t.same(client.log, ['refused 1 not now', 'taken 2', 'credit 2', 'credit 2', 'reset 2 10 not now'])
  client.session.sendBatch(1, 50, [batch(50, 20)]) // was being encoded
  t.same(client.pull(), ['5 3 6', '5 4 6', '3 1 20'])
  client.session.resetFlow(1, 0, '')
  client.pull()
  client.say(FRAME.END, 1)
  t.equal(client.log.at(-1), 'end 1')
})

t.test('what the server of a session that has ended never heard of', async t => {
  const unheard = (end: (bench: Bench) => void): boolean[] => {
    const bench = new Bench('client')
    for (let flow = 1; flow <= 3; flow++) bench.session.openFlow(INFO)
    bench.pull()
    bench.say(FRAME.CREDIT, 1, u64(1 << 20)).say(FRAME.RESET, 3, REFUSED_PAYLOAD)
    bench.session.openFlow(INFO)
    end(bench)
    return [1, 2, 3, 4].map(flow => bench.session.isUnheard(flow))
  }
  const lost = (bench: Bench): void => {
    bench.session.abort(new ProxyError('PEER_LOST', 'gone', undefined, ''), 0)
  }
  t.same(unheard(lost), [false, true, false, true])
  t.same(
    unheard(bench => void bench.say(FRAME.BYE, 0, hex('0000'))),
    [false, true, false, true],
  )
  t.same(
    unheard(bench => lost(bench.ack(3))),
    [false, false, false, true],
    'an acknowledged OPEN was heard',
  )
  t.same(
    unheard(() => {}),
    [false, false, false, false],
    'not while the session lives',
  )
})

t.test('whether the client knows that a flow is taken', async t => {
  const server = new Bench('server').say(FRAME.OPEN, 1, openPayload())
  t.notOk(server.session.isKnownTaken(1), 'nobody has been told')
  server.pull()
  t.notOk(server.session.isKnownTaken(1), 'what is sent may be lost')
  server.ack()
  t.ok(server.session.isKnownTaken(1))
  server.say(FRAME.OPEN, 2, openPayload())
  server.pull()
  t.notOk(server.session.isKnownTaken(2), 'each for itself')
  server.session.detach(0, 0)
  server.session.attach(0, 2, 0)
  t.ok(server.session.isKnownTaken(2), 'as a hello says it')
  t.notOk(server.session.isKnownTaken(3), 'of one that nobody opened')
})

t.test('what a lost connection carried goes out again', async t => {
  const bench = new Bench('client')
  const { session } = bench
  session.attach(1, 0, 0)
  const flow = session.openFlow(INFO)
  session.sendBatch(flow, 100_000, [batch(100_000, 40_000)])
  bench.pull(0, 1000) // OPEN and a part on the first connection
  bench.pull(1, 1000) // a part on the second
  const sent = bench.frames.filter(frame => frame.sequence > 0).map(frame => frame.sequence)
  t.same(sent, [1, 2, 3])
  session.detach(0, 0)
  bench.frames = []
  bench.pull(1)
  const again = bench.frames.filter(frame => frame.sequence > 0).map(frame => frame.sequence)
  t.same(again, [1, 2, 4], 'in order, before what is new; 3 is still under way')
  session.detach(1, 0)
  bench.frames = []
  session.attach(0, 2, 0)
  bench.pull(0)
  t.same(
    bench.frames.filter(frame => frame.sequence > 0).map(frame => frame.sequence),
    [3, 4],
    'after the hello: what the peer does not have',
  )
  t.equal(session.stats().resentBytes, 16 + JSON.stringify(INFO).length + 2 * 16400 + 16 + 7232)
})

t.test('what was counted on one connection is not sent again when a gap keeps it unacknowledged', async t => {
  const bench = new Bench('client')
  const { session } = bench
  session.attach(1, 0, 0)
  const flow = session.openFlow(INFO)
  session.sendBatch(flow, 30_000, [batch(30_000, 30_000)])
  bench.pull(1, 1) // a PING
  bench.pull(0, 10) // 1
  bench.pull(1, 16_384 + 17) // 2 and 3
  bench.ack(0, 2, 1)
  session.detach(1, 0)
  session.detach(0, 0)
  session.attach(0, 0, 0)
  bench.frames = []
  bench.pull(0)
  t.same(
    bench.frames.filter(frame => frame.sequence > 0).map(frame => frame.sequence),
    [1],
  )
})

t.test('the second number of an ACK counts what arrives, also for the second time', async t => {
  const bench = new Bench('server')
  bench.session.attach(1, 0, 0)
  const counts = (connection: number): number[] => {
    bench.now += 20
    bench.session.tick(bench.now)
    bench.frames = []
    bench.pull(connection)
    const ack = bench.frames.find(({ type }) => type === FRAME.ACK)
    return ack ? [readU64(ack.payload, 0), readU64(ack.payload, 8)] : []
  }
  bench.say(FRAME.OPEN, 1, openPayload()).say(FRAME.DATA, 1, ascii('a'))
  bench.sayNumbered(2, FRAME.DATA, 1, ascii('a')) // on the same connection again
  bench.sayNumbered(1, FRAME.OPEN, 1, openPayload(), 0, 1) // and on another
  bench.sayNumbered(4, FRAME.DATA, 1, ascii('c'), 0, 1).sayNumbered(4, FRAME.DATA, 1, ascii('c'), 0, 1) // ahead, twice
  t.same(
    [counts(0), counts(1)],
    [
      [2, 3],
      [2, 3],
    ],
  )
  bench.sayNumbered(3, 0x80, 0, ascii('later')) // a type that is ignored
  t.same([counts(0), counts(1)], [[4, 4], []])
  t.equal(bench.dead, null)
})

t.test('frames in any order', async t => {
  const bench = new Bench('server')
  bench.session.attach(1, 0, 0)
  bench.sayNumbered(3, FRAME.FIN, 1, new Uint8Array(0), 0, 1)
  bench.sayNumbered(2, FRAME.DATA, 1, ascii('ab'), 0, 1)
  bench.sayNumbered(2, FRAME.DATA, 1, ascii('ab'), 0, 0)
  t.same([bench.log.length, bench.session.received, bench.session.stats().duplicates], [0, 0, 1])
  bench.sayNumbered(1, FRAME.OPEN, 1, openPayload(), 0, 0)
  t.same(bench.log, ['open 1', 'data 1 2', 'fin 1'])
  bench.sayNumbered(1, FRAME.OPEN, 1, openPayload(), 0, 1)
  t.same([bench.log.length, bench.session.received, bench.session.stats().duplicates], [3, 3, 2])
  bench.now = 2
  bench.session.tick(2)
  for (const [connection, frames] of [
    [0, 2],
    [1, 3],
  ] as const) {
    bench.frames = []
    bench.pull(connection)
    const ack = bench.frames.find(frame => frame.type === FRAME.ACK)!
    t.same([ack.payload[7], ack.payload[15]], [3, frames], `ACK on connection ${connection}`)
  }
})

t.test('credit comes back when bytes are consumed', async t => {
  const bench = new Bench('server')
  const { session } = bench
  bench.say(FRAME.OPEN, 1, openPayload())
  for (let i = 0; i < 3; i++) bench.say(FRAME.BATCH, 1, batch(100_000, 50))
  bench.pull()
  session.consumed(1, 200_000)
  t.same(bench.pull(), [], 'not before a quarter of the window')
  session.consumed(1, 100_000)
  t.same(bench.pull(), ['6 1 8'])
  const told = Buffer.from(bench.frames.at(-1)!.payload).readBigUInt64BE()
  t.equal(Number(told), 300_000 + (1 << 20))
  t.equal(
    codeOf(() => session.consumed(1, 1)),
    'INTERNAL',
    'more than arrived',
  )
})

t.test('a migration that is taken may send at once what known pages need of a long way', async t => {
  const windows = (rttMs: number, flows: number, disk = false): { sizes: number[]; room: number } => {
    const memory = new FairShares(limits.MEMORY_BUDGET_BYTES).share('a')
    const bench = new Bench('server', {}, false, { memory, initialCredit: limits.CREDIT_INITIAL_BYTES })
    bench.session.attach(0, 0, 0)
    bench.pull()
    bench.now = rttMs
    if (rttMs > 0) bench.say(FRAME.PONG, 0, bench.frames[0]!.payload)
    for (let flow = 1; flow <= flows; flow++)
      bench.say(FRAME.OPEN, flow, openPayload(disk ? { ...INFO, kind: 'disk' } : INFO))
    return { sizes: bench.session.stats().flows.map(({ window }) => window), room: memory.room }
  }
  const batch = limits.CREDIT_TAKEN_BYTES
  t.same(windows(40, 1).sizes, [16_000_000], '40 ms')
  t.same(windows(200, 1).sizes, [limits.CREDIT_TAKEN_BYTES_MAX], '200 ms: no more')
  t.same(windows(2, 1).sizes, [batch], 'a LAN: a batch')
  t.same(windows(0, 1).sizes, [batch], 'a way that is not known: a batch')
  t.same(windows(40, 1, true).sizes, [batch], 'a disk: a batch')
  const many = windows(40, 17)
  t.ok(many.sizes[16]! > 3 * batch, `sixteen channels of multifd: ${many.sizes[16]} of the last`)
  t.ok(many.room > limits.CREDIT_KEPT_BYTES, `${many.room} are left for what else needs memory`)
  const most = windows(200, 200)
  t.ok(most.room >= 0 && Math.min(...most.sizes) >= limits.CREDIT_INITIAL_BYTES, 'of 200 each has what the hello says')
  const sum = most.sizes.reduce((all, one) => all + one - limits.CREDIT_INITIAL_BYTES, 0)
  t.ok(sum <= limits.MEMORY_BUDGET_BYTES / 2, `${sum} of 200: never more than an identity's half`)
  const taken = windows(200, 100)
  t.ok(
    Math.min(...taken.sizes) >= batch / 2,
    `${Math.min(...taken.sizes)}: what is in advance leaves later ones their batch`,
  )
})

t.test('PADs measure fresh connections once a minute, whichever session to a peer they are of', async t => {
  const warmUp = new WarmUp()
  const pads = (nowMs: number, flows: number, end?: (session: Session) => void): number => {
    const bench = new Bench('client', {}, false, { warmUp })
    bench.now = nowMs
    if (flows > 0) bench.session.openFlow(INFO)
    bench.session.attach(0, 0, nowMs)
    t.notOk(bench.pull().includes('255 0 16368'), 'none before the first round trip')
    bench.now += 40
    bench.say(FRAME.PONG, 0, bench.frames[0]!.payload)
    end?.(bench.session)
    return bench.pull().filter(frame => frame === '255 0 16368').length
  }
  t.equal(pads(0, 0), 4, 'a window of them')
  t.equal(pads(59_000, 0), 0, 'a minute is not over')
  t.equal(pads(61_000, 1), 0, 'somebody waits already')
  t.equal(pads(61_000, 0), 4, 'which was not one of them')
  t.equal(
    pads(122_000, 0, session => session.openFlow(INFO)),
    0,
    'somebody came meanwhile',
  )
  t.equal(
    pads(183_000, 0, session => session.close(183_040)),
    0,
    'it ends',
  )
  const again = new Bench('client', {}, false, { warmUp: new WarmUp() })
  const connect = (nowMs: number): string[] => {
    again.now = nowMs
    again.session.attach(0, 0, nowMs)
    const first = again.pull()
    again.now += 40
    again.say(FRAME.PONG, 0, again.frames.find(({ type }) => type === FRAME.PING)!.payload)
    return [...first, ...again.pull()].filter(frame => frame.startsWith('255 '))
  }
  t.equal(connect(0).filter(frame => frame === '255 0 16368').length, 4)
  again.session.detach(0, 100)
  t.same(
    connect(1000),
    new Array(4).fill('255 0 0'),
    'what was lost is owed by number, and nothing is left of the rest',
  )
  again.session.close(2000)
  again.session.detach(0, 2000)
  t.same(connect(70_000), new Array(4).fill('255 0 0'), 'a session that ends measures nothing')
  const bench = new Bench('server')
  bench.sayNumbered(1, FRAME.PAD, 0, new Uint8Array(16368)).sayNumbered(2, FRAME.OPEN, 1, openPayload())
  t.same([bench.log, bench.dead], [['open 1'], null], 'who gets them throws them away, and counts them')
  t.equal(bench.session.received, 2)
})

t.test('a flow begins with what the hellos say, and is given more out of the budget', async t => {
  const budget = new FairShares(8 << 20)
  const options = () => ({ initialCredit: 65536, memory: budget.share('a') })
  const bench = new Bench('server', {}, true, options())
  const inside = bench.session as unknown as { flows: { table: { get(flow: number): { window: ReceiveWindow } } } }
  const grow = (flow: number): void => void inside.flows.table.get(flow).window.grow(1 << 20)
  for (let flow = 1; flow <= 100; flow++) bench.say(FRAME.OPEN, flow, openPayload())
  bench.pull()
  const told = bench.frames
    .filter(({ type }) => type === FRAME.CREDIT)
    .map(({ payload }) => Number(readU64(payload, 0)))
  t.equal(told[0], limits.CREDIT_TAKEN_BYTES, 'the first of them a whole batch')
  t.equal(told.at(-1), 65536, 'the last of them what all begin with')
  t.equal(budget.used, 4 << 20, 'one identity gets half of the budget')
  t.equal(
    new Bench('server', {}, true, options()).say(FRAME.OPEN, 1, openPayload()).session.stats().flows[0]!.window,
    65536,
  )
  grow(100)
  bench.session.resetFlow(1, 1, 'gone')
  bench.say(FRAME.FIN, 1)
  grow(100)
  t.equal(bench.session.stats().flows.at(-1)!.window, 1 << 20, 'a flow that ends gives its part back')
  const other = new Bench('server', {}, true, { initialCredit: 65536, memory: budget.share('b') })
  other.say(FRAME.OPEN, 1, openPayload())
  t.equal(other.session.stats().flows[0]!.window, 1 << 20, 'another identity finds something')
  bench.session.abort(new ProxyError('INTERNAL', 'test', undefined, ''), 0)
  t.ok(budget.used < 1 << 20, 'a session that ends gives all back')

  const client = new Bench('client', {}, false)
  const flow = client.session.openFlow(INFO)
  t.equal(client.session.credit(flow), 0, 'nobody has said yet what a flow begins with')
  client.session.attach(0, 0, 0, 70_000)
  t.equal(client.session.credit(flow), 70_000)
  t.same(client.log, ['credit 1'])
  client.session.attach(1, 0, 0, 90_000)
  t.equal(client.session.credit(client.session.openFlow(INFO)), 70_000, 'the first hello counts')
})

t.test('the window grows while the QEMU keeps up, within bounds', async t => {
  const bench = new Bench('server')
  const { session } = bench
  for (let flow = 1; flow <= 4; flow++) bench.say(FRAME.OPEN, flow, openPayload())
  for (let round = 0; round < 2000; round++) {
    bench.now += 2
    session.tick(bench.now)
    for (let flow = 1; flow <= 4; flow++) {
      const { window } = session.stats().flows[flow - 1]!
      for (let raw = 0; raw < window; raw += 1 << 20) bench.say(FRAME.BATCH, flow, batch(1 << 20, 20))
      session.consumed(flow, Math.ceil(window / (1 << 20)) << 20)
    }
    bench.pull()
    bench.ack()
    if (round % 100 === 0 && session.stats().flows.every(({ window }) => window >= 128 << 20)) break
  }
  const windows = session.stats().flows.map(({ window }) => window)
  t.ok(windows.every(window => window <= limits.CREDIT_FLOW_BYTES_MAX))
  const grown = windows.reduce((sum, window) => sum + window - CREDIT, 0)
  t.ok(grown <= limits.MEMORY_BUDGET_BYTES / 2, `${grown} bytes of growth`)
  t.ok(grown > limits.MEMORY_BUDGET_BYTES / 4, `${grown} bytes of growth`)
  t.equal(bench.dead, null)
})

t.test('closing delivers everything, then says BYE', async t => {
  const bench = new Bench('server')
  const { session } = bench
  bench.say(FRAME.OPEN, 1, openPayload())
  session.sendData(1, ascii('SHUT'))
  session.finFlow(1)
  session.close(0)
  t.same(bench.pull(), ['6 1 8', '2 1 4', '4 1 0'])
  t.same(bench.pull(), [], 'no BYE before the ACK')
  session.detach(0, 1)
  t.equal(session.state, 'stranded')
  bench.now = 5000
  session.attach(0, 0, 5000)
  t.same(bench.pull(), ['6 1 8', '2 1 4', '4 1 0'], 'again on the next connection')
  bench.ack(3, 3)
  t.same([session.state, bench.pull(), session.isDone(0)], ['closed', ['19 0 2'], true])
  session.attach(1, 0, 5001)
  t.same(bench.pull(1), ['19 0 2'], 'a connection that comes late is told too')
})

t.test('the clock of a session', async t => {
  const bench = new Bench('client')
  const { session } = bench
  session.attach(0, 0, 0)
  bench.pull()
  t.equal(bench.frames[0]!.type, FRAME.PING, 'a PING at once measures the round trip')
  t.equal(session.nextTickMs, 1000)
  bench.now = 30
  bench.say(FRAME.PONG, 0, bench.frames[0]!.payload)
  t.equal(session.stats().rttMs, 30)
  for (const ms of [1000, 2000, 3000, 4000, 5000]) {
    session.tick(ms)
    bench.now = ms
    bench.pull()
  }
  t.equal(bench.frames.length, 6)
  t.equal(session.nextTickMs, 5030)
  session.tick(5030)
  t.same([bench.log, session.state], [['lost 0'], 'broken'])
  t.equal(session.nextTickMs, 5030 + limits.PATIENCE_MS)
  session.tick(5030 + limits.PATIENCE_MS - 1)
  t.equal(session.state, 'broken')
  session.tick(5030 + limits.PATIENCE_MS)
  t.same([bench.log[1], session.state], ['dead PEER_LOST', 'closed'])
  t.equal(session.nextTickMs, Number.POSITIVE_INFINITY)
})

t.test('a process that stood still blames nobody', async t => {
  const { session, log } = new Bench('client')
  for (let ms = 1000; ms <= 3000; ms += 1000) session.tick(ms)
  session.tick(60_000)
  t.same(log, [], 'the sockets are read first')
  for (let ms = 61_000; ms < 63_000; ms += 1000) session.tick(ms)
  t.same(log, ['lost 0'], 'then silence counts again')
})

t.test('BYE of the peer', async t => {
  const bench = new Bench('client')
  bench.session.openFlow(INFO)
  bench.say(FRAME.BYE, 0, join(hex('0007'), ascii('wrong bytes')))
  t.same(bench.log, ['bye 7 wrong bytes'])
  t.same([bench.session.state, bench.pull(), bench.session.isDone(0)], ['closed', [], true])
  bench.session.sendData(1, ascii('late'))
  bench.session.finFlow(1)
  bench.session.resetFlow(1, 0, '')
  bench.session.consumed(1, 5)
  t.same(bench.pull(), [], 'calls for flows that are gone do nothing')
})

// Failing links -------------------------------------------------------------------------------------------------------

t.test('10,000 runs over failing links', async t => {
  const from = Number(process.env.SESSION_SEED ?? 1)
  const runs = Number(process.env.SESSION_RUNS ?? 10_000)
  const started = performance.now()
  const ends: Record<string, number> = {}
  let failures = 0
  let bytes = 0
  for (let seed = from; seed < from + runs; seed++) {
    const outcome = simulate(seed)
    ends[outcome.end] = (ends[outcome.end] ?? 0) + 1
    bytes += outcome.bytes
    if (outcome.failure === null) continue
    t.fail(`SESSION_SEED=${seed} SESSION_RUNS=1: ${outcome.failure}`, { faults: outcome.faults })
    if (++failures >= 5) break
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1)
  t.comment(`${runs} runs in ${seconds} s, ${(bytes / 1e6).toFixed(0)} MB; ended: ${JSON.stringify(ends)}`)
  if (runs >= 1000) t.ok((ends.bye ?? 0) > runs * 0.9, 'nearly all of them end in order')
})

t.test('the simulation notices what is planted', async t => {
  for (const [name, plant] of Object.entries(PLANTS)) {
    let seed = 1
    while (seed <= 1000 && simulate(seed, plant).failure === null) seed++
    t.ok(seed <= 1000, `a session that ${name}: caught by seed ${seed}`)
  }
})
