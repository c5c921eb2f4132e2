/** Connections whose TLS keys are used up are replaced while they carry bytes. */
import t from 'tap'
import { KeyUse } from '../../src/link/key-use.ts'
import { credentials, makeClient, makeCredentials, TestServer } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

t.test('records are counted, not bytes', async t => {
  const use = new KeyUse(10)
  for (let i = 0; i < 6; i++) use.sent(100)
  for (let i = 0; i < 6; i++) use.received()
  t.same([use.isWorn, use.isSpent], [false, false], 'each direction has a key of its own')
  use.sent(16384)
  t.same([use.isWorn, use.isSpent], [true, false])
  use.sent(16385)
  use.sent(1)
  t.same([use.isWorn, use.isSpent], [true, true])
  t.equal(new KeyUse().isWorn, false)
})

t.test('a session outlives many keys', async t => {
  const folder = await makeCredentials('x509', t)
  for (const connections of [1, 3]) {
    const server = await new TestServer({
      serverCredentials: credentials(`${folder}/site-b`, { role: 'server' }),
    }).listen()
    const { client, end, log } = makeClient(server.port, {
      clientCredentials: credentials(`${folder}/site-a`, { peerName: 'site-b' }),
      client: { connections, recordsMax: 400 },
    })
    await client.open()
    const done = new Promise<void>(resolve => {
      end.onChange = () => end.finished === 2 && resolve()
    })
    end.open(12 << 20, 12 << 20, true)
    end.open(12 << 20, 12 << 20, false)
    await done
    t.same([end.mistakes, server.ends[0]!.mistakes], [[], []])
    t.ok(end.ups >= 5, `${end.ups} connections carried 24 MiB each way`)
    const mishaps = log.lines.filter(({ level, event }) => event === 'link.down' && level === 'warn')
    t.same(mishaps, [], 'each was replaced before it was at its end')
    await client.close()
    t.same([...end.losses, ...server.ends[0]!.losses], [], 'and none is told as lost')
    await server.server.close(1000)
  }
})

t.test('a peer that does not replace its connection loses it', async t => {
  const folder = await makeCredentials('x509', t)
  const server = await new TestServer({
    serverCredentials: credentials(`${folder}/site-b`, { role: 'server' }),
    server: { recordsMax: 400 },
  }).listen()
  const { client, end } = makeClient(server.port, {
    clientCredentials: credentials(`${folder}/site-a`, { peerName: 'site-b' }),
  })
  await client.open()
  const done = new Promise<void>(resolve => {
    end.onChange = () => end.finished === 1 && resolve()
  })
  end.open(12 << 20, 1000, true)
  await done
  t.same([end.mistakes, server.ends[0]!.mistakes], [[], []])
  const reasons = server.log.lines.filter(({ event }) => event === 'link.down').map(({ fields }) => fields.reason)
  t.ok(reasons.length > 0 && reasons.every(reason => /TLS keys/.test(String(reason))), `${reasons}`)
  await client.close()
  await server.server.close(1000)
})
