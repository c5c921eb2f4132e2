/**
 * Writes QEMU's wire, for tests and tools: the other way of the parsers. It writes what it is told, also what no QEMU
 * would; only {@link syntheticStream} knows the order of a whole migration.
 */

import { latin1Bytes } from '../../../src/bytes/copy.ts'
import {
  COMMAND,
  ELEMENT,
  FILE_MAGIC,
  FILE_VERSION,
  MULTIFD,
  PAGE_SIZE,
  RAM_FLAG,
  RAM_SECTION,
  RECV_BITMAP_END,
  RETURN_PATH,
  UUID_LENGTH,
  XBZRLE_ENCODING,
} from '../../../src/qemu/wire.ts'
import { ByteWriter } from '../byte-writer.ts'

/** An entry of the block list; the u64 fields behind the length are there where they are given. */
export interface BlockEntry {
  readonly idstr: string
  readonly lengthBytes: number
  readonly pageSize?: number
  readonly guestAddress?: number
}

/** A main stream or preempt channel, element by element. Every method returns the emitter. */
export class StreamEmitter {
  private readonly out = new ByteWriter()

  /** Bytes emitted so far. */
  get position(): number {
    return this.out.length
  }

  /** Everything emitted so far; a copy that the caller owns. */
  bytes(): Uint8Array {
    return this.out.bytes()
  }

  /** Bytes that no method below writes. */
  raw(bytes: Uint8Array): this {
    this.out.raw(bytes)
    return this
  }

  /** Magic, version and, unless undefined, the configuration section with this machine type. */
  header(machineType: string | undefined = 'pc-i440fx-7.2'): this {
    this.out.u32(FILE_MAGIC).u32(FILE_VERSION)
    if (machineType === undefined) return this
    this.out.u8(ELEMENT.CONFIGURATION).u32(machineType.length).raw(latin1Bytes(machineType))
    return this
  }

  /** A subsection of the configuration section, version 1. */
  subsection(name: string, body: Uint8Array): this {
    this.out.u8(ELEMENT.SUBSECTION).cstr(name).u32(1).raw(body)
    return this
  }

  command(command: number, payload: Uint8Array = new Uint8Array(0)): this {
    this.out.u8(ELEMENT.COMMAND).u16(command).u16(payload.length).raw(payload)
    return this
  }

  /** A PING that asks for a PONG with this value. */
  ping(value: number): this {
    return this.command(COMMAND.PING, new ByteWriter().u32(value).bytes())
  }

  /** Announces postcopy of RAM. @param pageSizes page sizes of all RAMBlocks, or-ed */
  postcopyAdvise(pageSizes = PAGE_SIZE, targetPageSize = PAGE_SIZE): this {
    return this.command(COMMAND.POSTCOPY_ADVISE, new ByteWriter().u64(pageSizes).u64(targetPageSize).bytes())
  }

  /** The package that starts postcopy: PACKAGED, then these elements. */
  packaged(elements: Uint8Array): this {
    this.command(COMMAND.PACKAGED, new ByteWriter().u32(elements.length).bytes())
    return this.raw(elements)
  }

  /** Head of a START; its body and footer are the caller's. */
  sectionStart(id: number, idstr: string, instance = 0, version = 1): this {
    this.out.u8(ELEMENT.SECTION_START).u32(id).cstr(idstr).u32(instance).u32(version)
    return this
  }

  /** Head of a FULL, as {@link sectionStart}. */
  sectionFull(id: number, idstr: string, instance = 0, version = 1): this {
    this.out.u8(ELEMENT.SECTION_FULL).u32(id).cstr(idstr).u32(instance).u32(version)
    return this
  }

  sectionPart(id: number): this {
    this.out.u8(ELEMENT.SECTION_PART).u32(id)
    return this
  }

  sectionEnd(id: number): this {
    this.out.u8(ELEMENT.SECTION_END).u32(id)
    return this
  }

  footer(id: number): this {
    this.out.u8(ELEMENT.SECTION_FOOTER).u32(id)
    return this
  }

  /** The START of ram up to its block list; records, EOS and footer are the caller's. */
  ramStart(id: number, blocks: readonly BlockEntry[]): this {
    this.sectionStart(id, RAM_SECTION.IDSTR, RAM_SECTION.INSTANCE, RAM_SECTION.VERSION)
    return this.memSize(blocks)
  }

  /** The record with the block list. */
  memSize(blocks: readonly BlockEntry[]): this {
    this.word(
      blocks.reduce((sum, block) => sum + block.lengthBytes, 0),
      RAM_FLAG.MEM_SIZE,
    )
    for (const block of blocks) {
      this.out.cstr(block.idstr).u64(block.lengthBytes)
      if (block.pageSize !== undefined) this.out.u64(block.pageSize)
      if (block.guestAddress !== undefined) this.out.u64(block.guestAddress)
    }
    return this
  }

  /** @param idstr the RAMBlock; without it the record says CONTINUE */
  zero(offset: number, idstr?: string, fill = 0): this {
    this.pageWord(offset, RAM_FLAG.ZERO, idstr)
    this.out.u8(fill)
    return this
  }

  /** @param body 4096 bytes */
  page(offset: number, body: Uint8Array, idstr?: string): this {
    this.pageWord(offset, RAM_FLAG.PAGE, idstr)
    return this.raw(body)
  }

  /** @param delta the encoded delta, 65535 bytes at most */
  xbzrle(offset: number, delta: Uint8Array, idstr?: string): this {
    this.pageWord(offset, RAM_FLAG.XBZRLE, idstr)
    this.out.u8(XBZRLE_ENCODING).u16(delta.length)
    return this.raw(delta)
  }

  /** @param deflated one zlib stream */
  compressPage(offset: number, deflated: Uint8Array, idstr?: string): this {
    this.pageWord(offset, RAM_FLAG.COMPRESS_PAGE, idstr)
    this.out.u32(deflated.length)
    return this.raw(deflated)
  }

  eos(): this {
    return this.word(0, RAM_FLAG.EOS)
  }

  multifdFlush(): this {
    return this.word(0, RAM_FLAG.MULTIFD_FLUSH)
  }

  /** The u64 that opens a record, with any flags. */
  word(offset: number, flags: number): this {
    this.out.u64(offset + flags)
    return this
  }

  /** EOF, and a VMDESCRIPTION where its JSON is given. */
  eof(description?: string): this {
    this.out.u8(ELEMENT.EOF)
    if (description === undefined) return this
    this.out.u8(ELEMENT.VMDESCRIPTION).u32(description.length).raw(latin1Bytes(description))
    return this
  }

  private pageWord(offset: number, kind: number, idstr: string | undefined): void {
    this.word(offset, idstr === undefined ? kind | RAM_FLAG.CONTINUE : kind)
    if (idstr !== undefined) this.out.cstr(idstr)
  }
}

/** A page to send: where it lies, and its 4096 bytes, or undefined for a ZERO record. */
export interface SyntheticPage {
  readonly idstr: string
  readonly offset: number
  readonly body: Uint8Array | undefined
}

/**
 * A whole precopy stream as QEMU 7.2 would send it: header, START with the block list, one PART an iteration, an END
 * without pages, one device, EOF, description.
 *
 * @param iterations the pages of each iteration in the order in which they are sent
 */
export function syntheticStream(
  blocks: readonly BlockEntry[],
  iterations: readonly (readonly SyntheticPage[])[],
): Uint8Array {
  const id = 2
  const stream = new StreamEmitter().header().ramStart(id, blocks).eos().footer(id)
  let last: string | undefined
  for (const pages of iterations) {
    stream.sectionPart(id)
    for (const { idstr, offset, body } of pages) {
      const name = idstr === last ? undefined : idstr
      if (body) stream.page(offset, body, name)
      else stream.zero(offset, name)
      last = idstr
    }
    stream.eos().footer(id)
  }
  stream.sectionEnd(id).eos().footer(id)
  stream.sectionFull(0, 'timer', 0, 2).raw(new Uint8Array(24)).footer(0)
  return stream.eof('{"devices": []}').bytes()
}

/** The 64 bytes that open a multifd channel, with a UUID of zeros. */
export function multifdHello(channel: number): Uint8Array {
  const out = new ByteWriter().u32(MULTIFD.MAGIC).u32(MULTIFD.VERSION).fill(0, UUID_LENGTH).u8(channel)
  return out.fill(0, MULTIFD.HELLO_LENGTH - out.length).bytes()
}

/** Fields of a multifd RAM packet; what is left out is 0 or empty. */
export interface MultifdPacket {
  readonly flags?: number
  readonly pagesAlloc?: number
  /** Offsets of the pages whose data follows. */
  readonly normal?: readonly number[]
  /** Offsets of zero pages. */
  readonly zero?: readonly number[]
  /** By default 4096 for each normal page. */
  readonly nextPacketSize?: number
  readonly packetNum?: number
  readonly idstr?: string
  readonly data?: Uint8Array
}

/** A multifd packet: header of 1344 bytes, then its data. */
export function multifdPacket(packet: MultifdPacket): Uint8Array {
  const { normal = [], zero = [], idstr = '', data = new Uint8Array(0) } = packet
  const out = new ByteWriter()
    .u32(MULTIFD.MAGIC)
    .u32(MULTIFD.VERSION)
    .u32(packet.flags ?? 0)
  out.u32(packet.pagesAlloc ?? MULTIFD.PAGES_MAX).u32(normal.length)
  out.u32(packet.nextPacketSize ?? normal.length * PAGE_SIZE).u64(packet.packetNum ?? 0)
  out.u32(zero.length).fill(0, MULTIFD.BLOCK_AT - out.length)
  out.raw(latin1Bytes(idstr)).fill(0, MULTIFD.BLOCK_LENGTH - idstr.length)
  for (const offset of [...normal, ...zero]) out.u64(offset)
  return out
    .fill(0, MULTIFD.HEADER_LENGTH - out.length)
    .raw(data)
    .bytes()
}

/** A return path message: header, payload. */
export function returnPathMessage(type: number, payload: Uint8Array = new Uint8Array(0)): Uint8Array {
  return new ByteWriter().u16(type).u16(payload.length).raw(payload).bytes()
}

/** REQ_PAGES_ID, or REQ_PAGES where no idstr is given. */
export function pageRequest(offset: number, lengthBytes: number, idstr?: string): Uint8Array {
  const payload = new ByteWriter().u64(offset).u32(lengthBytes)
  if (idstr === undefined) return returnPathMessage(RETURN_PATH.REQ_PAGES, payload.bytes())
  return returnPathMessage(RETURN_PATH.REQ_PAGES_ID, payload.cstr(idstr).bytes())
}

/** RECV_BITMAP with its bitmap. */
export function receivedBitmap(idstr: string, bitmap: Uint8Array): Uint8Array {
  const out = new ByteWriter().raw(returnPathMessage(RETURN_PATH.RECV_BITMAP, new ByteWriter().cstr(idstr).bytes()))
  return out.u64(bitmap.length).raw(bitmap).u32(RECV_BITMAP_END.HIGH).u32(RECV_BITMAP_END.LOW).bytes()
}
