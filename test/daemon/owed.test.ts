/**
 * A QEMU without return path may close its own direction first. When all has come for it, its flow is over and the source
 * side says so; what it has not read yet lies in the session's pool. It gets that, whatever becomes of the session: its
 * guest may run nowhere else.
 */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import type { DestinationRun } from '../../src/daemon/destination-run.ts'
import { until } from '../helpers/until.ts'
import { scratch } from '../template/makers.ts'
import { closed, Daemons } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy

/** More than a Unix socket holds, less than a flow may send before its reader has read. */
const STREAM = zstdDecompressSync(
  readFileSync(fileURLToPath(new URL('../vectors/qemu/streams/7.2-no-footers.0-main.zst', import.meta.url))),
)

/** A pair whose target has closed its direction and read nothing, while the source side is done. */
async function owing(folder: string): Promise<Daemons> {
  const pair = await Daemons.start({ targetAt: join(folder, 'qemu'), effort: 0 })
  pair.target.onConnection = socket => {
    socket.pause()
    socket.end()
  }
  await until('a session', () => pair.count('session open') === 2)
  const qemu = await pair.dial()
  qemu.end(STREAM)
  qemu.resume()
  await until('the source to be done with it', () => pair.summaries.length === 1)
  return pair
}

const ENDS: Readonly<Record<string, (pair: Daemons) => Promise<unknown>>> = {
  'the source renews its session': async ({ source }) => source.renew(),
  'the source is stopped': ({ source }) => source.abort(),
  'the WAN is lost': pair => pair.loseSession(),
}
for (const [name, ends] of Object.entries(ENDS)) {
  t.test(`${name} while a QEMU has its last bytes coming`, async t => {
    await using pair = await owing(scratch(t.teardown).folder)
    const { link } = pair
    t.equal(pair.summaries[0]!.outcome, 'completed')
    t.same(pair.arrivals, [], 'the destination side is not')
    await ends(pair)
    await link.ended
    t.same(pair.arrivals, [])
    const [socket] = pair.target.sockets
    socket!.resume()
    await once(socket!, 'end')
    t.ok(pair.target.received[0]!.equals(STREAM), 'it gets every byte')
    await until('its end to be told', () => pair.arrivals.length === 1)
    t.equal(pair.arrivals[0]!.outcome, 'completed')
    await until('the session to be gone', () =>
      pair.destination.status().sessions.every(one => one.link !== link.id.slice(0, 8)),
    )
  })
}

/** Keeps all that comes for a QEMU from being expanded, as a busy machine may. @returns lets it go on */
function hold(pair: Daemons): () => void {
  const { runs } = pair.destination as unknown as { runs: ReadonlyMap<unknown, DestinationRun> }
  const [run] = runs.values()
  const { inbound } = run!.session as unknown as { inbound: { turns: unknown } }
  const { turns } = inbound
  let goesOn = (): void => {}
  const held = new Promise<void>(done => {
    goesOn = done
  })
  inbound.turns = { hasTime: false, spend: () => {}, next: () => held }
  return () => {
    inbound.turns = turns
    goesOn()
  }
}

for (const [name, ends] of Object.entries(ENDS)) {
  t.test(`${name} while a QEMU's last bytes are not expanded`, async t => {
    const { folder } = scratch(t.teardown)
    await using pair = await Daemons.start({ targetAt: join(folder, 'qemu'), effort: 0 })
    const { target } = pair
    await until('a session', () => pair.count('session open') === 2)
    const qemu = await pair.dial()
    qemu.resume()
    qemu.write(STREAM.subarray(0, STREAM.length / 2))
    await until('half of it', () => target.received[0]?.length === Math.floor(STREAM.length / 2))
    const goOn = hold(pair)
    target.sockets[0]!.end()
    qemu.end(STREAM.subarray(STREAM.length / 2))
    await until('the source to be done with it', () => pair.summaries.length === 1)
    t.equal(pair.summaries[0]!.outcome, 'completed')
    const { link } = pair
    await ends(pair)
    await link.ended
    t.equal(target.received[0]!.length, Math.floor(STREAM.length / 2))
    const end = once(target.sockets[0]!, 'end')
    goOn()
    await end
    t.ok(target.received[0]!.equals(STREAM), 'it gets every byte')
    await until('its end to be told', () => pair.arrivals.length === 1)
    t.equal(pair.arrivals[0]!.outcome, 'completed')
  })
}

t.test('a destination that is stopped breaks it off, and says so', async t => {
  await using pair = await owing(scratch(t.teardown).folder)
  await pair.destination.abort()
  const [socket] = pair.target.sockets
  socket!.resume()
  await closed(socket!)
  t.ok(pair.target.received[0]!.length < STREAM.length)
  t.match(pair.arrivals, [{ outcome: 'failed' }])
})

t.test('a destination that stops in order waits for it, though its session is over', async t => {
  await using pair = await owing(scratch(t.teardown).folder)
  const { link } = pair
  await pair.source.abort()
  await link.ended
  const stopped = pair.destination.stop()
  const [socket] = pair.target.sockets
  socket!.resume()
  await once(socket!, 'end')
  await stopped
  t.ok(pair.target.received[0]!.equals(STREAM))
  t.match(pair.arrivals, [{ outcome: 'completed' }])
})
