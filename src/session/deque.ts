/** A queue in a ring that grows: push at the end, take from the front, both in constant time. */
export class Deque<T> {
  private items: (T | undefined)[] = new Array(16).fill(undefined)
  private head = 0
  private count = 0

  get length(): number {
    return this.count
  }

  push(item: T): void {
    if (this.count === this.items.length) this.grow()
    this.items[(this.head + this.count) & (this.items.length - 1)] = item
    this.count++
  }

  /** The item at the front, left there. */
  peek(): T | undefined {
    return this.count === 0 ? undefined : this.items[this.head]
  }

  shift(): T | undefined {
    if (this.count === 0) return undefined
    const item = this.items[this.head]
    this.items[this.head] = undefined
    this.head = (this.head + 1) & (this.items.length - 1)
    this.count--
    return item
  }

  clear(): void {
    this.items = new Array(16).fill(undefined)
    this.head = 0
    this.count = 0
  }

  private grow(): void {
    const grown: (T | undefined)[] = new Array(this.items.length * 2).fill(undefined)
    for (let i = 0; i < this.count; i++) grown[i] = this.items[(this.head + i) & (this.items.length - 1)]
    this.items = grown
    this.head = 0
  }
}
