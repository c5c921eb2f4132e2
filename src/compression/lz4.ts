/**
 * LZ4 blocks. The package `lz4` is the fastest codec that npm has, but its addon is bound to one Node ABI; where it cannot
 * be loaded, `lz4-napi` (prebuilt, slower) makes the same blocks. docs/adr/0004-compression.md has the figures.
 */
import { createRequire } from 'node:module'
import { ProxyError } from '../errors.ts'

/** Packs and unpacks LZ4 blocks between views of any memory, shared memory too. */
export interface Lz4 {
  readonly implementation: 'lz4' | 'lz4-napi'
  /** @returns bytes written to `out`; 0 where they do not fit */
  encodeBlock(input: Buffer, out: Buffer): number
  /** @throws BATCH_FORMAT where the block is damaged or does not give exactly out.length bytes */
  decodeBlock(input: Buffer, out: Buffer): void
}

/** Addresses in a memory: pack [at, at + length) to `out`, where `room` bytes are free. */
export interface Lz4Job {
  readonly at: number
  readonly length: number
  readonly out: number
  readonly room: number
}

/** @returns packed length of each, 0 where it did not fit */
export function packLz4(memory: SharedArrayBuffer, jobs: readonly Lz4Job[]): number[] {
  const lz4 = loadLz4()
  return jobs.map(({ at, length, out, room }) =>
    lz4.encodeBlock(Buffer.from(memory, at, length), Buffer.from(memory, out, room)),
  )
}

interface Lz4Package {
  encodeBlock(input: Buffer, out: Buffer): number
  decodeBlock(input: Buffer, out: Buffer): number
}

interface Lz4Napi {
  compressSync(input: Buffer): Buffer
  uncompressSync(input: Buffer): Buffer
}

/** lz4-napi puts the raw length, u32 little-endian, in front of its blocks; the wire has no such thing. */
const NAPI_HEAD = 4

let loaded: Lz4 | undefined

/** The implementation that works here. @throws INTERNAL where none does */
export function loadLz4(prefer?: Lz4['implementation']): Lz4 {
  if (loaded && (prefer === undefined || loaded.implementation === prefer)) return loaded
  const require = createRequire(import.meta.url)
  let cause: unknown
  if (prefer !== 'lz4-napi') {
    try {
      loaded = fromPackage(require('lz4') as Lz4Package)
      return loaded
    } catch (error) {
      cause = error // built for another Node, or not built
    }
  }
  try {
    loaded = fromNapi(require('lz4-napi') as Lz4Napi)
    return loaded
  } catch (error) {
    throw new ProxyError('INTERNAL', 'no LZ4 implementation can be loaded', undefined, 'run npm ci again', {
      cause: error ?? cause,
    })
  }
}

function fromPackage(lz4: Lz4Package): Lz4 {
  return {
    implementation: 'lz4',
    encodeBlock: (input, out) => lz4.encodeBlock(input, out),
    decodeBlock(input, out) {
      if (lz4.decodeBlock(input, out) !== out.length) throw damaged()
    },
  }
}

function fromNapi(napi: Lz4Napi): Lz4 {
  return {
    implementation: 'lz4-napi',
    encodeBlock(input, out) {
      const packed = napi.compressSync(input)
      const length = packed.length - NAPI_HEAD
      if (length > out.length) return 0
      packed.copy(out, 0, NAPI_HEAD)
      return length
    },
    decodeBlock(input, out) {
      const block = Buffer.alloc(NAPI_HEAD + input.length)
      block.writeUInt32LE(out.length)
      input.copy(block, NAPI_HEAD)
      let raw: Buffer
      try {
        raw = napi.uncompressSync(block)
      } catch (cause) {
        throw damaged(cause)
      }
      if (raw.length !== out.length) throw damaged()
      raw.copy(out)
    },
  }
}

function damaged(cause?: unknown): ProxyError {
  return new ProxyError(
    'BATCH_FORMAT',
    'an LZ4 block is damaged',
    undefined,
    'the session ends and the source guest goes on',
    {
      cause,
    },
  )
}
