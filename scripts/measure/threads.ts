/**
 * What threads bring: `encode` and `decode` of captured guests, in the seconds that the commands themselves tell. Needs the
 * lab's streams (`make lab`).
 *
 *   node scripts/measure/threads.ts [--streams python,postgres] [--efforts 2,3] [--threads 1,2] [--rounds 5] [--minutes 10]
 *     [--out .cache/compare/threads.json]
 *
 * By turns, everything once in each round; medians. What comes out of each decode is compared with the stream once. Each
 * command writes to a name that is free: ext4 has all that is not yet on the disk written before a file takes another's
 * place (`auto_da_alloc`), which takes the disk's time whatever the threads (ADR 0024).
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { median } from '../harness/median.ts'
import { temporaryFolder } from '../harness/qemu/cleanup.ts'
import type { Threads } from './cost-files.ts'
import { COMPARE_FOLDER, labStream, root } from './lab-streams.ts'
import { keepJson, provenance } from './provenance.ts'

const { values: options } = parseArgs({
  options: {
    streams: { type: 'string', default: 'python,postgres' },
    efforts: { type: 'string', default: '2,3' },
    threads: { type: 'string', default: '1,2' },
    rounds: { type: 'string', default: '5' },
    minutes: { type: 'string', default: '10' },
    out: { type: 'string', default: join(COMPARE_FOLDER, 'threads.json') },
  },
})
const list = (text: string): string[] => text.split(',')

/** What a command says of itself. */
function pageferry(...args: readonly string[]): { seconds: number; fileBytes?: number } {
  const { stderr, status } = spawnSync(join(root, 'bin/pageferry'), [...args, '--json'], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`${args.join(' ')}: ${stderr}`)
  return JSON.parse(stderr) as { seconds: number; fileBytes?: number } // standard output is for what is encoded
}

const { path: folder, remove } = temporaryFolder('threads')
try {
  const told = provenance(
    `node scripts/measure/threads.ts --streams ${options.streams} --efforts ${options.efforts} --threads ${options.threads} --rounds ${options.rounds}`,
  )
  const cases = list(options.streams).flatMap(stream =>
    list(options.efforts).flatMap(effort =>
      list(options.threads).map(threads => ({
        ...{ stream, effort: Number(effort), threads: Number(threads), bytes: 0 },
        ...{ encode: [] as number[], decode: [] as number[] },
      })),
    ),
  )
  const [packed, raw] = [join(folder, 'packed'), join(folder, 'raw')]
  const startMs = performance.now()
  let rounds = 0
  for (; rounds < Number(options.rounds); rounds++) {
    const elapsedMs = performance.now() - startMs
    if (rounds > 0 && elapsedMs + elapsedMs / rounds > Number(options.minutes) * 60_000) break
    for (const one of cases) {
      const path = labStream(one.stream)
      const threads = ['--threads', String(one.threads)]
      for (const name of [packed, raw]) rmSync(name, { force: true })
      const encoded = pageferry('encode', path, '-o', packed, '--effort', String(one.effort), ...threads)
      const decoded = pageferry('decode', packed, '-o', raw, ...threads)
      if (rounds === 0) execFileSync('cmp', [path, raw])
      one.bytes = encoded.fileBytes!
      one.encode.push(encoded.seconds)
      one.decode.push(decoded.seconds)
      const text = `${one.stream}, effort ${one.effort}, ${one.threads} threads`
      console.log(`${text}: encode ${encoded.seconds.toFixed(2)} s, decode ${decoded.seconds.toFixed(2)} s`)
    }
  }
  const threads: Threads = {
    ...told,
    rounds,
    cases: cases.map(({ stream, effort, threads, bytes, encode, decode }) => ({
      ...{ stream, rawBytes: statSync(labStream(stream)).size, effort, threads, bytes },
      ...{ encodeSeconds: median(encode), decodeSeconds: median(decode) },
    })),
  }
  keepJson(options.out, threads)
  console.log(options.out)
} finally {
  remove()
}
