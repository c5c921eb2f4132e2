/**
 * How each page of one captured guest travels: the encoder's own decisions, read back from the operations that it
 * writes. Kept as a small JSON file, so that the report can be made where the lab is not.
 *
 *   node scripts/measure/page-map.ts [--stream nginx-k2] [--out .cache/compare/page-map.json]
 */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { parseArgs } from 'node:util'
import { deflateSync } from 'node:zlib'
import { InputFile } from '../../src/capture/input-file.ts'
import { BatchEncoder } from '../../src/codec/encoder.ts'
import { FlowEncoder } from '../../src/codec/flow-encoder.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import type { BatchStats } from '../../src/codec/stats.ts'
import { unzigzag, VarintReader } from '../../src/codec/varint.ts'
import { COLUMN, OP, PAGE_SIZE } from '../../src/codec/wire.ts'
import type { Workspace } from '../../src/codec/workspace.ts'
import { parseSize } from '../../src/quantity.ts'
import type { TemplateStore } from '../../src/store/template-store.ts'
import { ChannelBuffer } from '../../src/transfer/channel-buffer.ts'
import { parserFor } from '../../src/transfer/channel-parser.ts'
import { openPool, PLACES, POOL_MEMORY_DEFAULT } from '../../src/transfer/pool.ts'
import { temporaryFolder } from '../harness/qemu/cleanup.ts'
import { COMPARE_FOLDER, labStream, labTemplates, TEMPLATE_GUESTS } from './lab-streams.ts'
import { type MethodMap, PAGE_CLASSES, type PageClass, type PageMap } from './page-map-file.ts'

const READ_BYTES = 512 * 1024
const HEADROOM_BYTES = 16384

/** Reads operations back (docs/protocol.md §6): which pages, and how each of them travelled. */
class OperationReader {
  readonly names: string[] = []
  readonly sent = Object.fromEntries(PAGE_CLASSES.map(name => [name, 0])) as Record<PageClass, number>
  /** By RAMBlock: classes of the pages seen so far. */
  readonly blocks: number[][] = []
  private readonly numbers = new VarintReader('numbers')
  private readonly opsReader = new VarintReader('ops')
  private block = 0
  private page = 0

  batch(workspace: Workspace): void {
    const { bytes, columnAt, columnLength } = workspace
    const numbersAt = columnAt[COLUMN.NUMBERS]!
    this.numbers.reset(bytes, numbersAt, numbersAt + columnLength[COLUMN.NUMBERS]!)
    let other = columnAt[COLUMN.OTHER]!
    let at = columnAt[COLUMN.OPS]!
    const end = at + columnLength[COLUMN.OPS]!
    while (at < end) {
      const byte = bytes[at++]!
      let count = byte & 15
      if (count === 0) {
        this.opsReader.reset(bytes, at, end)
        count = 16 + this.opsReader.next()
        at = this.opsReader.position
      }
      const op = byte >> 4
      if (op === OP.OTHER) other += count
      else if (op === OP.DEFINE) {
        const length = this.numbers.next()
        this.names.push(Buffer.from(bytes.subarray(other, other + length)).toString('latin1'))
        other += length
      } else {
        const name = this.operation(op, count)
        if (name !== undefined) this.pages(name, count)
      }
    }
  }

  /** Moves on, or tells the class of the `count` pages that follow. */
  private operation(op: number, count: number): PageClass | undefined {
    switch (op) {
      case OP.ZERO:
        return 'zero'
      case OP.REF:
        return this.numbers.next() % 2 === 0 ? 'template' : 'earlier'
      case OP.SAME:
        return 'same'
      case OP.NEW:
        return 'whole'
      case OP.WORDS:
        this.numbers.next()
        return 'whole'
      case OP.DENSE:
        return 'incompressible'
      case OP.PATCH:
        return 'parts'
      case OP.FILL:
        for (let i = 0; i < count; i++) this.numbers.next()
        return 'fill'
      case OP.SKIP:
        this.page += count
        break
      case OP.SEEK:
        this.page += unzigzag(this.numbers.next())
        break
      case OP.BLOCK:
        this.block = this.numbers.next()
        this.page = 0
        break
      default:
        throw new Error(`operation ${op} in a main stream`)
    }
    return undefined
  }

  private pages(name: PageClass, count: number): void {
    this.sent[name] += count
    this.blocks[this.block] ??= []
    const classes = this.blocks[this.block]!
    for (let i = 0; i < count; i++, this.page++) classes[this.page] ??= PAGE_CLASSES.indexOf(name)
  }
}

/** The encoder counts the same pages in another place: a map that disagrees with it is wrong. */
function verify(sent: Readonly<Record<PageClass, number>>, stats: BatchStats): void {
  const counted: Record<PageClass, number> = {
    'not sent': 0,
    zero: stats.zeroPages,
    fill: stats.fillPages,
    same: stats.samePages,
    template: stats.templatePages,
    earlier: stats.earlierPages,
    parts: stats.patchPages,
    whole: stats.newPages,
    incompressible: stats.densePages,
  }
  for (const name of PAGE_CLASSES) {
    if (sent[name] !== counted[name])
      throw new Error(`${sent[name]} pages '${name}' in the map, ${counted[name]} by the encoder`)
  }
}

async function mapOf(path: string, store: TemplateStore, method: MethodMap['method'], block: string) {
  const full = method === 'pair'
  const pool = await openPool({
    role: 'encoder',
    store,
    sets: await store.digests(),
    ringPages: full ? parseSize(POOL_MEMORY_DEFAULT, 'default') / PAGE_SIZE : 0,
    places: full ? PLACES : 0,
    workspaces: 1,
    slots: 1,
    slotBytes: HEADROOM_BYTES + READ_BYTES + 65536,
    longMatch: full,
  })
  await pool.warm()
  const encoder = new BatchEncoder(pool.kernel, 1, 2)
  const flow = new FlowEncoder(1, PoolRegions.of(pool.kernel.layout), {
    degraded: (position, reason) => {
      throw new Error(`${path}: not understood from byte ${position}: ${reason}`)
    },
  })
  flow.parser = parserFor('main', flow)!
  const reader = new OperationReader()
  const { bytes } = pool.kernel
  const buffer = new ChannelBuffer(bytes, pool.slots[0]!, pool.slotBytes)
  const encode = (release: boolean): void => {
    const length = release ? flow.waiting : flow.ready
    if (length === 0) return
    const loan = buffer.lend(length)
    flow.stats.add(encoder.encode(flow, loan, pool.workspaces[0]!, full ? 32 : 0))
    loan.release()
    reader.batch(pool.workspaces[0]!)
  }
  for await (const chunk of (await InputFile.open(path)).chunks()) {
    for (let at = 0; at < chunk.length; at += READ_BYTES) {
      const piece = chunk.subarray(at, at + READ_BYTES)
      buffer.writable(piece.length, piece.length)!.set(piece)
      flow.push(bytes, buffer.filled(piece.length), piece.length)
      encode(false)
    }
  }
  encode(true)
  verify(reader.sent, flow.stats)
  return { classes: reader.blocks[reader.names.indexOf(block)] ?? [], sent: reader.sent, bytes: flow.stats.rawBytes }
}

async function main(stream: string, out: string): Promise<void> {
  const { path: folder, remove } = temporaryFolder('map')
  try {
    const minVms = 2
    const { store, report } = await labTemplates(join(folder, 'store'), { minVms })
    const block = 'pc.ram'
    const maps: MethodMap[] = []
    let pages = 0
    let streamBytes = 0
    for (const method of ['paper', 'pair'] as const) {
      const { classes, sent, bytes } = await mapOf(labStream(stream), store, method, block)
      pages = classes.length
      streamBytes = bytes
      const packed = deflateSync(
        Uint8Array.from(classes, value => value ?? 0),
        { level: 9 },
      )
      maps.push({ method, classes: packed.toString('base64'), sent })
      console.log(`${stream} by ${method}: ${JSON.stringify(sent)}`)
    }
    const map: PageMap = {
      format: 1,
      command: `node scripts/measure/page-map.ts --stream ${stream}`,
      stream,
      streamBytes,
      templates: { from: TEMPLATE_GUESTS, minVms, pages: report.pages },
      block,
      pages,
      maps,
    }
    mkdirSync(dirname(out), { recursive: true })
    writeFileSync(out, `${JSON.stringify(map)}\n`)
    console.log(`${out}: ${readFileSync(out).length} bytes`)
  } finally {
    remove()
  }
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      stream: { type: 'string', default: 'nginx-k2' },
      out: { type: 'string', default: join(COMPARE_FOLDER, 'page-map.json') },
    },
  })
  try {
    await main(values.stream, values.out)
  } catch (error) {
    console.error(`error: ${(error as Error).message}`)
    process.exitCode = 1
  }
}
