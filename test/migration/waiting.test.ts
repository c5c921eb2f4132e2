/** Connections that wait for a session: order, and for how long. */
import t from 'tap'
import { Gate, type GateKind } from '../../src/migration/gate.ts'
import { Waiting } from '../../src/migration/waiting.ts'

const connection = (name: string, bornMs: number, kind: GateKind = 'migration') => ({
  ...{ name, socket: { bornMs } },
  gate: new Gate('web', kind),
})
const names = (connections: readonly { name: string }[]): string => connections.map(({ name }) => name).join(' ')

t.test('each waits from when it came, wherever it has been since', t => {
  const waiting = new Waiting<ReturnType<typeof connection>>(100)
  t.equal(waiting.nextTickMs, Number.POSITIVE_INFINITY)
  waiting.add(connection('new', 50))
  waiting.addFirst([connection('back', 10), connection('back too', 20)])
  t.equal(waiting.nextTickMs, 110)
  t.equal(names(waiting.over(109)), '')
  t.equal(names(waiting.over(125)), 'back back too')
  t.equal(waiting.nextTickMs, 150)
  t.equal(waiting.all.length, 1)
  t.end()
})

t.test('a disk waits as long as for its server, whose greeting it waits for', t => {
  const waiting = new Waiting<ReturnType<typeof connection>>(100_000)
  waiting.add(connection('memory', 0))
  waiting.add(connection('disk', 5, 'disk'))
  t.equal(waiting.nextTickMs, 10_005)
  t.equal(names(waiting.over(10_005)), 'disk')
  t.equal(waiting.nextTickMs, 100_000)
  waiting.add(connection('later disk', 95_000, 'disk'))
  t.equal(new Waiting<ReturnType<typeof connection>>(100).nextTickMs, Number.POSITIVE_INFINITY)
  const impatient = new Waiting<ReturnType<typeof connection>>(100)
  impatient.add(connection('disk', 0, 'disk'))
  t.equal(impatient.nextTickMs, 100, 'nor longer than anybody waits')
  t.end()
})

t.test('those that a session takes go in their order, and one may be the last', t => {
  const waiting = new Waiting<ReturnType<typeof connection>>(100)
  for (const name of ['a', 'b', 'not', 'c', 'd']) waiting.add(connection(name, 0))
  const took: { name: string }[] = []
  waiting.handOn(
    ({ name }) => name !== 'not' && took.length < 3,
    one => {
      took.push(one)
      if (one.name === 'b') waiting.addFirst([connection('back', 0)])
    },
  )
  t.equal(names(took), 'a b c')
  waiting.handOn(
    () => true,
    one => took.push(one),
  )
  t.equal(names(took), 'a b c back not d', 'none is lost')
  t.end()
})
