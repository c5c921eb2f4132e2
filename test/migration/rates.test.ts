/** Rates of the last ten seconds. */
import t from 'tap'
import { Rates } from '../../src/migration/rates.ts'

const at = (rawBytes: number) => ({ rawBytes, packedBytes: rawBytes / 10 })

t.test('since the beginning, then of the last ten seconds', t => {
  const rates = new Rates(1000)
  t.same(rates.status(at(500), 1500), { bytesPerSecond: 1000, wanBytesPerSecond: 100 })
  for (let second = 1; second <= 30; second++) rates.passed(at(second * 1000), 1000 + second * 1000)
  t.same(rates.status(at(30_000), 31_000), { bytesPerSecond: 1000, wanBytesPerSecond: 100 })
  for (let second = 31; second <= 45; second++) rates.passed(at(30_000 + (second - 30) * 50), 1000 + second * 1000)
  t.same(rates.status(at(30_750), 46_000), { bytesPerSecond: 50, wanBytesPerSecond: 5 }, 'what was before is forgotten')
  t.end()
})

t.test('where nothing passes the rate falls to nothing within ten seconds', t => {
  const rates = new Rates(0)
  for (let second = 1; second <= 10; second++) rates.passed(at(second * 1000), second * 1000)
  t.equal(rates.status(at(10_000), 15_000).bytesPerSecond, 500)
  t.equal(rates.status(at(10_000), 19_000).bytesPerSecond, 100)
  t.equal(rates.status(at(10_000), 20_000).bytesPerSecond, 0)
  t.equal(rates.status(at(10_000), 600_000).bytesPerSecond, 0)
  t.end()
})

t.test('points are bounded, however many batches there are', t => {
  const rates = new Rates(0)
  for (let ms = 0; ms < 60_000; ms += 3) rates.passed(at(ms), ms)
  t.ok((rates as unknown as { points: unknown[] }).points.length <= 22)
  t.equal(rates.status(at(60_000), 60_000).bytesPerSecond, 1000)
  t.end()
})
