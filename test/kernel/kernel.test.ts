/**
 * The kernel against its twin: every answer and every byte of memory; and encoder against decoder: what was matched
 * expands to the same pages and leaves the same ring, marks and places.
 */

import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, utimesSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { random } from '../../scripts/harness/random.ts'
import { isProxyError } from '../../src/errors.ts'
import { HEAD_PAGE, HEAD_ZERO, KIND_LATER, PART_BYTES, STAGING_BYTES } from '../../src/kernel/constants.ts'
import {
  EXPAND,
  FAILED,
  type Kernel,
  KIND,
  kernelModule,
  type LayoutRequest,
  layoutMemory,
  loadKernel,
  longEntriesFor,
  MATCH,
  NONE,
  PAGE_BYTES,
  RESULT,
  RUN,
  TOKEN_BYTES,
} from '../../src/kernel/kernel.ts'
import { SCRATCH_BYTES, STATE } from '../../src/kernel/layout.ts'
import { RAM_FLAG } from '../../src/qemu/wire.ts'

t.setTimeout(590_000) // the machine may be busy

const PAGE = PAGE_BYTES
/** Without the built kernel the twin is tested against itself, which still tests encoder against decoder. */
const BUILT = existsSync(new URL('../../src/kernel/kernel.wasm', import.meta.url)) && kernelModule() !== undefined
const FIRST = BUILT ? 'simd' : 'twin'

const WORDS = 'the page that passed at this place was seen by another guest before, 0123456789 {"key": null}\n'

/** A page of one of several natures, made out of earlier ones where there are any. */
function makePage(rand: (below: number) => number, known: readonly Uint8Array[], into: Uint8Array): void {
  const nature = rand(13)
  const old = known.length > 0 ? known[rand(known.length)]! : undefined
  if (nature === 0) into.fill(rand(3) * 127)
  else if (nature <= 3 && old) into.set(old)
  else if (nature <= 6 && old) {
    into.set(old) // a few words changed
    for (let k = rand(6); k >= 0; k--) into[rand(PAGE)] = rand(256)
  } else if (nature <= 8 && old) {
    // parts of earlier pages at other offsets, bytes of its own between
    let at = 0
    while (at < PAGE) {
      const own = Math.min(PAGE - at, rand(300))
      for (let i = 0; i < own; i++) into[at + i] = rand(256)
      at += own
      const other = known[rand(known.length)]!
      const from = rand(2) ? rand(PAGE) : rand(PAGE / 8) * 8
      const part = Math.min(PAGE - at, PAGE - from, 20 + rand(2000))
      into.set(other.subarray(from, from + part), at)
      at += part
    }
  } else if (nature === 9) {
    for (let i = 0; i < PAGE; i++) into[i] = WORDS.charCodeAt((i + rand(4)) % WORDS.length)
  } else if (nature === 11) {
    // numbers in rows, a few of them off
    const lag = [1, 2, 4, 6, 16][rand(5)]!
    const view = new DataView(into.buffer, into.byteOffset, PAGE)
    const step = rand(2 ** 16)
    for (let i = 0; i < 1024; i++) {
      const before = i < lag ? rand(2 ** 32) : view.getUint32(4 * (i - lag), true) + step
      view.setUint32(4 * i, rand(30) === 0 ? rand(2 ** 32) : before, true)
    }
  } else if (nature === 10) {
    into.fill(0) // nearly empty
    for (let k = rand(40); k >= 0; k--) into[rand(PAGE)] = rand(256)
  } else {
    for (let i = 0; i < PAGE; i++) into[i] = rand(256)
  }
}

/** First address where two memories differ outside the scratch areas, or -1. */
function firstDifference(a: Kernel, b: Kernel, ranges?: [from: number, to: number][]): number {
  const { scratch, threads } = a.layout
  const all: [number, number][] = ranges ?? [
    [0, scratch],
    [scratch + SCRATCH_BYTES * threads, a.bytes.length],
  ]
  for (const [from, to] of all) {
    const x = a.bytes.subarray(from, to)
    const y = b.bytes.subarray(from, to)
    if (Buffer.compare(x, y) === 0) continue
    for (let i = 0; i < x.length; i++) if (x[i] !== y[i]) return from + i
  }
  return -1
}

/** Areas of the caller's part of the memory for batches of up to `batch` pages. */
function areas(kernel: Kernel, batch: number) {
  let at = kernel.layout.io
  const take = (bytes: number) => {
    const start = at
    at += Math.ceil(bytes / 64) * 64
    if (at > kernel.layout.io + kernel.layout.ioBytes) throw new Error('the io area is too small')
    return start
  }
  const record = PAGE + 8
  return {
    list: take(batch * 4),
    places: take(batch * 4),
    kinds: take(batch),
    slots: take(batch * 4),
    pages: take(batch * record + 64),
    tokens: take(batch * PAGE),
    literals: take(batch * PAGE),
    dense: take(batch * PAGE),
    words: take(batch * PAGE),
    joined: take(PAGE),
    out: take(batch * record),
    owners: take(batch),
    runs: take(batch * RUN.WORDS * 4),
  }
}

const u32 = (kernel: Kernel, at: number) => new Uint32Array(kernel.memory.buffer, at, 1)

/** Expands a matched batch as a decoder does, one call for each run, or `listed` of pages that the pool has. Returns the bytes written at `out`, or FAILED. */
function expandBatch(
  k: Kernel,
  a: ReturnType<typeof areas>,
  n: number,
  kinds: Uint8Array,
  slots: Uint32Array,
  places: Uint32Array,
  address: number,
  bare: number,
  once: boolean,
  listed: boolean,
): number {
  const recordBytes = PAGE + (bare ? 0 : 8)
  let runs = 0
  const list = (run: readonly number[]): number => {
    new Uint32Array(k.memory.buffer, a.runs + runs++ * RUN.WORDS * 4, RUN.WORDS - 1).set(run)
    return run[RUN.PAGES]! * recordBytes
  }
  const give = (): boolean => {
    const given = runs === 0 ? 0 : k.expandRuns(a.runs, runs)
    const isAll = given === runs
    runs = 0
    return isAll
  }
  let literal = a.literals
  let dense = a.dense
  let token = a.tokens
  let words = a.words
  let out = a.out
  for (let i = 0; i < n; ) {
    const kind = kinds[i]!
    let run = 1
    while (
      i + run < n &&
      kinds[i + run] === kind &&
      kind !== KIND.PATCH &&
      kind !== KIND.WORDS &&
      kind !== KIND.COLD &&
      (kind !== KIND.FILL || slots[i + run] === slots[i]) &&
      (kind !== KIND.REF || slots[i + run] === slots[i]! + run) &&
      places[i + run] === (places[i] === NONE ? NONE : places[i]! + run)
    )
      run++
    const hi = Math.floor((address + i * PAGE) / 2 ** 32)
    const lo = (address + i * PAGE) % 2 ** 32
    let got = 0
    const isKnown = kind === KIND.SAME || kind === KIND.REF
    if (!isKnown && kind !== KIND.FILL && !give()) return FAILED
    if (isKnown && listed) {
      const from = kind === KIND.SAME ? EXPAND.FROM_PLACE : 0
      got = list([out, hi, lo, slots[i]!, run, places[i]!, bare | from])
    } else if (kind === KIND.FILL) got = k.expandFill(out, hi, lo, slots[i]!, run, bare)
    else if (kind === KIND.SAME) got = k.expandPages(out, hi, lo, 0, run, places[i]!, bare | EXPAND.FROM_PLACE)
    else if (kind === KIND.REF) got = k.expandPages(out, hi, lo, slots[i]!, run, places[i]!, bare)
    else if (kind === KIND.PATCH) {
      const used = k.expandPatch(out, hi, lo, token, slots[i]!, literal, places[i]!, bare)
      if (used === FAILED) return FAILED
      literal += used
      token += slots[i]! * TOKEN_BYTES
      got = recordBytes
    } else if (kind === KIND.WORDS) {
      k.joinWords(words, slots[i]!, a.joined)
      words += PAGE
      got = k.expandNew(out, hi, lo, a.joined, 1, places[i]!, bare)
    } else if (kind === KIND.COLD) {
      got = k.expandNew(out, hi, lo, a.pages + i * PAGE, 1, places[i]!, bare | (once ? EXPAND.ONCE : 0))
    } else {
      const from = kind === KIND.NEW ? literal : dense
      got = k.expandNew(out, hi, lo, from, run, places[i]!, bare)
      if (kind === KIND.NEW) literal += run * PAGE
      else dense += run * PAGE
    }
    if (got !== run * recordBytes) return FAILED
    out += got
    i += run
  }
  return give() ? out - a.out : FAILED
}

/** Looks for what matchPages left for later, a few pages at a time, each time another thread and another part of the batch. */
function matchLater(
  threads: readonly Kernel[],
  a: ReturnType<typeof areas>,
  n: number,
  options: number,
  rand: (below: number) => number,
): void {
  const [{ bytes, memory, layout }] = threads as [Kernel]
  const words = (at: number, length: number) => new Uint32Array(memory.buffer, at, length)
  const left = [...bytes.subarray(a.kinds, a.kinds + n).keys()].filter(i => bytes[a.kinds + i] === KIND_LATER)
  const passed = words(a.tokens, n + 1).slice()
  const cursor = words(layout.state, 64)[STATE.CURSOR]!
  const chunks: number[] = []
  for (let first = 0; first < left.length; first += 3) chunks.splice(rand(chunks.length + 1), 0, first)
  for (const first of chunks) {
    const thread = rand(threads.length)
    const staging = layout.staging + thread * STAGING_BYTES
    const pages = left.slice(first, first + 3)
    for (const [k, i] of pages.entries()) {
      const lists = [a.list, a.places, a.slots].map(at => words(at, n)[i]!)
      words(staging + k * PART_BYTES, 4).set([...lists, passed[i]!])
    }
    threads[thread]!.matchParts(staging, staging, first, pages.length, passed[n]!, cursor, options)
    bytes.fill(thread, a.owners + first, a.owners + first + pages.length)
  }
  const { list, kinds, slots, tokens, literals, dense, words: numbers, owners } = a
  threads[0]!.settlePages(list, n, kinds, slots, tokens, literals, dense, numbers, layout.staging, owners)
}

interface Trial {
  readonly name: string
  readonly seed: number
  readonly templates: number
  readonly ring: number
  readonly places: number
  readonly batches: number
  readonly batch: number
  readonly options: number
  readonly longEntries?: number
  /** So many threads look for parts of pages, in any order. */
  readonly threads?: number
  /** Half of the unknown pages are taken for pages of a set on the disk. */
  readonly cold?: true
}

/** One session: kernel and twin on both sides. Returns what was wrong, in words; and how often each kind came. */
function runTrial(c: Trial): { wrong: string[]; counts: number[] } {
  const request: Omit<LayoutRequest, 'role'> = {
    templatePages: c.templates,
    ringPages: c.ring,
    places: c.places,
    ioBytes: c.batch * PAGE * 7 + 65536,
    longEntries: c.longEntries ?? 0,
    threads: c.threads ?? 1,
  }
  const encoderLayout = layoutMemory({ ...request, role: 'encoder' })
  const decoderLayout = layoutMemory({ ...request, role: 'decoder' })
  const encoders = [FIRST, 'twin'].map(i => loadKernel(encoderLayout, { implementation: i as 'simd' | 'twin' }))
  const decoders = [FIRST, 'twin'].map(i => loadKernel(decoderLayout, { implementation: i as 'simd' | 'twin' }))
  const helpers = encoders.map(({ implementation, memory }) =>
    Array.from({ length: c.threads ?? 0 }, (_, thread) =>
      loadKernel(encoderLayout, { implementation, memory, thread }),
    ),
  )
  const [encoder] = encoders as [Kernel]
  const [decoder] = decoders as [Kernel]
  const rand = random(c.seed)
  const known: Uint8Array[] = []
  const atPlace: Uint8Array[] = []
  const wrong: string[] = []
  const counts = [0, 0, 0, 0, 0, 0, 0, 0]
  for (let s = 0; s < c.templates; s++) {
    const page = new Uint8Array(PAGE)
    makePage(rand, known, page)
    known.push(page)
    for (const k of [...encoders, ...decoders]) k.bytes.set(page, k.slotAddress(s))
  }
  const added = encoders.map(k => k.indexTemplates(0, c.templates))
  if (added[0] !== added[1]) wrong.push(`indexTemplates: ${added}`)
  for (const k of encoders) k.rememberTemplates(0, c.templates)

  const e = areas(encoder, c.batch)
  const d = areas(decoder, c.batch)
  const page = new Uint8Array(PAGE)
  for (let b = 0; b < c.batches && wrong.length === 0; b++) {
    const n = rand(c.batch + 1)
    const bare = rand(2) * EXPAND.BARE
    const address = (rand(1 << 20) * PAGE + (rand(3) === 0 ? 2 ** 32 - 8 * PAGE : 0)) % 2 ** 52
    const expected = new Uint8Array(n * (PAGE + (bare ? 0 : 8)))
    const head = new DataView(expected.buffer)
    const shift = rand(16) // all alignments
    const list = new Uint32Array(n)
    const places = new Uint32Array(n)
    const runs = rand(2)
    let place = rand(c.places + 2)
    for (let i = 0, at = 0; i < n; i++) {
      place = runs ? place + 1 : rand(c.places + 2)
      const last = atPlace[place]
      if (last && rand(3) > 0) page.set(last)
      else makePage(rand, known, page)
      if (last && rand(3) === 0) page[rand(PAGE)] = rand(256) // a new version of what was there
      atPlace[place] = page.slice()
      if (rand(4) === 0) known[known.length < 300 ? known.length : rand(300)] = page.slice()
      list[i] = e.pages + shift + i * (PAGE + 8)
      places[i] = place >= c.places + 1 ? NONE : place
      if (!bare) {
        head.setBigUint64(at, BigInt(address + i * PAGE) | 0x28n)
        at += 8
      }
      expected.set(page, at)
      at += PAGE
      for (const k of encoders) k.bytes.set(page, list[i]!)
    }
    const onDisk = Array.from({ length: n }, () => rand(2))
    for (const k of encoders) {
      new Uint32Array(k.memory.buffer, e.list, n).set(list)
      new Uint32Array(k.memory.buffer, e.places, n).set(places)
      k.unknownPages(e.list, n, e.kinds)
    }
    const unknownDiffer = firstDifference(encoders[0]!, encoders[1]!)
    if (unknownDiffer >= 0) wrong.push(`batch ${b}: kernel and twin differ at ${unknownDiffer} after unknownPages`)
    const unknown = encoder.bytes.slice(e.kinds, e.kinds + n)
    const cold = unknown.map((is, i) => (c.cold ? is & onDisk[i]! : 0))
    for (const k of encoders) {
      k.bytes.set(cold, e.kinds)
      k.matchPages(e.list, e.places, n, e.kinds, e.slots, e.tokens, e.literals, e.dense, e.words, c.options)
    }
    if (c.options & MATCH.LATER) {
      const order = rand(2 ** 31)
      for (const threads of helpers) matchLater(threads, e, n, c.options, random(order))
    }
    const differs = firstDifference(encoders[0]!, encoders[1]!)
    if (differs >= 0) wrong.push(`batch ${b}: kernel and twin differ at ${differs} after matchPages`)
    const kinds = encoder.bytes.slice(e.kinds, e.kinds + n)
    const slots = new Uint32Array(encoder.memory.buffer, e.slots, n).slice()
    kinds.forEach((kind, i) => {
      counts[kind]!++
      // behind the first a page may have become known, or have left the ring
      if (i === 0 && kind > KIND.REF !== (unknown[0] === 1))
        wrong.push(`batch ${b}: unknownPages says ${unknown[0]} of a page of kind ${kind}`)
      if (cold[i] && (kind === KIND.FILL || (kind > KIND.REF && kind !== KIND.COLD)))
        wrong.push(`batch ${b}: page ${i} is on the disk, and of kind ${kind}`)
      if (!cold[i] && kind === KIND.COLD) wrong.push(`batch ${b}: page ${i} is not on the disk`)
    })
    const { result } = encoder
    for (const k of decoders) {
      for (const [name, bytes] of [
        ['literals', result[RESULT.LITERAL_BYTES]!],
        ['dense', result[RESULT.DENSE_BYTES]!],
        ['tokens', result[RESULT.TOKEN_BYTES]!],
        ['words', result[RESULT.KIND_COUNT + KIND.WORDS]! * PAGE],
      ] as const)
        k.bytes.set(encoder.bytes.subarray(e[name], e[name] + bytes), d[name])
      for (let i = 0; i < n; i++)
        if (kinds[i] === KIND.COLD) k.bytes.set(encoder.bytes.subarray(list[i]!, list[i]! + PAGE), d.pages + i * PAGE)
      const once = (c.options & MATCH.COLD_ONCE) !== 0
      const got = expandBatch(k, d, n, kinds, slots, places, address, bare, once, b % 2 === 1)
      if (got !== expected.length) wrong.push(`batch ${b}: ${k.implementation} expanded ${got} of ${expected.length}`)
      else if (Buffer.compare(expected, k.bytes.subarray(d.out, d.out + got)) !== 0)
        wrong.push(`batch ${b}: ${k.implementation} expanded other bytes`)
    }
    const apart = firstDifference(decoders[0]!, decoders[1]!)
    if (apart >= 0) wrong.push(`batch ${b}: decoders differ at ${apart}`)
    // what both sides keep
    const same = [
      [encoderLayout.placeTable, decoderLayout.placeTable, c.places * 4],
      [encoderLayout.ringMark, decoderLayout.ringMark, c.ring],
      [encoderLayout.templatesAt, decoderLayout.templatesAt, c.templates * PAGE],
      [encoderLayout.ring, decoderLayout.ring, c.ring * PAGE],
      [encoderLayout.state + 128, decoderLayout.state + 128, 8],
    ] as const
    for (const [x, y, length] of same) {
      if (Buffer.compare(encoder.bytes.subarray(x, x + length), decoder.bytes.subarray(y, y + length)) !== 0)
        wrong.push(`batch ${b}: the decoder does not keep what the encoder keeps at ${x}`)
    }
    if (rand(40) === 0) for (const k of [...encoders, ...decoders]) k.reset()
    if (rand(40) === 0) for (const k of [...encoders, ...decoders]) k.clearPlaces(0, Math.floor(c.places / 2))
  }
  // every page of the ring is found again, and no other
  const { state } = encoderLayout
  const used = u32(encoder, state + 132)[0]!
  for (let s = 0; s < used && wrong.length === 0; s++) {
    u32(encoder, e.list)[0] = encoder.slotAddress(c.templates + s)
    u32(encoder, e.places)[0] = NONE
    const options = c.options & ~MATCH.LATER
    encoder.bytes[e.kinds] = 0 // it is on no disk
    encoder.matchPages(e.list, e.places, 1, e.kinds, e.slots, e.tokens, e.literals, e.dense, e.words, options)
    if (encoder.bytes[e.kinds] !== KIND.REF || u32(encoder, e.slots)[0] !== c.templates + s)
      wrong.push(`ring slot ${s} is not found`)
  }
  return { wrong, counts }
}

t.test("heads have QEMU's flags, which the kernel may not import", async t => {
  t.equal(HEAD_PAGE, RAM_FLAG.CONTINUE | RAM_FLAG.PAGE)
  t.equal(HEAD_ZERO, RAM_FLAG.CONTINUE | RAM_FLAG.ZERO)
})

t.test('kernel, twin, encoder and decoder agree after thousands of random pages', t => {
  const trials: Trial[] = [
    { name: 'templates and ring', seed: 1, templates: 200, ring: 64, places: 100, batches: 120, batch: 40, options: 0 },
    { name: 'a ring of one page', seed: 2, templates: 20, ring: 1, places: 16, batches: 60, batch: 20, options: 0 },
    { name: 'a ring of three pages', seed: 3, templates: 0, ring: 3, places: 16, batches: 150, batch: 20, options: 0 },
    { name: 'no ring', seed: 4, templates: 50, ring: 0, places: 30, batches: 60, batch: 20, options: 0 },
    { name: 'no places', seed: 5, templates: 50, ring: 16, places: 0, batches: 60, batch: 20, options: 0 },
    { name: 'nothing at all', seed: 6, templates: 0, ring: 0, places: 0, batches: 10, batch: 9, options: 0 },
  ]
  for (const c of trials) {
    const { wrong, counts } = runTrial(c)
    t.same(wrong, [], c.name)
    if (c.ring > 3 && c.places > 0)
      t.ok(
        counts.slice(0, 5).every(n => n > 0),
        `every kind came: ${counts}`,
      )
  }
  t.end()
})

t.test('pages on the disk: kernel, twin, encoder and decoder agree', t => {
  const cold = { templates: 60, ring: 64, places: 100, batches: 100, batch: 40, cold: true } as const
  const long = { ...cold, options: MATCH.COLD | MATCH.LONG | MATCH.WORDS, longEntries: 4096 }
  const trials: Trial[] = [
    { ...cold, name: 'exact matches', seed: 41, options: MATCH.COLD },
    { ...long, name: 'long matches too', seed: 42 },
    { ...long, name: 'no ring', seed: 43, ring: 0 },
    { ...cold, name: 'that do not enter the ring', seed: 45, options: MATCH.COLD | MATCH.COLD_ONCE },
    { ...long, name: 'the same beside long matches', seed: 46, options: long.options | MATCH.COLD_ONCE },
    { ...long, name: 'and sparse ones', seed: 47, options: long.options | MATCH.SPARSE },
    { ...long, name: 'not asked for', seed: 44, options: MATCH.LONG },
  ]
  for (const c of trials) {
    const { wrong, counts } = runTrial(c)
    t.same(c.options & MATCH.COLD ? wrong : [], [], c.name)
    t.equal(counts[KIND.COLD]! > 0, (c.options & MATCH.COLD) !== 0, `${counts}`)
  }
  t.end()
})

t.test('long matches: kernel, twin, encoder and decoder agree', t => {
  const options = MATCH.LONG | MATCH.WORDS
  const trials: Trial[] = [
    {
      name: 'templates and ring',
      seed: 11,
      templates: 200,
      ring: 64,
      places: 100,
      batches: 120,
      batch: 40,
      options,
      longEntries: 1 << 15,
    },
    {
      name: 'a table that overflows',
      seed: 12,
      templates: 100,
      ring: 64,
      places: 100,
      batches: 60,
      batch: 40,
      options,
      longEntries: 256,
    },
    {
      name: 'a ring of one page',
      seed: 13,
      templates: 0,
      ring: 1,
      places: 16,
      batches: 60,
      batch: 20,
      options,
      longEntries: 4096,
    },
    {
      name: 'a ring of three pages',
      seed: 14,
      templates: 1,
      ring: 3,
      places: 16,
      batches: 100,
      batch: 20,
      options,
      longEntries: 4096,
    },
    {
      name: 'no ring',
      seed: 15,
      templates: 50,
      ring: 0,
      places: 30,
      batches: 60,
      batch: 20,
      options,
      longEntries: 4096,
    },
    {
      name: 'no places',
      seed: 16,
      templates: 50,
      ring: 16,
      places: 0,
      batches: 60,
      batch: 20,
      options,
      longEntries: 4096,
    },
    {
      name: 'sparse ones',
      seed: 18,
      templates: 200,
      ring: 64,
      places: 100,
      batches: 120,
      batch: 40,
      options: options | MATCH.SPARSE,
      longEntries: 1 << 15,
    },
    { name: 'no table', seed: 17, templates: 20, ring: 16, places: 16, batches: 30, batch: 20, options },
  ]
  for (let seed = 200; seed < 230; seed++) {
    trials.push({
      name: `seed ${seed}`,
      seed,
      templates: seed % 5,
      ring: 1 + (seed % 7),
      places: 8,
      batches: 20,
      batch: 12,
      options,
      longEntries: 1024,
    })
  }
  for (const c of trials) {
    const { wrong, counts } = runTrial(c)
    t.same(wrong, [], c.name)
    if (c.ring > 3 && c.places > 8 && c.longEntries)
      t.ok(
        counts.every((n, kind) => n > 0 || kind === KIND.COLD),
        `every kind came: ${counts}`,
      )
  }
  t.end()
})

t.test('parts that several threads look for, in any order: kernel, twin, encoder and decoder agree', t => {
  const options = MATCH.LONG | MATCH.WORDS | MATCH.LATER
  const base = { templates: 100, ring: 256, places: 100, batches: 80, batch: 40, options, longEntries: 1 << 14 }
  const trials: Trial[] = [
    { ...base, name: 'two threads', seed: 51, threads: 2 },
    { ...base, name: 'three threads', seed: 52, threads: 3 },
    { ...base, name: 'a ring that is shorter than a batch', seed: 53, threads: 2, ring: 30 },
    { ...base, name: 'no ring', seed: 54, threads: 2, ring: 0 },
    { ...base, name: 'no places', seed: 55, threads: 2, places: 0 },
    { ...base, name: 'beside pages on the disk', seed: 56, threads: 2, options: options | MATCH.COLD, cold: true },
  ]
  for (let seed = 300; seed < 340; seed++) {
    const more = { seed, threads: 2 + (seed % 3), templates: seed % 5, ring: 1 + (seed % 61), batches: 20, batch: 24 }
    trials.push({ ...base, name: `seed ${seed}`, ...more, longEntries: 1024 })
  }
  for (const c of trials) {
    const { wrong, counts } = runTrial(c)
    t.same(wrong, [], c.name)
    if (c.ring > 40 && c.templates > 8 && c.places > 0)
      t.ok(
        counts.every((n, kind) => n > 0 || kind === KIND.COLD),
        `every kind came: ${counts}`,
      )
  }
  t.end()
})

t.test('after a reset templates are found as they were at first', t => {
  const layout = layoutMemory({
    role: 'encoder',
    templatePages: 40,
    ringPages: 200,
    places: 0,
    ioBytes: 40 * PAGE * 7 + 65536,
    longEntries: 1024,
  })
  for (const implementation of [FIRST, 'twin'] as const) {
    const rand = random(5)
    const k = loadKernel(layout, { implementation })
    const a = areas(k, 40)
    const templates = Array.from({ length: 40 }, () => Uint8Array.from({ length: PAGE }, () => 32 + rand(90)))
    for (const [s, page] of templates.entries()) k.bytes.set(page, k.slotAddress(s))
    k.indexTemplates(0, 40)
    k.rememberTemplates(0, 40)
    new Uint32Array(k.memory.buffer, a.places, 40).fill(NONE)
    const list = new Uint32Array(k.memory.buffer, a.list, 40)
    for (let i = 0; i < 40; i++) list[i] = a.pages + i * PAGE
    const match = (own: () => number) => {
      for (const [i, page] of templates.entries()) {
        k.bytes.set(page, list[i]!)
        for (let at = 0; at < PAGE; at += 400) k.bytes[list[i]! + at] = own()
      }
      k.matchPages(a.list, a.places, 40, a.kinds, a.slots, a.tokens, a.literals, a.dense, a.words, MATCH.LONG)
      return Buffer.from(k.bytes.subarray(a.tokens, a.tokens + k.result[RESULT.TOKEN_BYTES]!))
    }
    const first = match(() => 1)
    for (let i = 0; i < 5; i++) match(() => 1 + rand(30))
    const later = match(() => 1)
    k.reset()
    t.notOk(later.equals(first), 'what passed is nearer')
    t.ok(match(() => 1).equals(first), implementation)
  }
  t.end()
})

t.test('sparse long matches find fewer parts, whatever the pages before them were remembered by', t => {
  const layout = layoutMemory({
    role: 'encoder',
    templatePages: 0,
    ringPages: 200,
    places: 0,
    ioBytes: 40 * PAGE * 7 + 65536,
    longEntries: 1 << 15,
  })
  const SPARSE = MATCH.LONG | MATCH.SPARSE
  for (const implementation of [FIRST, 'twin'] as const) {
    const rand = random(7)
    const k = loadKernel(layout, { implementation })
    const a = areas(k, 40)
    const pages = Array.from({ length: 40 }, () => Uint8Array.from({ length: PAGE }, () => 32 + rand(90)))
    const list = new Uint32Array(k.memory.buffer, a.list, 40)
    const pass = (options: number): { copies: number; ownBytes: number } => {
      new Uint32Array(k.memory.buffer, a.places, 40).fill(NONE)
      k.matchPages(a.list, a.places, 40, a.kinds, a.slots, a.tokens, a.literals, a.dense, a.words, options)
      return { copies: k.result[RESULT.COPIES]!, ownBytes: k.result[RESULT.LITERAL_BYTES]! }
    }
    /** The pages, then the same with other bytes here and there, at another alignment. */
    const found = (before: number, then: number): { copies: number; ownBytes: number } => {
      k.reset()
      for (const [i, page] of pages.entries()) {
        list[i] = a.pages + i * PAGE
        k.bytes.set(page, list[i]!)
      }
      pass(before)
      for (const [i, page] of pages.entries()) {
        const moved = Buffer.concat([page.subarray(9 + i), page.subarray(0, 9 + i)])
        for (let at = 0; at < PAGE; at += 60) moved[at] = 1
        k.bytes.set(moved, list[i]!)
      }
      return pass(then)
    }
    const all = found(MATCH.LONG, MATCH.LONG)
    const sparse = found(SPARSE, SPARSE)
    t.ok(all.copies > 2000 && sparse.copies > 1500, `${all.copies} copies; sparse ${sparse.copies}`)
    t.ok(sparse.ownBytes > all.ownBytes, `${sparse.ownBytes} own bytes instead of ${all.ownBytes}`)
    t.same(found(MATCH.LONG, SPARSE), sparse, 'what is looked up decides')
    t.same(found(SPARSE, MATCH.LONG), sparse, 'and what was remembered')
  }
  t.end()
})

t.test('checksum and page hash are the same in kernel and twin', t => {
  const layout = layoutMemory({ role: 'encoder', templatePages: 0, ringPages: 0, places: 0, ioBytes: 1 << 20 })
  const rand = random(77)
  const key = Uint8Array.from({ length: 256 }, () => rand(256))
  const kernels = [FIRST, 'twin'].map(i => loadKernel(layout, { implementation: i as 'simd' | 'twin', key }))
  const data = Uint8Array.from({ length: 600_000 }, () => rand(256)) // different bytes in every lane
  const { io } = layout
  const out = io + 700_000 - (700_000 % 4)
  for (const k of kernels) k.bytes.set(data, io)
  const answer = (k: Kernel) => {
    const w = new Uint32Array(k.memory.buffer, out, 2)
    return `${w[0]!.toString(16)}:${w[1]!.toString(16)}`
  }
  const wrong: string[] = []
  const seen = new Set<string>()
  let asked = 0
  for (let length = 0; length <= 300; length++) {
    for (let at = 0; at < 20; at++) {
      const [a, b] = kernels.map(k => {
        k.checksum(io + at, length, length * 3, at, out)
        return answer(k)
      })
      if (a !== b) wrong.push(`${length} bytes at ${at}: ${a}, ${b}`)
      seen.add(a!)
      asked++
    }
  }
  for (const length of [4095, 4096, 4097, 8191, 65536, 262144, 262157, 600_000 - 20]) {
    for (const at of [0, 1, 2, 3, 4, 7, 15]) {
      const [a, b] = kernels.map(k => {
        k.checksum(io + at, length, 0, 0xffffffff, out)
        return answer(k)
      })
      if (a !== b) wrong.push(`${length} bytes at ${at}: ${a}, ${b}`)
    }
  }
  t.same(wrong, [], 'checksums of all lengths and alignments')
  t.equal(seen.size, asked, 'no two alike')
  for (const k of kernels) {
    const list = new Uint32Array(k.memory.buffer, out, 64)
    for (let i = 0; i < 64; i++) list[i] = io + i * 4097
    k.hashPages(out, 64, out + 256)
  }
  t.equal(firstDifference(kernels[0]!, kernels[1]!), -1, 'page hashes')
  // zero bytes at the end count, though the padding is zero as well
  for (const k of kernels) k.bytes.fill(0, io, io + 512)
  const zeros = new Set<string>()
  for (let length = 0; length <= 512; length++) {
    kernels[0]!.checksum(io, length, 0, 0, out)
    zeros.add(answer(kernels[0]!))
  }
  t.equal(zeros.size, 513, 'the length is part of the checksum')
  t.end()
})

t.test('the checksum is the one of HASH.md', t => {
  // a third implementation, in BigInt, straight from the text
  const M = 0xffffffffn
  const [P1, P2, P3, P4] = [0x9e3779b1n, 0x85ebca77n, 0xc2b2ae3dn, 0x27d4eb2fn]
  const spec = (bytes: Uint8Array, seedLo: bigint, seedHi: bigint): [bigint, bigint] => {
    const key = Array.from({ length: 64 }, (_, i) => {
      let x = (BigInt(i + 1) * 0x9e3779b1n) & M
      x = ((x ^ (x >> 16n)) * 0x85ebca6bn) & M
      x = ((x ^ (x >> 13n)) * 0xc2b2ae35n) & M
      return x ^ (x >> 16n)
    })
    let a = key.slice(0, 32).map((k, l) => k ^ (l % 2 === 0 ? seedLo : seedHi))
    for (let at = 0; at < bytes.length; at += 128) {
      const block = new Uint8Array(128)
      block.set(bytes.subarray(at, at + 128))
      const x = Array.from(new Uint32Array(block.buffer), BigInt)
      a = a.map((v, l) => {
        const m = ((v ^ x[l]!) * P1) & M
        return ((m ^ (m >> 15n)) + x[l ^ 4]!) & M
      })
    }
    const b = a.map((v, l) => {
      const m = ((v ^ key[32 + l]!) * P2) & M
      return m ^ (m >> 13n)
    })
    const join = (u: bigint, v: bigint) => {
      const m = (u * P3) & M
      return ((m ^ (m >> 16n)) + v) & M
    }
    const c = Array.from({ length: 16 }, (_, l) => join(b[l]!, b[l + 16]!))
    const d = Array.from({ length: 8 }, (_, l) => join(c[l]!, c[l + 8]!))
    const length = BigInt(bytes.length)
    let lo = (length * P3) & M
    let hi = (length + P4) & M
    for (let j = 0; j < 4; j++) {
      lo = ((lo ^ d[j]!) * P1) & M
      lo ^= lo >> 15n
      hi = ((hi ^ d[j + 4]!) * P2) & M
      hi ^= hi >> 13n
    }
    hi = (hi + lo * P4) & M
    hi ^= hi >> 15n
    hi = (hi * P2) & M
    hi ^= hi >> 13n
    lo = (lo + hi * P3) & M
    lo ^= lo >> 16n
    lo = (lo * P1) & M
    lo ^= lo >> 15n
    hi = (hi + lo) & M
    return [lo, hi]
  }
  const layout = layoutMemory({ role: 'decoder', templatePages: 0, ringPages: 0, places: 0, ioBytes: 65536 })
  const kernel = loadKernel(layout, { implementation: FIRST })
  const rand = random(5)
  const data = Uint8Array.from({ length: 5000 }, () => rand(256))
  kernel.bytes.set(data, layout.io)
  for (const length of [0, 1, 127, 128, 129, 300, 4096, 5000]) {
    kernel.checksum(layout.io, length, 0xdeadbeef, 3, layout.io + 8192)
    const words = new Uint32Array(kernel.memory.buffer, layout.io + 8192, 2)
    t.same([BigInt(words[0]!), BigInt(words[1]!)], spec(data.subarray(0, length), 0xdeadbeefn, 3n), `${length} bytes`)
  }
  t.end()
})

t.test('small functions', t => {
  const layout = layoutMemory({ role: 'decoder', templatePages: 2, ringPages: 4, places: 8, ioBytes: 1 << 20 })
  const { io } = layout
  for (const implementation of new Set([FIRST, 'twin'] as const)) {
    const k = loadKernel(layout, { implementation })
    const page = k.bytes.subarray(io + 5, io + 5 + PAGE)
    const other = k.bytes.subarray(io + 8192 + 3, io + 8192 + 3 + PAGE)
    page.fill(7)
    other.fill(7)
    t.equal(k.fillOf(io + 5), 7)
    t.equal(k.samePage(io + 5, io + 8192 + 3), true)
    let missed = 0
    for (let i = 0; i < PAGE; i++) {
      page[i] = 8
      if (k.fillOf(io + 5) !== -1 || k.samePage(io + 5, io + 8192 + 3) || k.samePage(io + 8192 + 3, io + 5)) missed++
      page[i] = 7
    }
    t.equal(missed, 0, 'one other byte anywhere is seen')
    t.equal(k.isDense(io + 5), false)
    const rand = random(9)
    for (let i = 0; i < PAGE; i++) page[i] = rand(256)
    t.equal(k.isDense(io + 5), true, 'random bytes are dense')
    for (let i = 0; i < PAGE; i++) page[i] = WORDS.charCodeAt(i % WORDS.length)
    t.equal(k.isDense(io + 5), false, 'text is not')

    t.equal(k.expandZeros(io, 0x12, 0xfffff000, 2), 18)
    t.equal(
      Buffer.from(k.bytes.subarray(io, io + 18)).toString('hex'),
      `00000012fffff02200${'0000001300000022'}00`,
      'records of zero pages',
    )
    t.equal(k.expandPages(io, 0, 0, 5, 2, NONE, 0), FAILED, 'a slot after the pool')
    t.equal(k.expandPages(io, 0, 0, NONE, 1, NONE, 0), FAILED)
    t.equal(k.expandPages(io, 0, 0, 0, 1, 3, EXPAND.FROM_PLACE), FAILED, 'a place without a page')
    t.equal(k.expandPages(io, 0, 0, 0, 1, NONE, EXPAND.FROM_PLACE), FAILED, 'no place')
    t.equal(k.expandPages(io, 0, 0, 0, 0, NONE, 0), 0, 'no pages')
    const runs = io + 64 * PAGE
    const run = (i: number, ...words: number[]): void =>
      new Uint32Array(k.memory.buffer, runs + i * RUN.WORDS * 4, RUN.WORDS).set(words)
    for (let i = 0; i < 9; i++) run(i, io + i * 2 * PAGE, 0, 0, i % 5, 1, NONE, EXPAND.BARE)
    t.equal(k.expandRuns(runs, 0), 0, 'no runs')
    t.equal(k.expandRuns(runs, 9), 9)
    run(8, io, 0, 0, 0, 1, 3, EXPAND.BARE | EXPAND.FROM_PLACE)
    t.equal(k.expandRuns(runs, 9), 8, 'the last one is of a place without a page')
    run(4, io, 0, 0, 5, 2, NONE, EXPAND.BARE)
    t.equal(k.expandRuns(runs, 9), 4, 'the fifth runs out of the pool')
    run(0, io, 0, 0, NONE, 1, NONE, EXPAND.BARE)
    t.equal(k.expandRuns(runs, 9), 0, 'no slot at all')
    t.equal(k.copyOut(io, 6 * PAGE - 10, 10), true, 'the last bytes of the pool')
    t.equal(k.copyOut(io, 6 * PAGE - 10, 11), false)
    t.equal(k.copyOut(io, 6 * PAGE, 0), false)
    t.equal(k.copyOut(io, 0xfffffff0, 0x20), false, 'a sum over 2^32')
    const token = (literal: number, copy: number, source: number, at: number) => {
      const v = new DataView(k.memory.buffer, io + 100 * PAGE + at, 8)
      v.setUint16(0, literal, true)
      v.setUint16(2, copy, true)
      v.setUint32(4, source, true)
    }
    const patch = (n: number) => k.expandPatch(io, 0, 0, io + 100 * PAGE, n, io + 16 * PAGE, 1, 0)
    token(96, 4000, 5, 0)
    t.equal(patch(1), 96)
    t.equal(k.placeOf(1), 2, 'its place has the first ring slot')
    token(96, 4001, 5, 0)
    t.equal(patch(1), FAILED, 'too long')
    token(96, 3999, 5, 0)
    t.equal(patch(1), FAILED, 'too short')
    token(96, 4000, 5 * PAGE + 97, 0)
    t.equal(patch(1), FAILED, 'outside the pool')
    t.equal(patch(0), FAILED, 'no tokens')
    token(0xffff, 0xffff, 0, 0)
    t.equal(patch(1), FAILED)
    t.equal(k.placeOf(1), 2, 'a failed patch changes no place')
    const before = Buffer.from(k.bytes.subarray(0, io + 65536))
    k.commit(0, k.bytes.length)
    t.equal(before.compare(k.bytes.subarray(0, io + 65536)), 0, 'commit changes nothing')
  }
  t.end()
})

t.test('the table survives pages with one home and a full turn of the ring', t => {
  // hashes cannot be chosen, but a table of 16 entries has long probe sequences that wrap around its end
  for (let seed = 100; seed < 140; seed++) {
    const { wrong } = runTrial({
      name: '',
      seed,
      templates: 3,
      ring: 5,
      places: 4,
      batches: 30,
      batch: 12,
      options: 0,
    })
    if (wrong.length > 0) t.same(wrong, [], `seed ${seed}`)
  }
  t.pass('40 seeds')
  t.end()
})

t.test('layouts', t => {
  const base = { role: 'encoder', templatePages: 10, ringPages: 10, places: 10, ioBytes: 100 } as const
  const l = layoutMemory({ ...base, longEntries: 1024, threads: 3 })
  const parts: [number, number][] = [
    [0, 64], // stays zero
    [l.checksumKey, 256],
    [l.pageKey, 256],
    [l.state, 256],
    [l.scratch, SCRATCH_BYTES * 3],
    [l.io, 100],
    [l.placeTable, 40],
    [l.ringMark, 10],
    [l.ringHash, 80],
    [l.ringTable, l.ringTableEntries * 16],
    [l.longTable, 8192],
    [l.ring, 10 * PAGE],
    [l.templatesAt, 10 * PAGE],
    [l.templateTable, l.templateEntries * 16],
    [l.memoryPages * 65536, 0],
  ]
  for (let i = 1; i < parts.length; i++) t.ok(parts[i]![0] >= parts[i - 1]![0] + parts[i - 1]![1], `area ${i}`)
  t.same([l.ring % PAGE, l.templatesAt % PAGE, l.blockBytes % PAGE], [0, 0, 0])
  t.same([0, 1, 1000, 262144, 2 ** 31].map(longEntriesFor), [4096, 4096, 16384, 1 << 23, 1 << 25])
  t.same([l.ringTableEntries, l.templateEntries], [32, 32])
  for (const wrong of [{ ringPages: 1 << 20 }, { ioBytes: -1 }, { places: 1.5 }, { longEntries: 1000 }]) {
    try {
      layoutMemory({ ...base, ...wrong })
      t.fail('no error')
    } catch (error) {
      t.ok(isProxyError(error, 'LIMIT_EXCEEDED'), JSON.stringify(wrong))
    }
  }
  t.end()
})

t.test('a memory that is nearly 4 GiB: addresses over 2^31', t => {
  const request = {
    templatePages: 4,
    ringPages: 1_000_000,
    places: 16,
    ioBytes: 1 << 20,
    longEntries: 1 << 16,
  } as const
  const layout = layoutMemory({ ...request, role: 'encoder' })
  const kernels = [FIRST, 'twin'].map(i => loadKernel(layout, { implementation: i as 'simd' | 'twin' }))
  const rand = random(31)
  const a = areas(kernels[0]!, 16)
  const list = new Uint32Array(16)
  for (let i = 0; i < 16; i++) list[i] = layout.ring + (999_976 + i) * PAGE // pages that stand in the pool itself
  const pages = Uint8Array.from({ length: 8 * PAGE }, () => rand(256))
  const answers = kernels.map(k => {
    new Uint32Array(k.memory.buffer, layout.state + 128, 1)[0] = 999_998 // the cursor: two slots before the end
    k.bytes.set(pages, list[0]!)
    k.bytes.set(pages, list[8]!)
    new Uint32Array(k.memory.buffer, a.list, 16).set(list)
    new Uint32Array(k.memory.buffer, a.places, 16).fill(NONE)
    k.matchPages(
      a.list,
      a.places,
      16,
      a.kinds,
      a.slots,
      a.tokens,
      a.literals,
      a.dense,
      a.words,
      MATCH.LONG | MATCH.WORDS,
    )
    return [
      ...k.bytes.subarray(a.kinds, a.kinds + 16),
      ...new Uint32Array(k.memory.buffer, a.slots, 16),
      new Uint32Array(k.memory.buffer, layout.state + 128, 1)[0]!,
    ]
  })
  t.same(answers[0], answers[1], 'kernel and twin')
  const first = [1_000_002, 1_000_003, 4, 5, 6, 7, 8, 9]
  t.same(answers[0], [...Array(8).fill(KIND.NEW_DENSE), ...Array(8).fill(KIND.REF), ...first, ...first, 6])
  t.end()
})

t.test(
  'a kernel that is older than its sources is not used',
  { skip: !BUILT && 'kernel.wasm is not built' },
  async t => {
    const folder = t.testdir({ 'package.json': '{"type":"module"}' }) // removed by tap
    const root = new URL('../..', import.meta.url)
    cpSync(new URL('src', root), join(folder, 'src'), { recursive: true, preserveTimestamps: true })
    const ask = (): string => {
      const load = `const { kernelModule } = await import('./src/kernel/kernel.ts'); console.log(kernelModule() ? 'loaded' : 'none')`
      const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', load], { cwd: folder })
      return `${stdout}${stderr}`
    }
    const built = join(folder, 'src/kernel/kernel.wasm')
    const now = Date.now() / 1000
    utimesSync(built, now + 10, now + 10)
    t.match(ask(), /^loaded/)
    utimesSync(built, now - 10, now - 10)
    utimesSync(join(folder, 'src/kernel/assembly/match.ts'), now, now)
    t.match(ask(), /kernel.wasm is older than .*: npm run kernel/)
  },
)
