/** What a disk's connection tells of its FLUSHes: a guest that is being moved stands still until the last is answered. */
import t from 'tap'
import { DiskConnection } from '../../src/codec/disk-connection.ts'
import { FlowEncoder } from '../../src/codec/flow-encoder.ts'
import { PoolRegions } from '../../src/codec/places.ts'
import { COMMAND } from '../../src/nbd/wire.ts'

const BLOCK = 4096

class Conversation {
  readonly told: string[] = []
  readonly connection: DiskConnection
  private readonly encoder: FlowEncoder
  private cookie = 0

  constructor() {
    this.encoder = new FlowEncoder(1, new PoolRegions([0, 64]))
    this.connection = new DiskConnection(this.encoder, 'client', {
      flushes: waits => void this.told.push(waits ? 'waits' : 'goes on'),
      flushed: () => void this.told.push('flushed'),
    })
    this.hears('4e42444d41474943', '49484156454f5054', '0003')
    this.says('00000003', '49484156454f5054', '00000001', '00000000') // EXPORT_NAME
    this.hears('0000000000100000', '0005') // 1 MiB, HAS_FLAGS and SEND_FLUSH
  }

  private says(...hex: string[]): void {
    const bytes = Buffer.from(hex.join(''), 'hex')
    this.connection.push(bytes, 0, bytes.length)
  }

  private hears(...hex: string[]): void {
    const bytes = Buffer.from(hex.join(''), 'hex')
    this.connection.listen(bytes, 0, bytes.length)
  }

  /** @returns its cookie */
  asks(type: number, data = 0): string {
    const cookie = (++this.cookie).toString(16).padStart(16, '0')
    const length = data.toString(16).padStart(8, '0')
    this.says('25609513', '0000', type.toString(16).padStart(4, '0'), cookie, '0'.repeat(16), length, '00'.repeat(data))
    return cookie
  }

  answers(cookie: string, error = 0): void {
    this.hears('67446698', error.toString(16).padStart(8, '0'), cookie)
  }

  /** What was told since. */
  since(): string[] {
    return this.told.splice(0)
  }
}

t.test('from a FLUSH to its answer', t => {
  const disk = new Conversation()
  const write = disk.asks(COMMAND.WRITE, BLOCK)
  t.equal(disk.connection.unanswered, 1)
  t.same(disk.since(), [])
  disk.answers(write)
  const flush = disk.asks(COMMAND.FLUSH)
  t.same(disk.since(), ['waits'])
  const [second, zeroes] = [disk.asks(COMMAND.FLUSH), disk.asks(COMMAND.WRITE_ZEROES)]
  disk.answers(zeroes)
  disk.answers(flush)
  t.same(disk.since(), ['flushed'], 'one is still asked for')
  disk.answers(second)
  t.same(disk.since(), ['goes on', 'flushed'])
  t.equal(disk.connection.unanswered, 0)
  t.end()
})

t.test('data behind it: no mirror that is being completed, and nothing that goes before others', t => {
  const disk = new Conversation()
  const flush = disk.asks(COMMAND.FLUSH)
  disk.asks(COMMAND.WRITE, BLOCK)
  t.same(disk.since(), ['waits', 'goes on'])
  disk.answers(flush)
  t.same(disk.since(), ['flushed'])
  t.end()
})

t.test('one that fails', t => {
  const disk = new Conversation()
  disk.answers(disk.asks(COMMAND.FLUSH), 5)
  t.same(disk.since(), ['waits', 'goes on'])
  t.end()
})
