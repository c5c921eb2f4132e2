/**
 * A second decoder of NBD, as simple as it gets: both directions whole in memory, no cuts, BigInt, stops where it does not
 * know. It pairs answers with requests by order (the first request of a cookie that has none yet), and so need not know
 * when what was said. It shares no code with src/; real conversations must give the same lines in both.
 */

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
  u16 = () => this.take(2).readUInt16BE()
  u32 = () => this.take(4).readUInt32BE()
  u64 = () => this.take(8).readBigUInt64BE()
  text = (count: number) => this.take(count).toString('latin1')
  hex = (count: number) => this.take(count).toString('hex')
}

interface Asked {
  readonly type: number
  readonly offset: bigint
  readonly length: bigint
}

/** What was read, as the lines of test/nbd-wire/harness.ts. */
interface Lines {
  readonly client: string[]
  readonly server: string[]
  /** The handshake ended in TLS, which is not read. */
  tls: boolean
  /** Why a direction was not read to its end. */
  stopped: string[]
}

/** Reads both directions, each as far as it is understood. */
export function simpleNbd(client: Uint8Array, server: Uint8Array): Lines {
  const [c, s] = [new Cursor(client), new Cursor(server)]
  const lines: Lines = { client: [], server: [], tls: false, stopped: [] }
  const attempt = <T>(read: () => T): T | undefined => {
    try {
      return read()
    } catch (error) {
      lines.stopped.push((error as Error).message)
      return undefined
    }
  }
  const begun = attempt(() => handshake(c, s, lines))
  if (!begun || lines.tls) return lines
  const asked = new Map<string, Asked[]>()
  attempt(() => requests(c, lines.client, begun.extended, asked))
  attempt(() => answers(s, lines.server, asked, begun))
  return lines
}

function handshake(c: Cursor, s: Cursor, lines: Lines): { structured: boolean; extended: boolean } | undefined {
  if (s.text(16) !== 'NBDMAGICIHAVEOPT') throw new Error('not newstyle')
  const zeroes = (s.u16() & c.u32() & 2) === 0
  const done = { structured: false, extended: false }
  let contexts: string[] = []
  while (c.left > 0) {
    const start = c.at
    if (c.text(8) !== 'IHAVEOPT') throw new Error(`no option at ${start}`)
    const option = c.u32()
    const data = new Cursor(c.take(c.u32()))
    lines.client.push(`option ${option} ${start}-${c.at}`)
    let export_ = ''
    let blocks = '0/0/0'
    const begins = (name: string) => {
      const kind = done.extended ? 'extended' : done.structured ? 'structured' : 'simple'
      lines.server.push(`begins ${kind} '${name}' ${export_} ${blocks}${contexts.map(one => ` ${one}`).join('')}`)
      return done
    }
    if (option === 1) {
      if (s.left === 0) return undefined // refused
      export_ = `${s.u64()} 0x${s.u16().toString(16)}`
      if (zeroes) s.take(124)
      return begins(data.text(data.left))
    }
    if (option === 10) contexts = []
    for (let final = false; !final; ) {
      if (option === 2 && s.left === 0) return undefined
      const at = s.at
      if (s.hex(8) !== '0003e889045565a9' || s.u32() !== option) throw new Error(`no answer to ${option} at ${at}`)
      const type = s.u32()
      const said = new Cursor(s.take(s.u32()))
      final = type === 1 || type >= 0x80000000
      lines.server.push(`answer ${option} 0x${type.toString(16)}${final ? ' final' : ''} ${at}-${s.at}`)
      if (type === 3) {
        const what = said.u16()
        if (what === 0) export_ = `${said.u64()} 0x${said.u16().toString(16)}`
        if (what === 3) blocks = `${said.u32()}/${said.u32()}/${said.u32()}`
      }
      if (type === 4 && option === 10) contexts.push(`${said.u32()}=${said.text(said.left)}`)
      if (type !== 1) {
        if (option === 10 && final) contexts = []
        continue
      }
      if (option === 8) done.structured = true
      if (option === 11) done.extended = true
      if (option === 5) {
        lines.tls = true
        return undefined
      }
      if (option === 7) return begins(data.text(data.u32()))
    }
  }
  return undefined
}

/** Requests of each cookie, in the order in which they came. */
function requests(c: Cursor, lines: string[], extended: boolean, asked: Map<string, Asked[]>): void {
  while (c.left > 0) {
    const start = c.at
    if (c.hex(4) !== (extended ? '21e41c71' : '25609513')) throw new Error(`no request at ${start}`)
    const [flags, type, cookie, offset] = [c.u16(), c.u16(), c.hex(8), c.u64()]
    const length = extended ? c.u64() : BigInt(c.u32())
    if (!extended && type > 8) throw new Error(`command ${type}`)
    const payload = type === 1 || (extended && (flags & 0x20) > 0) ? length : 0n
    const about = type !== 1 && payload > 0n ? 0n : length
    const text = `${type} flags=0x${flags.toString(16)} ${offset} ${about}+${payload}`
    lines.push(`request ${cookie} ${text} ${start}-${c.at}`)
    if (type === 1 && length > 0n) lines.push(`write ${cookie} ${c.at}-${BigInt(c.at) + payload} ${offset}`)
    c.take(Number(payload))
    if (type === 2) {
      if (c.left > 0) throw new Error('bytes behind DISC')
      break
    }
    const list = asked.get(cookie) ?? []
    list.push({ type, offset, length: about })
    asked.set(cookie, list)
  }
}

function answers(
  s: Cursor,
  lines: string[],
  asked: Map<string, Asked[]>,
  { structured, extended }: { structured: boolean; extended: boolean },
): void {
  while (s.left > 0) {
    const start = s.at
    const magic = s.hex(4)
    if (magic === '67446698' && !extended) {
      const error = s.u32()
      const cookie = s.hex(8)
      const request = asked.get(cookie)?.shift()
      if (!request) throw new Error(`nobody asked for cookie ${cookie}`)
      lines.push(`reply ${cookie} ${error} ${start}-${s.at}`)
      if (request.type !== 0 || error > 0 || request.length === 0n) continue
      if (structured) throw new Error(`data in a simple reply at ${start}`)
      lines.push(`read ${cookie} ${s.at}-${BigInt(s.at) + request.length} ${request.offset}`)
      s.take(Number(request.length))
      continue
    }
    if (magic !== (extended ? '6e8a278c' : structured ? '668e33ef' : '')) throw new Error(`no reply at ${start}`)
    const [flags, type, cookie] = [s.u16(), s.u16(), s.hex(8)]
    if (extended) s.u64() // the request's offset
    const length = extended ? Number(s.u64()) : s.u32()
    const done = (flags & 1) > 0 ? ' done' : ''
    if (!asked.get(cookie)?.[0]) throw new Error(`nobody asked for cookie ${cookie}`)
    if (done) asked.get(cookie)!.shift()
    const known: Record<number, number> = { 1: 8, 2: 12, 5: 4, 6: 8 }
    const head = type >= 0x8000 ? 6 : (known[type] ?? 0)
    const first = new Cursor(s.take(head))
    const error = type >= 0x8000 ? ` error ${first.u32()}` : ''
    lines.push(`chunk ${cookie} 0x${type.toString(16)} +${length - head}${error}${done} ${start}-${s.at}`)
    if (type === 1 && length > 8) lines.push(`read ${cookie} ${s.at}-${s.at + length - 8} ${first.u64()}`)
    if (type === 2) lines.push(`hole ${cookie} ${first.u64()} ${first.u32()}`)
    s.take(length - head)
  }
}
