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

/**
 * The other sections, known or not: passed by looking for a footer of one of them, commands, and ram again: its START, or
 * a PART or END whose first record could be one.
 */
function otherBodies(cursor: Cursor, ids: Set<number>, ram: number, names: readonly string[]): void {
  for (let at = cursor.at; ; at++) {
    at = cursor.bytes.indexOf(0x7e, at)
    if (at < 0 || at + 5 > cursor.bytes.length) throw new Error(`ends at ${cursor.bytes.length}: no way back`)
    if (!ids.has(cursor.bytes.readUInt32BE(at + 1))) continue
    const ahead = new Cursor(cursor.bytes)
    ahead.at = at + 5
    try {
      if (leadsToRam(ahead, ids, ram, names)) {
        cursor.at = at + 5
        return
      }
    } catch {} // the stream ends too early for it
  }
}

function leadsToRam(cursor: Cursor, ids: Set<number>, ram: number, names: readonly string[]): boolean {
  const element = cursor.u8()
  if (element === 8) {
    const [command, length] = [cursor.u16(), cursor.u16()]
    const fixed = [undefined, 0, 4, undefined, 0, 0, undefined, 4, 0, 0, undefined, 0][command]
    if (command < 1 || command > 11 || (fixed !== undefined && length !== fixed)) return false
    if ((command === 3 && length > 16) || (command === 6 && (length < 20 || length > 450))) return false
    if (command === 10 && (length < 2 || length > 256)) return false
    cursor.take(command === 7 ? cursor.u32() : length)
    return leadsToRam(cursor, ids, ram, names)
  }
  if (element === 1 || element === 4) {
    const id = cursor.u32()
    const idstr = cursor.cstr()
    const [instance, version] = [cursor.u32(), cursor.u32()]
    if (idstr === 'ram') return element === 1 && ram < 0 && instance === 0 && version === 4
    if (/^(pbs-state|dirty-bitmap|block)$|-device-early$/.test(idstr)) return true
    if (/^[ -~]+$/.test(idstr)) ids.add(id)
    return false
  }
  if ((element !== 2 && element !== 3) || ram < 0 || cursor.u32() !== ram) return false
  for (;;) {
    const word = cursor.u64()
    const flags = Number(word & 0xfffn)
    if (flags === 0x200 && word === 0x200n) continue
    if (flags === 0x10 && word === 0x10n) return cursor.u8() === 0x7e && cursor.u32() === ram
    if (![0x02, 0x08, 0x40, 0x100].includes(flags & ~0x20)) return false
    return (flags & 0x20) !== 0 || names.includes(cursor.cstr())
  }
}

/** Blocks and records of a main stream, or of its recovery, up to the END of ram. */
export function simpleMain(
  bytes: Uint8Array,
  options: SimpleOptions = {},
  recovery?: { names: string[]; ram: number },
): { lines: string[]; names: string[]; ram: number; ramEnd: number; elements: number[] } {
  const cursor = new Cursor(bytes)
  const lines: string[] = []
  const names: string[] = recovery?.names ?? []
  const state = { name: '' }
  const elements: number[] = [] // where sections of ram begin
  const ids = new Set<number>() // all that are not sections of device state
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
      const start = cursor.at - 1
      const id = cursor.u32()
      ids.add(id)
      let idstr = ''
      if (element === 1 || element === 4) {
        idstr = cursor.cstr()
        cursor.take(8)
        if (idstr === 'ram') ram = id
      }
      if (element === 4 && !idstr.endsWith('-early')) return { lines, names, ram, ramEnd: cursor.at, elements }
      if (element < 1 || element > 4) throw new Error(`element ${element} at ${cursor.at - 5}`)
      if (idstr === 'pbs-state') {
        cursor.take(Number(cursor.u64()) + 5) // and its footer
        continue
      }
      if (id !== ram) {
        otherBodies(cursor, ids, ram, names)
        continue
      }
      elements.push(start)
      records(cursor, lines, names, state, options)
      if (footers && (cursor.u8() !== 0x7e || cursor.u32() !== ram)) throw new Error('footer')
    } catch (error) {
      if (!(error as Error).message.startsWith('ends at')) throw error
      return { lines, names, ram, ramEnd: -1, elements } // a broken connection
    }
    if (element === 3) return { lines, names, ram, ramEnd: cursor.at, elements }
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
