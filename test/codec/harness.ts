/** Both ends of a session in one process, pools of any size, and guests that are made up: what the tests of the codec share. */

import { crc32 } from 'node:zlib'
import {
  type BlockEntry,
  type MultifdPacket,
  multifdHello,
  multifdPacket,
  StreamEmitter,
} from '../../scripts/harness/qemu/stream-emitter.ts'
import { random } from '../../scripts/harness/random.ts'
import { assembleBatch, type PackedColumn, parseBatch } from '../../src/codec/batch.ts'
import { type ColdPages, ColdRuns, type KeptPages } from '../../src/codec/cold-pages.ts'
import { BatchEncoder } from '../../src/codec/encoder.ts'
import { BatchExpander } from '../../src/codec/expander.ts'
import { FlowEncoder } from '../../src/codec/flow-encoder.ts'
import { FlowExpander } from '../../src/codec/flow-expander.ts'
import type { PageObserver } from '../../src/codec/observer.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { COLUMN, COLUMN_COUNT, METHOD } from '../../src/codec/wire.ts'
import { WORKSPACE_BYTES, Workspace } from '../../src/codec/workspace.ts'
import { ColumnPacker } from '../../src/compression/column-packer.ts'
import { ColumnUnpacker } from '../../src/compression/column-unpacker.ts'
import type { Effort } from '../../src/compression/effort.ts'
import { ProxyError } from '../../src/errors.ts'
import { kernelModule, layoutMemory, loadKernel, NONE } from '../../src/kernel/kernel.ts'
import { STATE } from '../../src/kernel/layout.ts'
import { BlockTable } from '../../src/qemu/block-table.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { ChannelBuffer } from '../../src/transfer/channel-buffer.ts'
import { type MigrationMemory, parserFor } from '../../src/transfer/channel-parser.ts'
import { EVENT_LOOP } from '../../src/transfer/event-loop.ts'
import type { Pool } from '../../src/transfer/pool.ts'
import { Turns } from '../../src/transfer/turns.ts'
import { decodeSession, type SecondPool, type SecondTerms, type SentBatch } from './second-decoder.ts'

export const PAGE = 4096
export { random }

export type Implementation = 'simd' | 'twin'
/** Without the built kernel its twin takes both parts. */
export const SIMD: Implementation = kernelModule() === undefined ? 'twin' : 'simd'

/** Seed of the checksums, and its halves as the codec wants them: low, high. */
export const SEED = 0x0123456789abcdefn
export const SEED_WORDS = [0x89abcdef, 0x01234567] as const

// ---- pools

/** What both sides agree on. */
export interface Terms {
  readonly templates: readonly Uint8Array[]
  readonly ring: number
  readonly places: number
  /** Pages of sets that lie on the disk; none where it is left out. */
  readonly cold?: readonly Uint8Array[]
  /** The session carries disks. */
  readonly disks?: boolean
  /** Blocks of disks that both sides keep. */
  readonly kept?: number
}

/** Keeps blocks of disks as both sides should. */
export class KeptModel implements KeptPages {
  readonly blocks: Buffer[] = []

  keep(bytes: Uint8Array, addresses: Uint32Array, count: number): void {
    for (const at of addresses.subarray(0, count)) this.blocks.push(Buffer.from(bytes.subarray(at, at + PAGE)))
  }

  /** The block at a place of so many. */
  at(place: number, places: number): Buffer | undefined {
    const last = this.blocks.length - 1
    return this.blocks[last - ((last - place) % places)]
  }

  /** The place of the youngest block like this one, among the last `places`; -1: none is. */
  find(page: Uint8Array, places: number): number {
    const number = this.blocks.findLastIndex(block => block.equals(page))
    return number < Math.max(0, this.blocks.length - places) ? -1 : number % places
  }
}

/** Knows those pages, as the encoder asks for them. */
function coldPagesOf({ cold = [], kept = 0 }: Terms, model: KeptModel): ColdPages | undefined {
  if (cold.length + kept === 0) return undefined
  const key = (page: Uint8Array): string => Buffer.from(page).toString('latin1')
  const numbers = new Map(cold.map((page, number) => [key(page), number]))
  return {
    isEmpty: false,
    setPages: cold.length,
    find: (bytes, pages, unknown, found) => {
      for (const [i, at] of pages.entries()) {
        const page = bytes.subarray(at, at + PAGE)
        let number = unknown[i] === 0 ? undefined : numbers.get(key(page))
        if (number === undefined && unknown[i] === 1 && kept > 0) {
          const place = model.find(page, kept)
          if (place >= 0) number = cold.length + place
        }
        unknown[i] = number === undefined ? 0 : 1
        if (number !== undefined) found[i] = number
      }
      return unknown.includes(1)
    },
  }
}

export const secondTerms = (terms: Terms): SecondTerms => ({ seed: SEED, ...terms })

/** Bytes of a slot: what a flow may have waiting, or a batch give. */
export const SLOT_BYTES = 1 << 20
/** Flows of one session. */
const SLOTS = 5

const kept = new Map<string, { pool: Pool; templates: readonly Uint8Array[] }>()

/** A pool in which nothing has passed. There is one a role, implementation and size, and it is emptied on each call. */
export function poolOf(role: 'encoder' | 'decoder', implementation: Implementation, terms: Terms): Pool {
  const { templates, ring, places } = terms
  const name = [role, implementation, templates.length, ring, places].join()
  const known = kept.get(name)
  if (known?.templates === templates) {
    known.pool.kernel.reset()
    return known.pool
  }
  const slots = role === 'encoder' ? SLOTS : 1
  const layout = layoutMemory({
    role,
    templatePages: templates.length,
    ringPages: ring,
    places,
    ioBytes: WORKSPACE_BYTES + slots * SLOT_BYTES,
    longEntries: 4096,
  })
  const kernel = loadKernel(layout, { implementation })
  for (const [slot, page] of templates.entries()) kernel.bytes.set(page, kernel.slotAddress(slot))
  if (role === 'encoder') {
    kernel.indexTemplates(0, templates.length)
    kernel.rememberTemplates(0, templates.length)
  }
  const pool: Pool = {
    kernel,
    workspaces: [new Workspace(kernel.bytes, layout.io)],
    slots: Array.from({ length: slots }, (_, i) => layout.io + WORKSPACE_BYTES + i * SLOT_BYTES),
    slotBytes: SLOT_BYTES,
    turns: new Turns(EVENT_LOOP),
    warm: async () => {},
    migrates: () => {},
  }
  kept.set(name, { pool, templates })
  return pool
}

/** What both sides must keep alike, as one string: ring, marks, cursor, places. */
export function poolState({ kernel }: Pool): string {
  const { layout, bytes, memory } = kernel
  const { ring } = layout
  return [
    new Uint32Array(memory.buffer, layout.state, 64)[STATE.CURSOR],
    Buffer.from(bytes.subarray(layout.ringMark, layout.ringMark + layout.ringPages)).toString('hex'),
    Array.from({ length: layout.places }, (_, place) => kernel.placeOf(place)).join(),
    Buffer.from(bytes.subarray(ring, ring + layout.ringPages * PAGE)).toString('latin1'),
  ].join('\n')
}

/** Whether two pools are alike in the same: as comparing `poolState`, without making strings of megabytes. */
export function poolsAlike(a: Pool, b: Pool): boolean {
  const parts = ({ kernel: { layout, memory } }: Pool): Buffer[] => [
    Buffer.from(memory.buffer, layout.state + 4 * STATE.CURSOR, 4),
    Buffer.from(memory.buffer, layout.ringMark, layout.ringPages),
    Buffer.from(memory.buffer, layout.placeTable, layout.places * 4),
    Buffer.from(memory.buffer, layout.ring, layout.ringPages * PAGE),
  ]
  const other = parts(b)
  return parts(a).every((part, i) => part.equals(other[i]!))
}

/** The same of the second decoder. */
export function secondState(pool: SecondPool): string {
  return [
    pool.cursor,
    pool.marks.map(mark => (mark ? '01' : '00')).join(''),
    Array.from({ length: pool.placeCount }, (_, place) => pool.places.get(place) ?? NONE).join(),
    Buffer.concat(pool.slots.slice(pool.templatePages)).toString('latin1'),
  ].join('\n')
}

/** Where two such strings differ: 'cursor', 'marks', 'places', 'ring', or ''. */
export function stateDifference(a: string, b: string): string {
  if (a === b) return ''
  const [x, y] = [a.split('\n'), b.split('\n')]
  return ['cursor', 'marks', 'places'].find((_, i) => x[i] !== y[i]) ?? 'ring'
}

// ---- both ends

/** What an observer was told, as lines: page numbers with a sum of the bytes, and batches. */
class Observed implements PageObserver {
  readonly lines: string[] = []
  private readonly pages: { readonly address: number; readonly page: number }[] = []
  private readonly memory: Uint8Array
  constructor(pool: Pool) {
    this.memory = pool.kernel.bytes
  }
  page(address: number, page: number): void {
    this.pages.push({ address, page }) // its bytes may come later
  }
  batch(migration: number, position: number, address: number, length: number): void {
    for (const { address: at, page } of this.pages.splice(0))
      this.lines.push(`${page} ${crc32(this.memory.subarray(at, at + PAGE))}`)
    this.lines.push(`batch ${migration} ${position} ${crc32(this.memory.subarray(address, address + length))}`)
  }
}

/** How columns are packed: as they are, or by an effort. */
export type Packing = Effort | { readonly method: 'as they are'; readonly longMatch: boolean }

/** A channel on its way out: its bytes lie in a slot of the encoder's memory. */
export class Channel {
  readonly flow: FlowEncoder
  readonly number: number
  readonly buffer: ChannelBuffer
  private readonly pool: Pool

  constructor(pool: Pool, number: number, kind: ChannelKind, migration: number, memory: MigrationMemory) {
    this.pool = pool
    this.number = number
    this.buffer = new ChannelBuffer(pool.kernel.bytes, pool.slots[number]!, SLOT_BYTES)
    this.flow = new FlowEncoder(migration, PoolRegions.of(pool.kernel.layout))
    this.flow.parser = parserFor(kind, this.flow, memory)
  }

  /** Bytes that can be pushed before a batch has to be made. */
  get room(): number {
    return SLOT_BYTES - this.flow.waiting
  }

  /** As Outbound calls it. */
  get encoder(): FlowEncoder {
    return this.flow
  }

  push(bytes: Uint8Array): void {
    if (bytes.length === 0) return
    this.buffer.writable(bytes.length, bytes.length)!.set(bytes)
    this.flow.push(this.pool.kernel.bytes, this.buffer.filled(bytes.length), bytes.length)
  }
}

export class Sender {
  readonly pool: Pool
  readonly sent: SentBatch[] = []
  readonly observed: Observed
  private readonly encoder: BatchEncoder
  readonly kept = new KeptModel()
  private readonly keeps: boolean
  private readonly packer: ColumnPacker
  packing: Packing
  /** Whether the next batch is raw, where its channel is no disk's. Default: where the packing says so. */
  isRaw: () => boolean
  private readonly blocks = new Map<number, BlockTable>()
  private channels = 0

  constructor(pool: Pool, packing: Packing, observe = false, terms?: Terms) {
    this.pool = pool
    this.packing = packing
    this.isRaw = () => this.packing.method === 'raw'
    this.observed = new Observed(pool)
    this.encoder = new BatchEncoder(pool.kernel, ...SEED_WORDS)
    if (observe) this.encoder.observer = this.observed
    if (terms) this.encoder.cold = coldPagesOf(terms, this.kept)
    this.keeps = (terms?.kept ?? 0) > 0
    if (this.keeps) this.encoder.kept = this.kept
    this.packer = new ColumnPacker(pool.kernel.memory.buffer as unknown as SharedArrayBuffer)
  }

  /** @param number of the flow: one of SLOTS, by default the next */
  open(kind: ChannelKind, migration = 1, recovery?: MigrationMemory['recovery'], number = this.channels++): Channel {
    let blocks = this.blocks.get(migration)
    if (blocks === undefined) {
      blocks = new BlockTable()
      this.blocks.set(migration, blocks)
    }
    return new Channel(this.pool, number, kind, migration, recovery ? { blocks, recovery } : { blocks })
  }

  /** RAMBlocks of a migration that has a channel. */
  blocksOf(migration: number): BlockTable {
    return this.blocks.get(migration)!
  }

  /** Makes a batch of what the channel has, and packs it. Undefined: there was nothing. */
  async send(channel: Channel, release: boolean): Promise<SentBatch | undefined> {
    const { packing } = this
    const rawLength = this.encode(channel, release)
    if (rawLength === 0) return undefined
    const columns =
      packing.method === 'as they are'
        ? this.columns()
        : await this.packer.pack(this.pool.workspaces[0]!, rawLength, packing)
    return this.assemble(channel, rawLength, columns)
  }

  /** As `send`, with the columns as they are. */
  sendNow(channel: Channel, release: boolean): SentBatch | undefined {
    const rawLength = this.encode(channel, release)
    return rawLength === 0 ? undefined : this.assemble(channel, rawLength, this.columns())
  }

  async close(): Promise<void> {
    await this.packer.close()
  }

  private encode(channel: Channel, release: boolean): number {
    const { flow, buffer } = channel
    const length = release ? flow.waiting : flow.ready
    if (length === 0) return 0
    const loan = buffer.lend(length)
    if (this.isRaw() && !flow.isDisk) {
      flow.stats.add(this.encoder.pass(flow, loan, this.pool.workspaces[0]!))
      loan.release() // nothing lands there before the columns are copied
      return length
    }
    const longMatch = this.packing.method === 'as they are' ? (this.packing.longMatch ? 32 : 0) : this.packing.longMatch
    flow.stats.add(this.encoder.encode(flow, loan, this.pool.workspaces[0]!, longMatch, true, this.keeps))
    loan.release()
    return length
  }

  private columns(): PackedColumn[] {
    const workspace = this.pool.workspaces[0]!
    const columns: PackedColumn[] = []
    for (let column = 0; column < COLUMN_COUNT; column++) {
      const raw = workspace.column(column)
      if (raw.length === 0) continue
      columns.push({ column, method: METHOD.STORED, rawLength: raw.length, parts: [raw], packedLength: raw.length })
    }
    return columns
  }

  private assemble(channel: Channel, rawLength: number, columns: readonly PackedColumn[]): SentBatch {
    const { bytes, checksumAt } = this.pool.workspaces[0]!
    const parts = assembleBatch(rawLength, bytes.slice(checksumAt, checksumAt + 8), columns)
    const sent = { flow: channel.number, migration: channel.flow.migration, bytes: Buffer.concat(parts) }
    this.sent.push(sent)
    return sent
  }
}

export class Receiver {
  readonly pool: Pool
  readonly observed: Observed
  private readonly expander: BatchExpander
  private readonly unpacker = new ColumnUnpacker()
  private readonly flows = new Map<number, FlowExpander>()
  private readonly runs = new ColdRuns()
  private readonly cold: readonly Uint8Array[]
  readonly kept = new KeptModel()
  private readonly keptMax: number

  constructor(pool: Pool, observe = false, terms?: Terms) {
    this.pool = pool
    this.cold = terms?.cold ?? []
    this.observed = new Observed(pool)
    this.expander = new BatchExpander(pool.kernel, ...SEED_WORDS)
    this.expander.disks = terms?.disks ?? false
    this.keptMax = terms?.kept ?? 0
    if (this.keptMax > 0) this.expander.kept = this.kept
    if (observe) this.expander.observer = this.observed
  }

  /** Steps that its batches have cost. */
  get work(): number {
    return this.expander.work
  }

  /** What a batch gives; a copy. @throws BATCH_FORMAT, BATCH_CHECKSUM */
  async receive(sent: SentBatch): Promise<Buffer> {
    const batch = parseBatch([sent.bytes])
    await this.unpacker.unpack(batch, this.pool.workspaces[0]!)
    return this.expand(sent, batch)
  }

  /** As `receive`, for batches without zstd. */
  receiveNow(sent: SentBatch): Buffer {
    const batch = parseBatch([sent.bytes])
    if (this.unpacker.unpack(batch, this.pool.workspaces[0]!)) throw new Error('this batch needs time')
    return this.expand(sent, batch)
  }

  close(): void {
    this.unpacker.close()
  }

  private expand({ flow: number, migration }: SentBatch, batch: ReturnType<typeof parseBatch>): Buffer {
    let flow = this.flows.get(number)
    if (flow === undefined) {
      flow = new FlowExpander(migration, PoolRegions.of(this.pool.kernel.layout))
      this.flows.set(number, flow)
    }
    this.fetch(flow, batch.rawLength)
    const out = this.pool.slots[0]!
    this.expander.expand(flow, this.pool.workspaces[0]!, batch.rawLength, batch.checksum, out)
    return Buffer.from(this.pool.kernel.bytes.subarray(out, out + batch.rawLength))
  }

  private pageOf(number: number): Uint8Array {
    const page = this.cold[number] ?? this.kept.at(number - this.cold.length, this.keptMax)
    if (page) return page
    // a proxy asks its peer, who ends the session: it has never named it
    throw new ProxyError('BATCH_FORMAT', 'a block that was never kept', undefined, 'the session ends')
  }

  /** Fetches the cold pages that the batch names. */
  private fetch({ prediction }: FlowExpander, rawLength: number): void {
    const { runs } = this
    const workspace = this.pool.workspaces[0]!
    if (workspace.columnLength[COLUMN.COLD] === 0) return
    runs.read(workspace, prediction, rawLength, this.cold.length + this.keptMax)
    for (let i = 0; i < runs.length; i++) {
      for (let k = 0; k < runs.count[i]!; k++, workspace.fetchedPages++)
        workspace.bytes.set(this.pageOf(runs.first[i]! + k), workspace.packedAt + workspace.fetchedPages * PAGE)
    }
  }
}

// ---- guests

const WORDS = 'the page that passed at this place was seen by another guest before, 0123456789 {"key": null}\n'

/** What a page is made of; each number picks one of them. */
export const NATURE = {
  ZERO: 0,
  FILL: 1,
  KNOWN: 2,
  CHANGED: 3,
  PIECES: 4,
  TEXT: 5,
  SPARSE: 6,
  DENSE: 7,
  TEMPLATE: 8,
  TEMPLATE_CHANGED: 9,
  /** What its place was sent last. */
  AGAIN: 10,
  /** In rows, most by equal steps. */
  NUMBERS: 11,
  /** Records without a page that we understand. */
  XBZRLE: 12,
  ZERO_FILLED: 13,
  COMPRESSED: 14,
  FLUSH: 15,
} as const
/** How many natures are pages, and how many there are. */
export const PAGE_NATURES = 12
export const NATURES = 16

/** A page in words: `a` and `b` are any numbers. */
export interface PageSpec {
  readonly block: number
  readonly page: number
  readonly nature: number
  readonly a: number
  readonly b: number
}

/** The same pages, half of them right behind the one before, as guests send them. */
export function inRuns(specs: readonly PageSpec[]): PageSpec[] {
  const out: PageSpec[] = []
  for (const spec of specs) {
    const last = out.at(-1)
    out.push(last && spec.b % 2 ? { ...spec, block: last.block, page: last.page + 1 } : spec)
  }
  return out
}

/** RAMBlocks of every made-up guest; the last has pages whose numbers no batch can say. */
export const BLOCKS: readonly BlockEntry[] = [
  { idstr: 'pc.ram', lengthBytes: 2 ** 34 },
  { idstr: 'n'.repeat(255), lengthBytes: 2 ** 24 },
  { idstr: 'é', lengthBytes: 2 ** 20 },
  { idstr: 'huge', lengthBytes: 2 ** 52 + 2 ** 32 },
]

/** Page number within its RAMBlock: a few next to each other, a few far away, some at the ends. */
function pageNumber({ block, page }: PageSpec): number {
  const pages = BLOCKS[block]!.lengthBytes / PAGE
  const turn = page % 64
  if (turn < 48) return turn
  if (turn < 56) return pages - 64 + turn
  if (turn === 56 && block === 3) return 2 ** 40 - 1
  if (turn === 57 && block === 3) return 2 ** 40
  return (page * 7919) % pages
}

/** Makes pages out of templates and of those it made before. */
export class Guest {
  readonly templates: readonly Uint8Array[]
  private readonly known: Uint8Array[] = []
  private readonly last = new Map<string, Uint8Array>()

  constructor(templates: readonly Uint8Array[]) {
    this.templates = templates
  }

  body(spec: PageSpec): Uint8Array {
    const place = `${spec.block} ${pageNumber(spec)}`
    const page = (spec.nature === NATURE.AGAIN ? this.last.get(place) : undefined) ?? this.make(spec)
    this.last.set(place, page)
    return page
  }

  private make({ nature, a, b }: PageSpec): Uint8Array {
    const rand = random(a * 31 + b)
    const old = this.known.length > 0 ? this.known[a % this.known.length]! : undefined
    const template = this.templates.length > 0 ? this.templates[a % this.templates.length]! : undefined
    let page = new Uint8Array(PAGE)
    const change = (): void => {
      for (let k = b % 7; k >= 0; k--) page[rand(PAGE)] = rand(256)
    }
    switch (nature) {
      case NATURE.FILL:
        return page.fill(b)
      case NATURE.KNOWN:
        if (old) return old
        break
      case NATURE.CHANGED:
        if (old) page = old.slice()
        change()
        break
      case NATURE.PIECES:
        for (let at = 0; at < PAGE; ) {
          const own = Math.min(PAGE - at, rand(200))
          for (let i = 0; i < own; i++) page[at + i] = rand(256)
          at += own
          const other = rand(2)
            ? this.known[rand(this.known.length + 1)]
            : this.templates[rand(this.templates.length + 1)]
          const from = rand(PAGE)
          const length = Math.min(PAGE - at, PAGE - from, 20 + rand(2500))
          if (other) page.set(other.subarray(from, from + length), at)
          at += length
        }
        break
      case NATURE.SPARSE:
        for (let k = b % 40; k >= 0; k--) page[rand(PAGE)] = rand(256)
        break
      case NATURE.DENSE:
        for (let i = 0; i < PAGE; i++) page[i] = rand(256)
        break
      case NATURE.NUMBERS: {
        const lag = [1, 2, 4, 6, 16][a % 5]!
        const words = new Uint32Array(page.buffer)
        for (let i = 0; i < words.length; i++)
          words[i] = i < lag || rand(30) === 0 ? rand(2 ** 32) : words[i - lag]! + b * 4096 + 1
        break
      }
      case NATURE.TEMPLATE:
        if (template) return template
        break
      case NATURE.TEMPLATE_CHANGED:
        if (template) page = template.slice()
        change()
        break
      default:
        for (let i = 0; i < PAGE; i++) page[i] = WORDS.charCodeAt((i * (1 + (a % 3)) + rand(2)) % WORDS.length)
    }
    this.known.push(page)
    return page
  }
}

/** Records of a main stream or preempt channel. */
function records(guest: Guest, out: StreamEmitter, specs: readonly PageSpec[], state: { last: number }): void {
  for (const spec of specs) {
    const offset = pageNumber(spec) * PAGE
    const again = state.last === spec.block && spec.b % 29 !== 0
    const name = again ? undefined : BLOCKS[spec.block]!.idstr
    if (spec.nature === NATURE.FLUSH) {
      out.multifdFlush()
      continue
    }
    state.last = spec.block
    if (spec.nature === NATURE.ZERO)
      for (let i = 0; i <= spec.a % 40; i++) out.zero(offset + i * PAGE, i > 0 ? undefined : name)
    else if (spec.nature === NATURE.XBZRLE) out.xbzrle(offset, new Uint8Array(spec.a % 300).fill(spec.b), name)
    else if (spec.nature === NATURE.ZERO_FILLED) out.zero(offset, name, 1 + (spec.b % 255))
    else if (spec.nature === NATURE.COMPRESSED)
      out.compressPage(offset, new Uint8Array(spec.a % 300).fill(spec.b), name)
    else out.page(offset, guest.body(spec), name)
  }
}

/** A main stream: one PART for each list. */
export function mainStream(guest: Guest, parts: readonly (readonly PageSpec[])[]): Uint8Array {
  const out = new StreamEmitter().header().ramStart(2, BLOCKS).eos().footer(2)
  const state = { last: -1 }
  for (const specs of parts) {
    out.sectionPart(2)
    records(guest, out, specs, state)
    out.eos().footer(2)
  }
  out.sectionEnd(2).eos().footer(2).sectionFull(0, 'timer', 0, 2).raw(new Uint8Array(24)).footer(0)
  return out.eof('{"devices": []}').bytes()
}

export function preemptStream(guest: Guest, specs: readonly PageSpec[]): Uint8Array {
  const out = new StreamEmitter()
  records(guest, out, specs, { last: -1 })
  return out.eos().bytes()
}

/** A multifd channel: one packet for each list, of the RAMBlock of its first page. */
export function multifdStream(guest: Guest, channel: number, packets: readonly (readonly PageSpec[])[]): Uint8Array {
  const parts = [multifdHello(channel)]
  packets.forEach((specs, i) => {
    const first = specs[0]
    if (first === undefined) {
      parts.push(multifdPacket({ flags: 1, packetNum: i }))
      return
    }
    const numberIn = (spec: PageSpec): number => pageNumber({ ...spec, block: first.block })
    const pages = specs.filter(spec => spec.nature !== NATURE.ZERO)
    const packet: MultifdPacket = {
      flags: first.b % 11 === 0 ? 1 : 0,
      normal: pages.map(spec => numberIn(spec) * PAGE),
      zero: specs.filter(spec => spec.nature === NATURE.ZERO).map(spec => numberIn(spec) * PAGE),
      packetNum: i,
      idstr: BLOCKS[first.block]!.idstr,
      data: Buffer.concat(pages.map(spec => guest.body(spec))),
    }
    parts.push(multifdPacket(packet))
  })
  return Buffer.concat(parts)
}

/** Template pages: text, tables of small numbers, code-like noise. The same array for the same count. */
export function templatePages(count: number): readonly Uint8Array[] {
  let pages = templateLists.get(count)
  if (pages === undefined) {
    const guest = new Guest([])
    const natures = [NATURE.TEXT, NATURE.SPARSE, NATURE.DENSE, NATURE.PIECES]
    pages = Array.from({ length: count }, (_, i) =>
      guest.body({ block: 0, page: 0, nature: natures[i % 4]!, a: 1000 + i, b: i }),
    )
    templateLists.set(count, pages)
  }
  return pages
}
const templateLists = new Map<number, readonly Uint8Array[]>()

// ---- a whole run

/** A channel of a scenario. */
export interface ScenarioChannel {
  readonly kind: ChannelKind
  readonly migration?: number
  readonly bytes: Uint8Array
  /** Begins once this channel has ended; a recovery knows what its parser knew. */
  readonly after?: number
}

/** Channels of one session, in any order of their bytes. */
export interface Scenario {
  readonly terms: Terms
  readonly channels: readonly ScenarioChannel[]
  readonly encoder: Implementation
  readonly decoder: Implementation
  readonly packing: Packing
  /** Decides cuts, order and releases. */
  readonly seed: number
  /** Most bytes of a push; small ones make many batches. */
  readonly pushMax: number
  /** One batch in so many is raw; 0, the default: none is. */
  readonly rawOneIn?: number
  /** Incomplete records are released only at the end of their channel. */
  readonly whole?: boolean
}

/** What a run was: '' or what went wrong, and the batches. */
export interface Outcome {
  readonly wrong: string
  readonly sent: readonly SentBatch[]
  readonly channels: readonly Channel[]
  readonly state: string
}

/** Sends all channels in random pieces, each batch expanded as it comes. Compares bytes and pools. */
export async function run(scenario: Scenario): Promise<Outcome> {
  const { terms, seed, pushMax, whole } = scenario
  const rand = random(seed)
  const sender = new Sender(poolOf('encoder', scenario.encoder, terms), scenario.packing, true, terms)
  const { rawOneIn = 0 } = scenario
  if (rawOneIn > 0) sender.isRaw = () => rand(rawOneIn) === 0
  const receiver = new Receiver(poolOf('decoder', scenario.decoder, terms), true, terms)
  const channels: Channel[] = []
  const outputs: Buffer[][] = scenario.channels.map(() => [])
  const at = scenario.channels.map(() => 0)
  const send = async (i: number, release: boolean): Promise<void> => {
    const sent = await sender.send(channels[i]!, release)
    if (sent) outputs[i]!.push(await receiver.receive(sent))
  }
  const ended = (i: number): boolean => at[i] === scenario.channels[i]!.bytes.length
  try {
    const open = scenario.channels.map((_, i) => i)
    while (open.length > 0) {
      const turn = rand(open.length)
      const i = open[turn]!
      const { bytes, kind, migration, after } = scenario.channels[i]!
      if (after !== undefined && !ended(after)) continue
      channels[i] ??= sender.open(kind, migration, recoveryOf(channels[after ?? -1]), i)
      const channel = channels[i]!
      const most = whole ? pushMax : [1, 9, 300, 5000, pushMax][rand(5)]!
      const take = Math.min(1 + rand(Math.min(most, pushMax)), bytes.length - at[i]!, channel.room)
      channel.push(bytes.subarray(at[i]!, at[i]! + take))
      at[i]! += take
      if (ended(i)) open.splice(turn, 1)
      if (ended(i) || rand(3) === 0 || channel.room < pushMax) await send(i, ended(i) || (!whole && rand(3) === 0))
    }
  } finally {
    await sender.close()
    receiver.close()
  }
  const wrong: string[] = []
  outputs.forEach((parts, i) => {
    if (!Buffer.concat(parts).equals(scenario.channels[i]!.bytes)) wrong.push(`channel ${i} differs`)
  })
  const state = poolState(sender.pool)
  const difference = stateDifference(state, poolState(receiver.pool))
  if (difference) wrong.push(`pools differ: ${difference}`)
  if (sender.observed.lines.join() !== receiver.observed.lines.join()) wrong.push('observers saw different pages')
  return { wrong: wrong.join('; '), sent: sender.sent, channels, state }
}

function recoveryOf(channel: Channel | undefined): MigrationMemory['recovery'] {
  const parser = channel?.flow.parser
  return parser instanceof MainStreamParser ? parser.memory() : undefined
}

/** Decodes a run's batches by the second decoder: '' or what differs. */
export function secondOpinion(terms: Terms, channels: readonly ScenarioChannel[], outcome: Outcome): string {
  const { outputs, pool } = decodeSession(secondTerms(terms), outcome.sent)
  for (const [i, { bytes }] of channels.entries()) {
    const parts = outputs.filter((_, batch) => outcome.sent[batch]!.flow === i)
    if (!Buffer.concat(parts).equals(bytes)) return `second decoder: channel ${i} differs`
  }
  const difference = stateDifference(outcome.state, secondState(pool))
  return difference && `second decoder: another pool: ${difference}`
}

/** The main stream of a guest whose pages are of every nature, many of which have parts of others. */
export function madeUp(seed: number, pages: number): Buffer {
  const rand = random(seed)
  const guest = new Guest([])
  const natures = [
    NATURE.TEXT,
    NATURE.NUMBERS,
    NATURE.DENSE,
    NATURE.CHANGED,
    NATURE.PIECES,
    NATURE.PIECES,
    NATURE.KNOWN,
    NATURE.AGAIN,
    NATURE.FILL,
  ]
  const parts = Array.from({ length: Math.ceil(pages / 200) }, () =>
    Array.from({ length: 200 }, () => {
      const nature = natures[rand(natures.length)]!
      return { block: 0, page: rand(4000), nature, a: rand(400), b: rand(1000) }
    }),
  )
  return Buffer.from(mainStream(guest, parts))
}
