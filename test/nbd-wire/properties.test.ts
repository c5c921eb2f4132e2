import fc from 'fast-check'
import t from 'tap'
import { random } from '../../scripts/harness/random.ts'
import { NBD_CONTEXTS_MAX, NBD_REQUESTS_MAX } from '../../src/limits.ts'
import { ClientParser } from '../../src/nbd/client-stream.ts'
import { Dialogue } from '../../src/nbd/dialogue.ts'
import { RequestFields, Requests } from '../../src/nbd/requests.ts'
import { ServerParser } from '../../src/nbd/server-stream.ts'
import * as wire from '../../src/nbd/wire.ts'
import { conversation, nbdVectors } from '../vectors/nbd/conversations.ts'
import { wireBytes } from '../vectors/qemu/notation.ts'
import { messagesOf, reordered, sideOf } from './conversations.ts'
import { lengthOf, TraceSink, traceOf } from './harness.ts'
import { simpleNbd } from './simple-decoder.ts'

t.setTimeout(590_000) // the machine may be busy

const seeds = fc.integer({ min: 0, max: 2 ** 31 })

t.test('a conversation gives the same events in both decoders, however it is cut and delayed', t => {
  let answered = 0
  fc.assert(
    fc.property(seeds, fc.integer({ min: 0, max: 40 }), (seed, requests) => {
      const rand = random(seed)
      const messages = messagesOf(rand, requests)
      const simple = simpleNbd(sideOf(messages, 'client'), sideOf(messages, 'server'))
      if (simple.stopped.length > 0) return false
      for (let turn = 0; turn < 4; turn++) {
        const order = turn === 0 ? messages : reordered(rand, messages)
        const length = lengthOf(order)
        const most = [1, 3, 40, length][turn]!
        const cuts: number[] = []
        for (let at = 1 + rand(most); at < length; at += 1 + rand(most)) cuts.push(at)
        const trace = traceOf(order, cuts)
        if (trace.client.join('\n') !== simple.client.join('\n')) return false
        if (trace.server.join('\n') !== simple.server.join('\n')) return false
      }
      answered += simple.server.length
      return true
    }),
    { numRuns: 600 },
  )
  t.ok(answered > 10_000, `${answered} events of servers`)
  t.end()
})

t.test('what is told covers a conversation: heads and payloads lie end to end', t => {
  fc.assert(
    fc.property(seeds, seed => {
      const messages = messagesOf(random(seed))
      let at = 4 // behind the client's flags
      let payload = 0
      for (const line of traceOf(messages).client) {
        const [, start, end] = / (\d+)-(\d+)(?: \d+)?$/.exec(line)!
        if (line.startsWith('write')) {
          if (Number(start) !== at || Number(end) !== at + payload) return false
          continue
        }
        at += payload
        if (Number(start) !== at) return false
        at = Number(end)
        payload = Number(/\+(\d+) /.exec(line)?.[1] ?? 0)
      }
      return at + payload === sideOf(messages, 'client').length
    }),
    { numRuns: 300 },
  )
  t.end()
})

t.test('random bytes behind any beginning end in raw, or wait', t => {
  fc.assert(
    fc.property(
      fc.nat(nbdVectors.length - 1),
      fc.array(fc.tuple(fc.boolean(), fc.uint8Array({ minLength: 1, maxLength: 80 })), { maxLength: 6 }),
      (vector, noise) => {
        const { steps } = conversation(nbdVectors[vector]!.steps)
        const more = noise.map(([client, bytes]) => ({
          from: client ? ('client' as const) : ('server' as const),
          bytes,
        }))
        const all = [...steps, ...more]
        const whole = traceOf(all).lines.join('\n')
        const cuts = Array.from({ length: lengthOf(all) }, (_, i) => i)
        return traceOf(all, cuts).lines.join('\n') === whole
      },
    ),
    { numRuns: 400 },
  )
  t.end()
})

t.test('requests under way are found by their cookies, whatever comes and goes', t => {
  const fields = (cookie: number, high: number): RequestFields => {
    const request = new RequestFields()
    request.type = cookie % 9
    request.flags = cookie % 64
    request.cookieHigh = high
    request.cookieLow = cookie
    request.offset = cookie * 4096 * 1024
    request.lengthBytes = cookie + 1
    request.payloadBytes = cookie % 3
    return request
  }
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(600), fc.boolean()), { maxLength: 2000 }), seeds, (turns, seed) => {
      const rand = random(seed)
      const step = [1, 8, 64, 4096, 2 ** 20][rand(5)]!
      const swapped = rand(2) === 0
      const table = new Requests()
      const model = new Map<string, RequestFields>()
      for (const [n, high] of turns) {
        const request = fields((n * step) >>> 0, high ? 0x55d0 : 0)
        if (swapped) [request.cookieHigh, request.cookieLow] = [request.cookieLow, request.cookieHigh]
        const key = `${request.cookieHigh} ${request.cookieLow}`
        const slot = table.find(request.cookieHigh, request.cookieLow)
        if (slot >= 0 !== model.has(key)) return false
        if (slot < 0) {
          table.add(request)
          model.set(key, request)
        } else {
          const found = new RequestFields()
          table.read(slot, found)
          if (JSON.stringify(found) !== JSON.stringify(model.get(key))) return false
          table.remove(slot)
          model.delete(key)
        }
        if (table.count !== model.size) return false
      }
      return [...model.values()].every(one => table.find(one.cookieHigh, one.cookieLow) >= 0)
    }),
    { numRuns: 200 },
  )
  t.end()
})

t.test('limits', t => {
  const opening = conversation([
    'S "NBDMAGIC" "IHAVEOPT" 0003',
    'C 00000003 "IHAVEOPT" 00000001 00000001 "d"',
    'S 0000000000100000 0ded',
  ]).steps
  const flush = (cookie: number) => {
    const bytes = Buffer.alloc(28)
    bytes.writeUInt32BE(0x25609513)
    bytes.writeUInt16BE(3, 6)
    bytes.writeUInt32BE(cookie, 12)
    return { from: 'client' as const, bytes }
  }
  const many = Array.from({ length: NBD_REQUESTS_MAX }, (_, i) => flush(i * 16))
  const full = traceOf([...opening, ...many]).client
  t.equal(full.length, 1 + NBD_REQUESTS_MAX, 'so many requests')
  t.match(full.at(-1), /^request/)
  t.match(traceOf([...opening, ...many, flush(7)]).client.at(-1), /^raw client \d+ too many requests under way$/)

  const contexts = (count: number) => [
    'S "NBDMAGIC" "IHAVEOPT" 0003',
    'C 00000003 "IHAVEOPT" 0000000a 00000008 00*8',
    ...Array.from({ length: count }, () => 'S 0003e889045565a9 0000000a 00000004 00000005 00000000 "x"'),
  ]
  t.match(traceOf(conversation(contexts(NBD_CONTEXTS_MAX)).steps).server.at(-1), /^answer 10 0x4/)
  const over = traceOf(conversation(contexts(NBD_CONTEXTS_MAX + 1)).steps).server.at(-1)
  t.match(over, /^raw server \d+ too many metadata contexts$/)
  t.end()
})

t.test('payloads of 4 GiB pass, and what is under way is told', t => {
  const sink = new TraceSink()
  const dialogue = new Dialogue()
  const parsers = { client: new ClientParser(sink, dialogue), server: new ServerParser(sink, dialogue) }
  const push = (from: 'client' | 'server', bytes: Uint8Array) => {
    sink.keptFrom[from] = parsers[from].position - parsers[from].pending
    sink.pushedTo[from] = parsers[from].position + bytes.length
    parsers[from].push(bytes, 0, bytes.length)
  }
  for (const { from, bytes } of conversation([
    'S "NBDMAGIC" "IHAVEOPT" 0003',
    'C 00000003 "IHAVEOPT" 00000001 00000001 "d"',
    'S 0010000000000000 0ded',
  ]).steps) {
    push(from, bytes)
    t.notOk(parsers[from].midMessage, 'nothing is under way')
  }
  const write = wireBytes('25609513 0000 0001 0000000000000001 0000000000001000 ffffffff').bytes
  const again = wireBytes('25609513 0000 0001 0000000000000002 0000000000001000 ffffffff').bytes
  const read = wireBytes('25609513 0000 0000 0000000000000003 0000000000001000 ffffffff').bytes
  const answers = wireBytes('67446698 00000000 0000000000000003').bytes
  const piece = new Uint8Array(1 << 26).fill(0x25)
  const fill = (from: 'client' | 'server') => {
    for (let left = 0xffffffff; left > 0; left -= Math.min(left, piece.length)) {
      t.ok(parsers[from].midMessage && parsers[from].passable === left && parsers[from].pending === 0)
      push(from, piece.subarray(0, left))
    }
    t.notOk(parsers[from].midMessage)
  }
  push('client', write)
  fill('client')
  push('client', again.subarray(0, 13))
  t.ok(parsers.client.midMessage && parsers.client.pending === 13 && parsers.client.passable === 0)
  push('client', again.subarray(13))
  fill('client')
  push('client', read)
  push('server', answers)
  fill('server')
  t.same(sink.client.slice(1), [
    'request 0000000000000001 1 flags=0x0 4096 4294967295+4294967295 21-49',
    'write 0000000000000001 49-4294967344 4096',
    'request 0000000000000002 1 flags=0x0 4096 4294967295+4294967295 4294967344-4294967372',
    'write 0000000000000002 4294967372-8589934667 4096',
    'request 0000000000000003 0 flags=0x0 4096 4294967295+0 8589934667-8589934695',
  ])
  t.same(sink.server.slice(1), ['reply 0000000000000003 0 28-44', 'read 0000000000000003 44-4294967339 4096'])
  t.end()
})

t.test('the numbers that NBD fixes', t => {
  // Literals on purpose: nobody changes one of these by accident.
  t.same(wire.GREETING_MAGIC, { HIGH: 0x4e42444d, LOW: 0x41474943 })
  t.same(wire.OPTION_MAGIC, { HIGH: 0x49484156, LOW: 0x454f5054 })
  t.same(wire.OLDSTYLE_MAGIC, { HIGH: 0x4202, LOW: 0x81861253 })
  t.same(wire.OPTION_REPLY_MAGIC, { HIGH: 0x0003e889, LOW: 0x045565a9 })
  t.same(
    [wire.GREETING_LENGTH, wire.CLIENT_FLAGS_LENGTH, wire.OPTION_HEAD_LENGTH, wire.OPTION_REPLY_HEAD_LENGTH],
    [18, 4, 16, 20],
  )
  t.same(wire.HANDSHAKE_FLAG, { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 })
  t.same(wire.OPTION, {
    EXPORT_NAME: 1,
    ABORT: 2,
    LIST: 3,
    STARTTLS: 5,
    INFO: 6,
    GO: 7,
    STRUCTURED_REPLY: 8,
    LIST_META_CONTEXT: 9,
    SET_META_CONTEXT: 10,
    EXTENDED_HEADERS: 11,
  })
  t.same(wire.OPTION_REPLY, { ACK: 1, SERVER: 2, INFO: 3, META_CONTEXT: 4, ERROR_BIT: 0x80000000 })
  t.same(wire.INFO, { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 })
  t.same(
    [wire.INFO_EXPORT_LENGTH, wire.INFO_BLOCK_SIZE_LENGTH, wire.EXPORT_LENGTH, wire.EXPORT_ZEROES],
    [12, 14, 10, 124],
  )
  t.same(wire.REQUEST, { MAGIC: 0x25609513, LENGTH: 28 })
  t.same(wire.EXTENDED_REQUEST, { MAGIC: 0x21e41c71, LENGTH: 32 })
  t.same(wire.SIMPLE_REPLY, { MAGIC: 0x67446698, LENGTH: 16 })
  t.same(wire.CHUNK, { MAGIC: 0x668e33ef, LENGTH: 20 })
  t.same(wire.EXTENDED_CHUNK, { MAGIC: 0x6e8a278c, LENGTH: 32 })
  t.same(wire.COMMAND, {
    READ: 0,
    WRITE: 1,
    DISC: 2,
    FLUSH: 3,
    TRIM: 4,
    CACHE: 5,
    WRITE_ZEROES: 6,
    BLOCK_STATUS: 7,
    RESIZE: 8,
  })
  t.same(wire.COMMAND_FLAG, { FUA: 1, NO_HOLE: 2, DF: 4, REQ_ONE: 8, FAST_ZERO: 16, PAYLOAD_LEN: 32 })
  t.equal(wire.CHUNK_DONE, 1)
  t.same(wire.CHUNK_TYPE, {
    NONE: 0,
    OFFSET_DATA: 1,
    OFFSET_HOLE: 2,
    BLOCK_STATUS: 5,
    BLOCK_STATUS_EXT: 6,
    ERROR: 0x8001,
    ERROR_OFFSET: 0x8002,
    ERROR_BIT: 0x8000,
  })
  t.same(wire.CHUNK_PREFIX, { OFFSET_DATA: 8, OFFSET_HOLE: 12, BLOCK_STATUS: 4, BLOCK_STATUS_EXT: 8, ERROR: 6 })
  t.same([wire.ERROR_OFFSET_LENGTH, wire.EXTENT_LENGTH, wire.EXTENT_EXT_LENGTH], [14, 8, 16])
  t.end()
})
