/** Zeroes as holes: what a server gets in the place of what a client said. */
import fc from 'fast-check'
import t from 'tap'
import { ByteWriter } from '../../scripts/harness/byte-writer.ts'
import { random } from '../../scripts/harness/random.ts'
import { UnmappedZeroes } from '../../src/nbd/unmapped-zeroes.ts'
import { conversation, nbdVectors } from '../vectors/nbd/conversations.ts'
import { messagesOf } from './conversations.ts'

t.setTimeout(590_000) // the machine may be busy

const [WRITE, ZEROES] = [1, 6]
const text = (value: string): Uint8Array => new Uint8Array(Buffer.from(value, 'latin1'))

interface Asked {
  readonly type: number
  readonly flags: number
  readonly cookie: number
  readonly offset: number
  readonly length: number
  readonly payload: Uint8Array
}

function bytesOf({ type, flags, cookie, offset, length, payload }: Asked, extended: boolean): Uint8Array {
  const head = new ByteWriter()
    .u32(extended ? 0x21e41c71 : 0x25609513)
    .u16(flags)
    .u16(type)
    .u64(cookie)
    .u64(offset)
  if (extended) head.u64(length)
  else head.u32(length)
  return head.raw(payload).bytes()
}

class Between {
  readonly zeroes = new UnmappedZeroes(bytes => this.sent.push(new Uint8Array(bytes)))
  private readonly sent: Uint8Array[] = []

  /** @param flags of the export: 64 is WRITE_ZEROES */
  constructor(extended: boolean, flags = 1 | 4 | 64) {
    const { zeroes } = this
    zeroes.fromServer(text('NBDMAGICIHAVEOPT\0\x03'))
    const option = (number: number, data: Uint8Array) =>
      new ByteWriter().raw(text('IHAVEOPT')).u32(number).u32(data.length).raw(data).bytes()
    const answer = (number: number, type: number, data = new ByteWriter().bytes()) =>
      new ByteWriter().u32(0x0003e889).u32(0x045565a9).u32(number).u32(type).u32(data.length).raw(data).bytes()
    zeroes.fromClient(new ByteWriter().u32(3).bytes())
    if (extended) {
      zeroes.fromClient(option(11, new Uint8Array(0)))
      zeroes.fromServer(answer(11, 1))
    }
    zeroes.fromClient(option(7, new ByteWriter().u32(1).raw(text('d')).u16(0).bytes()))
    zeroes.fromServer(
      answer(
        7,
        3,
        new ByteWriter()
          .u16(0)
          .u64(2 ** 40)
          .u16(flags)
          .bytes(),
      ),
    )
    zeroes.fromServer(answer(7, 1))
    this.taken()
  }

  taken(): Uint8Array {
    return new Uint8Array(Buffer.concat(this.sent.splice(0)))
  }
}

t.test('zeroes become holes, however they are cut, and all else is as it was', t => {
  let turned = 0
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 31 }), seed => {
      const rand = random(seed)
      const extended = rand(2) === 0
      const asked: Asked[] = Array.from({ length: 1 + rand(12) }, (_, cookie) => {
        const type = [WRITE, WRITE, WRITE, ZEROES, 0, 3, 4][rand(7)]!
        const length = [1, 512, 4096, 70_000, 200_000][rand(5)]! + rand(3)
        const payload = new Uint8Array(type === WRITE ? length : 0)
        if (rand(2) === 0 && payload.length > 0) payload[rand(3) === 0 ? payload.length - 1 : rand(payload.length)] = 7
        let flags = rand(2)
        if (type === ZEROES) flags |= 2 * rand(2) + 16 * rand(2)
        if (type === WRITE && extended) flags |= 32 * rand(2)
        return { type, flags, cookie, offset: 512 * rand(1000), length, payload }
      })
      const expected = asked.map(one => {
        const { type, flags, payload } = one
        if (type === ZEROES) return { ...one, flags: flags & ~2 }
        if (type !== WRITE || payload.some(byte => byte !== 0)) return one
        turned++
        return { ...one, type: ZEROES, flags: flags & 1, payload: new Uint8Array(0) }
      })
      const between = new Between(extended)
      const all = new Uint8Array(Buffer.concat(asked.map(one => bytesOf(one, extended))))
      for (let at = 0; at < all.length; ) {
        const take = Math.min(all.length - at, 1 + rand(rand(2) === 0 ? 40 : 100_000))
        between.zeroes.fromClient(all.slice(at, at + take))
        at += take
      }
      return Buffer.concat(expected.map(one => bytesOf(one, extended))).equals(between.taken())
    }),
    { numRuns: 100 },
  )
  t.ok(turned > 50, `${turned} writes became holes`)
  t.end()
})

t.test('what a server does not offer it is not asked for', t => {
  const between = new Between(false, 1 | 4)
  const bytes = bytesOf({ type: WRITE, flags: 0, cookie: 1, offset: 0, length: 9, payload: new Uint8Array(9) }, false)
  between.zeroes.fromClient(bytes)
  t.same(between.taken(), bytes)
  t.end()
})

t.test('a WRITE that is longer than any server takes is not held back', t => {
  for (const [length, isHeld] of [
    [32 << 20, true],
    [(32 << 20) + 1, false],
    [2 ** 32 - 1, false],
  ] as const) {
    const between = new Between(false)
    const zeroes = new Uint8Array(9)
    const bytes = bytesOf({ type: WRITE, flags: 0, cookie: 1, offset: 0, length, payload: zeroes }, false)
    between.zeroes.fromClient(bytes)
    t.same(between.taken(), isHeld ? new Uint8Array(0) : bytes)
  }
  t.end()
})

t.test('a client that ends in the middle, and bytes that nobody understands', t => {
  const whole = bytesOf({ type: WRITE, flags: 1, cookie: 1, offset: 0, length: 99, payload: new Uint8Array(99) }, false)
  for (const length of [20, 28, 60]) {
    const between = new Between(false)
    between.zeroes.fromClient(whole.slice(0, length))
    t.equal(between.taken().length, 0)
    between.zeroes.clientEnds()
    t.same(between.taken(), whole.slice(0, length))
  }
  const between = new Between(false)
  between.zeroes.fromClient(new Uint8Array([...whole, ...text('no request, by any means, and so it goes on')]))
  t.equal(between.taken().length, 28 + 43)
  between.zeroes.fromClient(text('and on'))
  t.same(between.taken(), text('and on'))
  t.end()
})

t.test('no byte is lost of what is not understood', t => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 31 }), seed => {
      const rand = random(seed)
      const steps =
        rand(2) > 0 ? messagesOf(rand, rand(20)) : conversation(nbdVectors[rand(nbdVectors.length)]!.steps).steps
      let sent = 0
      let came = 0
      let zeroed = false
      const between = new UnmappedZeroes(bytes => {
        sent += bytes.length
        // a head that was made here: the only ones by themselves that are requests to zero
        if (bytes.length <= 32 && bytes.length >= 28 && bytes[7] === ZEROES) zeroed = true
      })
      for (const { from, bytes } of steps) {
        const changed = new Uint8Array(bytes)
        if (changed.length > 0 && rand(12) === 0) changed[rand(changed.length)] = rand(256)
        if (from === 'client') {
          came += changed.length
          between.fromClient(changed)
        } else between.fromServer(changed)
      }
      between.clientEnds()
      return zeroed ? sent <= came : sent === came
    }),
    { numRuns: 500 },
  )
  t.end()
})
