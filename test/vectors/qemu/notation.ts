/**
 * How the vectors of QEMU's wire are written: words that mean bytes, with marks between them that name positions.
 *
 *   51 45564d        hex digits, in pairs
 *   "pc.ram"         these characters, without spaces
 *   'pc.ram'         the same with a length byte in front: QEMU's counted string
 *   aa*4096          a byte, so many times
 *   @page            names this position; traces say @page for its number
 *   #16              nothing; fails where this is not position 16
 *
 * Nothing here shares code with what it tests.
 */
export interface WireVector {
  readonly name: string
  /** Why it exists, or where the bytes are from. */
  readonly why: string
  readonly input: string
  /** One line an event, with @marks. */
  readonly trace: readonly string[]
}

/** The bytes of a notation, and its marks. */
export interface WireBytes {
  readonly bytes: Uint8Array
  readonly marks: ReadonlyMap<string, number>
}

export function wireBytes(text: string): WireBytes {
  const parts: number[][] = []
  const marks = new Map<string, number>()
  let position = 0
  for (const word of text.trim().split(/\s+/)) {
    const bytes: number[] = []
    if (word.startsWith('@')) marks.set(word, position)
    else if (word.startsWith('#')) {
      if (Number(word.slice(1)) !== position) throw new Error(`${word} stands at ${position}`)
    } else if (word.startsWith('"') || word.startsWith("'")) {
      const characters = [...word.slice(1, -1)].map(character => character.charCodeAt(0))
      if (word.startsWith("'")) bytes.push(characters.length)
      bytes.push(...characters)
    } else if (word.includes('*')) {
      const [byte, count] = word.split('*')
      bytes.push(...new Array(Number(count)).fill(Number.parseInt(byte!, 16)))
    } else {
      if (!/^([0-9a-f]{2})+$/.test(word)) throw new Error(`${word} is no notation`)
      for (let i = 0; i < word.length; i += 2) bytes.push(Number.parseInt(word.slice(i, i + 2), 16))
    }
    parts.push(bytes)
    position += bytes.length
  }
  return { bytes: Uint8Array.from(parts.flat()), marks }
}

/** The trace with positions in place of marks. */
export function wireTrace(trace: readonly string[], marks: ReadonlyMap<string, number>): string[] {
  return trace.map(line =>
    line.replaceAll(/@[\w-]+?(?=-@|\s|$)/g, mark => {
      const position = marks.get(mark)
      if (position === undefined) throw new Error(`no ${mark}`)
      return String(position)
    }),
  )
}
