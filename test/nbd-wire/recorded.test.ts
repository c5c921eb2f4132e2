/** Real conversations of clients and servers that nobody here wrote: test/vectors/nbd/streams/ (record-conversations.ts). */
import t from 'tap'
import { random } from '../../scripts/harness/random.ts'
import { type Message, reordered, sideOf } from './conversations.ts'
import { lengthOf, type Step, type TraceSink, traceOf } from './harness.ts'
import { recordings } from './recordings.ts'
import { simpleNbd } from './simple-decoder.ts'

t.setTimeout(590_000) // the machine may be busy

/** Where a recording ends in raw, and why. */
const RAW: Readonly<Record<string, readonly string[]>> = {
  oldstyle: ['raw server 8 oldstyle handshake', 'raw client 0 the server is not understood'],
  tls: ['raw server 38 TLS', 'raw client 20 the server is not understood'],
}

/** Where two traces part, or ''. */
function unlike(a: readonly string[], b: readonly string[]): string {
  for (let at = 0; at < Math.max(a.length, b.length); at++) {
    if (a[at] !== b[at]) return `line ${at}: ${a[at]} | ${b[at]}`
  }
  return ''
}

/**
 * A conversation as a list of messages with what each has to wait for: the handshake as it was, then answers behind their
 * requests, and a cookie's next request behind the answer to its last one.
 */
function messagesOf(steps: readonly Step[], { client, server }: TraceSink): Message[] {
  const spoken = { client: sideOf(steps, 'client'), server: sideOf(steps, 'server') }
  const heads = (lines: readonly string[], kind: RegExp) =>
    lines
      .filter(line => kind.test(line))
      .map(line => ({
        start: Number(/ (\d+)-\d+$/.exec(line)![1]),
        cookie: line.split(' ')[1]!,
        done: !line.startsWith('chunk') || line.includes(' done '),
      }))
  const said = { client: heads(client, /^request/), server: heads(server, /^(reply|chunk)/) }
  const messages: Message[] = []
  const left = {
    client: said.client[0]?.start ?? spoken.client.length,
    server: said.server[0]?.start ?? spoken.server.length,
  }
  for (const { from, bytes } of steps) {
    const part = bytes.subarray(0, left[from])
    left[from] -= part.length
    if (part.length > 0) messages.push({ from, bytes: part, after: messages.length - 1 })
  }
  const begun = messages.length - 1
  const asked = new Map<string, number[]>()
  const answered = new Map<string, number[]>()
  const message = (from: 'client' | 'server', i: number) =>
    spoken[from].subarray(said[from][i]!.start, said[from][i + 1]?.start)
  // requests come first in the list, and answers behind them
  const answersAt = messages.length + said.client.length
  for (const [i, { cookie, done }] of said.server.entries()) {
    if (done) answered.set(cookie, [...(answered.get(cookie) ?? []), answersAt + i])
  }
  for (const [i, { cookie }] of said.client.entries()) {
    const before = asked.get(cookie) ?? []
    const after = before.length === 0 ? begun : answered.get(cookie)![before.length - 1]!
    asked.set(cookie, [...before, messages.length])
    messages.push({ from: 'client', bytes: message('client', i), after })
  }
  const turn = new Map<string, number>()
  for (const [i, { cookie, done }] of said.server.entries()) {
    const at = turn.get(cookie) ?? 0
    messages.push({ from: 'server', bytes: message('server', i), after: asked.get(cookie)![at]! })
    if (done) turn.set(cookie, at + 1)
  }
  return messages
}

const seen = new Set<string>()

t.ok(recordings.length > 0, 'there are recordings')
for (const { name, connections } of recordings) {
  t.test(name, t => {
    for (const steps of connections) {
      const whole = traceOf(steps)
      const rand = random(lengthOf(steps))
      const cuts: number[] = []
      for (let at = 1 + rand(9); at < lengthOf(steps); at += 1 + rand(10 ** (1 + rand(5)))) cuts.push(at)
      t.equal(unlike(traceOf(steps, cuts).lines, whole.lines), '', 'the same trace however it is cut')
      const raws = whole.lines.filter(line => line.startsWith('raw'))
      t.same(raws, RAW[name] ?? [], 'what is not understood')
      for (const line of whole.lines) {
        const [, what] =
          /^(option \d+|answer \d+ \w+|begins \w+|request \w+ \d+|chunk \w+ \w+|reply|hole|read|write)/.exec(line) ?? []
        if (what) seen.add(what.replace(/ [0-9a-f]{16}/, ''))
      }
      if (name === 'oldstyle') continue
      if (raws.length === 0) {
        const messages = messagesOf(steps, whole)
        for (let turn = 0; turn < 5; turn++) {
          const delayed = traceOf(reordered(rand, messages))
          t.equal(unlike(delayed.client, whole.client), '', 'the same requests, whatever the delay')
          t.equal(unlike(delayed.server, whole.server), '', 'the same answers, whatever the delay')
        }
      }
      const simple = simpleNbd(sideOf(steps, 'client'), sideOf(steps, 'server'))
      t.same(simple.stopped, [], 'the other decoder reads all of it')
      const told = (lines: readonly string[]) => lines.filter(line => !line.startsWith('raw'))
      t.equal(
        unlike(told(whole.client), simple.client),
        '',
        `${simple.client.length} events of the client in both decoders`,
      )
      t.equal(
        unlike(told(whole.server), simple.server),
        '',
        `${simple.server.length} events of the server in both decoders`,
      )
    }
    t.end()
  })
}

t.test('what was recorded has all that these peers say', t => {
  const wanted = [
    ...[1, 2, 3, 5, 6, 7, 8, 9, 10, 11].map(option => `option ${option}`),
    ...['begins simple', 'begins structured', 'begins extended'],
    ...[0, 1, 2, 3, 4, 5, 6, 7].map(type => `request ${type}`),
    ...['0x0', '0x1', '0x2', '0x5', '0x6', '0x8001'].map(type => `chunk ${type}`),
    ...['reply', 'read', 'write', 'hole', 'answer 5 0x1', 'answer 11 0x80000001'],
  ]
  t.same(
    wanted.filter(what => !seen.has(what)),
    [],
  )
  t.end()
})
