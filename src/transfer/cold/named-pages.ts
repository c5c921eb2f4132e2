/** Which cold pages a session has named, and for which migration last. Takes memory as pages are named. */

/** Numbers of one piece: 4 KiB. */
const PIECE = 1024

export class NamedPages {
  /** By number: a migration's; 0 where it was not named. */
  private readonly pieces: (Uint32Array | undefined)[] = []

  /** @param migration its number, from 1 on */
  add(number: number, migration: number): void {
    const at = Math.floor(number / PIECE)
    const piece = this.pieces[at] ?? new Uint32Array(PIECE)
    this.pieces[at] = piece
    piece[number % PIECE] = migration
  }

  /** The migration that named it last; undefined: none has. */
  namedBy(number: number): number | undefined {
    const piece = number >= 0 ? this.pieces[Math.floor(number / PIECE)] : undefined
    return piece?.[number % PIECE] || undefined
  }
}
