/** ChannelBuffer: what is lent stays as it is, what waits is whole and in one piece, whatever the order of calls. */
import fc from 'fast-check'
import t from 'tap'
import { ChannelBuffer, type Loan } from '../../src/transfer/channel-buffer.ts'

const BEFORE = 100

/** Byte `i` of the channel: no two stretches of 200 bytes are alike. */
const byteAt = (i: number) => (Math.imul(i, 0x9e3779b1) >>> 13) & 255

type Step =
  | {
      readonly what: 'write'
      readonly most: number
      readonly least: number
      readonly moved: number
      readonly use: number
    }
  | { readonly what: 'lend'; readonly share: number }
  | { readonly what: 'release'; readonly which: number }

const share = fc.constantFrom(0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    what: fc.constant('write' as const),
    most: fc.integer({ min: 0, max: 300 }),
    least: fc.integer({ min: 1, max: 150 }),
    moved: fc.constantFrom(10, 100, Number.POSITIVE_INFINITY),
    use: share,
  }),
  fc.record({ what: fc.constant('lend' as const), share }),
  fc.record({ what: fc.constant('release' as const), which: fc.nat(20) }),
  fc.record({ what: fc.constant('release' as const), which: fc.constant(0) }),
)

t.test('any order of writing, lending and giving back', t => {
  let moves = 0
  let wraps = 0
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 400 }),
      fc.array(step, { minLength: 50, maxLength: 200 }),
      (length, steps) => {
        const memory = new Uint8Array(BEFORE + length + BEFORE).fill(7)
        const buffer = new ChannelBuffer(memory, BEFORE, length)
        const loans: { readonly loan: Loan; readonly position: number }[] = []
        let written = 0
        let lent = 0
        const holds = (at: number, position: number, count: number) => {
          if (at < BEFORE || at + count > BEFORE + length) throw new Error('outside of its stretch')
          for (let i = 0; i < count; i++)
            if (memory[at + i] !== byteAt(position + i)) throw new Error(`byte ${position + i} has changed`)
        }
        for (const one of steps) {
          if (one.what === 'write') {
            const before = buffer.waitingAt
            const room = buffer.writable(one.most, one.least, one.moved)
            if (buffer.waiting > 0 && buffer.waitingAt < before) {
              moves++
              if (loans.length > 0) wraps++
            }
            if (room === undefined) {
              const waiting = written - lent
              const fits = one.most >= one.least && loans.length === 0 && waiting <= one.moved
              if (fits && waiting + one.least <= length) throw new Error('there was room')
              continue
            }
            if (room.length < one.least || room.length > one.most) throw new Error(`${room.length} bytes of room`)
            // all of it is written to, as a socket may
            for (let i = 0; i < room.length; i++) room[i] = byteAt(written + i)
            const count = Math.floor(one.use * room.length)
            const at = buffer.filled(count)
            if (at !== room.byteOffset) throw new Error('filled at another address')
            written += count
          } else if (one.what === 'lend') {
            if (buffer.waiting === 0) continue
            const count = Math.max(1, Math.floor(one.share * buffer.waiting))
            const loan = buffer.lend(count)
            if (loan.length !== count) throw new Error('another length')
            loans.push({ loan, position: lent })
            lent += count
          } else if (loans.length > 0) loans.splice(one.which % loans.length, 1)[0]!.loan.release()
          if (buffer.waiting !== written - lent) throw new Error('another number of bytes waits')
          holds(buffer.waitingAt, lent, buffer.waiting)
          for (const { loan, position } of loans) holds(loan.at, position, loan.length)
        }
        if (memory.subarray(0, BEFORE).some(byte => byte !== 7) || memory.subarray(-BEFORE).some(byte => byte !== 7))
          throw new Error('written outside of its stretch')
      },
    ),
    { numRuns: 1500, seed: 20251128 },
  )
  t.ok(moves > 300, `${moves} times what waits went to the front`)
  t.ok(wraps > 50, `${wraps} times while something was lent`)
  t.end()
})

t.test('an incomplete record goes to the front, a large rest stays', t => {
  const memory = new Uint8Array(1000)
  const buffer = new ChannelBuffer(memory, 0, 1000)
  buffer.writable(1000)!.fill(1)
  buffer.filled(1000)
  buffer.lend(970).release()
  t.equal(buffer.writable(500, 10, 29), undefined, '30 bytes are not moved')
  const room = buffer.writable(2000, 100, 30)!
  t.same([room.byteOffset, room.length], [30, 970])
  t.end()
})

t.test('what waits stays where there is more room behind it than at the front', t => {
  const buffer = new ChannelBuffer(new Uint8Array(1000), 0, 1000)
  buffer.writable(1000)
  buffer.filled(600)
  const [first] = [buffer.lend(100), buffer.lend(480)]
  first.release()
  // at the front there are 80 bytes up to what is lent
  t.equal(buffer.writable(500, 500, 20), undefined)
  const room = buffer.writable(500, 100, 20)!
  t.same([room.byteOffset, room.length], [600, 400])
  t.end()
})

t.test('mistakes are said', t => {
  const buffer = new ChannelBuffer(new Uint8Array(10), 0, 10)
  buffer.writable(10)
  buffer.filled(4)
  t.throws(() => buffer.lend(5), /5 bytes lent, 4 wait/)
  t.throws(() => buffer.filled(7), /more bytes than there was room/)
  const loan = buffer.lend(4)
  loan.release()
  t.throws(() => loan.release(), /given back twice/)
  t.end()
})
