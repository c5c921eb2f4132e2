/** What is written late, and one at a time, by a clock of the test's own and a disk that does as it is told. */
import { mock } from 'node:test'
import t from 'tap'
import { LateWriter } from '../../src/daemon/late-writer.ts'

/** A disk, and what it was asked to write: each write ends when the test says so. */
class Disk {
  readonly writes: { done: () => void; fail: (error: Error) => void; signal: AbortSignal }[] = []
  readonly failures: unknown[] = []
  readonly writer = new LateWriter(
    signal => new Promise((done, fail) => this.writes.push({ done, fail, signal })),
    cause => this.failures.push(cause),
  )
}
const turn = (): Promise<void> => new Promise(done => setImmediate(done))

t.beforeEach(() => mock.timers.enable({ apis: ['setTimeout'] }))
t.afterEach(() => mock.timers.reset())

t.test('a storm is one write, a second late', async t => {
  const { writer, writes } = new Disk()
  for (let i = 0; i < 100; i++) writer.ask()
  mock.timers.tick(999)
  t.equal(writes.length, 0)
  mock.timers.tick(1)
  t.equal(writes.length, 1)
  writes[0]!.done()
  await turn()
  mock.timers.tick(10_000)
  t.equal(writes.length, 1, 'and no more than that')
})

t.test('one at a time, however slow the disk', async t => {
  const { writer, writes } = new Disk()
  writer.ask()
  mock.timers.tick(1000)
  writer.ask()
  mock.timers.tick(60_000)
  t.equal(writes.length, 1)
  writes[0]!.done()
  await turn()
  mock.timers.tick(1000)
  t.equal(writes.length, 2, 'what came meanwhile is behind it')
})

t.test('what cannot be written is told once, and tried again with what comes next', async t => {
  const { writer, writes, failures } = new Disk()
  for (let i = 0; i < 3; i++) {
    writer.ask()
    mock.timers.tick(1000)
    writes[i]!.fail(new Error(`failure ${i}`))
    await turn()
  }
  t.match(failures, [{ message: 'failure 0' }], 'once')
  mock.timers.tick(60_000)
  t.equal(writes.length, 3, 'not over and over')
  writer.ask()
  mock.timers.tick(1000)
  writes[3]!.done()
  await turn()
  writer.ask()
  mock.timers.tick(1000)
  writes[4]!.fail(new Error('again'))
  await turn()
  t.match(failures.slice(1), [{ message: 'again' }], 'once more, as it could in between')
})

t.test('the end writes what is not written, and waits for no disk that hangs', async t => {
  for (const [name, begin] of [
    ['asked just now', (disk: Disk) => disk.writer.ask()],
    [
      'it could not be',
      async (disk: Disk) => {
        disk.writer.ask()
        mock.timers.tick(1000)
        disk.writes.pop()!.fail(new Error('full'))
        await turn()
      },
    ],
  ] as const) {
    const disk = new Disk()
    await begin(disk)
    const closed = disk.writer.close()
    await turn()
    t.equal(disk.writes.length, 1, name)
    disk.writes[0]!.done()
    await closed
  }
  const idle = new Disk()
  await idle.writer.close()
  t.equal(idle.writes.length, 0, 'nothing to write')

  const hangs = new Disk()
  hangs.writer.ask()
  mock.timers.tick(1000)
  hangs.writer.ask()
  const closed = hangs.writer.close()
  await turn()
  mock.timers.tick(1999)
  t.notOk(hangs.writes[0]!.signal.aborted)
  mock.timers.tick(1)
  await closed
  t.ok(hangs.writes[0]!.signal.aborted, 'who writes hears of it')
  hangs.writes[0]!.fail(new Error('at last'))
  await turn()
  t.same(hangs.failures, [], 'and nobody is told any more')
})
