/** A guest whose memory goes to a proxy piece by piece, as its test says: some pages of every class. */
import { once } from 'node:events'
import net from 'node:net'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { random } from '../../scripts/harness/random.ts'
import { PAGE, page } from '../template/makers.ts'

const BLOCK = 'pc.ram'
const SECTION = 2
/** Pages of a part: QEMU's turns are about as long. */
const PART_PAGES = 50

/** Pages of this number stand in the template set of a test. */
export const TEMPLATE_PAGES = 400

export class FedGuest {
  readonly socket: net.Socket
  private readonly pages: number
  private readonly next: (limit: number) => number
  private named = false
  /** What each page was last. */
  private readonly memory: Buffer[] = []

  private constructor(socket: net.Socket, pages: number, seed: number) {
    this.socket = socket
    this.pages = pages
    this.next = random(seed)
  }

  /** @param path where the source proxy listens @param pages of its memory */
  static async start(path: string, pages: number, seed = 1): Promise<FedGuest> {
    const socket = net.connect(path)
    socket.on('error', () => {})
    await once(socket, 'connect')
    socket.resume() // or its end is never seen
    const blocks = [{ idstr: BLOCK, lengthBytes: pages * PAGE }]
    socket.write(new StreamEmitter().header('pc-q35-9.2').ramStart(SECTION, blocks).eos().footer(SECTION).bytes())
    return new FedGuest(socket, pages, seed)
  }

  /** Pages from one share of memory to another, one in so many, as they are now. @returns once the proxy has them */
  async send(from: number, to: number, every = 1): Promise<void> {
    const end = Math.floor(to * this.pages)
    for (let at = Math.floor(from * this.pages); at < end; at += PART_PAGES) {
      const part = new StreamEmitter().sectionPart(SECTION)
      for (let i = at; i < Math.min(end, at + PART_PAGES); i++) if (i % every === 0) this.put(part, i)
      // a write that fails calls back too
      await new Promise(done => this.socket.write(part.eos().footer(SECTION).bytes(), done))
    }
  }

  /** The rest of its stream: what follows memory. */
  end(): void {
    const rest = new StreamEmitter().sectionEnd(SECTION).eos().footer(SECTION)
    rest.sectionFull(5, 'timer', 0, 2).raw(Buffer.alloc(900, 1)).footer(5).eof('{"devices": [{"name": "timer"}]}')
    this.socket.end(rest.bytes())
  }

  private put(part: StreamEmitter, i: number): void {
    const { memory, named } = this
    const before = memory[i]
    const one = before ? this.touched(before) : this.fresh(i)
    memory[i] = one
    if (one.length === 0) part.zero(i * PAGE, named ? undefined : BLOCK)
    else part.page(i * PAGE, one, named ? undefined : BLOCK)
    this.named = true
  }

  /** None of it is a zero page. */
  private fresh(i: number): Buffer {
    const kind = this.next(100)
    if (kind < 25) return Buffer.alloc(0)
    if (kind < 60) return page(1 + (i % TEMPLATE_PAGES))
    if (kind < 72) return this.memory.findLast(({ length }) => length > 0) ?? this.noise()
    return this.noise()
  }

  private touched(before: Buffer): Buffer {
    const kind = this.next(100)
    if (before.length === 0 || kind < 15) return before
    if (kind < 40) return this.noise()
    const after = Buffer.from(before)
    after.writeUInt32LE(this.next(2 ** 32), 64 * this.next(64))
    return after
  }

  private noise(): Buffer {
    const bytes = Buffer.alloc(PAGE)
    for (let at = 0; at < PAGE; at += 4) bytes.writeUInt32LE(this.next(2 ** 32), at)
    return bytes
  }
}
