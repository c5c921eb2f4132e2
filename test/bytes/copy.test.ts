/** Copies between memories that are shared or not, aligned or not. */
import t from 'tap'
import { random } from '../../scripts/harness/random.ts'
import { copyOfRange, copyRange } from '../../src/bytes/copy.ts'

const rand = random(1)
const BYTES = 3000
const heap = (): Uint8Array => Uint8Array.from({ length: BYTES }, () => rand(256))
const shared = (): Uint8Array => {
  const bytes = new Uint8Array(new SharedArrayBuffer(BYTES))
  bytes.set(heap())
  return bytes
}

t.test('any part of any memory, to any place', async t => {
  const wrong: string[] = []
  for (let i = 0; i < 3000; i++) {
    const from = rand(2) === 0 ? heap() : shared()
    const to = rand(4) === 0 ? from : rand(2) === 0 ? heap() : shared()
    const whole = rand(4) === 0
    const fromAt = whole ? 0 : rand(BYTES)
    const fromEnd = whole ? BYTES : fromAt + rand(BYTES - fromAt + 1)
    const toAt = rand(BYTES - (fromEnd - fromAt) + 1)
    const expected = Array.from(to)
    expected.splice(toAt, fromEnd - fromAt, ...from.subarray(fromAt, fromEnd))
    const copy = Array.from(from.subarray(fromAt, fromEnd))
    const own = copyOfRange(from, fromAt, fromEnd)
    copyRange(from, fromAt, fromEnd, to, toAt)
    const where = `${fromAt} to ${fromEnd}, to ${toAt}${to === from ? ' of the same' : ''}`
    if (Buffer.compare(to, Uint8Array.from(expected)) !== 0) wrong.push(where)
    if (Buffer.compare(own, Uint8Array.from(copy)) !== 0) wrong.push(`a copy of ${where}`)
  }
  t.same(wrong, [])
})

t.test('a view of a view', async t => {
  const from = shared().subarray(7, 1007)
  const to = heap().subarray(3)
  copyRange(from, 0, from.length, to, 5)
  t.equal(Buffer.compare(to.subarray(5, 1005), from), 0)
})

t.test('beyond 2 GiB, where kernels have their memory', async t => {
  const memory = new Uint8Array(new WebAssembly.Memory({ initial: 65_535, maximum: 65_535, shared: true }).buffer)
  const at = 2 ** 32 - 65_536 - 1001
  const page = heap()
  copyRange(page, 1, 1001, memory, at)
  t.equal(Buffer.compare(memory.subarray(at, at + 1000), page.subarray(1, 1001)), 0)
  copyRange(memory, at, at + 1000, memory, 2 ** 31 + 3)
  t.equal(Buffer.compare(copyOfRange(memory, 2 ** 31 + 3, 2 ** 31 + 1003), page.subarray(1, 1001)), 0)
})

t.test('what does not fit is not cut', async t => {
  const a = heap()
  const b = heap()
  const before = Buffer.from(b)
  for (const [fromAt, fromEnd, toAt] of [
    [0, BYTES, 1],
    [10, 9, 0],
    [0, BYTES + 1, 0],
    [BYTES - 5, BYTES + 5, 0],
    [0, 10, BYTES - 9],
  ] as const) {
    t.throws(() => copyRange(a, fromAt, fromEnd, b, toAt), RangeError, `${fromAt} to ${fromEnd}, to ${toAt}`)
  }
  copyRange(a, 5, 5, b, BYTES)
  t.equal(Buffer.compare(b, before), 0)
})
