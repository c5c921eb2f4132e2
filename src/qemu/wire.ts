/**
 * Numbers of QEMU's migration wire. Nothing in the first part is ours to choose: QEMU fixes it (migration/ram.c,
 * savevm.h, savevm.c, migration.h, multifd.h). The last part holds our bounds on lengths that the wire leaves open.
 */

import { PAGE_SIZE } from '../bytes/page-size.ts'

/** Bytes in one target page: TARGET_PAGE_SIZE. The only size that we take apart. */
export { PAGE_SIZE }
/** log2(PAGE_SIZE): what `configuration/target-page-bits` carries where it is sent. */
export const PAGE_BITS = 12

/** "QEVM", the first four bytes of a main channel. Source: migration/savevm.h, QEMU_VM_FILE_MAGIC. */
export const FILE_MAGIC = 0x5145564d
/** The u32 after FILE_MAGIC. Source: QEMU_VM_FILE_VERSION. */
export const FILE_VERSION = 3

/** The u8 that opens each element of the main stream. Source: migration/savevm.h, QEMU_VM_*. */
export const ELEMENT = {
  EOF: 0x00, // end of the sections; VMDESCRIPTION may follow
  SECTION_START: 0x01, // u32 id, cstr idstr, u32 instance, u32 version, body, footer
  SECTION_PART: 0x02, // u32 id, body, footer
  SECTION_END: 0x03, // u32 id, body, footer
  SECTION_FULL: 0x04, // as SECTION_START
  SUBSECTION: 0x05, // cstr name, u32 version, body; here only inside CONFIGURATION
  VMDESCRIPTION: 0x06, // u32 length, JSON
  CONFIGURATION: 0x07, // u32 length, machine type; only in the header
  COMMAND: 0x08, // u16 command, u16 length, payload
  SECTION_FOOTER: 0x7e, // u32 id of the section that ends
} as const

/** The u16 that opens a COMMAND. Source: migration/savevm.c, enum qemu_vm_cmd. */
export const COMMAND = {
  OPEN_RETURN_PATH: 1,
  PING: 2, // u32 value
  POSTCOPY_ADVISE: 3, // u64 page sizes of all RAMBlocks or-ed, u64 target page size; or nothing
  POSTCOPY_LISTEN: 4,
  POSTCOPY_RUN: 5,
  POSTCOPY_RAM_DISCARD: 6, // u8 0, cstr block, u8 0, 1 to 12 times (u64 start, u64 length)
  PACKAGED: 7, // u32 length L; L bytes of elements follow outside the command's own length
  ENABLE_COLO: 8,
  POSTCOPY_RESUME: 9,
  RECV_BITMAP: 10, // cstr block
  SWITCHOVER_START: 11, // QEMU 10.0
} as const
/** Least and most payload bytes of each command, by id. Source: migration/savevm.c, mig_cmd_args and what sends them. */
export const COMMAND_LENGTH: readonly (readonly [number, number] | undefined)[] = [
  undefined,
  [0, 0], // OPEN_RETURN_PATH
  [4, 4], // PING
  [0, 16], // POSTCOPY_ADVISE
  [0, 0], // POSTCOPY_LISTEN
  [0, 0], // POSTCOPY_RUN
  [1 + 2 + 1 + 16, 1 + 256 + 1 + 12 * 16], // POSTCOPY_RAM_DISCARD
  [4, 4], // PACKAGED
  [0, 0], // ENABLE_COLO
  [0, 0], // POSTCOPY_RESUME
  [2, 256], // RECV_BITMAP
  [0, 0], // SWITCHOVER_START
]
/** Payload bytes of a POSTCOPY_ADVISE that announces postcopy of RAM (it is 0 for dirty bitmaps alone). */
export const POSTCOPY_ADVISE_LENGTH = 16
/** Payload bytes of PACKAGED: the u32 length of the package. */
export const PACKAGED_LENGTH = 4

/** Subsections of the configuration section. Source: migration/savevm.c, vmstate_configuration. */
export const CONFIGURATION_SUBSECTION = {
  TARGET_PAGE_BITS: 'configuration/target-page-bits', // u32
  CAPABILITIES: 'configuration/capabilities', // u32 count, count times cstr
  UUID: 'configuration/uuid', // 16 bytes
} as const
/** Bytes of a UUID, in `configuration/uuid` and in the multifd hello. */
export const UUID_LENGTH = 16
/** The capability that adds a u64 guest physical address to each entry of the block list. */
export const CAPABILITY_IGNORE_SHARED = 'x-ignore-shared'
/** The capability whose block list we do not read: QEMU allows it to files only. */
export const CAPABILITY_MAPPED_RAM = 'mapped-ram'

/** The section that carries RAM, and the one version of it since 2009. Source: migration/ram.c. */
export const RAM_SECTION = { IDSTR: 'ram', INSTANCE: 0, VERSION: 4 } as const

/** Flags in the low bits of the u64 that opens each RAM record. Source: migration/ram.c, RAM_SAVE_FLAG_*. */
export const RAM_FLAG = {
  FULL: 0x01, // obsolete since 2009
  ZERO: 0x02, // page of one repeated byte; that byte follows
  MEM_SIZE: 0x04, // the block list follows; the address is the sum of its lengths
  PAGE: 0x08, // PAGE_SIZE raw bytes follow
  EOS: 0x10, // end of this section's body
  CONTINUE: 0x20, // same RAMBlock as the page record before, so no idstr follows
  XBZRLE: 0x40, // u8 1, u16 length, delta against the destination's page
  HOOK: 0x80, // RDMA only
  COMPRESS_PAGE: 0x100, // u32 length, one zlib stream; up to QEMU 9.0
  MULTIFD_FLUSH: 0x200, // QEMU 8.1
} as const
/** Every flag lies below PAGE_SIZE, so one mask parts page offset from flags. */
export const RAM_FLAG_MASK = PAGE_SIZE - 1
/** The u8 before an XBZRLE length. Source: migration/ram.c, ENCODING_FLAG_XBZRLE. */
export const XBZRLE_ENCODING = 1
/** Longest XBZRLE payload that a destination accepts: a page. Source: migration/ram.c, load_xbzrle. */
export const XBZRLE_LENGTH_MAX = PAGE_SIZE
/** Longest zlib stream that a destination accepts: compressBound(PAGE_SIZE). Source: migration/ram-compress.c. */
export const COMPRESS_LENGTH_MAX = PAGE_SIZE + (PAGE_SIZE >> 12) + (PAGE_SIZE >> 14) + (PAGE_SIZE >> 25) + 13

/** Other sections with bodies between RAM's: idstr, or the end of it where a device path stands in front. */
export const OTHER_SECTION = {
  DIRTY_BITMAP: 'dirty-bitmap',
  BLOCK: 'block', // up to QEMU 9.0
  S390_STORAGE_ATTRIBUTES: 's390-storage_attributes',
  SPAPR_HTAB: 'spapr/htab',
  PBS_STATE: 'pbs-state', // Proxmox VE: a START behind ram's, u64 length, bytes
  VFIO_SUFFIX: '/vfio',
  VIRTIO_MEM_EARLY_SUFFIX: '/virtio-mem-device-early', // a FULL before RAM's first PART, QEMU 8.0
} as const

/** First u8 of each chunk of a dirty-bitmap body. Source: migration/block-dirty-bitmap.c. */
export const DIRTY_BITMAP_FLAG = {
  EOS: 0x01,
  ZEROES: 0x02, // a BITS chunk without its bytes
  BITMAP_NAME: 0x04, // cstr
  DEVICE_NAME: 0x08, // cstr, before the bitmap's
  START: 0x10, // u32 granularity, u8 flags
  COMPLETE: 0x20,
  BITS: 0x40, // u64 sector, u32 count; unless ZEROES u64 size, bytes
  EXTRA_FLAGS: 0x80, // never sent so far
} as const

/** Low bits of the u64 that opens each chunk of a block body. Source: migration/block.c, BLK_MIG_FLAG_*. */
export const BLOCK_FLAG = { DEVICE_BLOCK: 0x01, EOS: 0x02, PROGRESS: 0x04, ZERO_BLOCK: 0x08, MASK: 0x1ff } as const
/** Disk bytes after a DEVICE_BLOCK chunk that is not a ZERO_BLOCK. Source: migration/block.c, BLK_MIG_BLOCK_SIZE. */
export const BLOCK_CHUNK_SIZE = 1 << 20

/** The u64 tags of a vfio body: high half, and the low half of each. Source: hw/vfio/migration.c. */
export const VFIO_TAG = {
  HIGH: 0xffffffff,
  END_OF_STATE: 0xef100001,
  SETUP_STATE: 0xef100003,
  DATA_STATE: 0xef100004, // u64 length, bytes
  INIT_DATA_SENT: 0xef100005, // ends a body, QEMU 8.1
} as const

/** Low bits of the u64 that opens each chunk of s390 storage attributes. Source: hw/s390x/s390-stattrib.c. */
export const S390_FLAG = { EOS: 0x01, MORE: 0x02, ERROR: 0x04, DONE: 0x08, MASK: 0xfff } as const

/** Bytes of one entry of ppc64's hash table, in a `spapr/htab` body. Source: hw/ppc/spapr.c, HASH_PTE_SIZE_64. */
export const HASH_PTE_SIZE = 16

/** Types of return path messages. Source: migration/migration.h, enum mig_rp_message_type. */
export const RETURN_PATH = {
  SHUT: 1, // u32 status, 0 is success
  PONG: 2, // u32 value of the PING
  REQ_PAGES_ID: 3, // u64 start, u32 length, cstr block
  REQ_PAGES: 4, // u64 start, u32 length
  RECV_BITMAP: 5, // cstr block; outside the length: u64 size, bytes, u64 end mark
  RESUME_ACK: 6, // u32 1
  SWITCHOVER_ACK: 7, // QEMU 8.1
} as const
/** Halves of the u64 that ends a received-pages bitmap. Source: migration/ram.c, RAMBLOCK_RECV_BITMAP_ENDING. */
export const RECV_BITMAP_END = { HIGH: 0x01234567, LOW: 0x89abcdef } as const

/** A multifd channel: hello once, then packets. Source: migration/multifd.h, MultiFDInit_t and MultiFDPacket_t. */
export const MULTIFD = {
  MAGIC: 0x11223344, // opens the hello and each packet
  VERSION: 1,
  HELLO_LENGTH: 64, // magic, version, uuid, u8 channel id, 39 zero bytes
  HELLO_UUID_AT: 8, // 16 bytes; all zero where QEMU was given none
  HELLO_ID_AT: 24,
  PREFIX_LENGTH: 12, // magic, version, flags: enough to tell the two layouts apart
  FLAGS_AT: 8,
  PAGES_ALLOC_AT: 12,
  NORMAL_PAGES_AT: 16,
  NEXT_PACKET_SIZE_AT: 20, // stale where there are no normal pages
  PACKET_NUM_AT: 24,
  ZERO_PAGES_AT: 32, // QEMU 9.0; reserved and 0 before
  BLOCK_AT: 64, // idstr, NUL-padded
  BLOCK_LENGTH: 256,
  OFFSETS_AT: 320, // u64 each: normal pages first, then zero pages, in no order
  PAGES_MAX: 128, // MULTIFD_PACKET_SIZE / PAGE_SIZE = 524288 / 4096
  HEADER_LENGTH: 1344, // 320 + 8 * 128, always all of it
  DEVICE_STATE_HEADER_LENGTH: 276, // prefix, idstr of 256 bytes, u32 instance, u32 next packet size
  DEVICE_STATE_SIZE_AT: 272,
} as const
/** Flags of a multifd packet. Source: migration/multifd.h, MULTIFD_FLAG_*. */
export const MULTIFD_FLAG = {
  SYNC: 0x01,
  METHOD_MASK: 0x3e,
  ZLIB: 0x02,
  ZSTD: 0x04,
  QPL: 0x08,
  UADK: 0x10,
  QATZIP: 0x20,
  DEVICE_STATE: 0x40, // QEMU 10.0, VFIO
} as const
