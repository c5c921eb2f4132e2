/**
 * Places for sessions, shared by holders (identities of peers): a holder may have as many as are still free, so that one
 * alone gets half of them, two a third each, and whoever comes next finds one. As memory-budget.ts shares memory. Pure.
 */
export class SessionPlaces {
  readonly max: number
  readonly #held = new Map<string, number>()
  #taken = 0

  constructor(max: number) {
    this.max = max
  }

  get taken(): number {
    return this.#taken
  }

  held(holder: string): number {
    return this.#held.get(holder) ?? 0
  }

  /**
   * Whether a holder may take one more.
   * @param without a holder whose place would be given back first
   */
  hasRoom(holder: string, without?: string): boolean {
    const back = without === undefined ? 0 : 1
    return this.held(holder) - (without === holder ? 1 : 0) < this.max - this.#taken + back
  }

  /** @returns gives the place back; further calls do nothing */
  take(holder: string): () => void {
    this.#held.set(holder, this.held(holder) + 1)
    this.#taken++
    let given = false
    return () => {
      if (given) return
      given = true
      this.#taken--
      const left = this.held(holder) - 1
      if (left === 0) this.#held.delete(holder)
      else this.#held.set(holder, left)
    }
  }
}
