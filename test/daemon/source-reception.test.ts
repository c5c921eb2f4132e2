/** Connections between sessions: what the session that there is hears of them, and what is reset. Which: reception.test.ts. */
import t from 'tap'
import type { Moved } from '../../src/daemon/source-flow.ts'
import { type PresentSession, type Rejection, SourceReception } from '../../src/daemon/source-reception.ts'
import { Gate } from '../../src/migration/gates.ts'

class Session implements PresentSession {
  isUp = true
  channels = 0
  ofMigrations = 0
  readonly transfers = []
  canBeLeft = true
  connections = 0
  closed = 0
  left = 0
  readonly accepted: Moved[] = []

  accept(connection: Moved): void {
    this.accepted.push(connection)
  }

  close(): void {
    this.closed++
  }

  leave(): void {
    this.left++
  }
}

class World {
  session: Session | undefined
  isStale = false
  readonly reset = new Set<Moved>()
  readonly rejected: [Moved, Rejection][] = []
  readonly reception: SourceReception
  onRejected = (): void => {}

  constructor(patienceMs = 60_000) {
    this.reception = new SourceReception({
      patienceMs,
      now: () => performance.now(),
      present: () => this.session,
      isStale: () => this.isStale,
      onRejected: (connection, why) => {
        this.rejected.push([connection, why])
        this.onRejected()
      },
    })
    t.teardown(() => this.reception.close())
  }

  connection(): Moved {
    const socket = { bornMs: performance.now(), isClosed: false, reset: () => this.reset.add(connection) }
    const connection = { socket, gate: new Gate('web') } as unknown as Moved
    return connection
  }

  comes(): Moved {
    const connection = this.connection()
    this.reception.comes(connection)
    return connection
  }
}

t.test('it waits for a session, and is given to it', t => {
  const world = new World()
  const waiting = [world.comes(), world.comes()]
  t.same(world.reception.waiting, waiting)
  world.session = new Session()
  world.session.isUp = false
  world.reception.admit()
  t.same(world.session.accepted, [], 'not to one that has no connection')
  world.session.isUp = true
  world.reception.admit()
  t.same(world.session.accepted, waiting)
  const further = world.comes()
  t.equal(world.session.accepted.at(-1), further)
  t.same([world.reception.waiting, world.session.closed], [[], 0])
  t.end()
})

t.test('one that idles ends where the next would be a better one', t => {
  const world = new World()
  world.session = new Session()
  world.isStale = true
  const waiting = world.comes()
  t.same([world.session.closed, world.reception.waiting], [1, [waiting]])
  world.session = new Session()
  world.session.channels = 1
  world.reception.opens()
  world.reception.renewIfIdle()
  t.equal(world.session.closed, 0, 'a migration runs')
  world.reception.drain()
  t.equal(world.session.closed, 0)
  world.session.channels = 0
  world.reception.closeIfIdle()
  t.equal(world.session.closed, 1)
  t.end()
})

t.test('what a session gives back waits first', t => {
  const world = new World()
  const later = world.comes()
  const moved = world.connection()
  world.reception.back([moved])
  t.same(world.reception.waiting, [moved, later])
  world.reception.stop()
  const tooLate = world.connection()
  world.reception.back([tooLate])
  t.same([...world.reset], [tooLate])
  t.end()
})

t.test('when it stops', t => {
  const world = new World()
  world.session = new Session()
  world.session.channels = 1
  world.session.isUp = false
  const waiting = world.comes()
  world.reception.stop()
  world.reception.rejectStrangers()
  const late = world.comes()
  t.same([...world.reset], [waiting, late])
  t.same(world.rejected, [[late, 'stopping']])
  world.session.channels = 0
  world.reception.closeIfIdle()
  t.equal(world.session.closed, 1)
  t.end()
})

t.test('nobody waits for ever', async t => {
  const world = new World(20)
  const over = new Promise<void>(done => {
    world.onRejected = () => world.rejected.length === 2 && done()
  })
  const waiting = [world.comes(), world.comes()]
  await over
  t.same(
    world.rejected,
    waiting.map(connection => [connection, 'overdue']),
  )
  t.same([...world.reset], waiting)
  t.same(world.reception.waiting, [])
})
