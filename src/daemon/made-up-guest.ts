/**
 * A guest that never was, as its QEMU would send it: what a rehearsal (rehearsal.ts) moves. Its pages are of all the kinds
 * that are treated differently on their way, and it sends some of them again, as they are and changed.
 */
import { writeU16, writeU32, writeU64 } from '../bytes/big-endian.ts'
import { latin1Bytes } from '../bytes/copy.ts'
import { COMMAND, ELEMENT, FILE_MAGIC, FILE_VERSION, PAGE_SIZE, RAM_FLAG, RAM_SECTION } from '../qemu/wire.ts'

const MACHINE = 'pc-i440fx-10.0'
const BLOCKS = ['pc.ram', 'vga.vram'] as const
const SECTION = 2
/** Of a device's state, and behind it. */
const DEVICE_BYTES = 3000

/** Fills fields one behind the other into memory that is large enough. */
class Writer {
  readonly bytes: Uint8Array
  at = 0

  constructor(length: number) {
    this.bytes = new Uint8Array(length)
  }

  u8(value: number): this {
    this.bytes[this.at++] = value
    return this
  }

  u16(value: number): this {
    writeU16(this.bytes, this.at, value)
    this.at += 2
    return this
  }

  u32(value: number): this {
    writeU32(this.bytes, this.at, value)
    this.at += 4
    return this
  }

  u64(value: number): this {
    writeU64(this.bytes, this.at, value)
    this.at += 8
    return this
  }

  raw(bytes: Uint8Array): this {
    this.bytes.set(bytes, this.at)
    this.at += bytes.length
    return this
  }

  cstr(text: string): this {
    return this.u8(text.length).raw(latin1Bytes(text))
  }
}

/** Numbers that look random, the same ones each time. */
function numbers(seed: number): () => number {
  let x = seed
  return () => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return x >>> 0
  }
}

type Fill = (page: Uint8Array, words: Uint32Array, next: () => number) => void

/** The kinds of pages. */
const text: Fill = (page, _words, next) => {
  for (let at = 0; at < PAGE_SIZE; ) {
    const word = next() % 1500
    for (let i = 0, length = 2 + (word % 9); i < length && at < PAGE_SIZE; i++)
      page[at++] = 97 + ((word * (i + 7)) % 26)
    if (at < PAGE_SIZE) page[at++] = 32
  }
}
const pointers: Fill = (_page, words, next) => {
  const base = next() & 0xfffff
  for (let at = 0; at < words.length; at += 2) {
    words[at] = base * 4096 + (next() & 0xfff8)
    words[at + 1] = 0xffff8880
  }
}
const sparse: Fill = (page, _words, next) => {
  page.fill(0)
  for (let i = 0; i < 60; i++) page[next() & 4095] = next() & 0xff
}
const random: Fill = (_page, words, next) => {
  for (let at = 0; at < words.length; at++) words[at] = next()
}
const code: Fill = (page, _words, next) => {
  for (let at = 0; at < PAGE_SIZE; at++) page[at] = next() % 3 === 0 ? next() & 0xff : ((at * 37) >> 3) & 0x5f
}
const filled: Fill = (page, _words, next) => {
  page.fill(1 + (next() & 0x7f))
}
const KINDS: readonly Fill[] = [text, code, pointers, sparse, text, code, random, filled]

/** Pages that it has, empty ones counted. */
export const GUEST_PAGES = 1024

/** The bytes of its main channel. @param seed guests of different seeds have few pages in common */
export function madeUpGuest(seed: number): Uint8Array {
  const pages = GUEST_PAGES
  const next = numbers(seed * 7919 + 1)
  const writer = new Writer(pages * (PAGE_SIZE + 16) * 1.5 + (1 << 16))
  const memory = new Uint8Array(pages * PAGE_SIZE)
  const pageAt = (page: number): Uint8Array => memory.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
  writer.u32(FILE_MAGIC).u32(FILE_VERSION)
  writer.u8(ELEMENT.CONFIGURATION).u32(MACHINE.length).raw(latin1Bytes(MACHINE))
  writer.u8(ELEMENT.COMMAND).u16(COMMAND.OPEN_RETURN_PATH).u16(0)
  writer.u8(ELEMENT.COMMAND).u16(COMMAND.PING).u16(4).u32(1)
  writer.u8(ELEMENT.SECTION_START).u32(SECTION).cstr(RAM_SECTION.IDSTR).u32(RAM_SECTION.INSTANCE)
  writer.u32(RAM_SECTION.VERSION).u64(pages * PAGE_SIZE * BLOCKS.length + RAM_FLAG.MEM_SIZE)
  for (const name of BLOCKS) writer.cstr(name).u64(pages * PAGE_SIZE)
  endSection(writer.u64(RAM_FLAG.EOS))
  for (let page = 0; page < pages; page++) fill(page, memory, next)
  const all = Array.from({ length: pages }, (_, page) => page)
  iterate(writer, all, pageAt)
  // what the guest has written since: here and there a word, or all of a page, or nothing
  const again = all.filter(page => page % 3 === 0)
  for (const page of again) {
    if (page % 4 === 0) pageAt(page).fill(next() & 0xff, 0, 512)
    else if (page % 4 < 3) new DataView(memory.buffer).setUint32(page * PAGE_SIZE + ((page * 148) & 4092), next())
  }
  iterate(writer, again, pageAt)
  writer.u8(ELEMENT.SECTION_END).u32(SECTION)
  endSection(writer.u64(RAM_FLAG.EOS))
  writer.u8(ELEMENT.SECTION_FULL).u32(3).cstr('timer').u32(0).u32(2)
  for (let i = 0; i < DEVICE_BYTES; i++) writer.u8(next() & 0x1f)
  endSection(writer, 3)
  writer.u8(ELEMENT.EOF)
  return writer.bytes.subarray(0, writer.at)
}

function endSection(writer: Writer, section = SECTION): void {
  writer.u8(ELEMENT.SECTION_FOOTER).u32(section)
}

function fill(page: number, memory: Uint8Array, next: () => number): void {
  const kind = page % 11
  const bytes = memory.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
  if (kind < KINDS.length) {
    KINDS[kind]!(bytes, new Uint32Array(memory.buffer, page * PAGE_SIZE, PAGE_SIZE / 4), next)
  } else if (page > 64 && kind === KINDS.length) {
    const from = (page - 1 - (next() % 60)) * PAGE_SIZE // as another one is
    bytes.set(memory.subarray(from, from + PAGE_SIZE))
  } else if (page > 64 && kind === KINDS.length + 1) {
    const from = (page - 2 - (next() % 60)) * PAGE_SIZE + (next() & 0xff8) // parts of two others
    bytes.set(memory.subarray(from, from + PAGE_SIZE))
  } // an empty one
}

function iterate(writer: Writer, pages: readonly number[], pageAt: (page: number) => Uint8Array): void {
  writer.u8(ELEMENT.SECTION_PART).u32(SECTION)
  let block = ''
  for (const page of pages) {
    const bytes = pageAt(page)
    const isEmpty = page % 11 === 10
    const name = page % 97 === 0 ? BLOCKS[1] : BLOCKS[0]
    const flags = (isEmpty ? RAM_FLAG.ZERO : RAM_FLAG.PAGE) | (name === block ? RAM_FLAG.CONTINUE : 0)
    writer.u64(page * PAGE_SIZE + flags)
    if (name !== block) writer.cstr(name)
    block = name
    if (isEmpty) writer.u8(0)
    else writer.raw(bytes)
  }
  endSection(writer.u64(RAM_FLAG.EOS))
}
