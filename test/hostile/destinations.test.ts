/** A source proxy whose destination went bad, beside honest migrations of the same process. What its own see: test/daemon. */
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'
import t from 'tap'
import { UNACKED_BYTES_MAX } from '../../src/limits.ts'
import { MAIN, MULTIFD } from '../daemon/daemons.ts'
import { AcknowledgesNothing, OneByteAnswers } from './destinations.ts'
import { Siege, unharmed } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

/** Beyond what docs/security.md says: honest migrations, and what V8 has not collected. */
const SLACK_BYTES = 64 << 20
/** Half of all pieces, 300 bytes each, and several times that before V8 collects them: docs/security.md. */
const PIECES_RESIDENT_BYTES = 200e6

/** A QEMU that reads nothing. */
async function connect(at: string, ...bytes: Uint8Array[]): Promise<net.Socket> {
  const qemu = net.connect(at)
  qemu.on('error', () => {})
  await once(qemu, 'connect')
  qemu.pause()
  for (const one of bytes) qemu.write(one)
  return qemu
}

t.test('a destination that acknowledges nothing', async t => {
  await using hostile = await AcknowledgesNothing.start()
  await using siege = await Siege.start({ plaintext: true, hostileDestination: hostile.port })
  const figures = await siege.under(async () => {
    const qemu = await connect(siege.gate, MAIN, randomBytes(2 * UNACKED_BYTES_MAX))
    await siege.until('the QEMU to be let go', () => {
      return siege.lines.some(line => line.includes('"migration ended"') && line.includes('acknowledged'))
    })
    qemu.destroy()
  })
  t.comment(`${hostile.bytes} bytes taken`)
  t.ok(hostile.bytes > 0, 'it took what came')
  unharmed(t, figures, { grownBytesMax: UNACKED_BYTES_MAX + SLACK_BYTES })
})

t.test('answers of one byte, each a frame', async t => {
  await using hostile = await OneByteAnswers.start()
  await using siege = await Siege.start({ plaintext: true, hostileDestination: hostile.port })
  const figures = await siege.under(async () => {
    const qemus = await Promise.all([MAIN, MULTIFD, MULTIFD].map(start => connect(siege.gate, start)))
    await siege.until('the session to end', () => hostile.isOver)
    for (const qemu of qemus) qemu.destroy()
  })
  t.ok(hostile.links[0]!.over, `${hostile.pieces} pieces`)
  unharmed(t, figures, { grownBytesMax: PIECES_RESIDENT_BYTES + SLACK_BYTES })
})
