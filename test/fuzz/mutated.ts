/** What the fuzzer does to bytes, and how it tells what it found. */
import { PAGE } from '../codec/harness.ts'

export type Rand = (below: number) => number

/** What was wrong, with all that it takes to see it again. */
export interface Find {
  readonly kind: string
  readonly text: string
  readonly inputs: Readonly<Record<string, Uint8Array>>
}

/** Longest sample: a few pages. */
export const SAMPLE_MAX = 30_000

/** Sums, sizes and offsets at which code decides. */
const WORDS: readonly bigint[] = [
  0n,
  1n,
  2n ** 12n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 32n,
  2n ** 40n,
  2n ** 52n - 4096n,
  2n ** 52n,
  2n ** 53n - 4096n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
]
/** What a search for the end of an unknown section looks for, or nearly. */
const WAYS = [
  '7e00000007',
  '7e00000002',
  '7e0000000702000000020000000000000010',
  '02000000020000000000000022',
  '08000700040000',
]
const FLAGS = [0x02, 0x22, 0x08, 0x28, 0x10, 0x04, 0x40, 0x60, 0x100, 0x120, 0x200, 0x01, 0x80, 0x400]

/** A copy of the bytes with one to four changes. @param hot where a change is more than another page */
export function mutated(
  rand: Rand,
  { bytes, hot }: { bytes: Buffer; hot?: Int32Array },
  other: Buffer,
  lengthMax = 2 * SAMPLE_MAX,
): Buffer {
  let out = Buffer.from(bytes)
  for (let changes = 1 + (rand(3) === 0 ? rand(4) : 0); changes > 0; changes--) {
    const place = (): number =>
      hot && hot.length > 0 && rand(8) > 0 ? Math.min(hot[rand(hot.length)]!, out.length) : rand(out.length + 1)
    const at = place()
    switch (rand(11)) {
      case 9:
        out = Buffer.concat([out.subarray(0, at), Buffer.from(WAYS[rand(WAYS.length)]!, 'hex'), out.subarray(at)])
        break
      case 0:
        if (at < out.length) out[at]! ^= 1 << rand(8)
        break
      case 1:
        if (at < out.length) out[at] = rand(256)
        break
      case 2:
        if (at < out.length) out[at] = out[at]! + (rand(2) ? 1 : 255)
        break
      case 3:
        if (at + 8 <= out.length)
          out.writeBigUInt64BE(WORDS[rand(WORDS.length)]! | BigInt(rand(3) ? 0 : rand(4096)), at)
        break
      case 4: {
        // a record's word
        const word = BigInt(rand(64) * PAGE + FLAGS[rand(FLAGS.length)]!) + (rand(6) ? 0n : WORDS[rand(WORDS.length)]!)
        if (at + 8 <= out.length) out.writeBigUInt64BE(BigInt.asUintN(64, word), at)
        break
      }
      case 5:
        out = Buffer.concat([out.subarray(0, at), out.subarray(at + 1 + rand(rand(4) ? 12 : 5000))])
        break
      case 6:
        out = Buffer.concat([
          out.subarray(0, at),
          Buffer.alloc(1 + rand(rand(4) ? 12 : 5000), rand(256)),
          out.subarray(at),
        ])
        break
      case 7: {
        const from = place()
        const length = rand(rand(2) ? 30 : 5000)
        out = Buffer.concat([out.subarray(0, at), out.subarray(from, from + length), out.subarray(at)])
        break
      }
      case 8:
        out = out.subarray(0, at)
        break
      default: {
        const from = rand(other.length + 1)
        out = Buffer.concat([out.subarray(0, at), other.subarray(from, from + rand(6000))])
      }
    }
    if (out.length > lengthMax) out = out.subarray(0, lengthMax)
  }
  return Buffer.from(out)
}
