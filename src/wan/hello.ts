/**
 * Hellos (protocol.md §2): the first bytes of a connection, each way. What a stranger sends is checked here before it
 * takes more than a few KiB; TLS has told by now who it is, or nobody has.
 */

import { readU16, readU32, writeU16, writeU32 } from '../bytes/big-endian.ts'
import { type ErrorCode, ProxyError } from '../errors.ts'
import {
  CONNECTIONS_MAX,
  CREDIT_FLOW_BYTES_MAX,
  CREDIT_INITIAL_BYTES_MIN,
  HELLO_BODY_BYTES_MAX,
  HELLO_FEATURES_MAX,
  HELLO_SETS_MAX,
  HELLO_TARGETS_MAX,
  KEPT_BLOCKS_MAX,
  LABEL_LENGTH_MAX,
  PLACES_MAX,
  RING_PAGES_MAX,
  TARGET_LENGTH_MAX,
  TEXT_BYTES_MAX,
} from '../limits.ts'
import {
  FEATURE,
  FEATURES,
  HELLO_HEAD_BYTES,
  MAGIC,
  REFUSALS,
  type Refusal,
  SEQUENCE_END,
  VERSION_MAJOR,
  VERSION_MINOR,
} from './wire.ts'

/** What the client says. Digests, tokens, seeds and ids are lower case hex digits. */
export interface ClientHello {
  readonly agent: string
  /** Stable name of the client among those of its identity, and a name of its process, where it tells them. */
  readonly instance?: string
  readonly process?: string
  readonly session: string
  readonly connection: number
  readonly connections: number
  /** null opens a session; else the token that the server gave then. */
  readonly token: string | null
  readonly received: number
  /** Bytes of credit that each flow to the client begins with. */
  readonly credit: number
  readonly sets: readonly string[]
  /** Further sets, which it would use from its disk; left out: none. Needs the feature COLD_SETS, as in the server's. */
  readonly cold?: readonly string[]
  readonly ring: number
  readonly places: number
  /** Blocks of disks that the client can keep on its own; left out: none. Needs the feature KEPT_BLOCKS, as in the server's. */
  readonly kept?: number
  readonly seed: string
  /** Optional parts of the protocol that the client can do; left out: none. */
  readonly features?: readonly string[]
}

/** What the server says to a client that it takes. */
export interface ServerHello {
  readonly agent: string
  readonly token: string
  readonly received: number
  /** Bytes of credit that each flow to the server begins with. */
  readonly credit: number
  readonly sets: readonly string[]
  /** Those of the client's `sets` and `cold` that it reads from its disk; left out: none. */
  readonly cold?: readonly string[]
  readonly ring: number
  readonly places: number
  /** Blocks of disks that both sides keep; left out: none. */
  readonly kept?: number
  readonly targets: readonly string[]
  /** Those of the client's that are in use. */
  readonly features?: readonly string[]
}

/** A server's no. */
export interface RefuseHello {
  readonly agent: string
  readonly refuse: { readonly code: Refusal; readonly text: string }
}

const WHERE = { stream: 'hello', offset: 0 }

function fail(code: ErrorCode, what: string, offset = HELLO_HEAD_BYTES): never {
  throw new ProxyError(code, what, { ...WHERE, offset }, 'the connection is closed')
}

function encode(body: unknown): Uint8Array {
  const json = new TextEncoder().encode(JSON.stringify(body))
  if (json.length > HELLO_BODY_BYTES_MAX) fail('LIMIT_EXCEEDED', `hello of ${json.length} bytes`)
  const bytes = new Uint8Array(HELLO_HEAD_BYTES + json.length)
  bytes.set(MAGIC)
  writeU16(bytes, 8, VERSION_MAJOR)
  writeU16(bytes, 10, VERSION_MINOR)
  writeU32(bytes, 12, json.length)
  bytes.set(json, HELLO_HEAD_BYTES)
  return bytes
}

/** The two u32 that a hello's seed of 8 bytes is to the kernel, the low one first. */
export function seedWords(seed: Buffer): readonly [number, number] {
  return [seed.readUInt32BE(4), seed.readUInt32BE(0)]
}

/** @throws ProxyError as `clientHelloOf`, where this side's own configuration breaks a bound */
export function encodeClientHello(hello: ClientHello): Uint8Array {
  return encode(clientHelloOf(hello))
}

/** Target names beyond the bounds are left out: the list only informs. */
export function encodeServerHello(hello: ServerHello): Uint8Array {
  const targets = hello.targets
    .filter(name => name.length >= 1 && name.length <= TARGET_LENGTH_MAX)
    .slice(0, HELLO_TARGETS_MAX)
  return encode(serverHelloOf({ ...hello, targets }))
}

export function encodeRefusal(agent: string, code: Refusal, text: string): Uint8Array {
  return encode({ agent: agent.slice(0, LABEL_LENGTH_MAX), refuse: { code, text: text.slice(0, TEXT_BYTES_MAX) } })
}

/**
 * Takes a hello in pieces cut anywhere. The magic is checked byte by byte as it comes, the length before memory is taken
 * for it, and memory grows with what has come, not with what is announced.
 */
export class HelloDecoder {
  private bytes = new Uint8Array(1024)
  private have = 0
  private need = HELLO_HEAD_BYTES

  /**
   * @returns null while the hello is not complete; then its body, and what follows it (a view of `chunk`)
   * @throws ProxyError PROTOCOL_SYNTAX (not our protocol, or no JSON object), PROTOCOL_VERSION (another major version:
   *   answer with `encodeRefusal`), LIMIT_EXCEEDED
   */
  push(chunk: Uint8Array): { body: Record<string, unknown>; rest: Uint8Array } | null {
    let at = 0
    while (at < chunk.length && this.have < this.need) {
      const take = Math.min(this.need - this.have, chunk.length - at)
      this.reserve(this.have + take)
      this.bytes.set(chunk.subarray(at, at + take), this.have)
      const checked = this.have
      this.have += take
      at += take
      for (let i = checked; i < Math.min(this.have, MAGIC.length); i++) {
        if (this.bytes[i] !== MAGIC[i]) fail('PROTOCOL_SYNTAX', 'the peer does not speak Pageferry', i)
      }
      if (this.have >= 10 && readU16(this.bytes, 8) !== VERSION_MAJOR) {
        fail(
          'PROTOCOL_VERSION',
          `the peer speaks version ${readU16(this.bytes, 8)}; this is version ${VERSION_MAJOR}`,
          8,
        )
      }
      if (this.have >= HELLO_HEAD_BYTES) {
        const length = readU32(this.bytes, 12)
        if (length > HELLO_BODY_BYTES_MAX) fail('LIMIT_EXCEEDED', `hello of ${length} bytes`, 12)
        if (length < 2) fail('PROTOCOL_SYNTAX', `hello of ${length} bytes`, 12)
        this.need = HELLO_HEAD_BYTES + length
      }
    }
    if (this.have < this.need || this.need === HELLO_HEAD_BYTES) return null
    return { body: parseBody(this.bytes.subarray(HELLO_HEAD_BYTES, this.have)), rest: chunk.subarray(at) }
  }

  private reserve(size: number): void {
    if (size <= this.bytes.length) return
    const grown = new Uint8Array(
      Math.min(Math.max(size, this.bytes.length * 2), HELLO_HEAD_BYTES + HELLO_BODY_BYTES_MAX),
    )
    grown.set(this.bytes.subarray(0, this.have))
    this.bytes = grown
  }
}

function parseBody(json: Uint8Array): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(json))
  } catch {
    fail('PROTOCOL_SYNTAX', 'the hello is not JSON')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    fail('PROTOCOL_SYNTAX', 'the hello is not a JSON object')
  }
  return value as Record<string, unknown>
}

function field(body: object, name: string): unknown {
  // Own fields only: a field that is missing must not be found in Object.prototype.
  return Object.hasOwn(body, name) ? (body as Record<string, unknown>)[name] : undefined
}

function text(body: object, name: string, min: number, max: number): string {
  const value = field(body, name)
  if (typeof value !== 'string') fail('PROTOCOL_SYNTAX', `${name} is not a string`)
  if (value.length < min) fail('PROTOCOL_SYNTAX', `${name} is empty`)
  if (value.length > max) fail('LIMIT_EXCEEDED', `${name} has ${value.length} characters, more than ${max}`)
  return value
}

function integer(body: object, name: string, min: number, max: number): number {
  const value = field(body, name)
  if (typeof value !== 'number' || !Number.isSafeInteger(value)) fail('PROTOCOL_SYNTAX', `${name} is not an integer`)
  if (value < min || value > max) fail('LIMIT_EXCEEDED', `${name} ${value} is not in ${min}..${max}`)
  return value
}

function isHex(value: unknown, digits: number): value is string {
  return typeof value === 'string' && value.length === digits && /^[0-9a-f]*$/.test(value)
}

function hex(body: object, name: string, digits: number): string {
  const value = field(body, name)
  if (!isHex(value, digits)) fail('PROTOCOL_SYNTAX', `${name} is not ${digits} hex digits`)
  return value
}

function places(body: object): number {
  const value = integer(body, 'places', 0, PLACES_MAX)
  if (value !== 0 && !Number.isInteger(Math.log2(value))) fail('PROTOCOL_SYNTAX', `places ${value} is no power of two`)
  return value
}

function credit(body: object): number {
  // The one field that is younger than the rest: say what is wrong, not what is missing.
  if (field(body, 'credit') === undefined) fail('PROTOCOL_VERSION', 'the peer is older: its hello has no credit')
  return integer(body, 'credit', CREDIT_INITIAL_BYTES_MIN, CREDIT_FLOW_BYTES_MAX)
}

/** @returns the field where it names anything, to be spread */
function features(body: object): { readonly features?: string[] } {
  const value = field(body, 'features')
  if (value === undefined) return {}
  if (!Array.isArray(value)) fail('PROTOCOL_SYNTAX', 'features is not an array')
  if (value.length > HELLO_FEATURES_MAX) fail('LIMIT_EXCEEDED', `${value.length} features`)
  for (const name of value) {
    if (typeof name !== 'string' || !/^[a-z0-9-]+$/.test(name)) fail('PROTOCOL_SYNTAX', 'a feature is no name')
    if (name.length > LABEL_LENGTH_MAX) fail('LIMIT_EXCEEDED', `a feature has ${name.length} characters`)
  }
  if (new Set(value).size !== value.length) fail('PROTOCOL_SYNTAX', 'a feature is named twice')
  return value.length === 0 ? {} : { features: value.slice() }
}

/** Server: those of a client's features that this side can do too, in the client's order. To be spread. */
export function agreedFeatures(hello: ClientHello): { readonly features?: readonly string[] } {
  const known = hello.features?.filter(name => FEATURES.includes(name)) ?? []
  return known.length === 0 ? {} : { features: known }
}

function setList(body: object, name = 'sets'): string[] {
  const value = field(body, name)
  if (!Array.isArray(value)) fail('PROTOCOL_SYNTAX', `${name} is not an array`)
  if (value.length > HELLO_SETS_MAX) fail('LIMIT_EXCEEDED', `${value.length} sets, more than ${HELLO_SETS_MAX}`)
  for (const digest of value) if (!isHex(digest, 64)) fail('PROTOCOL_SYNTAX', 'a set is not 64 hex digits')
  if (new Set(value).size !== value.length) fail('PROTOCOL_SYNTAX', 'a set is named twice')
  return value.slice()
}

/** @returns the cold sets where there are any, to be spread */
function coldList(body: object): { readonly cold?: string[] } {
  const said = features(body).features?.includes(FEATURE.COLD_SETS) && field(body, 'cold') !== undefined
  if (!said) return {} // without the feature the field is one that nobody knows
  const cold = setList(body, 'cold')
  const sets = setList(body)
  if (cold.some(digest => sets.includes(digest))) fail('PROTOCOL_SYNTAX', 'a set is named twice')
  return cold.length === 0 ? {} : { cold }
}

/** @returns how many blocks are kept where there are any, to be spread */
function keptBlocks(body: object): { readonly kept?: number } {
  const said = features(body).features?.includes(FEATURE.KEPT_BLOCKS) && field(body, 'kept') !== undefined
  if (!said) return {}
  const kept = integer(body, 'kept', 0, KEPT_BLOCKS_MAX)
  return kept === 0 ? {} : { kept }
}

/**
 * The client's hello out of a body.
 * @throws ProxyError PROTOCOL_SYNTAX, LIMIT_EXCEEDED
 */
export function clientHelloOf(body: object): ClientHello {
  const connections = integer(body, 'connections', 1, CONNECTIONS_MAX)
  return {
    agent: text(body, 'agent', 0, LABEL_LENGTH_MAX),
    ...(field(body, 'instance') !== undefined && { instance: text(body, 'instance', 1, LABEL_LENGTH_MAX) }),
    ...(field(body, 'process') !== undefined && { process: text(body, 'process', 1, LABEL_LENGTH_MAX) }),
    session: hex(body, 'session', 32),
    connection: integer(body, 'connection', 0, connections - 1),
    connections,
    token: field(body, 'token') === null ? null : hex(body, 'token', 64),
    received: integer(body, 'received', 0, SEQUENCE_END - 1),
    credit: credit(body),
    sets: setList(body),
    ...coldList(body),
    ring: integer(body, 'ring', 0, RING_PAGES_MAX),
    places: places(body),
    ...keptBlocks(body),
    seed: hex(body, 'seed', 16),
    ...features(body),
  }
}

/**
 * The server's hello out of a body.
 * @param asked what the client said: the server may not take more
 * @throws ProxyError PROTOCOL_SYNTAX, LIMIT_EXCEEDED
 */
export function serverHelloOf(body: object, asked?: ClientHello): ServerHello | RefuseHello {
  const agent = text(body, 'agent', 0, LABEL_LENGTH_MAX)
  const refuse = field(body, 'refuse')
  if (refuse !== undefined) {
    if (typeof refuse !== 'object' || refuse === null) fail('PROTOCOL_SYNTAX', 'refuse is not an object')
    const code = REFUSALS.find(known => known === field(refuse, 'code'))
    // A code that this version does not know is still a no.
    return { agent, refuse: { code: code ?? 'PROTOCOL_STATE', text: text(refuse, 'text', 0, TEXT_BYTES_MAX) } }
  }
  const targets = field(body, 'targets')
  if (!Array.isArray(targets)) fail('PROTOCOL_SYNTAX', 'targets is not an array')
  if (targets.length > HELLO_TARGETS_MAX) fail('LIMIT_EXCEEDED', `${targets.length} targets`)
  const hello: ServerHello = {
    agent,
    token: hex(body, 'token', 64),
    received: integer(body, 'received', 0, SEQUENCE_END - 1),
    credit: credit(body),
    sets: setList(body),
    ...coldList(body),
    ring: integer(body, 'ring', 0, RING_PAGES_MAX),
    places: places(body),
    ...keptBlocks(body),
    targets: targets.map(name => text({ target: name }, 'target', 1, TARGET_LENGTH_MAX)),
    ...features(body),
  }
  if (asked) {
    // The order matters: it gives the slots of the pool, and both sides must count them alike.
    const inOrder = (used: readonly string[], offered: readonly string[]): void => {
      let from = 0
      for (const digest of used) {
        from = offered.indexOf(digest, from) + 1
        if (from === 0) fail('PROTOCOL_SYNTAX', 'the server uses sets that were not offered, or in another order')
      }
    }
    inOrder(hello.sets, asked.sets)
    inOrder(hello.cold ?? [], [...asked.sets, ...(asked.cold ?? [])])
    if (hello.features?.some(name => !asked.features?.includes(name))) {
      fail('PROTOCOL_SYNTAX', 'the server uses features that were not offered')
    }
    if (hello.ring > asked.ring || hello.places > asked.places) {
      fail('PROTOCOL_SYNTAX', 'the server uses a larger ring or place table than was offered')
    }
    if ((hello.kept ?? 0) > (asked.kept ?? 0)) fail('PROTOCOL_SYNTAX', 'the server keeps more blocks than was offered')
  }
  return hello
}

/** True where a server's hello is a no. */
export function isRefusal(hello: ServerHello | RefuseHello): hello is RefuseHello {
  return 'refuse' in hello
}
