/**
 * Expands batches: replays operations over the pool, docs/protocol.md §4 to §7. It needs no parser of QEMU's streams.
 * Every count and position is checked before memory is touched; a batch that breaks the grammar, or does not give the
 * bytes its checksum promises, is a typed error, and nothing of it may go to QEMU.
 */
import { assert, ProxyError } from '../errors.ts'
import type { Kernel } from '../kernel/kernel.ts'
import { BatchColumns } from './batch-columns.ts'
import type { KeptPages } from './cold-pages.ts'
import { type FlowExpander, nameIn } from './flow-expander.ts'
import type { PageObserver } from './observer.ts'
import { PageWriter, WORK_PER_STEP } from './page-writer.ts'
import type { SetGains } from './set-gains.ts'
import { unzigzag, VarintReader } from './varint.ts'
import { COLUMN, EXTENDED, LAG_MAX, OP, operationsMax, PACKET_HEADER_SIZE } from './wire.ts'
import type { Workspace } from './workspace.ts'

/** Shared by all flows of a session, in the order of their batches. */
export class BatchExpander {
  private readonly kernel: Kernel
  private readonly seedLo: number
  private readonly seedHi: number
  private readonly columns = new BatchColumns()
  private readonly longCounts = new VarintReader('ops')
  private readonly writer: PageWriter
  /** Whether the session carries disks: their operations are refused in others. */
  disks = false
  /** Who keeps blocks of disks: likewise. */
  kept: KeptPages | undefined
  private flow!: FlowExpander
  private workspace!: Workspace
  /** Work but the writer's. */
  private ownWork = 0

  /** @param seed of the batch checksum, two u32 */
  constructor(kernel: Kernel, seedLo: number, seedHi: number) {
    this.kernel = kernel
    this.writer = new PageWriter(kernel)
    this.seedLo = seedLo
    this.seedHi = seedHi
  }

  /** Who looks on as pages pass: learning. */
  set observer(observer: PageObserver | undefined) {
    this.writer.observer = observer
  }

  /** Who counts what sets bring. */
  set gains(gains: SetGains | undefined) {
    this.writer.gains = gains
  }

  /**
   * Work that batches have cost so far, counted where it is done: bytes written and unpacked, and for each step what takes
   * as long as WORK_PER_STEP of them. At most some fixed multiple of the raw length and a constant, whatever a batch holds:
   * test/codec/work.test.ts.
   */
  get work(): number {
    return this.ownWork + this.writer.work
  }

  /**
   * Expands the raw columns of `workspace` to exactly `rawLength` bytes at `out`, which must have that much room.
   * @param checksum 8 bytes as they came: big-endian u64
   * @throws BATCH_FORMAT or BATCH_CHECKSUM: the pool may differ from the peer's now, so the session must end
   */
  expand(flow: FlowExpander, workspace: Workspace, rawLength: number, checksum: Uint8Array, out: number): void {
    const { columns, writer } = this
    this.flow = flow
    this.workspace = workspace
    writer.begin(flow, workspace, out, rawLength)
    columns.begin(workspace, flow)
    this.ownWork += rawLength
    for (let column = 0; column < workspace.columnLength.length; column++) {
      this.ownWork += workspace.columnLength[column]!
    }
    this.replay(rawLength)
    writer.giveRuns()
    if (writer.left !== 0) throw flow.bad(`its operations give ${writer.left} bytes less than it says`)
    if (!columns.used) throw flow.bad('a column is longer than its operations use')
    this.verify(rawLength, checksum, out)
    writer.done(flow.position, out, rawLength)
    if (writer.keptCount > 0) this.kept!.keep(this.kernel.bytes, writer.keptAddresses, writer.keptCount)
    flow.position += rawLength
  }

  /** All operations, in their order. */
  private replay(rawLength: number): void {
    const { workspace, longCounts } = this
    const { bytes } = workspace
    let op = workspace.columnAt[COLUMN.OPS]!
    const opsEnd = op + workspace.columnLength[COLUMN.OPS]!
    const most = operationsMax(rawLength)
    let left = most
    while (op < opsEnd) {
      if (left-- === 0) throw this.flow.bad(`more than ${most} operations for ${rawLength} bytes`)
      this.ownWork += WORK_PER_STEP
      const byte = bytes[op++]!
      let count = byte & 15
      if (count === 0) {
        longCounts.reset(bytes, op, opsEnd)
        count = 16 + longCounts.next()
        op = longCounts.position
      }
      if (byte >> 4 !== OP.EXTENDED) this.operation(byte >> 4, count)
      else if (op === opsEnd) throw this.flow.bad('an extended operation that does not say which')
      else this.extended(bytes[op++]!, count)
    }
  }

  private operation(kind: number, count: number): void {
    const { flow, columns, writer } = this
    switch (kind) {
      case OP.ZERO:
        if (flow.owedBlocks > 0) {
          if (count > flow.owedBlocks) throw flow.bad('ZERO of more blocks than the message owes')
          writer.zeroBlocks(count)
          break
        }
        flow.outsidePacket()
        writer.zeros(count)
        break
      case OP.REF:
        writer.references(columns.numbers.next(), count)
        break
      case OP.SAME:
        writer.same(count)
        break
      case OP.NEW:
        writer.whole(count, columns.pages)
        break
      case OP.DENSE:
        writer.whole(count, columns.dense)
        break
      case OP.WORDS: {
        const lag = columns.numbers.next()
        if (lag >= LAG_MAX) throw flow.bad(`WORDS with the lag ${lag}`)
        writer.words(count, lag, columns.words, this.workspace.tokensAt)
        break
      }
      case OP.PATCH:
        for (let i = 0; i < count; i++) writer.patch(columns, this.workspace.tokensAt)
        break
      case OP.FILL:
        for (let i = 0; i < count; i++) writer.fill(columns.numbers.next())
        break
      case OP.OTHER:
        writer.copy(columns.other.take(count, flow), count)
        break
      case OP.SKIP:
        flow.outsidePacket()
        flow.advance(count)
        break
      case OP.SEEK:
        flow.outsidePacket()
        this.once(count, 'SEEK')
        flow.advance(unzigzag(columns.numbers.next()))
        break
      case OP.BLOCK:
        flow.outsidePacket()
        if (count > 2) throw flow.bad(`BLOCK with the count ${count}`)
        flow.enter(columns.numbers.next())
        flow.named = count === 1
        break
      case OP.DEFINE:
        this.once(count, 'DEFINE')
        this.define(columns.numbers.next())
        break
      case OP.PACKET:
        this.once(count, 'PACKET')
        this.packet()
        break
      case OP.PASS:
        flow.pass(count)
        break
      default:
        assert(false, 'an operation of more than four bits')
    }
  }

  private extended(kind: number, count: number): void {
    const known = this.kept ? EXTENDED.KEEP : this.disks ? EXTENDED.MESSAGE : EXTENDED.COLD_ONCE
    if (kind > known) {
      throw this.flow.bad(`extended operation ${kind}: the peer speaks a later version`)
    }
    if (kind === EXTENDED.EXPORT) this.export(count)
    else if (kind === EXTENDED.MESSAGE) this.messages(count)
    else if (kind === EXTENDED.KEEP) {
      this.once(count, 'KEEP')
      this.writer.keeps = true
    } else this.writer.fetched(count, this.columns.fetched, kind === EXTENDED.COLD_ONCE)
  }

  private export(count: number): void {
    const { flow } = this
    const { numbers } = this.columns
    flow.outsidePacket()
    this.once(count, 'EXPORT')
    flow.export(numbers.next(), numbers.next())
  }

  private messages(count: number): void {
    const { flow, writer } = this
    const { messages } = flow.prediction
    if (messages === undefined) throw flow.bad('MESSAGE before EXPORT')
    for (let i = 0; i < count; i++) {
      flow.outsidePacket()
      this.ownWork += WORK_PER_STEP
      const wrong = messages.read(this.columns.numbers)
      if (wrong !== '') throw flow.bad(wrong)
      writer.message(messages)
      flow.owe(messages)
    }
  }

  private define(length: number): void {
    const { flow, workspace } = this
    const { other } = this.columns
    if (length < 1 || length > 255 || length > other.left) throw flow.bad(`DEFINE of ${length} bytes`)
    this.ownWork += length + WORK_PER_STEP
    flow.define(nameIn(workspace.bytes, other.take(length, flow), length))
  }

  private packet(): void {
    const { flow, workspace } = this
    flow.outsidePacket()
    const at = this.columns.headers.take(PACKET_HEADER_SIZE, flow)
    this.ownWork += WORK_PER_STEP // its name is looked up
    this.writer.copy(at, PACKET_HEADER_SIZE)
    flow.packet(workspace.bytes, at)
  }

  private once(count: number, name: string): void {
    if (count !== 1) throw this.flow.bad(`${name} with the count ${count}`)
  }

  private verify(rawLength: number, checksum: Uint8Array, out: number): void {
    const { checksumAt: at, bytes } = this.workspace
    this.kernel.checksum(out, rawLength, this.seedLo, this.seedHi, at)
    // the kernel writes lo then hi, little-endian words; the wire has one big-endian u64
    for (let i = 0; i < 8; i++) {
      if (bytes[at + 7 - i] !== checksum[i]) {
        throw new ProxyError(
          'BATCH_CHECKSUM',
          'a batch did not expand to the bytes that its checksum promises',
          { stream: 'channel', offset: this.flow.position },
          'nothing of it reached QEMU; the session ends and the source guest goes on; please report this',
        )
      }
    }
  }
}
