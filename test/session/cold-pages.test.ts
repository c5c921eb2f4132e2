/** Cold pages that are asked for and answered, without a session around them: session.test.ts has them within one. */
import t from 'tap'
import { WANTED_PAGES_MAX } from '../../src/limits.ts'
import type { FlowSink } from '../../src/session/api.ts'
import { ColdPages } from '../../src/session/cold-pages.ts'
import { Served } from '../../src/session/served.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { sinkOf } from '../helpers/silent-sink.ts'

const PAGE = 4096

/** One end, and all that it hands in, tells or complains of. */
function end(role: 'client' | 'server') {
  const told: unknown[] = []
  const outbox = {
    ownFrames: 0,
    enqueueOwn: (type: number, payload: Uint8Array) => {
      outbox.ownFrames++
      told.push(['frame', type, payload.length])
    },
  }
  const served = new Served<FlowSink>()
  served.begin(
    sinkOf({
      onWant: numbers => told.push(['want', ...numbers]),
      onPage: (number, page) => told.push(['page', number, page?.length]),
    }),
  )
  const pages = new ColdPages({
    role,
    outbox,
    served,
    transport: { onWork: () => told.push('work') },
    fault: (code, what) => void told.push([code, what]),
  })
  return { pages, outbox, told }
}

/** The payload of a WANT, or the head of a PAGE. */
function numbers(...all: number[]): Uint8Array {
  const bytes = Buffer.alloc(8 * all.length)
  all.forEach((number, i) => {
    bytes.writeBigUInt64BE(BigInt(number), 8 * i)
  })
  return bytes
}

t.test('the server asks, the client answers', async t => {
  const { pages, told } = end('server')
  pages.ask([5, 2 ** 40])
  t.same(told.splice(0), [['frame', FRAME.WANT, 16], 'work'])
  pages.deliverPage(Buffer.concat([numbers(5), Buffer.alloc(PAGE)]))
  pages.deliverPage(numbers(2 ** 40))
  t.same(told.splice(0), [
    ['page', 5, PAGE],
    ['page', 2 ** 40, undefined],
  ])
  const { pages: answers, told: heard } = end('client')
  answers.deliverWant(numbers(5, 6))
  answers.answer(5, new Uint8Array(PAGE))
  answers.answer(6, undefined)
  t.same(heard, [['want', 5, 6], ['frame', FRAME.PAGE, 8 + PAGE], 'work', ['frame', FRAME.PAGE, 8], 'work'])
  for (const [which, wrong] of [
    ['more than may be asked for', () => pages.ask(new Array(WANTED_PAGES_MAX + 1).fill(0))],
    ['a server that answers', () => pages.answer(5, undefined)],
    ['a client that asks', () => answers.ask([5])],
  ] as const) {
    t.throws(wrong, { code: 'INTERNAL' }, which)
  }
  pages.clear()
  answers.clear()
  told.length = heard.length = 0
  pages.ask([7])
  answers.answer(7, undefined)
  t.same([...told, ...heard], [], 'nothing after the end')
})

t.test('as many at once as the answers that wait may take memory', async t => {
  const { pages, told } = end('client')
  const most = numbers(...Array.from({ length: WANTED_PAGES_MAX }, (_, i) => i))
  pages.deliverWant(most)
  told.length = 0
  pages.deliverWant(numbers(1))
  t.match(told, [['LIMIT_EXCEEDED', /^257 pages/]])
  const { pages: others, outbox, told: heard } = end('client')
  for (let round = 0; round < 3; round++) {
    others.deliverWant(most)
    t.same((heard.splice(0)[0] as unknown[])[0], 'want', 'those that were sent do not count')
    for (let i = 0; i < WANTED_PAGES_MAX; i++) others.answer(i, undefined)
    if (round < 2) outbox.ownFrames = 0
    heard.length = 0
  }
  others.deliverWant(numbers(1))
  t.match(heard, [['LIMIT_EXCEEDED', /^257 pages/]], 'those that wait to be sent do')
})

t.test('rules that a peer may break', async t => {
  for (const [name, role, code, deliver] of [
    ['WANT from the client', 'server', 'PROTOCOL_STATE', pages => pages.deliverWant(numbers(1))],
    ['PAGE from the server', 'client', 'PROTOCOL_STATE', pages => pages.deliverPage(numbers(1))],
    ['WANT of nothing', 'client', 'PROTOCOL_SYNTAX', pages => pages.deliverWant(numbers())],
    ['WANT of a part of a number', 'client', 'PROTOCOL_SYNTAX', pages => pages.deliverWant(new Uint8Array(9))],
    ['PAGE of a part of a page', 'server', 'PROTOCOL_SYNTAX', pages => pages.deliverPage(new Uint8Array(9))],
  ] as [string, 'client' | 'server', string, (pages: ColdPages) => void][]) {
    const { pages, told } = end(role)
    deliver(pages)
    t.equal((told[0] as unknown[])[0], code, name)
    t.equal(told.length, 1)
  }
})
