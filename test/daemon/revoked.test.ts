/** A reload of the destination's keys: whom they revoke migrates nothing more, and what migrates is not disturbed. */
import fs from 'node:fs'
import t from 'tap'
import { Events } from '../../src/daemon/events.ts'
import { until } from '../helpers/until.ts'
import { makeCrl } from '../link/crl.ts'
import { credentials, makeCredentials } from '../link/harness.ts'
import { Daemons, MAIN } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy

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
    credentials: {
      source: credentials(`${keys}/site-a`, { peerName: 'site-b' }),
      destination: credentials(`${keys}/site-b`, { role: 'server' }),
    },
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
  await using pair = await Daemons.start({
    credentials: {
      source: credentials(`${keys}/site-a`, { peerName: 'site-b' }),
      destination: credentials(`${keys}/site-b`, { role: 'server' }),
    },
  })
  await until('a session', () => pair.count('session open') > 0)
  pair.destination.reload()
  await until('another one', () => pair.count('session open') > 1)
  const qemu = await pair.dial()
  qemu.end(MAIN)
  await until('a migration', () => pair.target.received[0]?.length === MAIN.length)
  t.pass('which migrates')
})
