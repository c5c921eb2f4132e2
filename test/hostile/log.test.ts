/** A peer that writes our log: as many lines as it can cause, with texts that look like lines, or reach for the terminal. */
import t from 'tap'
import { FRAME } from '../../src/wan/wire.ts'
import { LINES_PER_MINUTE_MAX, Siege, unharmed } from './harness.ts'

t.setTimeout(590_000) // the machine may be busy

const FORGED =
  '\n{"level":50,"time":"2026-01-01T00:00:00.000Z","msg":"forged"}\n\x1b[2J\x1b]0;pwned\x07\x9b31m\u2028\u202e'
/** Longer than counts of lines left out wait to be told. */
const ATTACK_MS = 17_000

t.test('lines of the log, as many as a peer can cause', async t => {
  await using siege = await Siege.start()
  let texts = 0
  const figures = await siege.under(async () => {
    const until = performance.now() + ATTACK_MS
    const isCounted = (): boolean =>
      siege.lines.some(line => line.includes('lines left out') && line.includes('hostile'))
    for (let round = 0; performance.now() < until || !isCounted(); round++) {
      // an agent that is no label is refused, so every other time
      const hello = round % 2 === 0 ? {} : { agent: `a${FORGED}`.slice(0, 64) }
      const peer = await siege.peer(hello).catch(() => undefined)
      await new Promise(done => setTimeout(done, 100))
      if (!peer) continue
      for (let flow = 1; flow <= 40; flow++) {
        // by turns a target that is not there, one that breaks, one that is taken by nobody
        peer.open(flow, flow % 3 === 0 ? 'nowhere' : 'default', flow, 'main')
        peer.reset(flow, 1, `broke off${FORGED}`)
        texts++
        if (flow % 10 === 0) await new Promise(done => setTimeout(done, 20))
      }
      if (round % 3 === 0) peer.open(5000, `x${FORGED}`, 5000, `k${FORGED}`)
      else peer.send(FRAME.BYE, Buffer.concat([Buffer.from([0, 9]), Buffer.from(`bye${FORGED}`)]))
      await peer.flushed()
      await new Promise(done => setTimeout(done, 100))
      peer.close()
    }
  })
  t.comment(`${texts} texts, ${figures.lines.length} lines`)
  unharmed(t, figures, { grownBytesMax: 64 << 20 })
  // the honest peer's are limited too: it migrates ten times a second
  const linesMax = Math.ceil(3 * LINES_PER_MINUTE_MAX * Math.max(1, figures.seconds / 60))
  t.ok(
    figures.lines.length <= linesMax,
    `${figures.lines.length} lines: honest, hostile and strangers, 100 a minute each`,
  )
  const fields = figures.lines.map(line => JSON.parse(line) as Record<string, unknown>)
  t.notOk(
    fields.some(({ msg }) => msg === 'forged'),
    'no line is forged',
  )
  const raw = figures.lines.filter(line => /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u.test(line))
  t.same(raw, [], 'nothing that a terminal obeys')
  t.ok(
    figures.lines.some(line => line.includes('forged') && line.includes('\\u001b')),
    'texts are written, escaped',
  )
  const count = fields.find(({ msg }) => String(msg).startsWith('lines left out'))
  t.match(count, { cause: /hostile/, lines: Number }, 'and those that were not are counted')
})
