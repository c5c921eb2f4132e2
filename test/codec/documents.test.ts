/** What documents say in numbers: the example file of docs/example-file.md and the values in src/kernel/HASH.md. */
import { readFileSync } from 'node:fs'
import t from 'tap'
import { decodeStream } from '../../src/file/encoded-file-reader.ts'
import { layoutMemory, loadKernel } from '../../src/kernel/kernel.ts'
import { SIMD } from './harness.ts'
import { checksum, decodeFile } from './second-decoder.ts'

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')

/** The bytes of all fenced blocks with this word, line by line. */
function bytesOf(document: string, word: string): Buffer {
  const parts: Buffer[] = []
  for (const [, block] of document.matchAll(new RegExp(`^\`\`\`${word}\\n(.*?)^\`\`\`$`, 'gms'))) {
    for (const line of block!.trim().split('\n')) {
      const [said] = line.split('  ')
      const times = / \* (\d+)$/.exec(said!)
      const what = times ? said!.slice(0, times.index) : said!
      const one = Buffer.concat(
        [...what.matchAll(/\{.*\}|"[^"]*"|[0-9a-f]+/g)].map(([token]) => {
          if (token.startsWith('{')) return Buffer.from(token)
          return token.startsWith('"') ? Buffer.from(token.slice(1, -1)) : Buffer.from(token, 'hex')
        }),
      )
      for (let i = Number(times?.[1] ?? 1); i > 0; i--) parts.push(one)
    }
  }
  return Buffer.concat(parts)
}

t.test('the example file', async t => {
  const document = read('docs/example-file.md')
  const channel = bytesOf(document, 'channel')
  const file = bytesOf(document, 'file')
  t.equal(channel.length, 4111 + 4127)
  t.ok(decodeFile(file).equals(channel), 'by the second decoder')
  const out: Buffer[] = []
  await decodeStream(
    (async function* () {
      yield file
    })(),
    async bytes => {
      out.push(Buffer.from(bytes))
    },
    { store: undefined, name: 'the example' },
  )
  t.ok(Buffer.concat(out).equals(channel), 'by ours')
})

t.test('values of the checksum', t => {
  const counting = (count: number) => Buffer.from(Array.from({ length: count }, (_, i) => i % 256))
  const inputs = new Map([
    ['none', Buffer.alloc(0)],
    ['00', Buffer.of(0)],
    ['61', Buffer.of(0x61)],
    ['00 to 7f', counting(128)],
    ['00 to 80', counting(129)],
    ['00 to ff, 16 times', counting(4096)],
  ])
  const rows = [...read('src/kernel/HASH.md').matchAll(/^\| (.+?) \| ([0-9a-f]{16}) \| ([0-9a-f]{16}) \|$/gm)]
  t.same(
    rows.map(([, bytes]) => bytes),
    [...inputs.keys()],
  )
  const layout = layoutMemory({
    role: 'decoder',
    templatePages: 0,
    ringPages: 1,
    places: 0,
    ioBytes: 16384,
    longEntries: 0,
  })
  for (const implementation of [...new Set([SIMD, 'twin'] as const)]) {
    const kernel = loadKernel(layout, { implementation })
    for (const [, bytes, ...values] of rows) {
      const input = inputs.get(bytes!)!
      kernel.bytes.set(input, layout.io)
      for (const [i, seed] of [0n, 0x0123456789abcdefn].entries()) {
        t.equal(checksum(input, seed).toString(16).padStart(16, '0'), values[i], `${bytes}, by the second decoder`)
        kernel.checksum(layout.io, input.length, Number(seed & 0xffffffffn), Number(seed >> 32n), layout.io + 8192)
        const [lo, hi] = new Uint32Array(kernel.memory.buffer, layout.io + 8192, 2)
        t.equal(
          ((BigInt(hi!) << 32n) + BigInt(lo!)).toString(16).padStart(16, '0'),
          values[i],
          `${bytes}, ${implementation}`,
        )
      }
    }
  }
  t.end()
})
