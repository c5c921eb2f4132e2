/** Streams with sections that nobody here can read, as Proxmox VE and QEMUs to come send them, through both daemons. */
import { readFileSync } from 'node:fs'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { until } from '../helpers/until.ts'
import { doctored } from '../qemu-wire/doctored.ts'
import { random } from '../template/makers.ts'
import { Daemons } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy

const recorded = new URL('../../pcap-fixtures/streams/qemu-10-return-path.main.zst', import.meta.url)
const WHOLE = zstdDecompressSync(readFileSync(recorded))
/** SHUT 0. */
const SHUT = Buffer.from('0001000400000000', 'hex')

t.test('the same bytes arrive, and RAM is found behind the sections', async t => {
  await using pair = await Daemons.start()
  const streams = [WHOLE, doctored(WHOLE, random(1)), doctored(WHOLE, random(2), true)].map(bytes => Buffer.from(bytes))
  const pages: number[] = []
  for (const [i, bytes] of streams.entries()) {
    const source = await pair.dial()
    source.resume()
    source.write(bytes)
    await until('the bytes at the destination', () => pair.target.received[i]?.length === bytes.length)
    t.ok(pair.target.received[i]!.equals(bytes), 'byte for byte')
    source.on('end', () => source.end())
    pair.target.sockets[i]!.end(SHUT)
    await until('the summary', () => pair.summaries.length > i)
    const { zero, same, template, earlier, fill, patched, whole } = pair.summaries[i]!.pages
    pages.push(zero + same + template + earlier + fill + patched + whole)
    t.equal(pair.summaries[i]!.outcome, 'completed')
  }
  const [plain, unknown] = pages
  // A record of which a part had gone out before its rest came is raw.
  t.ok(unknown! > 0.95 * plain! && unknown! < 1.05 * plain!, `${unknown} pages found, ${plain} where all is known`)
  const lines = pair.count('relayed raw')
  t.ok(lines >= 2 && lines <= 10, `${lines} lines in the log`)
})
