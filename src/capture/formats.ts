/** What an input is, by its first bytes: what can be read, and what people give instead of it. */
import { channelKind } from '../qemu/channel-kind.ts'
import { SEALED_MAGIC, MAGIC as SET_MAGIC } from '../template/wire.ts'
import { MAGIC as HELLO_MAGIC } from '../wan/wire.ts'
import type { ImageFormat } from './disk-image.ts'
import { isElfCore } from './elf-core.ts'
import { FLATTENED_MAGIC } from './flattened.ts'
import { KDUMP_MAGIC } from './kdump.ts'
import { isMappedRam } from './mapped-ram.ts'

/** What has channels of a migration: one as QEMU writes it (`stream`), or packets of which channels are put together. */
export type ChannelFormat = 'stream' | 'pcap' | 'pcapng'
/**
 * What is read. `mapped-ram`, `elf-core`, `memory` (flat) and `disk` have pages and no migration: templates can be made of
 * them. What comes next gets a name here, a row below, and a reader in pages.ts.
 */
export type InputFormat = ChannelFormat | 'mapped-ram' | 'elf-core' | 'memory' | 'disk'

/** What has no magic, or none that is looked for, and can be named instead: a word and what it is. */
export const UNMARKED = { memory: 'flat memory', disk: 'a disk image' } as const
export type Unmarked = keyof typeof UNMARKED

export function hasChannels(format: InputFormat): format is ChannelFormat {
  return format === 'stream' || format === 'pcap' || format === 'pcapng'
}

/** An answer: a format that can be read, or why not. */
export interface Recognized {
  /** For messages, with its article: 'a qcow2 disk image'. */
  readonly name: string
  /** undefined where it cannot be read. */
  readonly format: InputFormat | undefined
  /** What to do about one that cannot be read. */
  readonly hint: string
  /** Of a file in which the bytes of `format` lie here and there: what finds them. */
  readonly image?: PlacedFormat | undefined
}

/** Files that are read by place. */
export type PlacedFormat = ImageFormat | 'kdump'

/** Where bytes of a magic stand. */
interface Magic {
  readonly at?: number
  readonly bytes: readonly number[] | string
}

interface Row {
  readonly name: string
  readonly format?: InputFormat
  readonly hint?: string
  readonly image?: PlacedFormat
  /** Any of these. */
  readonly magics: readonly Magic[]
}

const GIVE =
  'give a stream as QEMU writes it, a .pcap or .pcapng file, a libvirt save image, a core, a disk image; template build and estimate take flat memory with --as memory, raw disks with --as disk'
const CAPTURE_AGAIN = 'write it as .pcap or .pcapng: tcpdump -w, or editcap -F pcapng'
const AS_STREAM = 'give the migration as a stream: (qemu) migrate "exec:cat > FILE"'

const ROWS: readonly Row[] = [
  { name: 'a pcap capture', format: 'pcap', magics: pcapMagics(0xa1b2c3d4, 0xa1b23c4d) },
  { name: 'a pcapng capture', format: 'pcapng', magics: [{ bytes: [0x0a, 0x0d, 0x0d, 0x0a] }] },
  { name: 'a pcap capture of a kind that only its maker reads', hint: CAPTURE_AGAIN, magics: pcapMagics(0xa1b2cd34) },
  { name: 'a snoop capture', hint: CAPTURE_AGAIN, magics: [{ bytes: 'snoop\0\0\0' }] },
  {
    name: 'a file that `pageferry encode` made',
    hint: 'decode it first: pageferry decode',
    magics: [{ bytes: HELLO_MAGIC }],
  },
  {
    name: 'a template set',
    hint: 'template sets are used with --store DIR; give what they are built from',
    magics: [{ bytes: SET_MAGIC }, { bytes: SEALED_MAGIC }],
  },
  {
    name: 'a libvirt save image that was not finished',
    hint: 'save the guest again',
    magics: [{ bytes: 'LibvirtQemudPart' }],
  },
  { name: 'a program, not a core', magics: [{ bytes: '\x7fELF' }] },
  { name: 'a kdump file', format: 'memory', image: 'kdump', magics: [{ bytes: KDUMP_MAGIC }] },
  { name: 'a flattened kdump file', format: 'memory', image: 'kdump', magics: [{ bytes: FLATTENED_MAGIC }] },
  { name: 'a diskdump file', hint: AS_STREAM, magics: [{ bytes: 'DISKDUMP' }] },
  { name: 'a qcow2 disk image', format: 'disk', image: 'qcow2', magics: [{ bytes: 'QFI\xfb' }] },
  {
    name: 'a VMDK disk image',
    format: 'disk',
    image: 'vmdk',
    magics: [{ bytes: 'KDMV' }, { bytes: '# Disk DescriptorFile' }],
  },
  { name: 'a VHDX disk image', format: 'disk', image: 'vhdx', magics: [{ bytes: 'vhdxfile' }] },
  { name: 'a VDI disk image', format: 'disk', image: 'vdi', magics: [{ at: 64, bytes: [0x7f, 0x10, 0xda, 0xbe] }] },
  { name: 'a LUKS volume', hint: 'it is encrypted: open it first', magics: [{ bytes: 'LUKS\xba\xbe' }] },
  {
    name: 'a disk image',
    format: 'disk',
    magics: [
      { at: 510, bytes: [0x55, 0xaa] }, // a boot sector, before a GPT too
      { at: 512, bytes: 'LABELONE' }, // a volume of LVM
      { at: 1080, bytes: [0x53, 0xef] }, // ext2 to ext4
      { bytes: 'XFSB' },
    ],
  },
  {
    name: 'compressed with lz4',
    hint: 'decompress it first: lz4 -dk FILE',
    magics: [{ bytes: [0x04, 0x22, 0x4d, 0x18] }],
  },
  { name: 'a zip archive', hint: 'unpack it first, and give what is inside', magics: [{ bytes: 'PK\x03\x04' }] },
  { name: 'a tar archive', hint: 'unpack it first, and give what is inside', magics: [{ at: 257, bytes: 'ustar' }] },
]

/**
 * Tells what begins so.
 *
 * @param head the input's first HEAD_LENGTH bytes, or all of a shorter one
 */
export function recognize(head: Uint8Array): Recognized {
  const no = (name: string, hint = GIVE): Recognized => ({ name, format: undefined, hint })
  if (head.length === 0) return no('empty')
  const kind = channelKind(head)
  // A multifd channel by itself is read as far as it goes; its main channel has the rest.
  if (isMappedRam(Buffer.from(head))) return { name: 'a mapped-ram file', format: 'mapped-ram', hint: GIVE }
  if (kind === 'main') return { name: "QEMU's main stream", format: 'stream', hint: GIVE }
  if (kind === 'multifd') return { name: 'a multifd channel', format: 'stream', hint: GIVE }
  if (isElfCore(head)) return { name: 'an ELF core', format: 'elf-core', hint: GIVE }
  if (kind === 'recovery') return no('the connection of a postcopy recovery, which means nothing without the first one')
  for (const { name, format, hint = GIVE, image, magics } of ROWS) {
    if (magics.some(magic => standsIn(head, magic))) return { name, format, hint, image }
  }
  if (kind === 'tls') return no('a TLS stream, which cannot be read', 'migrate without TLS where it is recorded')
  if (kind === undefined) return no('too short for a migration stream or a capture')
  return no('neither a migration stream nor a capture')
}

function standsIn(head: Uint8Array, { at = 0, bytes }: Magic): boolean {
  if (at + bytes.length > head.length) return false
  for (let i = 0; i < bytes.length; i++) {
    if (head[at + i] !== (typeof bytes === 'string' ? bytes.charCodeAt(i) : bytes[i])) return false
  }
  return true
}

function pcapMagics(...values: readonly number[]): Magic[] {
  return values.flatMap(value => {
    const big = [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255]
    return [{ bytes: big }, { bytes: big.toReversed() }]
  })
}
