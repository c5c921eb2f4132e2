/** writer.S, assembled: what it does stands there. */
const code = `
fa31c08ed8e4920c02e692660f01169b7c0f20c00c010f22c066ea217c0000080066b810008ed88ec08ed0bc00700000bf40
600000b8947c0000890766c747020800c74704008e00000f011da17c0000bbb979379e8b0dfa7d0000e32889d8c1e00d31c3
89d8c1e81131c389d8c1e00531c389d82305f67d0000c1e00cff8000002000e2d866baf803b80a000000eefbf4faebc150b0
20e62058cf1700a87c0000470000600000900000000000000000ffff0000009acf00ffff00000092cf000000000000000000
0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
`

/** Where its two figures stand. */
const MASK_AT = 502
const PAGES_AT = 506

/**
 * The 512 bytes of a boot sector: for QemuGuest's bootSector. Once it runs, /\\n/ comes on the serial console.
 *
 * @param pages that it writes at each of the 18.2 timer ticks a second
 * @param of any of so many, a power of two, from 2 MiB on
 */
export function writerSector(pages: number, of: number): Uint8Array {
  const sector = Buffer.alloc(512)
  sector.set(Buffer.from(code.replaceAll('\n', ''), 'hex'))
  sector.writeUInt32LE(of - 1, MASK_AT)
  sector.writeUInt32LE(pages, PAGES_AT)
  sector.set([0x55, 0xaa], 510) // what makes it bootable
  return sector
}
