/** Bounds of what reading a capture may cost, and why. A capture is a file from outside: its lengths are claims. */

/** Bytes of one read of a file. */
export const READ_LENGTH = 1 << 20
/** Bytes from an input's start by which formats are told: the last magic looked for is ext4's, at 1080. */
export const HEAD_LENGTH = 4096
/** Wrappings around an input: a save image in gzip, with a stream in zstd in it, are three. */
export const WRAPPINGS_MAX = 4
/** Where a Linux kernel's program may begin in its file: behind 128 KiB of setup at most, and what unpacks it. */
export const KERNEL_SETUP_MAX = 16 << 20
/** What is packed in a kernel that an image has: distributions' have 8 to 20 MB, with an initramfs in them some ten more. */
export const KERNEL_PAYLOAD_MAX = 64 << 20
/** The same unpacked, which is held until all of it is there: distributions' have 50 to 80 MB. */
export const KERNEL_PROGRAM_MAX = 256 << 20
/** A kernel unpacks 3 to 8 to 1. So what an image claims costs no more than a multiple of what it has. */
export const KERNEL_EXPANSION_MAX = 64
/** zstd frames of one: kernels are packed as one, and each takes a decompressor, however little is in it. */
export const KERNEL_FRAMES_MAX = 16
/** Kernels of an image: after so many its other bytes are no longer looked at. A build host of kernels has some ten. */
export const KERNELS_MAX = 64
/** Those of which one begins before another ends. Files do not; what is left of deleted ones may. */
export const KERNELS_AT_ONCE = 4
/** Headers of kernels of which it is not known yet whether anything is packed behind them. */
export const KERNEL_HEADERS_MAX = 1024
/** Of those that do not unpack, how many are told one by one. */
export const KERNELS_TOLD_MAX = 8
/** Segments of an ELF core: a guest has some RAM, a hole for PCI, and a few more of each. */
export const CORE_SEGMENTS_MAX = 4096
/** Where their table may stand: QEMU writes it right behind the header. */
export const CORE_TABLE_AT_MAX = 1 << 20
/** Images that stand one on the other: libvirt's block jobs keep them below some ten. */
export const BACKING_CHAIN_MAX = 200
/** Bytes that are read at a place where nothing says that the next ones are wanted too. */
export const PLACED_JUMP_LENGTH = 64 << 10
/** Pages of a kdump file: the largest that any architecture has. */
export const KDUMP_BLOCK_MAX = 64 << 10
/** Blocks of its notes: those of some thousand processors. */
export const KDUMP_HEADERS_MAX = 4096
/** Pieces of a flattened dump, at 28 bytes each: QEMU writes 16 KiB at once, so these are 64 GiB of packed pages. */
export const FLAT_PIECES_MAX = 4 << 20
/** Before the RAMBlocks of a mapped-ram file: a header, a configuration, perhaps some early device state. */
export const MAPPED_START_MAX = 4 << 20
/** Bitmap of a RAMBlock there: 4 TiB of guest. */
export const MAPPED_BITMAP_MAX = 128 << 20
/** Description at the end of a stream: QEMU's are some hundred kB, those of guests with hundreds of disks a few MB. */
export const DESCRIPTION_LENGTH_MAX = 64 << 20
/** Longest packet: capture tools cut at 262,144, and the largest segment offload hands up is 512 KiB (BIG TCP). */
export const PACKET_LENGTH_MAX = 1 << 20
/** Longest pcapng block: a packet with its options, or names and keys, which nobody has megabytes of. */
export const BLOCK_LENGTH_MAX = 16 << 20
/** Interfaces of one pcapng section: all of a large host's virtual machines. */
export const INTERFACES_MAX = 16_384
/** Connection directions remembered: of more than these, those that are no migration are forgotten first. */
export const FLOWS_MAX = 65_536
/** Out-of-order bytes kept over all connections. A receiver's window rarely exceeds 16 MB; a longer hole is a gap. */
export const REORDER_LENGTH_MAX = 64 << 20
/** What a segment that is kept costs beside its bytes: segments of one byte would cost 200 times that. */
export const SEGMENT_OVERHEAD = 256
/** Share of the kept bytes that goes when they are too many: so much, that going through all connections is paid for. */
export const RELIEF_SHARE = 1 / 4
/** Bytes behind a gap that are looked through at once for a record; a chain of six pages confirms it (25 kB). */
export const SEARCH_LENGTH = 128 << 10
/** Encapsulations of one packet: VLAN in VLAN in VXLAN in GRE is four or five. */
export const LAYERS_MAX = 16
/** Bytes kept of a connection whose SYN the capture lacks, while its first bytes may still come. */
export const HEADLESS_LENGTH_MAX = 256 << 10
/** zstd windows up to 2^27 bytes: its own default. `--long=31` would take 2 GiB. */
export const ZSTD_WINDOW_LOG_MAX = 27
/** Memory of an xz that unpacks: twice what its strongest preset takes. A file may ask for 4 GiB. */
export const UNPACK_MEMORY_MAX = 128 << 20
/**
 * What is small may stand for much: an empty guest packed well, a disk that is one hole. So a file gives this many bytes for
 * each that it has on its disk (zstd packs zeros 30,000 to 1, gzip 1,000 to 1, and no guest is all zeros) ...
 */
export const EXPANSION_MAX = 10_000
/** ... and so many anyway; what would give more is no guest's memory, but a bomb. */
export const EXPANSION_FREE = 1 << 30
/** Migration channels of one input: a main and 255 multifd channels, tried again a few times. */
export const CHANNELS_MAX = 1024
