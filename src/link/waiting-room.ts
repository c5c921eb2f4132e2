/**
 * A bounded number of places for those who wait, shared by groups: whoever comes in numbers drives out itself. Pure.
 */

/** What a group has here: each item with the number of its arrival, in the order of arrival. */
type Group<T> = Map<T, number>

export class WaitingRoom<T extends object> {
  readonly max: number
  /** Groups in the order in which their turns come. */
  readonly #groups = new Map<string, Group<T>>()
  readonly #groupOf = new Map<T, string>()
  #arrivals = 0

  constructor(max: number) {
    this.max = max
  }

  get size(): number {
    return this.#groupOf.size
  }

  /** Places that a group has. */
  sizeOf(group: string): number {
    return this.#groups.get(group)?.size ?? 0
  }

  /**
   * Gives a place.
   * @param group whom it counts for: an address, an identity
   * @returns who has lost its place for it: the oldest of the group with the most places, of several such groups the
   *   oldest of all
   */
  enter(item: T, group: string): T | undefined {
    let own = this.#groups.get(group)
    if (!own) {
      own = new Map()
      this.#groups.set(group, own)
    }
    own.set(item, this.#arrivals++)
    this.#groupOf.set(item, group)
    if (this.size <= this.max) return undefined
    let largest = own
    let oldest = own.values().next().value!
    for (const other of this.#groups.values()) {
      if (other.size < largest.size) continue
      const arrival = other.values().next().value!
      if (other.size === largest.size && arrival >= oldest) continue
      largest = other
      oldest = arrival
    }
    const loser = largest.keys().next().value!
    this.leave(loser)
    return loser
  }

  /** @returns whether it had a place */
  leave(item: T): boolean {
    const name = this.#groupOf.get(item)
    if (name === undefined) return false
    this.#groupOf.delete(item)
    const group = this.#groups.get(name)!
    group.delete(item)
    if (group.size === 0) this.#groups.delete(name)
    return true
  }

  /** The oldest of the group whose turn it is, which leaves; groups take turns. */
  next(): T | undefined {
    for (const [name, group] of this.#groups) {
      const item = group.keys().next().value!
      this.leave(item)
      if (group.size > 0) {
        this.#groups.delete(name)
        this.#groups.set(name, group)
      }
      return item
    }
    return undefined
  }

  [Symbol.iterator](): IterableIterator<T> {
    return this.#groupOf.keys()
  }
}
