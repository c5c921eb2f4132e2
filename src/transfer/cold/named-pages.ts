/** Numbers of cold pages, a bit each: which of them a session has named. Takes memory as pages are named. */

/** Numbers of one piece: 4 KiB. */
const PIECE = 32_768

export class NamedPages {
  private readonly pieces: (Uint8Array | undefined)[] = []

  add(number: number): void {
    const at = Math.floor(number / PIECE)
    const piece = this.pieces[at] ?? new Uint8Array(PIECE / 8)
    this.pieces[at] = piece
    const bit = number % PIECE
    piece[bit >> 3]! |= 1 << (bit & 7)
  }

  has(number: number): boolean {
    const bit = number % PIECE
    const piece = number >= 0 ? this.pieces[Math.floor(number / PIECE)] : undefined
    return piece !== undefined && (piece[bit >> 3]! & (1 << (bit & 7))) !== 0
  }
}
