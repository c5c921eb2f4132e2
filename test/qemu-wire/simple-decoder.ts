/**
 * A second decoder of QEMU's wire, as simple as it gets: whole streams in memory, one pass, no cuts, BigInt, throws
 * where it does not know. It shares no code with src/; real streams must give the same records in both.
 */
const latin = (bytes: Buffer) => bytes.toString('latin1')

/** Reads forward through a buffer. */
class Cursor {
  at = 0
  readonly bytes: Buffer
  constructor(bytes: Uint8Array) {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }
  get left(): number {
    return this.bytes.length - this.at
  }
  take(count: number): Buffer {
    if (count > this.left) throw new Error(`ends at ${this.bytes.length}`)
    this.at += count
    return this.bytes.subarray(this.at - count, this.at)
  }
  u8 = () => this.take(1).readUInt8()
  u16 = () => this.take(2).readUInt16BE()
  u32 = () => this.take(4).readUInt32BE()
  u64 = () => this.take(8).readBigUInt64BE()
  cstr = () => latin(this.take(this.u8()))
}

/** Bytes behind each length in the block list, for streams that have them; main RAM is then hugepages or shared. */
export interface SimpleOptions {
  readonly first?: number
  readonly each?: number
}

/** Records up to and with EOS, as the lines that harness.ts writes; `names` grows by what the block list brings. */
function records(cursor: Cursor, lines: string[], names: string[], state: { name: string }, options: SimpleOptions) {
  for (;;) {
    const start = cursor.at
    const word = cursor.u64()
    const flags = Number(word & 0xfffn)
    const offset = word & ~0xfffn
    if (flags === 0x10) return
    if (flags === 0x200) continue
    if (flags === 0x04) {
      for (let sum = 0n; sum < offset; ) {
        names.push(cursor.cstr())
        const length = cursor.u64()
        sum += length
        cursor.take((options.each ?? 0) + (names.length === 1 ? (options.first ?? 0) : 0))
        lines.push(`block ${names.length - 1} ${names.at(-1)} ${length}`)
      }
      continue
    }
    const named = (flags & 0x20) === 0
    if (named) state.name = cursor.cstr()
    const page = `${names.indexOf(state.name)} 0x${offset.toString(16)}`
    const kind = flags & ~0x20
    if (kind === 0x40) {
      cursor.u8()
      cursor.take(cursor.u16())
      lines.push(`opaque ${page}`)
    } else if (kind === 0x100) {
      cursor.take(cursor.u32())
      lines.push(`opaque ${page}`)
    } else if (kind === 0x02 || kind === 0x08) {
      cursor.take(kind === 0x02 ? 1 : 4096)
      lines.push(`${kind === 2 ? 'zero' : 'page'} ${start}-${cursor.at} ${page}${named ? ' named' : ''}`)
    } else throw new Error(`flags ${flags} at ${start}`)
  }
}

/** The other sections, taken by looking for their footer and something that may follow it. */
function otherBody(cursor: Cursor, id: number): void {
  const footer = Buffer.of(0x7e, id >>> 24, id >>> 16, id >>> 8, id)
  for (let at = cursor.at; ; at++) {
    at = cursor.bytes.indexOf(footer, at)
    if (at < 0) throw new Error(`no footer of ${id}`)
    const element = cursor.bytes[at + 5]!
    const next = cursor.bytes.readUInt32BE(at + 6)
    if ((element === 8 && next >>> 16 <= 11) || (element >= 1 && element <= 4 && next < 100) || element === 0) {
      cursor.at = at + 5
      return
    }
  }
}

/** Blocks and records of a main stream, or of its recovery, up to the END of ram. */
export function simpleMain(
  bytes: Uint8Array,
  options: SimpleOptions = {},
  recovery?: { names: string[]; ram: number },
): { lines: string[]; names: string[]; ram: number; ramEnd: number } {
  const cursor = new Cursor(bytes)
  const lines: string[] = []
  const names: string[] = recovery?.names ?? []
  const state = { name: '' }
  let ram = recovery?.ram ?? -1
  let footers = true
  if (!recovery) {
    if (latin(cursor.take(4)) !== 'QEVM' || cursor.u32() !== 3) throw new Error('header')
    if (cursor.bytes[cursor.at] === 7) {
      cursor.at++
      cursor.take(cursor.u32())
    } else footers = false
    while (cursor.bytes[cursor.at] === 5) {
      cursor.at++
      const name = cursor.cstr()
      cursor.u32()
      if (name === 'configuration/uuid') cursor.take(16)
      else for (let count = cursor.u32(); count > 0; count--) cursor.cstr()
    }
  }
  for (;;) {
    let element: number
    try {
      element = cursor.u8()
      if (element === 8) {
        const command = cursor.u16()
        const length = cursor.u16()
        if (command === 7) cursor.take(cursor.u32())
        else cursor.take(length)
        continue
      }
      const id = cursor.u32()
      let idstr = ''
      if (element === 1 || element === 4) {
        idstr = cursor.cstr()
        cursor.take(8)
        if (idstr === 'ram') ram = id
      }
      if (element === 4 && !idstr.endsWith('-early')) return { lines, names, ram, ramEnd: cursor.at }
      if (element < 1 || element > 4) throw new Error(`element ${element} at ${cursor.at - 5}`)
      if (id !== ram) {
        otherBody(cursor, id)
        continue
      }
      records(cursor, lines, names, state, options)
      if (footers && (cursor.u8() !== 0x7e || cursor.u32() !== ram)) throw new Error('footer')
    } catch (error) {
      if (!(error as Error).message.startsWith('ends at')) throw error
      return { lines, names, ram, ramEnd: -1 } // a broken connection
    }
    if (element === 3) return { lines, names, ram, ramEnd: cursor.at }
  }
}

/** Records of a preempt channel, with the RAMBlocks of its main channel; each told when a record first names it. */
export function simplePreempt(bytes: Uint8Array, names: readonly string[]): string[] {
  const lines: string[] = []
  const state = { name: '' }
  // Without EOS at its end it throws there, having read all.
  const cursor = new Cursor(bytes)
  while (cursor.left > 0) {
    try {
      records(cursor, lines, [...names], state, {})
    } catch (error) {
      if (cursor.left > 0) throw error
    }
  }
  return lines
}

/** Packets and pages of an uncompressed multifd channel, as the lines that harness.ts writes, without blocks. */
export function simpleMultifd(bytes: Uint8Array): string[] {
  const cursor = new Cursor(bytes)
  const lines: string[] = []
  const hello = cursor.take(64)
  lines.push(`hello ${hello[24]} 64`)
  while (cursor.left > 0) {
    const start = cursor.at
    const header = cursor.take(1344)
    if (header.readUInt32BE(0) !== 0x11223344) throw new Error(`magic at ${start}`)
    const normal = header.readUInt32BE(16)
    const zero = header.readUInt32BE(32)
    lines.push(`packet ${start}-${cursor.at} n=${normal} z=${zero} flags=0x${header.readUInt32BE(8).toString(16)}`)
    for (let i = normal; i < normal + zero; i++)
      lines.push(`zero page 0x${header.readBigUInt64BE(320 + 8 * i).toString(16)}`)
    for (let i = 0; i < normal; i++) {
      cursor.take(4096)
      lines.push(`page ${cursor.at - 4096}-${cursor.at} 0x${header.readBigUInt64BE(320 + 8 * i).toString(16)}`)
    }
  }
  return lines
}
