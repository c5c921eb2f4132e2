/** The sessions of a source proxy: which takes what comes, and which are left to their disks. */
import t from 'tap'
import { SESSIONS_LEFT_MAX } from '../../src/limits.ts'
import { type KeptSession, SourceSessions } from '../../src/migration/source-sessions.ts'

function session({ over = false, connections = 1, channels = 0, ofMigrations = 0, isAgreed = true } = {}) {
  const half = { channelCount: channels, migrationChannelCount: ofMigrations, connectionCount: channels, transfers: [] }
  return { link: { over, connections }, session: isAgreed ? half : undefined } satisfies KeptSession
}

t.test('as it is now', t => {
  const sessions = new SourceSessions<KeptSession>()
  t.equal(sessions.now(), undefined)
  for (const [one, isUp, canBeLeft] of [
    [session({ isAgreed: false }), false, true],
    [session({ connections: 0 }), false, true],
    [session({ over: true }), false, false],
    [session({ channels: 3, ofMigrations: 1 }), true, true],
  ] as const) {
    sessions.opens(one)
    const channels = one.session?.channelCount ?? 0
    const ofMigrations = one.session?.migrationChannelCount ?? 0
    t.same(sessions.now(), { isUp, channels, ofMigrations, transfers: [], canBeLeft, connections: channels })
  }
  t.end()
})

t.test('those that are left count until they have ended', t => {
  const sessions = new SourceSessions<KeptSession>()
  const left = Array.from({ length: SESSIONS_LEFT_MAX }, (_, i) => {
    const one = session({ channels: 1 })
    sessions.opens(one)
    t.same([sessions.now()!.canBeLeft, sessions.now()!.connections], [true, i + 1])
    sessions.leave()
    t.same([sessions.present, sessions.now()], [undefined, undefined])
    return one
  })
  const next = session()
  sessions.opens(next)
  t.same([sessions.all, [...sessions.left]], [[next, ...left], left])
  t.equal(sessions.now()!.canBeLeft, false)
  t.equal(sessions.isServed(left[0]!), false)
  left[0]!.session!.channelCount = 0
  t.equal(sessions.isServed(left[0]!), true)
  t.equal(sessions.isServed(next), false, 'the present one is for what comes')
  t.equal(sessions.ended(left[0]!), true)
  t.equal(sessions.now()!.canBeLeft, true)
  t.equal(sessions.ended(next), false)
  t.same(sessions.all, left.slice(1))
  t.end()
})

t.test('one that was opened beside others is cramped once they are gone', t => {
  const sessions = new SourceSessions<KeptSession>()
  const [old, next] = [session({ channels: 1 }), session()]
  sessions.opens(old)
  t.equal(sessions.isCramped, false)
  sessions.leave()
  sessions.opens(next)
  t.equal(sessions.isCramped, false, 'the other has the memory')
  sessions.ended(old)
  t.equal(sessions.isCramped, true)
  sessions.opens(session())
  t.equal(sessions.isCramped, false)
  t.end()
})
