/** A source proxy that stands still (a busy host, a VM that is stopped): what came meanwhile is read before time judges. */
import t from 'tap'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import type { SourceConnection } from '../../src/daemon/source-connection.ts'
import type { SourceGate } from '../../src/daemon/source-flow.ts'
import type { SourceSession } from '../../src/daemon/source-session.ts'
import { PREEMPT_LATE_MS } from '../../src/migration/gates.ts'
import { COMMAND } from '../../src/qemu/wire.ts'
import { until } from '../helpers/until.ts'
import { Daemons, runOf } from './daemons.ts'

t.setTimeout(590_000)

/** This process, both proxies with it, does nothing for so long. */
function standStill(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
}

t.test('a recovery that has spoken is no silent preempt channel of what it recovers', async t => {
  await using daemons = await Daemons.start()
  await until('a session', () => runOf(daemons.source)?.session !== undefined)
  const session = runOf(daemons.source)!.session as unknown as SourceSession
  const main = await daemons.dial()
  main.write(new StreamEmitter().header('pc').ping(1).postcopyAdvise().bytes())
  await until('postcopy, which main announces', () => {
    const [channel] = session.channels.connections
    return (channel?.migration as { postcopyAdvised?: boolean } | undefined)?.postcopyAdvised === true
  })

  // it comes in, what it begins with too, and before that is read, the time is over in which it could have been
  const idstr = 'pc.ram'
  const recv = Uint8Array.of(idstr.length, ...Buffer.from(idstr, 'latin1'))
  const said = Buffer.from(new StreamEmitter().command(COMMAND.RECV_BITMAP, recv).bytes())
  const accept = session.accept.bind(session)
  let isOpen = false
  session.accept = (socket: SourceConnection, gate: SourceGate) => {
    accept(socket, gate)
    const speak = (): void => {
      if (!isOpen) {
        setImmediate(speak)
        return
      }
      recovery.write(said)
      standStill(2 * PREEMPT_LATE_MS)
    }
    setImmediate(speak)
  }
  const dialled = daemons.dial()
  const recovery = daemons.clients.at(-1)!
  recovery.once('connect', () => {
    isOpen = true
  })
  await dialled
  await until('its bytes at the destination', () => daemons.target.received.some(bytes => bytes.equals(said)))
  t.same(
    Array.from(session.channels.connections, ({ kind }) => kind),
    ['main', 'recovery'],
  )
  t.equal(daemons.count('migration starts'), 2, 'it is a migration of its own')
})
