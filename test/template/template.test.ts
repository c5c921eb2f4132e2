/**
 * Templates: the file format against hand-made bytes, counting against a naive map, the store against damage and kills,
 * captures against the streams they were made from, and the commands from outside.
 */

import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { constants, gzipSync, zstdCompressSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { ChannelReader } from '../../src/capture/channels.ts'
import { type ChannelFormat, recognize } from '../../src/capture/formats.ts'
import { Input } from '../../src/capture/input.ts'
import { HEAD_LENGTH, HEADLESS_LENGTH_MAX } from '../../src/capture/limits.ts'
import { type InputNote, PageInput } from '../../src/capture/pages.ts'
import { ProxyError } from '../../src/errors.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import * as qemu from '../../src/qemu/wire.ts'
import { parseCount, parseDuration, parseRate, parseSize } from '../../src/quantity.ts'
import { type BuildRule, buildSet, type TemplateInput } from '../../src/store/build.ts'
import { SetFile } from '../../src/store/set-file.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { BatchPool, type PageBatch } from '../../src/template/batch.ts'
import { COUNT_MEMORY_MIN, PageCounter } from '../../src/template/count.ts'
import { isUniform, PAGE_WORDS, writeDigest, writeHash } from '../../src/template/digest.ts'
import { VMS_COUNTED_MAX, VmFilter } from '../../src/template/filter.ts'
import {
  digestOfSet,
  encodeHead,
  HeadDecoder,
  isPage,
  occurrencesOfPage,
  type SetHead,
  vmsOfPage,
} from '../../src/template/format.ts'
import { sortIndices } from '../../src/template/sort.ts'
import { overlap, parseSummary, summarize } from '../../src/template/summary.ts'
import { TALLY_ENTRY_LENGTH, Tally } from '../../src/template/tally.ts'
import * as wire from '../../src/template/wire.ts'
import { until } from '../helpers/until.ts'
import { pageferry } from './cli-harness.ts'
import {
  ACK,
  type CaptureOptions,
  connection,
  FIN,
  failure,
  migration,
  multifdChannel,
  PAGE,
  type Packet,
  page,
  pcap,
  pcapng,
  putPages,
  random,
  recordsOf,
  scratch,
  setBytes,
  sha256,
} from './makers.ts'

const ROOT = new URL('../..', import.meta.url).pathname
const HARNESS = new URL('./cli-harness.ts', import.meta.url).pathname

// Commands, kills and a few hundred megabytes take their time on a busy machine.
t.setTimeout(590_000) // the machine may be busy

// ---- the format ----

/** docs/template-format.md's example, by hand. */
const EXAMPLE_NAME = '4f46ad8349e8272ca3ca222a1c41cbc84d885af58e55acfa9182c10b2bca05da'
const EXAMPLE_SHA256 = 'd93cb3eedd05dec48586bf55a34d6b16fcfbe11977fdc2b7f5b4f906ee3d2e51'
const EXAMPLE_PAGE = Buffer.alloc(PAGE)
EXAMPLE_PAGE[0] = 1
const EXAMPLE = Buffer.concat([
  Buffer.from('89504653455 40d0a 00000001 00001000 0000000000000001 00000014 00000000'.replaceAll(' ', ''), 'hex'),
  Buffer.from('{"minVms":2,"vms":2}'),
  Buffer.from('f0c500e2401e1aee33d11ae25ae14e574820fbdb1731670af1888f88f3c17794', 'hex'),
  Buffer.from('0000000200000004', 'hex'),
  Buffer.from(EXAMPLE_NAME, 'hex'),
  Buffer.alloc(4096 - 124),
  EXAMPLE_PAGE,
])

function decode(bytes: Buffer, step: number, name = 'file', length: number | undefined = bytes.length): SetHead {
  const decoder = new HeadDecoder(name, length)
  let at = 0
  while (at < bytes.length && decoder.head === undefined) {
    const chunk = Buffer.from(bytes.subarray(at, at + step))
    const taken = decoder.push(chunk)
    chunk.fill(0xdd) // it keeps copies only
    at += taken
    if (taken < chunk.length) break
  }
  decoder.end()
  if (at !== decoder.head!.layout.dataAt) throw new Error(`head of ${at} bytes`)
  return decoder.head!
}

t.test('the numbers of the format', t => {
  t.equal(wire.PAGE_SIZE, 4096)
  t.equal(wire.PAGE_SIZE, qemu.PAGE_SIZE, 'pages are those of QEMU')
  t.same(wire.MAGIC, [0x89, 0x50, 0x46, 0x53, 0x45, 0x54, 0x0d, 0x0a])
  t.equal(wire.VERSION, 1)
  t.same(wire.HEADER, { VERSION: 8, PAGE_SIZE: 12, PAGE_COUNT: 16, METADATA_LENGTH: 24, RESERVED: 28 })
  t.same([wire.HEADER_LENGTH, wire.RECORD_LENGTH, wire.DIGEST_LENGTH], [32, 40, 32])
  t.same(wire.RECORD, { DIGEST: 0, VMS: 32, OCCURRENCES: 36 })
  t.same([wire.PAGES_MAX, wire.METADATA_LENGTH_MIN, wire.METADATA_LENGTH_MAX], [16_777_216, 2, 65_536])
  t.equal(wire.setFileName('ab'), 'ab.pfset')
  t.equal(wire.digestOfFileName(`${EXAMPLE_NAME}.pfset`), EXAMPLE_NAME)
  t.equal(wire.digestOfFileName(`${EXAMPLE_NAME.toUpperCase()}.pfset`), undefined)
  t.equal(wire.digestOfFileName(`${EXAMPLE_NAME}.pfset.tmp`), undefined)
  for (const length of [2, 20, 4000, 65_536]) {
    for (const max of [0, 4096, 8191, 8192, 1_000_000, 123_456_789]) {
      const count = wire.pagesWithin(max, length)
      const fits = (n: number): boolean => wire.setLayout(n, length).lengthBytes <= max
      if (!((count === 0 || fits(count)) && !fits(count + 1))) t.fail(`pagesWithin(${max}, ${length}) is ${count}`)
    }
  }
  t.end()
})

t.test('the example of the document', t => {
  t.equal(sha256(EXAMPLE), EXAMPLE_SHA256)
  const records = recordsOf([EXAMPLE_PAGE], 2, 4)
  const metadata = { vms: 2, minVms: 2, maxBytes: undefined }
  const pieces = [...encodeHead(metadata, records)]
  t.same(Buffer.concat([...pieces, EXAMPLE_PAGE]), EXAMPLE, 'the encoder writes it')
  t.equal(digestOfSet(metadata, records), EXAMPLE_NAME)
  for (let step = 1; step <= EXAMPLE.length; step = step < 130 ? step + 1 : step * 2) {
    const head = decode(EXAMPLE, step, `${EXAMPLE_NAME}.pfset`)
    if (head.digest !== EXAMPLE_NAME || vmsOfPage(head, 0) !== 2 || occurrencesOfPage(head, 0) !== 4)
      t.fail(`step ${step}`)
    if (!isPage(head, 0, EXAMPLE_PAGE) || isPage(head, 0, Buffer.alloc(PAGE))) t.fail(`page, step ${step}`)
    if (head.metadata.minVms !== 2 || head.metadata.vms !== 2 || head.layout.dataAt !== 4096)
      t.fail(`head, step ${step}`)
  }
  t.equal(decode(EXAMPLE, 100, 'pipe', undefined).digest, EXAMPLE_NAME, 'its length need not be known')
  const limited = Buffer.concat([...encodeHead({ minVms: 3, vms: 9, maxBytes: 10 ** 9 }, recordsOf([], 3))])
  t.match(limited.toString('latin1'), '{"maxBytes":1000000000,"minVms":3,"vms":9}', 'keys are in order')
  t.equal(limited.length, 4096, 'a set of no pages has no page data')
  t.same(decode(limited, 4096).metadata, { maxBytes: 10 ** 9, minVms: 3, vms: 9 })
  const large = Array.from({ length: 3000 }, (_, i) => page(i + 1))
  const head = decode(setBytes(large), 999)
  t.equal(head.pageCount, 3000)
  t.ok(
    large.every((bytes, i) => isPage(head, i, bytes)),
    'a table of several pieces',
  )
  t.end()
})

t.test('a damaged, truncated or foreign head is refused, at its offset', async t => {
  const good = setBytes([page(1), page(2), page(3)])
  const { sealAt, paddingAt, dataAt, tableAt } = wire.setLayout(3, 20)
  /** The set with these bytes at this place, and a seal that fits where wanted. */
  const changed = (at: number, bytes: number[], resealed = false): Buffer => {
    const copy = Buffer.from(good)
    copy.set(bytes, at)
    if (resealed) copy.set(Buffer.from(sha256(copy.subarray(0, sealAt)), 'hex'), sealAt)
    return copy
  }
  const json = (text: string): number[] => [...Buffer.from(text.padEnd(20))]
  const cases: { name: string; input: Buffer; trace: string; file?: string }[] = [
    { name: 'no bytes', input: Buffer.alloc(0), trace: 'TEMPLATE_FORMAT at 0' },
    { name: 'another file', input: Buffer.from('root:x:0:0:root:/root:/bin/sh\n'), trace: 'TEMPLATE_FORMAT at 0' },
    { name: 'a short other file', input: Buffer.from('PF'), trace: 'TEMPLATE_FORMAT at 0' },
    { name: 'a text-mode copy', input: changed(6, [0x0a, 0x00]), trace: 'TEMPLATE_FORMAT at 0' },
    { name: 'version 2', input: changed(8, [0, 0, 0, 2]), trace: 'TEMPLATE_FORMAT at 8' },
    { name: 'pages of 16 KiB', input: changed(12, [0, 0, 0x40, 0]), trace: 'TEMPLATE_FORMAT at 12' },
    { name: '2^24 + 1 pages', input: changed(16, [0, 0, 0, 0, 1, 0, 0, 1]), trace: 'TEMPLATE_FORMAT at 16' },
    { name: '2^63 pages', input: changed(16, [0x80]), trace: 'TEMPLATE_FORMAT at 16' },
    { name: '2^24 pages', input: changed(16, [0, 0, 0, 0, 1, 0, 0, 0]), trace: `TEMPLATE_TRUNCATED at ${good.length}` },
    { name: 'one page fewer', input: changed(23, [2]), trace: `TEMPLATE_DAMAGED at ${good.length - PAGE}` },
    { name: 'metadata of 1 byte', input: changed(24, [0, 0, 0, 1]), trace: 'TEMPLATE_FORMAT at 24' },
    { name: 'metadata of 4 GiB', input: changed(24, [255, 255, 255, 255]), trace: 'TEMPLATE_FORMAT at 24' },
    { name: 'a reserved bit', input: changed(31, [1]), trace: 'TEMPLATE_FORMAT at 28' },
    {
      name: 'bytes behind',
      input: Buffer.concat([good, Buffer.alloc(1)]),
      trace: `TEMPLATE_DAMAGED at ${good.length}`,
    },
    { name: 'changed metadata', input: changed(33, [0x41]), trace: `TEMPLATE_DAMAGED at ${sealAt}` },
    { name: 'a changed digest', input: changed(tableAt + 40, [1]), trace: `TEMPLATE_DAMAGED at ${sealAt}` },
    { name: 'a changed count', input: changed(tableAt + 35, [9]), trace: `TEMPLATE_DAMAGED at ${sealAt}` },
    {
      name: 'a changed seal',
      input: changed(sealAt + 31, [good[sealAt + 31]! ^ 1]),
      trace: `TEMPLATE_DAMAGED at ${sealAt}`,
    },
    { name: 'padding', input: changed(paddingAt, [1]), trace: `TEMPLATE_DAMAGED at ${paddingAt}` },
    { name: 'the last of the padding', input: changed(dataAt - 1, [1]), trace: `TEMPLATE_DAMAGED at ${dataAt - 1}` },
    { name: 'another name', input: good, trace: `TEMPLATE_DAMAGED at ${sealAt}`, file: `/s/${EXAMPLE_NAME}.pfset` },
    { name: 'no JSON', input: changed(32, json('{"minVms":2,'), true), trace: 'TEMPLATE_FORMAT at 32' },
    { name: 'no UTF-8', input: changed(32, [0xff], true), trace: 'TEMPLATE_FORMAT at 32' },
    { name: 'a JSON list', input: changed(32, json('[]'), true), trace: 'TEMPLATE_FORMAT at 32' },
    { name: 'JSON null', input: changed(32, json('null'), true), trace: 'TEMPLATE_FORMAT at 32' },
    { name: 'no vms', input: changed(32, json('{"minVms":2}'), true), trace: 'TEMPLATE_FORMAT at 32' },
    {
      name: 'half a VM',
      input: changed(32, json('{"minVms":2,"vms":.5}'.slice(0, 20)), true),
      trace: 'TEMPLATE_FORMAT at 32',
    },
    { name: 'a page of 0 VMs', input: changed(tableAt + 35, [0], true), trace: `TEMPLATE_FORMAT at ${tableAt}` },
    {
      name: 'a page of 3 of 2 VMs',
      input: changed(tableAt + 75, [3], true),
      trace: `TEMPLATE_FORMAT at ${tableAt + 40}`,
    },
    { name: 'fewer occurrences', input: changed(tableAt + 79, [1], true), trace: `TEMPLATE_FORMAT at ${tableAt + 40}` },
    {
      name: 'a page that stands twice',
      input: changed(tableAt + 80, [...good.subarray(tableAt, tableAt + 32)], true),
      trace: `TEMPLATE_FORMAT at ${tableAt + 80}`,
    },
  ]
  for (const { name, input, trace, file } of cases) {
    for (const step of [1, 7, 4096])
      t.equal(await failure(() => decode(input, step, file)), trace, `${name}, by ${step}`)
  }
  t.equal(await failure(() => decode(good, 4096)), undefined, 'the unchanged one is not refused')
  const unknown = changed(32, json('{"vms":2,"minVms":2}'), true)
  t.equal(await failure(() => decode(unknown, 4096)), undefined, 'readers take keys in any order')

  for (let length = 0; length < good.length; length += length < dataAt + 2 ? 1 : 997) {
    const cut = good.subarray(0, length)
    const known = length === 0 ? 'TEMPLATE_FORMAT at 0' : `TEMPLATE_TRUNCATED at ${length}`
    const found = await failure(() => decode(cut, 4096))
    if (found !== known) t.equal(found, known, `cut to ${length}, known from the start`)
    if (length >= dataAt) continue
    const late = await failure(() => decode(cut, 11, 'pipe', undefined))
    if (late !== known) t.equal(late, known, `cut to ${length}, unknown from the start`)
  }

  const before = process.memoryUsage().arrayBuffers
  const claim = new HeadDecoder('pipe')
  claim.push(Buffer.concat([changed(16, [0, 0, 0, 0, 1, 0, 0, 0]).subarray(0, tableAt), Buffer.alloc(4000, 1)]))
  t.ok(process.memoryUsage().arrayBuffers - before < 1 << 20, 'a claim of 640 MB of table takes no memory')
})

// ---- counting ----

t.test('what a page is known by', t => {
  const bytes = Buffer.alloc(3 * PAGE)
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  t.ok(isUniform(words, PAGE_WORDS), 'zeros')
  bytes.fill(0x5a, PAGE, 2 * PAGE)
  t.ok(isUniform(words, PAGE_WORDS), 'one byte')
  for (const at of [0, 1, 3, 4, 2047, 4095]) {
    bytes[PAGE + at] = 0x5b
    t.notOk(isUniform(words, PAGE_WORDS), `another byte at ${at}`)
    bytes[PAGE + at] = 0x5a
  }
  for (let i = 0; i < PAGE; i += 4) bytes.writeUInt32LE(0x01020304, PAGE + i)
  t.notOk(isUniform(words, PAGE_WORDS), 'one word of several bytes')

  const digest = Buffer.alloc(40)
  writeDigest(page(5), digest, 4)
  t.equal(digest.toString('hex', 4, 36), sha256(page(5)))
  t.equal(digest.readUInt32LE(36), 0, 'nothing behind it')

  const seen = new Set<string>()
  const hashes = new Uint32Array(2)
  bytes.fill(0)
  for (let bit = 0; bit < PAGE * 8; bit++) {
    bytes[bit >> 3]! ^= 1 << (bit & 7)
    writeHash(words, 0, hashes, 0)
    seen.add(`${hashes[0]} ${hashes[1]}`)
    bytes[bit >> 3]! ^= 1 << (bit & 7)
  }
  t.equal(seen.size, PAGE * 8, 'each bit of a page changes its fast hash')
  t.end()
})

t.test('indices are sorted in place', t => {
  fc.assert(
    fc.property(fc.array(fc.double({ noNaN: true })), values => {
      const indices = new Uint32Array(values.length + 2).fill(77)
      for (let i = 0; i < values.length; i++) indices[i] = i
      sortIndices(indices, values.length, (a, b) => values[a]! - values[b]! || a - b)
      const wanted = values.map((_, i) => i).sort((a, b) => values[a]! - values[b]! || a - b)
      return indices.subarray(0, values.length).join() === wanted.join() && indices[values.length] === 77
    }),
  )
  t.end()
})

t.test('the filter errs to one side only', t => {
  fc.assert(
    fc.property(
      fc.array(fc.array(fc.nat(40), { maxLength: 60 }), { minLength: 1, maxLength: 20 }),
      fc.integer({ min: 1, max: 64 }),
      (vms, cells) => {
        // With so few cells nearly all pages share theirs with others.
        const filter = new VmFilter(new Uint16Array(cells))
        const hashes = (id: number): [number, number] => [
          Math.imul(id + 1, 0x9e3779b1) >>> 0,
          Math.imul(id + 7, 0x85ebca77) >>> 0,
        ]
        vms.forEach((ids, vm) => {
          for (const id of ids) filter.add(...hashes(id), vm)
        })
        for (let id = 0; id <= 40; id++) {
          const inVms = vms.filter(ids => ids.includes(id)).length
          if (!filter.mayReach(...hashes(id), inVms)) return false
        }
        return true
      },
    ),
  )
  const roomy = new VmFilter(new Uint16Array(1 << 16))
  for (let vm = 0; vm < 40; vm++) roomy.add(123, 456, vm)
  for (let i = 0; i < 100; i++) roomy.add(2 ** 31 + 789, 2 ** 29 + 12, 3)
  t.ok(roomy.mayReach(123, 456, 40), `more than ${VMS_COUNTED_MAX} VMs are many`)
  t.notOk(roomy.mayReach(2 ** 31 + 789, 2 ** 29 + 12, 2), 'a page counts once a VM')
  t.notOk(roomy.mayReach(2 ** 30, 2 ** 27, 1), 'and another one not at all')
  t.end()
})

/** VMs as lists of page numbers: what is counted, in the simplest way. */
function naiveCount(vms: readonly (readonly number[])[]): Map<number, { vms: number; occurrences: number }> {
  const counts = new Map<number, { vms: number; occurrences: number }>()
  for (const ids of vms) {
    const here = new Set<number>()
    for (const id of ids) {
      if (id === 0) continue
      const count = counts.get(id) ?? { vms: 0, occurrences: 0 }
      count.occurrences++
      if (!here.has(id)) count.vms++
      here.add(id)
      counts.set(id, count)
    }
  }
  return counts
}

/** What has to be chosen, in order: page number, VMs, occurrences. */
function naiveChoice(vms: readonly (readonly number[])[], minVms: number, most = Infinity): number[][] {
  // A Map keeps the order of first appearance, and sort keeps the order of equals.
  const rows = [...naiveCount(vms)].filter(([, count]) => count.vms >= minVms)
  const best = [...rows].sort(([, a], [, b]) => b.vms - a.vms || b.occurrences - a.occurrences).slice(0, most)
  return rows.filter(row => best.includes(row)).map(([id, count]) => [id, count.vms, count.occurrences])
}

t.test('the tally, exact in any memory', t => {
  const digestWords = (id: number): Uint32Array => {
    const bytes = new Uint8Array(Buffer.from(sha256(Buffer.from(`${id}`)), 'hex'))
    return new Uint32Array(bytes.buffer)
  }
  fc.assert(
    fc.property(
      fc.array(fc.array(fc.integer({ min: 1, max: 90 }), { maxLength: 200 }), { minLength: 1, maxLength: 6 }),
      fc.integer({ min: 4, max: 100 }),
      fc.integer({ min: 1, max: 3 }),
      fc.option(fc.integer({ min: 1, max: 20 }), { nil: undefined }),
      (vms, capacity, minVms, most) => {
        const wanted = naiveChoice(vms, minVms, most)
        // Final pages have to leave room for a range; that they do is the caller's business.
        const final = Math.max(...[0, naiveChoice(vms, minVms).length])
        const room = most === undefined ? final + capacity : Math.min(final, most) * 2 + capacity
        const tally = new Tally(new ArrayBuffer(room * TALLY_ENTRY_LENGTH + 8), 8, room * TALLY_ENTRY_LENGTH)
        while (!tally.complete) {
          let first = 0
          vms.forEach((ids, vm) => {
            for (const id of ids) {
              while (!tally.add(digestWords(id), 0, vm, first)) tally.narrow()
              first++
            }
          })
          tally.endRange(minVms)
          if (most !== undefined) tally.keepBest(most)
        }
        tally.sortByAppearance()
        const found = Array.from({ length: tally.count }, (_, place) => {
          const entry = tally.entryAt(place)
          const digest = Buffer.alloc(32)
          tally.copyDigest(entry, digest, 0)
          return [digest.toString('hex'), tally.vms(entry), tally.occurrences(entry)]
        })
        return found.join() === wanted.map(([id, ...counts]) => [sha256(Buffer.from(`${id}`)), ...counts]).join()
      },
    ),
    { numRuns: 300 },
  )
  t.end()
})

/** An input in memory: a list of page numbers, batches as full as these lengths say. */
function listInput(name: string, ids: readonly number[], lengths: readonly number[] = [256]): TemplateInput {
  const pool = new BatchPool()
  return {
    name,
    lengthBytes: ids.length * PAGE,
    async *pages(readBytes) {
      for (let at = 0, i = 0; at < ids.length; i++) {
        const some = ids.slice(at, at + lengths[i % lengths.length]!)
        const batch = pool.take(at)
        for (let i = 0; i < some.length; i++) page(some[i]!).copy(batch.bytes, i * PAGE)
        batch.count = some.length
        readBytes(some.length * PAGE)
        yield batch
        at += some.length
      }
    },
  }
}

/** The pages of a set in a store: number (the pages are of `page`), VMs, occurrences. */
async function storedRows(store: TemplateStore, digest: string): Promise<number[][]> {
  const file = await store.open(digest)
  const pages = Buffer.alloc(file.pagesLength)
  await file.load(pages)
  await file.close()
  return Array.from({ length: file.head.pageCount }, (_, i) => {
    return [pages.readUInt32LE(i * PAGE + 8), vmsOfPage(file.head, i), occurrencesOfPage(file.head, i)]
  })
}

const RULE: BuildRule = { minVms: 2, memoryBytes: 1 << 20 }

t.test('a build, against a naive count', async t => {
  const { folder } = scratch(t.teardown)
  let runs = 0
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.array(fc.nat(60), { maxLength: 120 }), { minLength: 1, maxLength: 5 }),
      fc.integer({ min: 1, max: 3 }),
      fc.option(fc.integer({ min: 1, max: 30 }), { nil: undefined }),
      fc.array(fc.integer({ min: 1, max: 256 }), { minLength: 1, maxLength: 4 }),
      async (vms, minVms, most, lengths) => {
        fc.pre(minVms <= vms.length)
        const store = new TemplateStore(join(folder, `${runs++}`))
        // The file of so many pages and not one more.
        const maxBytes = most === undefined ? undefined : wire.setLayout(most, 60).lengthBytes
        const inputs = vms.map((ids, vm) => listInput(`vm ${vm}`, ids, lengths))
        const wanted = naiveChoice(vms, minVms, most)
        if (wanted.length === 0) {
          return (await failure(() => buildSet(inputs, { ...RULE, minVms, maxBytes }, store))) === 'TEMPLATE_MISSING'
        }
        const report = await buildSet(inputs, { ...RULE, minVms, maxBytes }, store)
        const stored = await storedRows(store, report.digest)
        rmSync(store.folder, { recursive: true })
        return stored.join() === wanted.join() && report.pages === wanted.length
      },
    ),
    { numRuns: 60 },
  )
  t.pass(`${runs} builds`)
})

t.test('more passes instead of more memory, and the same set', async t => {
  const { folder } = scratch(t.teardown)
  const next = random(7)
  // 6,000 distinct pages of which 400 are shared: more than the 1,000 that 64 KiB of tally hold.
  const vms = [0, 1, 2].map(vm =>
    Array.from({ length: 2500 }, (_, i) => (i % 5 === 0 ? 1 + next(400) : 10_000 * (vm + 1) + i)),
  )
  const inputs = vms.map((ids, vm) => listInput(`vm ${vm}`, ids))
  const reports = []
  for (const memoryBytes of [64 << 20, COUNT_MEMORY_MIN]) {
    const store = new TemplateStore(join(folder, `${memoryBytes}`))
    const report = await buildSet(inputs, { minVms: 2, memoryBytes }, store)
    t.same(await storedRows(store, report.digest), naiveChoice(vms, 2), `in ${memoryBytes} bytes`)
    reports.push(report)
  }
  t.equal(reports[0]!.totals.passes, 1)
  t.ok(reports[1]!.totals.passes > 2, `${reports[1]!.totals.passes} passes`)
  t.equal(reports[1]!.digest, reports[0]!.digest)
  t.same(
    { ...reports[0]!.totals, passes: 0 },
    { pages: 7500, uniformPages: 0, passes: 0 },
    'totals are those of the inputs, whatever the passes',
  )
  t.same({ ...reports[1]!.totals, passes: 0 }, { ...reports[0]!.totals, passes: 0 })

  // Each page of one VM: nothing to filter, so ranges alone.
  const store = new TemplateStore(join(folder, 'one'))
  const few = await buildSet(
    [listInput('vm', vms.flat())],
    { minVms: 1, memoryBytes: COUNT_MEMORY_MIN, maxBytes: wire.setLayout(100, 60).lengthBytes },
    store,
  )
  t.same(await storedRows(store, few.digest), naiveChoice([vms.flat()], 1, 100), 'the best 100 of 6,000')
  t.equal(
    await failure(() => buildSet([listInput('vm', vms.flat())], { minVms: 1, memoryBytes: COUNT_MEMORY_MIN }, store)),
    'LIMIT_EXCEEDED',
    'a choice that does not fit the memory is refused',
  )
})

t.test('the order of a set', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const a = [9, 8, 0, 7, 7, 1]
  const b = [1, 7, 8, 9, 2]
  const ab = await buildSet([listInput('a', a), listInput('b', b)], RULE, store)
  t.same(
    (await storedRows(store, ab.digest)).map(([id]) => id),
    [9, 8, 7, 1],
    'is that of first appearance',
  )
  const again = await buildSet([listInput('x', a), listInput('y', b)], RULE, store)
  t.ok(again.existed, 'the same inputs give the same set, whatever they are called')
  const ba = await buildSet([listInput('b', b), listInput('a', a)], RULE, store)
  t.not(ba.digest, ab.digest)
  t.equal(ab.totals.uniformPages, 1)
  t.same(ab.byVms, [{ vms: 2, pages: 4, occurrences: 9 }])

  const steps: string[] = []
  await buildSet([listInput('a', a), listInput('c', [...b, 55])], { ...RULE, minVms: 1 }, store, {
    progress: ({ step, input, doneBytes, totalBytes }) => steps.push(`${step} ${input} ${doneBytes}/${totalBytes}`),
  })
  t.same(steps, ['count a 24576/49152', 'count c 49152/49152', 'copy a 24576/49152', 'copy c 49152/49152'])
})

t.test('a build that cannot be', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(join(folder, 'store'))
  const inputs = [listInput('a', [1, 2]), listInput('b', [2, 3])]
  const fails = (rule: Partial<BuildRule>, from = inputs): Promise<string | undefined> =>
    failure(() => buildSet(from, { ...RULE, ...rule }, store))
  t.equal(await fails({ minVms: 3 }), 'USAGE')
  t.equal(await fails({ maxBytes: 8191 }), 'USAGE')
  t.equal(await fails({ memoryBytes: 1000 }), 'USAGE')
  t.equal(await fails({ memoryBytes: 2 ** 52 }), 'USAGE', 'more memory than there is')
  t.equal(await fails({}, [listInput('a', [1]), listInput('b', [2])]), 'TEMPLATE_MISSING')
  t.notOk(existsSync(store.folder), 'nothing was made')

  // An input that is another one each time.
  const shifting = (change: (pass: number) => number[]): TemplateInput => {
    let pass = 0
    return { name: 's', lengthBytes: 1, pages: read => listInput('s', change(pass++)).pages(read) }
  }
  t.equal(await fails({}, [inputs[0]!, shifting(pass => (pass === 0 ? [1, 2] : [3, 4]))]), undefined, 'not copied from')
  rmSync(store.folder, { recursive: true })
  t.equal(await fails({}, [shifting(pass => (pass === 0 ? [1, 2] : [3, 4])), inputs[0]!]), 'IO', 'other pages')
  t.equal(await fails({}, [shifting(pass => (pass === 0 ? [1, 2] : [1])), inputs[0]!]), 'IO', 'fewer pages')
  t.same(readdirSync(store.folder), [], 'and nothing was left')
  t.equal(await failure(() => store.put({ minVms: 1, vms: 1 }, recordsOf([page(1)], 1), async function* () {})), 'IO')

  const stop = new AbortController()
  const stopping = buildSet(inputs, RULE, store, {
    signal: stop.signal,
    progress: ({ step }) => step === 'copy' && stop.abort('enough'),
  })
  await t.rejects(
    stopping.catch(error => Promise.reject(new Error(String(error)))),
    { message: 'enough' },
  )
  t.same(readdirSync(store.folder), [])
  const thrower: TemplateInput = {
    name: 't',
    lengthBytes: 1,
    async *pages() {
      yield* listInput('t', [1, 2]).pages(() => {})
      throw new ProxyError('CAPTURE_GAP', 'gone', { stream: 't', offset: 5 }, 'none')
    },
  }
  t.equal(await fails({}, [inputs[0]!, thrower]), 'CAPTURE_GAP at 5', 'an error of an input passes as it is')
})

t.test('a counter that sees its batches as no build hands them out', t => {
  const counter = new PageCounter({ minVms: 1, memoryBytes: COUNT_MEMORY_MIN })
  const pool = new BatchPool()
  while (!counter.done) {
    counter.beginPass()
    counter.beginVm()
    const batch: PageBatch = pool.take(0)
    counter.prepare(batch)
    counter.count(batch)
    batch.release()
    counter.endVm()
    counter.endPass()
  }
  t.equal(counter.chosen().count, 0, 'an empty batch of an empty VM')
  t.end()
})

// ---- the store ----

t.test('a store', async t => {
  const { folder, put } = scratch(t.teardown)
  const store = new TemplateStore(join(folder, 'deep', 'store'))
  t.same(await store.list(), [], 'a folder that is not there is empty')
  t.equal(await failure(() => store.find('ab')), 'TEMPLATE_MISSING')
  const pages = Array.from({ length: 700 }, (_, i) => page(i + 1))
  const digest = await putPages(store, pages)
  const path = store.pathOf(digest)
  t.same(readdirSync(store.folder), [`${digest}.pfset`], 'one file and no other')
  t.same(readFileSync(path), setBytes(pages))
  t.equal(statSync(path).mode & 0o777, 0o600)
  t.equal(statSync(store.folder).mode & 0o777, 0o700)

  let asked = false
  const again = await store.put({ minVms: 2, vms: 2 }, recordsOf(pages), async function* () {
    asked = true
    yield* pages
  })
  t.ok(again.existed && !asked, 'what is there is not written again')

  const [listed] = await store.list()
  t.match(listed, { digest, path, pages: 700, fileBytes: 700 * PAGE + 28672, metadata: { minVms: 2, vms: 2 } })
  t.equal(listed!.problem, undefined)
  t.equal(await store.find(digest.slice(0, 3)), digest)
  t.equal(await store.find(`${digest}.pfset`), digest)
  t.equal(await failure(() => store.find('')), 'TEMPLATE_MISSING', 'nothing is no beginning')

  const file = await store.open(digest.slice(0, 8))
  const shared = new Uint8Array(new SharedArrayBuffer(file.pagesLength + 100))
  const doneBytes: number[] = []
  await file.load(shared, 64, done => doneBytes.push(done))
  t.ok(Buffer.concat(pages).equals(Buffer.from(shared.slice(64, 64 + file.pagesLength))), 'loads into shared memory')
  t.ok(shared.subarray(0, 64).every(byte => byte === 0) && shared.subarray(-36).every(byte => byte === 0))
  t.equal(doneBytes.at(-1), file.pagesLength)
  await t.rejects(file.load(new Uint8Array(10)), RangeError)
  t.same(await file.verify(), [])
  await file.close()

  const other = await putPages(store, [page(1)])
  writeFileSync(join(store.folder, 'README'), 'not a set')
  mkdirSync(join(store.folder, `${'0'.repeat(64)}.pfset`))
  t.same(
    (await store.list()).map(set => [set.digest, set.problem?.code]).sort(),
    [
      ['0'.repeat(64), 'TEMPLATE_FORMAT'],
      [digest, undefined],
      [other, undefined],
    ].sort(),
    'other files are ignored, and what only has the name of a set is listed as what it is',
  )
  await store.remove(other)
  t.equal(await failure(() => store.open(other)), 'TEMPLATE_MISSING')
  await store.remove(other)
  t.pass("two that remove the same set are in nobody's way")
  t.equal(await failure(() => store.remove('0'.repeat(64))), 'IO', 'a folder is not removed')
  t.equal(await failure(() => new TemplateStore(put('file', Buffer.alloc(1))).list()), 'IO', 'a file is no store')
  t.equal(await failure(() => putPages(new TemplateStore(join(folder, 'file')), pages)), 'IO')
})

t.test('a damaged set is never used, and says where', async t => {
  const { folder } = scratch(t.teardown)
  const store = new TemplateStore(folder)
  const pages = Array.from({ length: 600 }, (_, i) => page(i + 1))
  const digest = await putPages(store, pages)
  const path = store.pathOf(digest)
  const good = readFileSync(path)
  const { dataAt, sealAt } = wire.setLayout(600, 20)
  const damage = (...offsets: number[]): void => {
    const bytes = Buffer.from(good)
    for (const at of offsets) bytes[at]! ^= 0x10
    writeFileSync(path, bytes)
  }
  const load = async (): Promise<void> => {
    const file = await store.open(digest)
    try {
      await file.load(new Uint8Array(file.pagesLength))
    } finally {
      await file.close()
    }
  }
  const pageAt = (index: number): number => dataAt + index * PAGE
  for (const index of [0, 1, 255, 256, 299, 599]) {
    damage(pageAt(index) + 4095)
    t.equal(await failure(load), `TEMPLATE_DAMAGED at ${pageAt(index)}`, `page ${index}`)
    t.notOk(await store.holds(digest))
  }
  damage(pageAt(3), pageAt(3) + 9, pageAt(400) + 100, pageAt(599) + 1)
  const file = await store.open(digest)
  t.same(
    await file.verify(),
    [3, 400, 599].map(index => ({ index, offset: pageAt(index) })),
    'verify tells all damaged pages',
  )
  await file.close()
  for (const at of [0, 9, 20, 26, 40, 1000, sealAt + 3, sealAt + 32 + 5]) {
    damage(at)
    t.match(await failure(load), /^TEMPLATE_(FORMAT|DAMAGED|TRUNCATED) at \d+$/, `byte ${at} of the head`)
  }
  for (const length of [0, 1, 31, 32, 500, dataAt - 1, dataAt, dataAt + 1, pageAt(300), good.length - 1]) {
    writeFileSync(path, good)
    truncateSync(path, length)
    const wanted = length === 0 ? 'TEMPLATE_FORMAT at 0' : `TEMPLATE_TRUNCATED at ${length}`
    t.equal(await failure(load), wanted, `cut to ${length}`)
  }
  damage(pageAt(77))
  t.equal(await putPages(store, pages), digest)
  t.same(readFileSync(path), good, 'a put replaces a damaged set')
  copyFileSync(path, store.pathOf(EXAMPLE_NAME))
  t.equal(await failure(() => store.open(EXAMPLE_NAME)), `TEMPLATE_DAMAGED at ${sealAt}`, 'a set under another name')
  t.equal(await failure(() => SetFile.open('/dev/zero')), 'TEMPLATE_FORMAT at 0', 'a device is no set')
  t.equal(await failure(() => SetFile.open(join(folder, 'gone'))), 'IO')

  writeFileSync(path, good)
  const shrinking = await store.open(digest)
  truncateSync(path, pageAt(300))
  t.equal(
    await failure(() => shrinking.load(new Uint8Array(shrinking.pagesLength))),
    `TEMPLATE_TRUNCATED at ${pageAt(300)}`,
  )
  await shrinking.close()
})

/** A process that puts a set, once it has begun to. */
async function putUnderWay(folder: string): Promise<{ child: ChildProcess; store: string; temporaries(): string[] }> {
  const store = join(folder, 'store')
  const child = spawn(process.execPath, [HARNESS, 'slow-put', store], { stdio: 'ignore' })
  const temporaries = (): string[] => (existsSync(store) ? readdirSync(store) : [])
  await until('a temporary file', () => temporaries().length > 0)
  return { child, store, temporaries }
}

t.test('a put that is killed leaves no set', async t => {
  const { folder } = scratch(t.teardown)
  const { child, store, temporaries } = await putUnderWay(folder)
  const [name] = temporaries()
  t.match(name, /^\.put-\d+-[0-9a-f]{16}\.tmp$/)
  child.kill('SIGKILL')
  await once(child, 'exit')
  t.same(temporaries(), [name], 'the rest of it stays')
  const sets = new TemplateStore(store)
  t.same(await sets.list(), [], 'and is no set')
  await putPages(sets, [page(1)])
  t.equal(temporaries().length, 2, 'the next put leaves it for a while: its process may run elsewhere')
  utimesSync(join(store, name!), 1, 1)
  await putPages(sets, [page(2)])
  t.notOk(temporaries().includes(name!), 'and removes it later')

  const busy = await putUnderWay(join(folder, 'busy'))
  const [running] = busy.temporaries()
  utimesSync(join(busy.store, running!), 1, 1)
  await putPages(new TemplateStore(busy.store), [page(1)])
  t.ok(busy.temporaries().includes(running!), 'a file of a running process is not touched')
  busy.child.kill('SIGTERM')
  await once(busy.child, 'exit')
  t.equal(busy.child.signalCode ?? busy.child.exitCode, 143)
  t.notOk(busy.temporaries().includes(running!), 'a process that exits by itself takes its file along')
})

t.test('a full disk', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-full-'))
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder])
  t.teardown(() => {
    if (mounted.status === 0) spawnSync('umount', [folder])
    rmSync(folder, { recursive: true, force: true })
  })
  if (mounted.status !== 0) return void t.pass('skipped: a tmpfs cannot be mounted here', { skip: true })
  const store = new TemplateStore(join(folder, 'store'))
  const pages = Array.from({ length: 600 }, (_, i) => page(i + 1))
  const error = await putPages(store, pages).catch(caught => caught)
  t.match(error, { code: 'IO', what: /no space left on the device/, action: /make room/ })
  t.same(readdirSync(store.folder), [], 'no half file is left')
  const digest = await putPages(store, pages.slice(0, 100))
  t.ok(await store.holds(digest), 'what fits is stored')
  if (process.getuid?.() === 0) return
  chmodSync(store.folder, 0o500)
  t.equal(await failure(() => putPages(store, [page(7)])), 'IO', 'a store that cannot be written')
})

// ---- captures ----

interface Found {
  kind: ChannelKind
  name: string
  bytes: Buffer
  /** Why the last of the gaps is there. */
  gap?: string
  /** Where bytes are missing, and how many. */
  gaps: [number, number][]
  position?: number
}

/** The channels of an input in memory, pushed in steps. */
function channelsOf(bytes: Buffer, step = 100_003): Found[] {
  const found: Found[] = []
  const pieces: Buffer[][] = []
  const reader = new ChannelReader('capture', recognize(bytes.subarray(0, HEAD_LENGTH)).format as ChannelFormat, {
    open: (channel, kind, name) => {
      found[channel] = { kind, name, bytes: Buffer.alloc(0), gaps: [] }
      pieces[channel] = []
    },
    bytes: (channel, chunk, at, length) => {
      pieces[channel]!.push(Buffer.from(chunk.subarray(at, at + length)))
    },
    gap: (channel, position, lengthBytes, reason) => {
      found[channel]!.gaps.push([position, lengthBytes])
      found[channel]!.gap = reason
    },
    end: (channel, position) => {
      const one = found[channel]!
      one.bytes = Buffer.concat(pieces[channel]!)
      one.position = position
    },
  })
  for (let at = 0; at < bytes.length; at += step) {
    const chunk = Buffer.from(bytes.subarray(at, at + step))
    reader.push(chunk)
    chunk.fill(0xdd)
  }
  reader.end()
  return found
}

const GUEST = Array.from({ length: 40 }, (_, i) => page(i + 1))
const STREAM = migration(GUEST)

t.test('captures of every kind', t => {
  const kinds: { name: string; options: CaptureOptions }[] = [
    { name: 'little-endian, microseconds', options: {} },
    { name: 'big-endian', options: { littleEndian: false } },
    { name: 'nanoseconds', options: { nano: true } },
    { name: 'big-endian nanoseconds', options: { nano: true, littleEndian: false } },
    { name: 'VLANs', options: { link: 'vlan' } },
    { name: 'Linux cooked', options: { link: 'sll' } },
    { name: 'Linux cooked v2', options: { link: 'sll2' } },
    { name: 'raw IP', options: { link: 'raw' } },
    { name: 'null, little-endian', options: { link: 'null-le' } },
    { name: 'null, big-endian', options: { link: 'null-be' } },
    { name: 'loop', options: { link: 'loop' } },
    { name: 'IPv6', options: { ipv6: true } },
    { name: 'IPv6 on null', options: { ipv6: true, link: 'null-le' } },
    { name: 'segmentation left to the card', options: { offload: true } },
    { name: 'the same over IPv6', options: { offload: true, ipv6: true } },
  ]
  for (const { name, options } of kinds) {
    for (const [format, write] of [
      ['pcap', pcap],
      ['pcapng', pcapng],
    ] as const) {
      const packets = connection(STREAM, { lengths: [1448, 1, 700, 3, 65_000] })
      const [main, ...more] = channelsOf(write(packets, options))
      t.ok(main?.bytes.equals(STREAM) && main.gap === undefined && more.length === 0, `${format}, ${name}`)
      t.equal(main?.kind, 'main')
    }
  }
  const file = pcap(connection(STREAM.subarray(0, 3000), { lengths: [9, 500, 40] }))
  const fileNg = pcapng(connection(STREAM.subarray(0, 3000), { lengths: [9, 500, 40] }))
  for (const step of [1, 2, 3, 17, 64, 1000]) {
    t.ok(channelsOf(file, step)[0]?.bytes.equals(STREAM.subarray(0, 3000)), `pcap by ${step}`)
    t.ok(channelsOf(fileNg, step)[0]?.bytes.equals(STREAM.subarray(0, 3000)), `pcapng by ${step}`)
  }
  t.equal(channelsOf(file)[0]!.name, '10.0.0.1:50000 > 10.0.0.2:4444')
  t.equal(channelsOf(STREAM, 999)[0]?.bytes.length, STREAM.length, 'a raw stream is one channel')
  t.end()
})

t.test('TCP put together again', t => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 6 }),
      fc.constantFrom(1, 1000, 2 ** 31 - 5, 2 ** 32 - 1, 2 ** 32 - 70_000),
      fc.integer(),
      fc.boolean(),
      (lengths, initial, seed, syn) => {
        const next = random(seed)
        const [first, ...rest] = connection(STREAM, { initial, lengths, fin: syn })
        const data = rest.slice(0)
        // Sent again: whole, in parts, in other cuts.
        for (let i = 0; i < 10; i++) {
          const at = next(STREAM.length - 1)
          const payload = STREAM.subarray(at, at + 1 + next(4000))
          data.splice(next(data.length), 0, { from: 50000, to: 4444, sequence: initial + at, payload })
        }
        // Late: up to 8 places.
        const disordered = data.map((packet, i) => ({ packet, at: i + (next(3) === 0 ? next(8) : 0) }))
        disordered.sort((a, b) => a.at - b.at)
        let packets = disordered.map(({ packet }) => packet)
        if (syn) packets = [first!, packets[0]!, { ...first! }, ...packets.slice(1)]
        else if ((packets[0]!.payload?.length ?? 0) < 4 || lengths[0]! < 4)
          return true // no SYN and no beginning
        else if (packets.every(({ sequence, payload }) => sequence !== initial || payload!.length < 4)) return true
        const found = channelsOf(pcap(packets))
        return found.length === 1 && found[0]!.bytes.equals(STREAM) && found[0]!.gap === undefined
      },
    ),
    { numRuns: 200 },
  )
  t.pass('reordered, sent again, overlapping, wrapping, without SYN')

  // The SYN behind bytes that it begins: a capture of several queues, or one that was turned round.
  const cut = connection(STREAM, { initial: 9, lengths: [2, 1, 1000] })
  for (const at of [1, 2, 3, 5, 9]) {
    const late = [...cut.slice(1, at + 1), cut[0]!, ...cut.slice(at + 1)]
    t.ok(channelsOf(pcap(late))[0]?.bytes.equals(STREAM), `SYN behind ${at} packets`)
  }
  t.ok(channelsOf(pcap(connection(STREAM).reverse()))[0]?.bytes.equals(STREAM), 'turned round')
  const long = connection(Buffer.concat([STREAM, Buffer.alloc(HEADLESS_LENGTH_MAX)])).reverse()
  t.throws(() => channelsOf(pcap(long)), {
    code: 'CAPTURE_FORMAT',
    what: /begins behind its other/,
    action: /reordercap/,
  })
  t.throws(() => channelsOf(pcap(long.slice(0, -2))), { code: 'CAPTURE_GAP', what: /lacks the beginning/ })

  // A stream of more than 2^32 bytes would take too long; one that wraps twice between segments would not be TCP.
  const far = connection(STREAM, { initial: 5 })
  far.splice(3, 0, { from: 50000, to: 4444, sequence: 5 + 2 ** 31 - 10, payload: Buffer.from('nonsense') })
  far.splice(5, 0, { from: 50000, to: 4444, sequence: 5 + 1448 * 3 - 1, payload: Buffer.from('K') }) // keep-alive
  far.splice(9, 0, { from: 50000, to: 4444, sequence: 2 ** 31, flags: FIN | ACK })
  t.ok(channelsOf(pcap(far))[0]!.bytes.equals(STREAM), 'segments from far away and keep-alives do no harm')
  t.end()
})

t.test('which connections of a capture are a migration', t => {
  const one = multifdChannel(0, GUEST.slice(0, 20))
  const two = multifdChannel(1, GUEST.slice(20))
  const lists = [
    connection(STREAM, { from: 50000 }),
    connection(one, { from: 50002, lengths: [64, 1344, 4096] }),
    connection(two, { from: 50004, lengths: [3, 8000] }),
    connection(Buffer.from('GET / HTTP/1.1\r\n\r\n'.repeat(99)), { from: 50006, to: 80 }),
    connection(Buffer.from([0, 4, 0, 4, 0, 0, 0, 1]), { from: 4444, to: 50000 }), // return path
    connection(Buffer.alloc(100_000, 3), { from: 50008, lengths: [1000] }).slice(5), // in the middle
    connection(Buffer.from('Q'), { from: 50010 }),
    connection(Buffer.alloc(0), { from: 50012 }),
  ]
  // Interleaved, each list in its order.
  const packets: Packet[] = []
  const next = random(3)
  while (lists.some(list => list.length > 0)) packets.push(...(lists[next(lists.length)]!.splice(0, 1 + next(3)) ?? []))
  for (const write of [pcap, pcapng]) {
    const found = channelsOf(write(packets))
    t.same(found.map(({ kind }) => kind).sort(), ['main', 'multifd', 'multifd'])
    for (const stream of [STREAM, one, two]) t.ok(found.some(({ bytes }) => bytes.equals(stream)))
  }

  const again = migration(GUEST.slice(0, 3))
  const reused = [...connection(STREAM, { initial: 77 }), ...connection(again, { initial: 500_000 })]
  t.same(
    channelsOf(pcap(reused)).map(({ bytes }) => bytes.length),
    [STREAM.length, again.length],
    'the same ports once more are another connection',
  )
  const middle = connection(one, { from: 50002, lengths: [64, 1344, 10 * PAGE] }).slice(2)
  t.throws(() => channelsOf(pcap(middle)), { code: 'CAPTURE_GAP' }, 'a packet of multifd is no hello')
  t.end()
})

t.test('a capture costs bounded memory', t => {
  const big = Buffer.alloc(90 << 20, 7)
  big.set(STREAM)
  const lost = connection(big, { lengths: [1448, 65_000] }).filter((_, i) => i !== 5)
  const noise: Packet[] = []
  for (let i = 0; i < 70_000; i++) {
    noise.push({
      from: 1 + (i % 60_000),
      to: 5000 + Math.floor(i / 60_000),
      sequence: i,
      payload: Buffer.from('noise'),
    })
  }
  const good = connection(STREAM, { from: 61_000 })
  const found = channelsOf(pcap([...good.slice(0, 20), ...lost, ...noise, ...good.slice(20)]), 1 << 20)
  t.ok(found[0]!.bytes.equals(STREAM), 'a connection that lacks a packet, and 70,000 others, do not disturb it')
  t.match(found[1], { gap: 'the capture lacks packets', gaps: [[2 * (1448 + 65_000), 1448]], position: big.length })
  t.end()
})

t.test('what a capture lacks', async t => {
  const whole = connection(STREAM, { lengths: [1000] })
  const without = (index: number): Packet[] => whole.filter((_, i) => i !== index)
  for (const index of [3, 50, whole.length - 2]) {
    const [main] = channelsOf(pcap(without(index)))
    const [from, to] = [(index - 1) * 1000, Math.min(index * 1000, STREAM.length)]
    t.ok(main!.bytes.equals(Buffer.concat([STREAM.subarray(0, from), STREAM.subarray(to)])), 'all but the gap is there')
    t.match(main, { gap: 'the capture lacks packets', gaps: [[from, to - from]], position: STREAM.length })
  }
  const cut = whole.map((packet, i) => (i === 7 ? { ...packet, snap: 96 } : packet))
  const keeps = 96 - 14 - 24 - 32
  t.match(channelsOf(pcap(cut))[0], { gap: /only the first bytes/, gaps: [[6000 + keeps, 1000 - keeps]] })
  const again = [...cut.slice(0, 9), whole[7]!, ...cut.slice(9)]
  t.ok(channelsOf(pcap(again))[0]!.bytes.equals(STREAM), 'a cut packet that was sent again is there')
  const parts = whole.map((packet, i) => (i === 7 ? { ...packet, fragment: true } : packet))
  t.match(channelsOf(pcap(parts))[0]!.gap, /fragments/)
  t.match(
    channelsOf(pcap(whole.slice(0, 30)))[0],
    { gap: undefined, gaps: [], position: 29_000 },
    'an early end is no gap',
  )

  const fails = (bytes: Buffer): Promise<string | undefined> => failure(() => channelsOf(bytes))
  const http = pcap(connection(Buffer.from('GET / HTTP/1.1\r\n\r\n')))
  t.equal(await fails(http), 'CAPTURE_FORMAT at 0', 'no migration')
  const tls = await Promise.resolve(pcap(connection(Buffer.from([0x16, 3, 1, 2, 0, 1]))))
    .then(channelsOf)
    .catch(e => e)
  t.match(tls, { code: 'CAPTURE_FORMAT', what: /TLS/ })
  t.equal(await fails(pcap(whole.slice(20))), 'CAPTURE_GAP at 0', 'begun too late')
  const exotic = pcap(whole)
  exotic.writeUInt32LE(147, 20)
  t.match(
    await Promise.resolve(exotic)
      .then(channelsOf)
      .catch(e => e),
    { what: /link type 147/ },
  )

  const damaged = (file: Buffer, at: number, value: number): Promise<string | undefined> => {
    const bytes = Buffer.from(file)
    bytes.writeUInt32LE(value, at)
    return fails(bytes)
  }
  const file = pcap(whole)
  t.equal(await damaged(file, 4, 0x00040003), 'CAPTURE_FORMAT at 4', 'pcap 3.4')
  t.equal(await damaged(file, 24 + 8, 0x7fffffff), 'CAPTURE_FORMAT at 32', 'a packet of 2 GB')
  const fileNg = pcapng(whole)
  t.equal(await damaged(fileNg, 8, 0x11111111), 'CAPTURE_FORMAT at 8', 'no byte order')
  t.equal(await damaged(fileNg, 4, 0x7ffffffc), 'CAPTURE_FORMAT at 4', 'a block of 2 GB')
  t.equal(await damaged(fileNg, 4, 30), 'CAPTURE_FORMAT at 4', 'a block of 30 bytes')
  t.equal(await damaged(fileNg, 24, 32), 'CAPTURE_FORMAT at 24', 'two lengths')

  const next = random(11)
  for (let i = 0; i < 400; i++) {
    const bytes = Buffer.from(i % 2 === 0 ? file : fileNg)
    for (let k = 0; k <= next(4); k++) bytes[4 + next(i % 3 === 0 ? 3000 : bytes.length - 4)] = next(256)
    const error = await failure(() =>
      channelsOf(bytes.subarray(0, next(3) === 0 ? 4 + next(bytes.length - 4) : bytes.length)),
    )
    if (error !== undefined && !/^CAPTURE_(FORMAT|GAP) at \d+$/.test(error)) t.fail(`mutation ${i}: ${error}`)
  }
  t.pass('mutated captures end in channels or a typed error')
})

/** The page numbers that an input gives. */
async function pagesOf(path: string, notes?: InputNote[], partial = false): Promise<number[]> {
  const input = await PageInput.open(path, { partial, ...(notes && { note: note => notes.push(note) }) })
  const ids: number[] = []
  for await (const batch of input.pages()) {
    if (batch.firstPage !== ids.length) throw new Error(`batch at ${batch.firstPage}, not ${ids.length}`)
    for (let i = 0; i < batch.count; i++) {
      const id = batch.bytes.readUInt32LE(i * PAGE + 8)
      if (!page(id).equals(batch.bytes.subarray(i * PAGE, (i + 1) * PAGE)))
        throw new Error(`page ${ids.length} is wrong`)
      ids.push(id)
    }
    batch.bytes.fill(0)
    batch.release()
  }
  return ids
}

t.test('the pages of an input', async t => {
  const { put } = scratch(t.teardown)
  const ids = Array.from({ length: 700 }, (_, i) => i + 1)
  const stream = migration(ids.map(page))
  const inputs = [
    put('raw', stream),
    put('zst', zstdCompressSync(stream)),
    put(
      'frames',
      Buffer.concat([0, 1, 2, 3].map(i => zstdCompressSync(stream.subarray(i * 800_000, (i + 1) * 800_000)))),
    ),
    put('gz', gzipSync(stream)),
    put('pcap', pcap(connection(stream))),
    put('pcap.zst', zstdCompressSync(pcapng(connection(stream, { lengths: [1, 2, 3, 4000, 5] })))),
  ]
  for (const path of inputs) t.same(await pagesOf(path), ids, basename(path))

  const skippable = Buffer.from('502a4d1803000000abcdef', 'hex')
  t.same(
    await pagesOf(put('skip', Buffer.concat([skippable, zstdCompressSync(stream), skippable]))),
    ids,
    'skippable frames',
  )
  if (spawnSync('zstd', ['--version']).status === 0) {
    const path = put('tool', stream)
    execFileSync('zstd', ['-q', '--check', '-B64KiB', path])
    t.same(await pagesOf(`${path}.zst`), ids, 'by the zstd tool')
  }

  const one = multifdChannel(0, ids.slice(0, 300).map(page))
  const two = multifdChannel(1, ids.slice(300).map(page))
  const packets = [
    ...connection(migration([]), { from: 1 }),
    ...connection(one, { from: 2, lengths: [5000] }),
    ...connection(two, { from: 3, lengths: [1300, 70, 2] }),
  ]
  t.same(await pagesOf(put('multifd.pcap', pcap(packets))), ids, 'multifd')
  t.same(await pagesOf(put('multifd', one)), ids.slice(0, 300), 'one channel of it, by itself')

  const retried = [...connection(stream.subarray(0, 9000), { from: 1 }), ...connection(stream, { from: 3 })]
  t.same(await pagesOf(put('retried', pcap(retried))), [1, 2, ...ids], 'a migration that was cut and tried again')

  const fails = (path: string): Promise<string | undefined> => failure(() => pagesOf(path))
  const early = put('early', stream.subarray(0, 1_000_000))
  t.equal(await fails(early), 'QEMU_TRUNCATED at 1000000')
  const endless = put('endless', migration(GUEST, false))
  t.match(await fails(endless), /^QEMU_TRUNCATED/, 'cut between sections, before the end of RAM')
  const notes: InputNote[] = []
  const some = await pagesOf(early, notes, true)
  t.same(some, ids.slice(0, some.length))
  t.ok(some.length > 200)
  t.match(notes, [{ text: /ends early.*are used/ }], 'partial, with a note')
  const broken = Buffer.from(stream)
  broken.writeUInt16BE(0x0801, broken.indexOf(page(200)) - 2)
  t.match(await fails(put('broken', broken)), /^QEMU_SYNTAX/)
  t.same(await pagesOf(put('broken', broken), [], true), ids.slice(0, 199))
  const gapped = put('gap', pcap(connection(stream).filter((_, i) => i !== 300)))
  t.equal((await pagesOf(gapped)).length, ids.length - 1, 'a lost packet costs the page that it is part of')
  const tail = put('tail', pcap(connection(stream, { lengths: [100] }).filter((_, i, all) => i !== all.length - 2)))
  t.same(await pagesOf(tail), ids, 'a gap behind the RAM does not matter')

  const zst = zstdCompressSync(stream)
  t.equal(await fails(put('cut.zst', zst.subarray(0, zst.length - 3))), `QEMU_TRUNCATED at ${zst.length - 3}`)
  t.equal(await fails(put('more.zst', Buffer.concat([zst, Buffer.from('more')]))), `CAPTURE_FORMAT at ${zst.length}`)
  const checked = zstdCompressSync(stream, { params: { [constants.ZSTD_c_checksumFlag]: 1 } })
  checked[checked.length >> 1]! ^= 0x55
  t.match(await fails(put('bad.zst', checked)), /^CAPTURE_FORMAT/)
  const gz = gzipSync(stream)
  t.equal(await fails(put('cut.gz', gz.subarray(0, 5000))), 'QEMU_TRUNCATED at 5000')
  const wide = Buffer.from('28b52ffd00a80100000000', 'hex') // a window of 2^31 bytes
  t.match(await fails(put('wide.zst', wide)), /^CAPTURE_FORMAT/)
  t.equal(await fails('-'), 'USAGE')
  t.equal(await fails('/dev/null'), 'USAGE')
  t.equal(await fails('/nowhere'), 'IO')
  t.equal(await fails(put('empty', Buffer.alloc(0))), 'CAPTURE_FORMAT at 0')

  let stopped = 0
  for await (const chunk of (await Input.open(inputs[1]!)).chunks()) if (chunk.length > 0 && ++stopped === 1) break
  t.equal(stopped, 1, 'reading may stop early')
})

// ---- real captures ----

interface Fixture {
  name: string
  file?: string
  streams: { channel: string; lengthBytes: number; sha256: string; file?: string }[]
}

t.test('real captures', async t => {
  const folder = join(ROOT, 'pcap-fixtures')
  if (!existsSync(join(folder, 'index.json')))
    return void t.pass('skipped: pcap-fixtures/ is not there', { skip: true })
  const fixtures = JSON.parse(readFileSync(join(folder, 'index.json'), 'utf8')) as Fixture[]
  t.ok(fixtures.length > 0)
  for (const { file, streams } of fixtures) {
    if (file === undefined) continue
    const wanted = streams.filter(({ channel }) => channel === 'main' || channel === 'multifd')
    for (const step of [1 << 20, 4099]) {
      const found = channelsOf(readFileSync(join(folder, file)), step)
      t.same(
        found.map(({ kind, bytes, gap }) => [kind, bytes.length, sha256(bytes), gap]).sort(),
        wanted.map(({ channel, lengthBytes, sha256 }) => [channel, lengthBytes, sha256, undefined]).sort(),
        `${file} gives the bytes of the sockets`,
      )
    }
    const notes: InputNote[] = []
    const input = await PageInput.open(join(folder, file), { note: note => notes.push(note) })
    let pages = 0
    for await (const batch of input.pages()) {
      pages += batch.count
      batch.release()
    }
    t.ok(pages > 100, `${file}: ${pages} pages`)
    t.same(notes, [])
  }
  for (const { name, streams } of fixtures) {
    for (const { channel, file } of streams) {
      if (file === undefined || (channel !== 'main' && channel !== 'multifd')) continue
      const notes: InputNote[] = []
      const input = await PageInput.open(join(folder, file), { note: note => notes.push(note) })
      for await (const batch of input.pages()) batch.release()
      t.equal(notes.length, /compress|xbzrle/.test(name) ? 1 : 0, `${file}, ${notes.map(({ text }) => text).join()}`)
    }
  }
})

// ---- summaries ----

t.test('summaries', async t => {
  const ids = Array.from({ length: 2000 }, (_, i) => i + 1)
  const head = (list: number[]): SetHead => decode(setBytes(list.map(page)), 1 << 16)
  const summary = summarize(head(ids))
  const text = JSON.stringify(summary)
  t.ok(text.length < 2000 * 2 + 500, `${text.length} bytes of JSON`)
  const read = parseSummary(text, 'far.json')
  t.same(overlap(head(ids), read), { set: summary.set, otherPages: 2000, pages: 2000 })
  const half = overlap(head([...ids.slice(0, 1000), ...ids.slice(0, 1000).map(id => id + 5000)]), read)
  t.ok(Math.abs(half.pages - 1000) < 30, `${half.pages} of 1000`)
  t.ok(overlap(head(ids.map(id => id + 9000)), read).pages < 30)
  t.equal(overlap(head([]), read).pages, 0)
  t.equal(overlap(head(ids), parseSummary(JSON.stringify(summarize(head([]))), 'x')).pages, 0)
  const edited = (change: (value: Record<string, never>) => void): string => {
    const value = JSON.parse(text)
    change(value)
    return JSON.stringify(value)
  }
  const bad = [
    '',
    'null',
    '[]',
    '{}',
    edited(value => Object.assign(value, { version: 2 })),
    edited(value => Object.assign(value.filter!, { _size: 2 ** 40 })),
    edited(value => Object.assign(value.filter!, { _nbHashes: 10 ** 9 })),
    edited(value => Object.assign(value.filter!, { _filter: null })),
    edited(value => Object.assign((value.filter as never as { _filter: object })._filter, { content: 'AAAA' })),
    edited(value => Object.assign(value, { pages: -1 })),
  ]
  for (const text of bad) t.equal(await failure(() => parseSummary(text, 'x')), 'TEMPLATE_FORMAT at 0')
})

// ---- commands ----

t.test('sizes, rates, durations and counts', async t => {
  const rows: [(text: string, option: string) => number, Record<string, number | 'USAGE'>][] = [
    [parseSize, { 4096: 4096, '100MB': 1e8, '64MiB': 2 ** 26, '1g': 2 ** 30, '1.5K': 1536, '2 TB': 2e12, '7b': 7 }],
    [
      parseSize,
      { '': 'USAGE', '-1': 'USAGE', '5 bananas': 'USAGE', '1e9': 'USAGE', '9999999TB': 'USAGE', '1Mbit': 'USAGE' },
    ],
    [parseRate, { '200Mbit': 25e6, '1gbit/s': 125e6, '8bit': 1, '25MB/s': 25e6, '1MiB/s': 2 ** 20, '1.6kbit': 200 }],
    [parseRate, { '100': 'USAGE', '100Mbps': 'USAGE', '100Mb/s': 'USAGE', '100MB': 'USAGE', fast: 'USAGE' }],
    [parseDuration, { '30s': 30_000, '500ms': 500, '5min': 300_000, '2h': 7_200_000, '1d': 864e5, '1.5s': 1500 }],
    [parseDuration, { '30': 'USAGE', s: 'USAGE', '1 year': 'USAGE' }],
    [
      (text, option) => parseCount(text, option, 1),
      { 1: 1, 12: 12, 0: 'USAGE', '-1': 'USAGE', '1.5': 'USAGE', x: 'USAGE' },
    ],
  ]
  for (const [parse, values] of rows) {
    for (const [text, value] of Object.entries(values)) {
      const found = (await failure(() => parse(text, '--option'))) ?? parse(text, '--option')
      t.equal(found, value, JSON.stringify(text))
    }
  }
})

t.test('the commands', async t => {
  const { folder, put } = scratch(t.teardown)
  const store = join(folder, 'store')
  const ids = (from: number): number[] => Array.from({ length: 300 }, (_, i) => from + i)
  const inputs = [
    put('a.stream', migration(ids(1).map(page))),
    put('b.pcapng', pcapng(connection(migration(ids(101).map(page))))),
    put('c.zst', zstdCompressSync(migration(ids(201).map(page)))),
  ]
  const built = await pageferry('template', 'build', '--store', store, ...inputs)
  t.equal(built.status, 0, built.err)
  t.match(built.out, /3 of 3 VMs .* 100 /)
  t.match(built.out, /2 of 3 VMs .* 200 /)
  const digest = String(/^digest +([0-9a-f]{64})$/m.exec(built.out)?.[1])
  t.same(readdirSync(store), [`${digest}.pfset`])
  t.match(built.err, /counting, pass 1: .*\nstoring: /, 'plain lines where no terminal is')
  const rows = await storedRows(new TemplateStore(store), digest)
  t.same(rows, naiveChoice([ids(1), ids(101), ids(201)], 2))

  const json = await pageferry('template', 'build', '--store', store, '--json', '--max-size', '200KB', ...inputs)
  const report = JSON.parse(json.out)
  t.match(report, { metadata: { maxBytes: 200_000, minVms: 2, vms: 3 }, pages: 47, existed: false })
  t.equal(json.err, '')

  const listed = await pageferry('store', 'list', '--store', store)
  t.match(listed.out, digest.slice(0, 16))
  t.match(JSON.parse((await pageferry('store', 'list', '--store', store, '--json')).out), [
    { pages: report.digest < digest ? 47 : 300 },
    { pages: report.digest < digest ? 300 : 47 },
  ])
  t.match((await pageferry('template', 'inspect', '--store', store, digest.slice(0, 6))).out, /300 pages/)
  const summary = join(folder, 'summary.json')
  t.equal((await pageferry('template', 'inspect', '--store', store, digest, '--summary', summary)).status, 0)
  const path = join(store, `${report.digest}.pfset`)
  t.match((await pageferry('template', 'inspect', path, '--overlap', summary)).out, /about 100.0 % of its pages/)
  t.equal((await pageferry('template', 'verify', '--store', store)).status, 0)
  t.match((await pageferry('store', 'verify', '--store', store)).out, /^sound .*\nsound /)

  const bytes = readFileSync(path)
  bytes[bytes.length - 5000]! ^= 1
  writeFileSync(path, bytes)
  const verified = await pageferry('template', 'verify', '--store', store)
  t.equal(verified.status, 4)
  t.match(verified.out, `page 45 at byte ${bytes.length - 2 * PAGE}`)
  t.match(verified.out, new RegExp(`^sound +${digest}`, 'm'))
  t.match(verified.err, /error: 1 of 2 template sets is damaged .*\.pfset/)
  const one = await pageferry('template', 'verify', '--json', path)
  t.match(JSON.parse(one.out), [{ damaged: [{ index: 45, offset: bytes.length - 2 * PAGE }] }])

  const fails = async (status: number, ...args: string[]): Promise<string> => {
    const { status: found, err, out } = await pageferry(...args)
    t.equal(found, status, `${args.slice(0, 2).join(' ')} … ${args.at(-1)}`)
    t.match(err, /^error: .*\nhint: /m)
    t.equal(out, '')
    return err
  }
  t.match(await fails(2, 'template', 'build', '--store', store, inputs[0]!, inputs[0]!), /the same file/)
  t.match(await fails(2, 'template', 'build', '--store', store, inputs[0]!), /one input is one VM/)
  await fails(2, 'template', 'build', '--store', store, '--max-size', 'many', ...inputs)
  await fails(2, 'template', 'build', '--store', store, '--min-vms', '0', ...inputs)
  await fails(2, 'template', 'build', '--store', store, '--memory', '1k', ...inputs)
  await fails(2, 'template', 'build', ...inputs)
  await fails(2, 'template', 'verify')
  await fails(1, 'template', 'build', '--store', store, '/nowhere', ...inputs)
  await fails(4, 'template', 'inspect', '--store', store, 'ffffffffffff')
  t.match(await fails(4, 'template', 'inspect', inputs[0]!), /not a template set/)
  t.match(await fails(4, 'template', 'inspect', path, '--overlap', inputs[0]!), /not a summary/)
  const early = put('early', migration(ids(1).map(page)).subarray(0, 700_000))
  t.match(await fails(3, 'template', 'build', '--store', store, early, inputs[1]!), /ends early.*byte 700000/)
  const partial = await pageferry('template', 'build', '--store', store, '--partial', early, inputs[1]!)
  t.equal(partial.status, 0)
  t.match(partial.err, /note: .*early: the migration ends early; the pages up to there are used/)
  t.match((await pageferry('template', 'build', '--help')).out, /--max-size[\s\S]*Examples:/)
  for (const command of ['list', 'verify', 'prune']) {
    t.match(await fails(1, 'store', command, '--store', join(folder, 'none')), /cannot read store .*it does not exist/)
  }
  mkdirSync(join(folder, 'bare'))
  t.equal((await pageferry('store', 'list', '--store', join(folder, 'bare'))).out, 'no template sets in this store\n')

  const args = [HARNESS, 'template', 'build', '--store', join(folder, 'other'), ...inputs]
  const child = spawn(process.execPath, [...args, '--memory', '1GiB'], { stdio: ['ignore', 'ignore', 'pipe'] })
  let told = ''
  child
    .stderr!.once('data', () => child.kill('SIGINT'))
    .on('data', text => {
      told += text
    })
  await once(child, 'close')
  t.equal(child.exitCode, 130, 'Ctrl-C')
  t.match(told, /error: interrupted\nhint: nothing was stored; start again\n$/)
  t.same(existsSync(join(folder, 'other')) ? readdirSync(join(folder, 'other')) : [], [], 'leaves nothing')
})

t.test('memory stays within its bound on inputs larger than memory', t => {
  const { folder, put } = scratch(t.teardown)
  const shared = Array.from({ length: 500 }, (_, i) => page(1_000_000 + i))
  const paths = [1, 2].map(vm => {
    const own = Array.from({ length: 20_000 }, (_, i) => page(vm * 100_000 + i))
    return put(`vm${vm}`, migration([...shared, ...own]))
  })
  const inputBytes = paths.reduce((sum, path) => sum + statSync(path).size, 0)
  const peak = (memory: string, inputs: string[]): { peakBytes: number; digest: string; passes: number } => {
    const args = ['template', 'build', '--json', '--store', join(folder, memory), '--memory', memory, ...inputs]
    const { status, stdout, stderr } = spawnSync(process.execPath, [HARNESS, ...args], {
      encoding: 'utf8',
      env: { ...process.env, HARNESS_PEAK: '1' },
    })
    if (status !== 0) throw new Error(stderr)
    const { digest, totals } = JSON.parse(stdout)
    return { peakBytes: Number(/VmHWM:\s+(\d+)/.exec(stderr)?.[1]) * 1024, digest, passes: totals.passes }
  }
  const little = put('little', migration(shared))
  const more = put('more', migration(shared.slice(1)))
  const idle = peak('64KiB', [little, more])
  const bounded = peak('1MiB', paths)
  const roomy = peak('512MiB', paths)
  const mib = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`
  t.ok(inputBytes > 160e6)
  t.ok(bounded.passes >= 3, `${bounded.passes} passes`)
  t.equal(bounded.digest, roomy.digest)
  // 40,500 distinct pages take 2.6 MB of tally and 166 MB by themselves; buffers and garbage vary by some tens of MB.
  const above = bounded.peakBytes - idle.peakBytes
  t.ok(
    above < 64 * 2 ** 20,
    `${mib(bounded.peakBytes)} for ${mib(inputBytes)} of inputs, ${mib(above)} above little ones`,
  )
  t.ok(
    roomy.peakBytes - idle.peakBytes < 96 * 2 ** 20,
    `${mib(roomy.peakBytes)} where 512 MiB are allowed and not needed`,
  )
  t.end()
})
