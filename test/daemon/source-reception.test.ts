/** Connections between sessions: what the session that there is hears of them, and what is reset. Which: reception.test.ts. */
import t from 'tap'
import type { Moved } from '../../src/daemon/source-flow.ts'
import { type ReceivingSession, type Rejection, SourceReception } from '../../src/daemon/source-reception.ts'
import { SESSIONS_LEFT_MAX } from '../../src/limits.ts'
import { Gate } from '../../src/migration/gate.ts'

class Session implements ReceivingSession {
  readonly link = { over: false, connections: 1 }
  channels = 0
  ofMigrations = 0
  closed = 0
  left = 0
  readonly accepted: Moved[] = []
  readonly session = this.half()

  private half() {
    const session = this
    return {
      get channelCount() {
        return session.channels
      },
      get migrationChannelCount() {
        return session.ofMigrations
      },
      connectionCount: 0,
      transfers: [],
      accept: (socket: Moved['socket'], gate: Moved['gate']) => void this.accepted.push({ socket, gate }),
      leave: () => void this.left++,
    }
  }

  close(): void {
    this.closed++
  }
}

class World {
  isStale = false
  readonly reset = new Set<Moved>()
  readonly rejected: [Moved, Rejection][] = []
  readonly leftBehind: Session[] = []
  readonly reception: SourceReception<Session>
  onRejected = (): void => {}

  constructor(patienceMs = 60_000) {
    this.reception = new SourceReception<Session>({
      patienceMs,
      now: () => performance.now(),
      isStale: () => this.isStale,
      onLeft: session => void this.leftBehind.push(session),
      onRejected: (connection, why) => {
        this.rejected.push([connection, why])
        this.onRejected()
      },
    })
    t.teardown(() => this.reception.close())
  }

  /** Another one takes what comes. */
  opens(): Session {
    const session = new Session()
    this.reception.opens(session)
    return session
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

t.test('what came before its main had begun, while the session took nothing new, follows once that is taken', t => {
  const world = new World()
  const session = world.opens()
  const main = world.connection()
  world.reception.comes(main)
  session.channels = 1
  session.ofMigrations = 1
  world.reception.drain()
  const late = { ...world.connection(), gate: main.gate }
  world.reception.comes(late)
  world.reception.taken(session)
  t.same(session.accepted, [main], 'nobody knows yet whose it is')
  Object.assign(main.gate, { migration: { flows: new Map([[1, {}]]), lead: { over: false } } })
  world.reception.taken(session)
  t.same(session.accepted, [main, late])
  t.end()
})

t.test('it waits for a session, and is given to it', t => {
  const world = new World()
  const waiting = [world.comes(), world.comes()]
  t.same(world.reception.waiting, waiting)
  const session = world.opens()
  session.link.connections = 0
  world.reception.admit()
  t.same(session.accepted, [], 'not to one that has no connection')
  session.link.connections = 1
  world.reception.admit()
  t.same(session.accepted, waiting)
  const further = world.comes()
  t.same(session.accepted.at(-1), further)
  t.same([world.reception.waiting, session.closed], [[], 0])
  t.end()
})

t.test('one that idles ends where the next would be a better one', t => {
  const world = new World()
  const idle = world.opens()
  world.isStale = true
  const waiting = world.comes()
  t.same([idle.closed, world.reception.waiting], [1, [waiting]])
  const session = world.opens()
  session.channels = 1
  session.ofMigrations = 1
  world.reception.renewIfIdle()
  t.equal(session.closed, 0, 'a migration runs')
  world.reception.drained(session)
  t.equal(session.closed, 0)
  session.channels = 0
  world.reception.rests(session)
  t.equal(session.closed, 1)
  t.end()
})

t.test('one that has nothing to do is renewed without a connection that waits', t => {
  const world = new World()
  const session = world.opens()
  session.channels = 1
  world.reception.renewIfEmpty()
  t.equal(world.leftBehind.length, 0, 'a disk is open')
  session.channels = 0
  session.link.connections = 0
  world.reception.renewIfEmpty()
  t.equal(session.closed, 0, 'while its WAN is broken it is left alone')
  session.link.connections = 1
  world.reception.renewIfEmpty()
  t.equal(session.closed, 1)
  t.end()
})

t.test('one that has disks alone is left to them, and ends with the last', t => {
  const world = new World()
  const old = world.opens()
  old.channels = 2
  world.reception.drained(old)
  t.same([world.leftBehind, old.left, old.closed], [[old], 1, 0])
  t.equal(world.reception.sessions.present, undefined)
  const waiting = world.comes()
  const next = world.opens()
  world.reception.admit()
  t.same([next.accepted, old.accepted], [[waiting], []])
  world.reception.drained(old)
  world.reception.rests(old)
  t.same([next.closed, old.closed], [0, 0], 'what it is told is for itself alone')
  old.channels = 0
  world.reception.rests(old)
  t.same([next.closed, old.closed], [0, 1])
  world.reception.ended(old)
  t.same(world.reception.sessions.all, [next])
  const sets = world.comes()
  t.same([next.closed, world.reception.waiting], [1, [sets]], 'the next one has its memory: it makes room for that')
  t.end()
})

t.test('where no more can be left, the one that waits for it is, once one has ended', t => {
  const world = new World()
  const left = Array.from({ length: SESSIONS_LEFT_MAX }, () => {
    const session = world.opens()
    session.channels = 1
    world.reception.drained(session)
    return session
  })
  const last = world.opens()
  last.channels = 1
  world.reception.drained(last)
  t.same(world.leftBehind, left)
  world.reception.ended(left[0]!)
  t.same(world.leftBehind, [...left, last])
  t.end()
})

t.test('what a session gives back waits first', t => {
  const world = new World()
  const session = world.opens()
  session.link.connections = 0
  const later = world.comes()
  const moved = world.connection()
  world.reception.back(session, [moved])
  t.same(world.reception.waiting, [moved, later])
  session.link.connections = 1
  world.reception.admit()
  t.same(session.accepted, [], 'nothing new is for that session')
  world.reception.stop()
  const tooLate = world.connection()
  world.reception.back(session, [tooLate])
  t.same([...world.reset], [tooLate])
  t.end()
})

t.test('when it stops', t => {
  const world = new World()
  const session = world.opens()
  session.channels = 1
  session.ofMigrations = 1
  session.link.connections = 0
  const waiting = world.comes()
  world.reception.stop()
  world.reception.rejectStrangers()
  const late = world.comes()
  t.same([...world.reset], [waiting, late])
  t.same(world.rejected, [[late, 'stopping']])
  session.channels = 0
  world.reception.closeIfIdle()
  t.equal(session.closed, 1)
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
