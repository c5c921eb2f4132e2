/**
 * A guest of a real QEMU on its way through a pair of processes, with `pageferry dashboard` beside the source proxy: what
 * the page is looked at with, in dashboard.test.ts and for the pictures of docs/operations.md.
 */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { writerSector } from '../../scripts/harness/guest/writer.ts'
import { endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import type { QemuVersion } from '../../scripts/harness/qemu/versions.ts'
import { random } from '../../scripts/harness/random.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { PAGEFERRY } from '../cli/command.ts'
import { until } from '../helpers/until.ts'
import { PAGE, putPages } from '../template/makers.ts'
import { Pair } from './pair.ts'

const RETURN_PATH = { 'return-path': true }
/** Where a guest's content begins; the guest writes the 32 MiB behind. */
const CONTENT_AT = 2 << 20
const WRITTEN_PAGES = 8192

export interface ShownGuestOptions {
  readonly memoryMb: number
  /** How often its content stands in it, of 12 MiB: code that is in a template set, and such that is not; noise; nothing. */
  readonly parts: number
  /** Pages that it writes in each of 18.2 ticks a second. */
  readonly writes: number
  /** Bytes a second that QEMU may send. */
  readonly bandwidth: number
}

export class ShownMigrations implements AsyncDisposable {
  readonly pair: Pair
  /** Of the page. */
  readonly address: string
  private readonly qemu: QemuVersion
  private readonly command: ChildProcess
  private readonly removeFolder: () => void
  private guests: readonly QemuGuest[] = []
  private count = 0

  private constructor(qemu: QemuVersion, pair: Pair, command: ChildProcess, address: string, remove: () => void) {
    this.qemu = qemu
    this.pair = pair
    this.command = command
    this.address = address
    this.removeFolder = remove
  }

  static async start(qemu: QemuVersion, sourceArgs: readonly string[] = []): Promise<ShownMigrations> {
    const folder = temporaryFolder('shown')
    const stores = ['near', 'far'].map(side => join(folder.path, side))
    const known = code(0, 6 << 20)
    const pages = Array.from({ length: known.length / PAGE }, (_, i) => known.subarray(i * PAGE, (i + 1) * PAGE))
    for (const store of stores) {
      mkdirSync(store)
      await putPages(new TemplateStore(store), pages)
    }
    const control = join(folder.path, 'control')
    const pair = await Pair.start({
      ...{ processes: true, wan: '10ms', sourceStore: stores[0]!, destinationStore: stores[1]! },
      sourceArgs: ['--control', control, '--learn', 'off', ...sourceArgs],
    })
    const command = spawnOwned([PAGEFERRY, 'dashboard', '--control', control], { stdio: ['ignore', 'pipe', 'inherit'] })
    const [line] = (await once(createInterface({ input: command.stdout! }), 'line')) as [string]
    return new ShownMigrations(qemu, pair, command, /http:\S+/.exec(line)![0], folder.remove)
  }

  /** Starts one. Its QEMU stops before its last pass, and does not come to that, until {@link finish} lets it. */
  async begin({ memoryMb, parts, writes, bandwidth }: ShownGuestOptions): Promise<void> {
    const { pair } = this
    const content = join(pair.folder, `content-${this.count}`)
    writeFileSync(content, contentOf(parts))
    const common = {
      ...{ qemu: this.qemu, machine: 'pc-i440fx-7.2', memoryMb, bootSector: writerSector(writes, WRITTEN_PAGES) },
      args: ['-device', `loader,file=${content},addr=0x${CONTENT_AT.toString(16)},force-raw=on`],
    }
    const source = await QemuGuest.start({ ...common, name: 'source' })
    this.guests = [source]
    await source.waitSerial(/\n{4}/)
    const destination = await QemuGuest.start({ ...common, name: 'destination', incoming: 'defer', paused: true })
    this.guests = [source, destination]
    await destination.listen(pair.targetUri(), { capabilities: RETURN_PATH })
    await source.startMigration(pair.sourceUri(), {
      capabilities: { ...RETURN_PATH, 'pause-before-switchover': true },
      parameters: { 'max-bandwidth': bandwidth, 'downtime-limit': 1 },
    })
  }

  /** Lets QEMU come to the point before its last pass, where it waits. */
  async converge(): Promise<void> {
    const [source] = this.guests
    await source!.configure({ parameters: { 'downtime-limit': 2000, 'max-bandwidth': 0 } })
    await until('QEMU before its last pass', async () => {
      const { status } = (await source!.qmp.execute('query-migrate')) as { status: string }
      return status === 'pre-switchover'
    })
  }

  /** @returns how the source proxy says that it ended */
  async finish(): Promise<string> {
    const [source] = this.guests
    await source!.qmp.execute('migrate-continue', { state: 'pre-switchover' })
    await source!.waitMigration()
    const { outcome } = await this.pair.summary(++this.count)
    await this.quit()
    return outcome
  }

  /** Ends the guests, wherever they are. */
  async quit(): Promise<void> {
    for (const guest of this.guests) await guest.quit()
    this.guests = []
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.quit()
    await endChild(this.command)
    await this.pair[Symbol.asyncDispose]()
    this.removeFolder()
  }
}

/** Program code. */
function code(from: number, length: number): Buffer {
  const program = readFileSync(process.execPath)
  return program.subarray((24 << 20) + from, (24 << 20) + from + length)
}

/** 12 MiB, so many times over: of the code that is in no set another piece each time. */
function contentOf(parts: number): Buffer {
  const bytes = Buffer.alloc(parts * (12 << 20))
  const noise = random(7)
  for (let part = 0; part < parts; part++) {
    const at = part * (12 << 20)
    code(0, 6 << 20).copy(bytes, at)
    code((8 + 3 * part) << 20, 3 << 20).copy(bytes, at + (7 << 20))
    for (let i = at + (11 << 20); i < at + (12 << 20); i += 4) bytes.writeUInt32LE(noise(2 ** 32), i)
  }
  return bytes
}
