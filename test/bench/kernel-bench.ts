/**
 * What the kernel does in a second of CPU time, medians of 5 rounds: `node test/bench/kernel-bench.ts [--twin]`.
 * Cold: templates and input are many times the last-level cache. Give a stream recorded by the lab with
 * `--stream FILE --templates FILE[,FILE]` to see long matches on real memory instead.
 */

import { openSync, readSync, statSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { median } from '../../scripts/harness/median.ts'
import { random } from '../../scripts/harness/random.ts'
import {
  type Kernel,
  KIND,
  layoutMemory,
  loadKernel,
  longEntriesFor,
  MATCH,
  NONE,
  PAGE_BYTES,
  RESULT,
  TOKEN_BYTES,
} from '../../src/kernel/kernel.ts'

const PAGE = PAGE_BYTES
const BATCH = 64

const { values: args } = parseArgs({
  options: {
    twin: { type: 'boolean', default: false },
    pages: { type: 'string', default: '131072' },
    stream: { type: 'string' },
    templates: { type: 'string' },
    ring: { type: 'string', default: '65536' },
    only: { type: 'string' },
  },
})
const implementation = args.twin ? 'twin' : 'simd'

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e6
}

/** Median rate of 5 runs, in units a second of CPU time. */
function rate(units: number, run: () => void): number {
  run()
  const rates: number[] = []
  for (let i = 0; i < 5; i++) {
    const start = cpuSeconds()
    run()
    rates.push(units / (cpuSeconds() - start))
  }
  return median(rates)
}

function report(name: string, value: number, unit: string): void {
  console.log(`${name.padEnd(58)} ${value.toFixed(value < 100 ? 2 : 0).padStart(8)} ${unit}`)
}

/** Lists and areas for one batch, in the first bytes of the io area; the rest is the caller's from `free` on. */
function areas(k: Kernel) {
  const { io } = k.layout
  const list = io
  const places = list + BATCH * 4
  const slots = places + BATCH * 4
  const kinds = slots + BATCH * 4
  const tokens = kinds + BATCH * 4
  const literals = tokens + BATCH * PAGE
  const dense = literals + BATCH * PAGE
  const words = dense + BATCH * PAGE
  const free = Math.ceil((words + BATCH * PAGE) / PAGE) * PAGE
  return {
    list,
    places,
    slots,
    kinds,
    tokens,
    literals,
    dense,
    words,
    free,
    listWords: new Uint32Array(k.memory.buffer, list, BATCH),
    placeWords: new Uint32Array(k.memory.buffer, places, BATCH),
  }
}

function fillRandom(words: Uint32Array, seed: number): void {
  const next = random(seed)
  for (let i = 0; i < words.length; i++) words[i] = next(2 ** 32)
}

function synthetic(): void {
  const templates = Number(args.pages)
  const inputPages = 16384 // 64 MiB
  const layout = layoutMemory({
    role: 'encoder',
    templatePages: templates,
    ringPages: 16384,
    places: 1 << 20,
    ioBytes: inputPages * PAGE + (4 << 20),
  })
  const k = loadKernel(layout, { implementation })
  k.commit(0, k.bytes.length)
  const a = areas(k)
  const words = (at: number, n: number) => new Uint32Array(k.memory.buffer, at, n)
  fillRandom(words(layout.templatesAt, templates * 1024), 1)
  console.log(`${k.implementation}, Node ${process.version}, ${templates} templates`)
  const start = cpuSeconds()
  k.indexTemplates(0, templates)
  report('indexTemplates', (templates * PAGE) / 1e9 / (cpuSeconds() - start), 'GB/s')

  let stamp = 1
  const pick = random(12345)
  const prepare = (hitPercent: number) => {
    for (let i = 0; i < inputPages; i++) {
      const from = layout.templatesAt + pick(templates) * PAGE
      const to = a.free + i * PAGE
      k.bytes.copyWithin(to, from, from + PAGE)
      if (pick(100) >= hitPercent) words(to + 64 * (i & 63), 1)[0] = stamp++
    }
  }
  const match = (placesToo: boolean) => {
    for (let first = 0; first < inputPages; first += BATCH) {
      for (let j = 0; j < BATCH; j++) {
        a.listWords[j] = a.free + (first + j) * PAGE
        a.placeWords[j] = placesToo ? first + j : NONE
      }
      k.matchPages(a.list, a.places, BATCH, a.kinds, a.slots, a.tokens, a.literals, a.dense, a.words, 0)
    }
  }
  for (const hits of [100, 90, 50, 0]) {
    // the same input again would be found in the ring: new stamps in each round, outside the measured time
    const rates: number[] = []
    for (let i = 0; i < 6; i++) {
      prepare(hits)
      const from = cpuSeconds()
      match(true)
      rates.push(inputPages / 1e3 / (cpuSeconds() - from))
    }
    report(`matchPages, ${hits} % in the pool, cold`, median(rates.slice(1)), 'k pages/s')
  }
  prepare(100)
  match(true)
  report(
    'matchPages, 100 % the same again at their places',
    rate(inputPages / 1e3, () => match(true)),
    'k pages/s',
  )

  const big = 262144
  const gb = 0.5
  const calls = Math.round((gb * 1e9) / big)
  report(
    'checksum of 256 KiB, hot',
    rate(gb, () => {
      for (let i = 0; i < calls; i++) k.checksum(a.free, big, i, 0, a.list)
    }),
    'GB/s',
  )
  report(
    'checksum of 256 KiB, cold',
    rate(gb, () => {
      for (let i = 0; i < calls; i++) k.checksum(a.free + (i % 256) * big, big, i, 0, a.list)
    }),
    'GB/s',
  )
  report(
    'expandPages, runs of 8, cold',
    rate(gb, () => {
      for (let i = 0, n = calls * 8; i < n; i++) {
        k.expandPages(a.free + (i % 64) * 33000, 0, 0, pick(templates - 8), 8, i & 0xffff, 0)
      }
    }),
    'GB/s',
  )
  report(
    'expandNew, runs of 8',
    rate(gb, () => {
      for (let i = 0, n = calls * 8; i < n; i++)
        k.expandNew(a.free + (i % 64) * 33000, 0, 0, a.literals, 8, i & 0xffff, 0)
    }),
    'GB/s',
  )
  report(
    'expandZeros',
    rate(20, () => {
      for (let i = 0; i < 20e6 / 1024; i++) k.expandZeros(a.free, 0, 0, 1024)
    }),
    'M pages/s',
  )
}

/** Offsets of the pages of a recorded main stream: be64(address | 0x08 or 0x28), idstr where 0x20 is not set, page. */
function pagesOf(bytes: Uint8Array): { offsets: Uint32Array; places: Uint32Array } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const offsets: number[] = []
  const places: number[] = []
  const blocks = new Map<string, number>()
  let block = 0
  let at = 0
  while (at + 9 < bytes.length) {
    const hi = view.getUint32(at)
    const lo = view.getUint32(at + 4)
    const flags = lo & 0xfff
    if (hi === 0 && (flags === 0x28 || flags === 0x22)) {
      if (flags === 0x28) {
        offsets.push(at + 8)
        places.push(block + (lo >>> 12))
      }
      at += flags === 0x28 ? 8 + PAGE : 9
      continue
    }
    const length = bytes[at + 8]!
    if (hi === 0 && (flags === 0x08 || flags === 0x02) && length > 2 && length < 40) {
      const name = Buffer.from(bytes.subarray(at + 9, at + 9 + length)).toString('latin1')
      if (/^[\w./@:-]+$/.test(name)) {
        if (!blocks.has(name)) blocks.set(name, blocks.size << 20)
        block = blocks.get(name)!
        if (flags === 0x08) {
          offsets.push(at + 9 + length)
          places.push(block + (lo >>> 12))
        }
        at += 9 + length + (flags === 0x08 ? PAGE : 1)
        continue
      }
    }
    at++ // heads of sections, device state
  }
  return { offsets: Uint32Array.from(offsets), places: Uint32Array.from(places) }
}

function readFile(path: string, into: Uint8Array): void {
  const file = openSync(path, 'r')
  for (let at = 0; at < into.length; ) {
    const got = readSync(file, into, at, Math.min(into.length - at, 1 << 28), at)
    if (got === 0) break
    at += got
  }
}

async function stream(path: string): Promise<void> {
  const { zstdCompressSync, constants } = await import('node:zlib')
  const zstd = (bytes: Uint8Array) =>
    zstdCompressSync(bytes, { params: { [constants.ZSTD_c_compressionLevel]: 3 } }).length
  // templates: all distinct pages of the given streams, as learned pages would be
  const templateFiles = args.templates?.split(',') ?? []
  const sets: Uint8Array[] = []
  let templates = 0
  for (const file of templateFiles) {
    const bytes = new Uint8Array(statSync(file).size)
    readFile(file, bytes)
    sets.push(bytes)
    templates += Math.floor(bytes.length / PAGE)
  }
  const size = statSync(path).size
  const layout = layoutMemory({
    role: 'encoder',
    templatePages: templates,
    ringPages: Number(args.ring),
    places: 1 << 21,
    ioBytes: size + (8 << 20),
    longEntries: longEntriesFor(templates + Number(args.ring)),
  })
  for (const options of [0, MATCH.LONG]) {
    const k = loadKernel(layout, { implementation })
    const a = areas(k)
    k.commit(0, k.bytes.length)
    let slot = 0
    for (const bytes of sets) {
      const { offsets } = pagesOf(bytes)
      for (const at of offsets) k.bytes.set(bytes.subarray(at, at + PAGE), k.slotAddress(slot++))
    }
    let start = cpuSeconds()
    k.indexTemplates(0, slot)
    k.rememberTemplates(0, slot)
    const indexing = cpuSeconds() - start
    readFile(path, k.bytes.subarray(a.free, a.free + size))
    const { offsets, places } = pagesOf(k.bytes.subarray(a.free, a.free + size))
    const counts = Object.keys(KIND).map(() => 0)
    const sums = { literal: 0, dense: 0, token: 0, copies: 0, packed: 0 }
    let spent = 0
    const literals: Uint8Array[] = []
    const lengths: Uint8Array[] = []
    const sources: Uint8Array[] = []
    for (let first = 0; first < offsets.length; first += BATCH) {
      const n = Math.min(BATCH, offsets.length - first)
      for (let j = 0; j < n; j++) {
        a.listWords[j] = a.free + offsets[first + j]!
        a.placeWords[j] = places[first + j]!
      }
      start = cpuSeconds()
      k.matchPages(a.list, a.places, n, a.kinds, a.slots, a.tokens, a.literals, a.dense, a.words, options)
      spent += cpuSeconds() - start
      sums.literal += k.result[RESULT.LITERAL_BYTES]!
      sums.dense += k.result[RESULT.DENSE_BYTES]!
      sums.token += k.result[RESULT.TOKEN_BYTES]!
      sums.copies += k.result[RESULT.COPIES]!
      for (let kind = 0; kind < counts.length; kind++) counts[kind]! += k.result[RESULT.KIND_COUNT + kind]!
      literals.push(k.bytes.slice(a.literals, a.literals + k.result[RESULT.LITERAL_BYTES]!))
      literals.push(k.bytes.slice(a.dense, a.dense + k.result[RESULT.DENSE_BYTES]!))
      // about what docs/protocol.md makes of tokens: lengths, and sources where they do not follow from the copy before
      const tokens = k.result[RESULT.TOKEN_BYTES]! / TOKEN_BYTES
      const halves = new Uint16Array(k.memory.buffer, a.tokens, tokens * 4)
      const words = new Uint32Array(k.memory.buffer, a.tokens, tokens * 2)
      const pairs = new Uint16Array(tokens * 2)
      const origins = new Uint32Array(tokens)
      for (let i = 0, at = 0, displacement = Number.NaN; i < tokens; i++) {
        const literal = halves[4 * i]!
        const copy = halves[4 * i + 1]!
        pairs[2 * i] = literal
        pairs[2 * i + 1] = copy
        at += literal
        const source = words[2 * i + 1]!
        if (copy > 0 && source - at !== displacement) origins[i] = source + 1
        displacement = source - at
        at += copy
        if (at === PAGE) {
          at = 0
          displacement = Number.NaN
        }
      }
      lengths.push(new Uint8Array(pairs.buffer))
      sources.push(new Uint8Array(origins.buffer))
    }
    const names = Object.keys(KIND).map((name, kind) => `${name} ${counts[kind]}`)
    console.log(`${options ? 'long' : 'exact'}: ${offsets.length} pages: ${names.join(', ')}`)
    console.log(
      `  literal ${(sums.literal / 1e6).toFixed(2)} MB, dense ${(sums.dense / 1e6).toFixed(2)}, tokens ${(sums.token / 1e6).toFixed(2)}, ` +
        `copies ${sums.copies}`,
    )
    const literalBytes = zstd(Buffer.concat(literals))
    const tokenBytes = zstd(Buffer.concat(lengths)) + zstd(Buffer.concat(sources))
    console.log(
      `  zstd 3 in one piece: ${((literalBytes + tokenBytes) / 1e6).toFixed(2)} MB (tokens ${(tokenBytes / 1e6).toFixed(2)}); ` +
        `${((offsets.length * PAGE) / 1e6 / spent).toFixed(0)} MB/s; templates ${((slot * PAGE) / 1e6 / indexing).toFixed(0)} MB/s`,
    )
  }
}

if (args.stream) await stream(args.stream)
else synthetic()
