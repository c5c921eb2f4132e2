/**
 * One line for each recorded channel and effort: what it is encoded to, as a hash. A change that is not meant to change
 * encoded bytes gives the same lines before and after: `node test/bench/encoded-hashes.ts > before`.
 */
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { zstdDecompressSync } from 'node:zlib'
import { EFFORTS } from '../../src/compression/effort.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import { poolOf, Sender, SIMD, type Terms, templatePages } from '../codec/harness.ts'

const FOLDERS = ['../../pcap-fixtures/streams/', '../vectors/qemu/streams/']
/** Bytes of a push, and pushes of a batch: several batches even of short streams. */
const PUSH_BYTES = 60_000
const KINDS: readonly ChannelKind[] = ['main', 'multifd', 'preempt']

const terms: Terms = { templates: templatePages(8), ring: 4096, places: 4096 }
for (const folder of FOLDERS) {
  const path = new URL(folder, import.meta.url).pathname
  for (const file of readdirSync(path).sort()) {
    const kind = KINDS.find(kind => file.includes(kind))
    if (!file.endsWith('.zst') || file.includes('return')) continue
    const input = zstdDecompressSync(readFileSync(path + file))
    for (const effort of EFFORTS) {
      const sender = new Sender(poolOf('encoder', SIMD, terms), effort)
      const channel = sender.open(kind ?? 'unknown')
      const hash = createHash('sha256')
      let batches = 0
      let packedBytes = 0
      for (let at = 0; at < input.length; at += PUSH_BYTES) {
        channel.push(input.subarray(at, at + PUSH_BYTES))
        const sent = await sender.send(channel, at + PUSH_BYTES >= input.length || batches % 5 === 4)
        if (sent === undefined) continue
        hash.update(sent.bytes)
        packedBytes += sent.bytes.length
        batches++
      }
      await sender.close()
      console.log(file, effort.level, batches, packedBytes, hash.digest('hex').slice(0, 32))
    }
  }
}
