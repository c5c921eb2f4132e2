/** Where a connection goes that comes to a source proxy: by session, WAN, DRAIN, stop, and what runs at its gate. */
import t from 'tap'
import { CONNECTIONS_HELD_MAX } from '../../src/limits.ts'
import { Gate, type GateChannel, type GateMigration } from '../../src/migration/gate.ts'
import { type Answer, type ReceivedConnection, Reception, type SessionNow } from '../../src/migration/reception.ts'

const PATIENCE_MS = 100

const IDLE: SessionNow = {
  ...{ isUp: true, channels: 0, ofMigrations: 0, transfers: [], canBeLeft: true, connections: 0 },
}
const BUSY: SessionNow = { ...IDLE, channels: 1, ofMigrations: 1, connections: 3 }

class World {
  session: SessionNow | undefined
  readonly reception = new Reception<ReceivedConnection>(PATIENCE_MS, () => this.session)

  comes(runs = false, isStale = false): Answer {
    return this.reception.comes(connection(runs), () => isStale)
  }

  /** @returns how many a session is given */
  admitted(): number {
    let admitted = 0
    this.reception.admit(() => {
      admitted++
    })
    return admitted
  }
}

/** @param runs whether a migration runs at its gate */
function connection(runs: boolean, more: Partial<ReceivedConnection['socket']> = {}): ReceivedConnection {
  const flow = { over: false } as GateChannel
  const migration: GateMigration | undefined = runs
    ? { gate: new Gate(''), lead: flow, flows: new Set([flow]), lastMs: 0, postcopyAdvised: false, moved: false }
    : undefined
  return {
    socket: { bornMs: 0, isClosed: false, ...more },
    gate: { migration, traits: { waitsMs: Number.POSITIVE_INFINITY } },
  }
}

/** By session, then drained and stopping: what a new migration is told, and a channel of one that runs. */
const EXPECTED: readonly (readonly [string, SessionNow | undefined, boolean, boolean, Answer, Answer])[] = [
  ['none', undefined, false, false, 'waits', 'waits'],
  ['none, stopping', undefined, false, true, 'stopping', 'waits'],
  ['idle', IDLE, false, false, 'session', 'session'],
  ['idle, drained', IDLE, true, false, 'waits', 'session'],
  ['idle, stopping', IDLE, false, true, 'stopping', 'session'],
  ['idle, drained and stopping', IDLE, true, true, 'stopping', 'session'],
  ['busy', BUSY, false, false, 'session', 'session'],
  ['busy, drained', BUSY, true, false, 'waits', 'session'],
  ['busy, stopping', BUSY, false, true, 'stopping', 'session'],
  ['without a WAN', { ...BUSY, isUp: false }, false, false, 'waits', 'waits'],
  ['without a WAN, stopping', { ...BUSY, isUp: false }, false, true, 'stopping', 'waits'],
  ['full', { ...BUSY, connections: CONNECTIONS_HELD_MAX }, false, false, 'full', 'full'],
]

t.test('where it goes', t => {
  for (const [name, session, drained, stopping, fresh, further] of EXPECTED) {
    const world = new World()
    world.session = session
    if (drained) world.reception.drain()
    if (stopping) world.reception.stop()
    t.equal(world.comes(false), fresh, `${name}: a new migration`)
    t.equal(world.comes(true), further, `${name}: one that runs`)
    t.equal(world.reception.waiting.length, [fresh, further].filter(answer => answer === 'waits').length)
    t.equal(
      world.reception.isDone,
      (drained || stopping) && (session?.channels ?? 0) === 0,
      `${name}: whether it is to end`,
    )
  }
  t.end()
})

t.test('the next session is a better one', t => {
  const world = new World()
  world.session = BUSY
  t.equal(world.comes(false, true), 'session', 'not for those that would have to wait for its end')
  world.session = IDLE
  t.equal(world.comes(false, true), 'renew')
  t.equal(world.reception.waiting.length, 1)
  const never = (): boolean => t.fail('asked') as boolean
  world.session = undefined
  t.equal(world.reception.comes(connection(false), never), 'waits')
  world.session = BUSY
  t.equal(world.reception.comes(connection(false), never), 'session', 'it is not looked for in vain')
  t.end()
})

t.test('those that wait', t => {
  const world = new World()
  const { reception } = world
  t.equal(reception.nextTickMs, Number.POSITIVE_INFINITY)
  const [first, gone, further] = [connection(false), connection(false, { isClosed: true }), connection(true)]
  for (const one of [first!, gone!, further!]) reception.comes(one, () => false)
  t.equal(world.admitted(), 0, 'no session')
  world.session = { ...IDLE, isUp: false }
  t.equal(world.admitted(), 0, 'no WAN')
  world.session = IDLE
  t.equal(world.admitted(), 2, 'one has gone')
  t.same(reception.waiting, [])

  t.same(reception.back([first!, further!], true), [])
  t.same(reception.waiting, [first, further])
  t.equal(world.admitted(), 1, 'the session that gave it back is drained')
  reception.opens()
  t.equal(world.admitted(), 1, 'the next is not')

  const later = connection(false, { bornMs: 50 })
  reception.back([first!, later], true)
  t.equal(reception.nextTickMs, PATIENCE_MS)
  t.same(reception.over(PATIENCE_MS - 1), [])
  t.same(reception.over(PATIENCE_MS), [first])
  t.same(reception.waiting, [later])

  reception.back([further!], true)
  reception.stop()
  t.same(reception.strangers(), [later], 'what runs may have further channels')
  t.same(reception.waiting, [further])
  t.same(reception.back([first!], true), [first], 'nobody takes it any more')
  t.end()
})

t.test('a session that has disks alone is left, where another one is wanted', t => {
  const world = new World()
  const { reception } = world
  const flows = new Set(['a', 'b'])
  const disks: SessionNow = { ...IDLE, channels: 2, transfers: [{ flows }] }
  world.session = disks
  t.equal(reception.isLeft, false, 'nothing else is wanted')
  t.equal(reception.isIdle, true)
  reception.drain()
  t.same([reception.isLeft, reception.isDone], [true, false])
  world.session = { ...disks, channels: 3, ofMigrations: 1 }
  t.same([reception.isLeft, reception.isIdle], [false, false], 'a migration is waited for')
  world.session = { ...disks, canBeLeft: false }
  t.same([reception.isLeft, reception.isIdle], [false, false], 'there are too many')
  t.equal(world.comes(), 'waits')
  world.session = disks
  reception.back([connection(false)], false)
  reception.opens()
  t.equal(reception.isLeft, false)
  reception.back([connection(false)], false)
  t.equal(reception.isLeft, false, 'what one that was left gives back is no word on the one that there is')
  reception.drain()
  reception.stop()
  t.same([reception.isLeft, reception.isDone], [false, false], 'no other one will come: it ends with its disks')
  world.session = IDLE
  t.equal(reception.isDone, true)
  t.end()
})

t.test('one that is stale is kept for the memory behind its disks, and not for disks that came since', t => {
  const world = new World()
  const flows = new Set(['a', 'b'])
  const session = (): SessionNow => ({ ...IDLE, channels: flows.size, transfers: [{ flows }] })
  world.session = session()
  t.equal(world.comes(), 'session')
  t.equal(world.comes(false, true), 'session', 'memory finds the blocks of its disk here')
  flows.add('c').delete('a')
  t.equal(world.comes(false, true), 'session')
  flows.delete('b')
  world.session = session()
  t.equal(world.comes(false, true), 'renew')
  world.session = { ...session(), ofMigrations: 1 }
  t.equal(world.comes(false, true), 'session', 'a migration runs')
  world.reception.opens()
  world.session = session()
  t.equal(world.comes(false, true), 'session', 'the next one is looked at anew')
  t.end()
})
