/** Streams of real bytes, of which a known share matches a known set of pages: what benchmarks run on. */

import { readFileSync } from 'node:fs'
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { random } from '../../scripts/harness/random.ts'

/** Pages of real bytes: the program that runs this, each made unlike all others by a counter in a few words. */
export function realPages(count: number): Uint8Array {
  const program = readFileSync(process.execPath)
  const pages = new Uint8Array(count * 4096)
  const from = Math.floor(program.length / 4 / 4096) * 4096 // past the headers, in code and data
  const there = Math.floor((program.length - from) / 4096)
  for (let i = 0; i < count; i++) {
    const at = from + (i % there) * 4096
    pages.set(program.subarray(at, at + 4096), i * 4096)
    new DataView(pages.buffer).setUint32(i * 4096 + ((i * 148) & 4092), i)
  }
  return pages
}

/** A main stream of `pages` pages in random order, of which `share` are templates and the others like one but for a word. */
export function streamOf(templates: Uint8Array, share: number, pages: number): Uint8Array {
  const next = random(share * 1000 + 7)
  const emitter = new StreamEmitter()
  emitter
    .header('pc-i440fx-10.0')
    .ramStart(2, [{ idstr: 'pc.ram', lengthBytes: pages * 4096 }])
    .eos()
    .footer(2)
  const page = new Uint8Array(4096)
  const templatePages = templates.length / 4096
  emitter.sectionPart(2)
  for (let i = 0; i < pages; i++) {
    const t = next(templatePages)
    page.set(templates.subarray(t * 4096, t * 4096 + 4096))
    if (next(2 ** 32) / 2 ** 32 >= share) new DataView(page.buffer).setUint32(4000, next(2 ** 32) | 1)
    emitter.page(i * 4096, page, i === 0 ? 'pc.ram' : undefined)
  }
  emitter.eos().footer(2).sectionEnd(2).eos().footer(2).eof()
  return emitter.bytes()
}
