/** A reload of keys: whom they revoke migrates nothing more, what migrates is not disturbed, and the same keys change nothing. */
import fs from 'node:fs'
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { until } from '../helpers/until.ts'
import { makeCrl } from '../link/crl.ts'
import { credentials, makeCredentials } from '../link/harness.ts'
import { Daemons, type DaemonsOptions, MAIN } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy

/** What both have of keys that were made. */
function pairOf(keys: string): NonNullable<DaemonsOptions['credentials']> {
  return {
    source: credentials(`${keys}/site-a`, { peerName: 'site-b' }),
    destination: credentials(`${keys}/site-b`, { role: 'server' }),
  }
}

/** A migration of a few bytes. */
async function migrates(pair: Daemons): Promise<void> {
  const before = pair.target.received.length
  const qemu = await pair.dial()
  qemu.end(MAIN)
  await until('a migration', () => pair.target.received[before]?.length === MAIN.length)
}

t.test('a revoked peer goes when its migrations are over', async t => {
  const keys = await makeCredentials('x509', t)
  const list = `${keys}/site-b/ca-crl.pem`
  fs.writeFileSync(list, await makeCrl(keys))
  const events = new Events()
  const hints: unknown[] = []
  events.subscribe(({ event, fields }) => {
    if (event === 'link.refused') hints.push((fields as { hint?: unknown }).hint)
  })
  await using pair = await Daemons.start({
    events,
    credentials: pairOf(keys),
  })
  await until('a session', () => pair.count('session open') > 0)
  const qemu = await pair.dial()
  qemu.write(MAIN)
  await until('its first bytes', () => (pair.target.received[0]?.length ?? 0) === MAIN.length)

  fs.writeFileSync(list, await makeCrl(keys, { revoked: `${keys}/site-a/client-cert.pem` }))
  pair.destination.reload()
  await until('the source to be told', () => pair.count('peer drains: it takes no new migrations') > 0)
  qemu.end('the rest')
  await until('the rest', () => pair.target.received[0]!.length === MAIN.length + 8)
  t.equal(hints.length, 0, 'the migration is not disturbed')
  pair.target.sockets[0]!.end()
  await until('the next session to be refused', () => hints.length > 0)
  t.match(hints[0], /has revoked it/)
})

t.test('a peer that is still welcome comes again', async t => {
  const keys = await makeCredentials('x509', t)
  await using pair = await Daemons.start({ credentials: pairOf(keys) })
  await until('a session', () => pair.count('session open') > 0)
  fs.writeFileSync(`${keys}/site-b/ca-crl.pem`, await makeCrl(keys))
  t.equal(pair.destination.reload(), true)
  await until('another one', () => pair.count('session open') > 3)
  await migrates(pair)
  t.pass('which migrates')
})

t.test("a source's new keys count once its migrations are over", async t => {
  const keys = await makeCredentials('x509', t)
  await using pair = await Daemons.start({ credentials: pairOf(keys) })
  await until('a session', () => pair.count('session open') === 2)
  const first = pair.source.status().session?.link
  const qemu = await pair.dial()
  qemu.write(MAIN)
  await until('its first bytes', () => pair.target.received[0]?.length === MAIN.length)
  fs.writeFileSync(`${keys}/site-a/ca-crl.pem`, await makeCrl(keys))
  t.equal(pair.source.reload(), true)
  qemu.end('the rest')
  await until('the rest', () => pair.target.received[0]!.length === MAIN.length + 8)
  t.equal(pair.source.status().session?.link, first, 'the migration goes on in its session')
  pair.target.sockets[0]!.end()
  await until('the next session', () => pair.count('session open') === 4)
  t.not(pair.source.status().session?.link, first)
  t.match(pair.summaries, [{ endedBy: 'source QEMU closed' }], 'as its QEMU ended it')
})

for (const kind of ['x509', 'psk'] as const) {
  t.test(`the same files (${kind}): sessions and what waits for them go on`, async t => {
    const keys = await makeCredentials(kind, t)
    await using pair = await Daemons.start({ credentials: pairOf(keys) })
    await until('a session', () => pair.count('session open') === 2)
    const link = pair.source.status().session?.link
    for (const side of ['source', 'destination'] as const) t.equal(pair[side].reload(), false, side)
    await migrates(pair)
    t.equal(pair.source.status().session?.link, link, 'in the session that there was')
    t.equal(pair.count('peer drains: it takes no new migrations'), 0)
    t.equal(pair.count('session open'), 2)
  })
}
