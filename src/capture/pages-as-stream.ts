/**
 * What lies at rest, as the migration that would carry it: each page a record of one RAMBlock, a page of zeros without its
 * bytes. So that it can be estimated as a migration is; no QEMU would load it.
 */
import { writeU32, writeU64 } from '../bytes/big-endian.ts'
import { ELEMENT, FILE_MAGIC, FILE_VERSION, PAGE_SIZE, RAM_FLAG, RAM_SECTION } from '../qemu/wire.ts'
import { BATCH_PAGES, type PageBatch } from '../template/batch.ts'
import type { Chunks } from './input-file.ts'
import type { PageInput } from './pages.ts'

/** Longer than any input: how many pages a pipe has only its end tells. */
const BLOCK_LENGTH = 2 ** 50
const SECTION_ID = 2
const IDSTR = 'pages'
const CONTINUED = 8
const NO_BYTES = Buffer.alloc(PAGE_SIZE)

/** A stream of all its pages. Chunks are valid until the next is asked for. @throws as its pages do */
export async function* pagesAsStream(input: PageInput, readBytes?: (count: number) => void): Chunks {
  yield begin()
  const chunk = Buffer.alloc(BATCH_PAGES * (CONTINUED + 1 + PAGE_SIZE))
  let named = false
  for await (const batch of input.pages(readBytes)) {
    let from = 0
    if (!named) {
      // The first record says which RAMBlock, those behind it go on in the same.
      yield firstRecord(batch)
      named = true
      from = 1
    }
    let at = 0
    for (let i = from; i < batch.count; i++) at += putRecord(chunk, at, batch, i)
    batch.release()
    if (at > 0) yield chunk.subarray(0, at)
  }
  yield end()
}

/** A record that continues its RAMBlock. @returns its length */
function putRecord(to: Buffer, at: number, { bytes, firstPage }: PageBatch, i: number): number {
  const from = i * PAGE_SIZE
  const zero = bytes.compare(NO_BYTES, 0, PAGE_SIZE, from, from + PAGE_SIZE) === 0
  const flag = zero ? RAM_FLAG.ZERO : RAM_FLAG.PAGE
  writeU64(to, at, (firstPage + i) * PAGE_SIZE + flag + RAM_FLAG.CONTINUE)
  if (zero) {
    to[at + CONTINUED] = 0
    return CONTINUED + 1
  }
  bytes.copy(to, at + CONTINUED, from, from + PAGE_SIZE)
  return CONTINUED + PAGE_SIZE
}

function firstRecord({ bytes, firstPage }: PageBatch): Buffer {
  const head = Buffer.alloc(8)
  writeU64(head, 0, firstPage * PAGE_SIZE + RAM_FLAG.PAGE)
  return Buffer.concat([head, name(IDSTR), bytes.subarray(0, PAGE_SIZE)])
}

/** Header, START of ram with its list of RAMBlocks, and the PART that has all records. */
function begin(): Buffer {
  const id = Buffer.from([0, 0, 0, SECTION_ID])
  const header = Buffer.alloc(8)
  writeU32(header, 0, FILE_MAGIC)
  writeU32(header, 4, FILE_VERSION)
  const version = Buffer.alloc(8)
  writeU32(version, 0, RAM_SECTION.INSTANCE)
  writeU32(version, 4, RAM_SECTION.VERSION)
  const start = [Buffer.from([ELEMENT.SECTION_START]), id, name(RAM_SECTION.IDSTR), version]
  const blocks = [word(BLOCK_LENGTH + RAM_FLAG.MEM_SIZE), name(IDSTR), word(BLOCK_LENGTH), word(RAM_FLAG.EOS)]
  return Buffer.concat([header, ...start, ...blocks, footer(), Buffer.from([ELEMENT.SECTION_PART]), id])
}

/** Ends the PART, and RAM. */
function end(): Buffer {
  const again = Buffer.from([ELEMENT.SECTION_END, 0, 0, 0, SECTION_ID])
  return Buffer.concat([word(RAM_FLAG.EOS), footer(), again, word(RAM_FLAG.EOS), footer(), Buffer.from([ELEMENT.EOF])])
}

function footer(): Buffer {
  return Buffer.from([ELEMENT.SECTION_FOOTER, 0, 0, 0, SECTION_ID])
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(8)
  writeU64(bytes, 0, value)
  return bytes
}

/** cstr: u8 length, text. */
function name(text: string): Buffer {
  return Buffer.concat([Buffer.from([text.length]), Buffer.from(text, 'latin1')])
}
