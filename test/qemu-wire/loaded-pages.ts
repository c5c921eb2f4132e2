/** Where record-streams.ts loads pages into the guest's memory: bytes from the start of RAM. */
export const LOADED_AT = 0x100000

/** The 300 pages that it loads: they differ, compress well, and a third of them is zero. */
export function loadedPages(): Uint8Array {
  const bytes = new Uint8Array(300 * 4096)
  for (let page = 0; page < 300; page++) {
    if (page % 3 === 0) continue
    bytes.fill(page, page * 4096, page * 4096 + 4096)
    bytes[page * 4096 + page] = 0
  }
  return bytes
}
