/**
 * RAMBlocks that a flow has named, in the order in which both sides number them: docs/protocol.md §6. Found by name in one
 * step, and bounded in bytes, whatever a peer names.
 */
import { NAME_EXTRA_BYTES, NAMES_BYTES_MAX } from '../limits.ts'

/** Names as strings of which each character is one byte. */
export class BlockNames {
  private readonly names: string[] = []
  /** Made once something is looked up: only packets say names. */
  private index: Map<string, number> | undefined
  private bytes = 0

  get count(): number {
    return this.names.length
  }

  /** The name with this number. */
  at(block: number): string {
    return this.names[block]!
  }

  /** @returns the number of the new name; -1: there is no room for it */
  add(name: string): number {
    if (this.bytes + name.length + NAME_EXTRA_BYTES > NAMES_BYTES_MAX) return -1
    this.bytes += name.length + NAME_EXTRA_BYTES
    const block = this.names.push(name) - 1
    if (this.index && !this.index.has(name)) this.index.set(name, block)
    return block
  }

  /** @returns the lowest number of this name; -1: it is new */
  find(name: string): number {
    if (this.index === undefined) {
      this.index = new Map()
      for (const [block, known] of this.names.entries()) if (!this.index.has(known)) this.index.set(known, block)
    }
    return this.index.get(name) ?? -1
  }
}
