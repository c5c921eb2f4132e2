/** disk-writer.S, assembled: what it does stands there. */
const code = `
fa31c08ed88ed0bc0070fc66bbb979379e6631ed8b0efa7de37f5166456689d866c1e00d6631c36689d866c1e8116631c366
89d866c1e0056631c36689d8662306f67d66a3b07c6689d866c1e81c40a3aa7c89e883e007c1e009050010a3ae7c8ec031ff
6689e8a9070075036631c0b9000866f3abbea87cb80043b28066536655fbcd13fa665d665bb800008ed87306baf803b045ee
59e281baf803b00aeefbf4fae96fff8d74001000000000000000000000000000000000000000000000000000000000000000
0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
`

/** Where its two figures stand. */
const MASK_AT = 502
const WRITES_AT = 506
/** Sectors of one write, at most. */
const WRITE_SECTORS_MAX = 16

/**
 * The 512 bytes of a boot sector: for QemuGuest's bootSector, with a disk, and `-boot a` where that could be booted. Once it
 * runs, /\\n/ comes on the serial console at each tick, and E for each write that failed.
 *
 * @param writes at each of the 18.2 timer ticks a second
 * @param diskBytes of the disk: it writes to the largest power of two of it, but for 8 KiB
 */
export function diskWriterSector(writes: number, diskBytes: number): Uint8Array {
  const sector = Buffer.alloc(512)
  sector.set(Buffer.from(code.replaceAll('\n', ''), 'hex'))
  sector.writeUInt32LE(2 ** Math.floor(Math.log2(diskBytes / 512 - WRITE_SECTORS_MAX)) - 1, MASK_AT)
  sector.writeUInt16LE(writes, WRITES_AT)
  sector.set([0x55, 0xaa], 510) // what makes it bootable
  return sector
}
