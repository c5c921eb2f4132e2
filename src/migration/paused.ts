import type { ParserMemory } from '../qemu/main-stream.ts'

/**
 * What recovery connections need of the migrations that a break may have paused, by the gate where they began. One for
 * all gates and sessions of a process: a recovery may come in at another gate. It says nothing about itself but the
 * names of its RAMBlocks, so with several paused migrations a guess may be wrong; that costs savings, never a byte.
 */
export class PausedMigrations {
  private readonly memories = new Map<object, ParserMemory>()

  keep(gate: object, memory: ParserMemory): void {
    this.memories.delete(gate) // the latest comes last
    this.memories.set(gate, memory)
  }

  /** For a recovery that came in at `gate`: what began there, else what was paused last. */
  take(gate: object): ParserMemory | undefined {
    const from = this.memories.has(gate) ? gate : [...this.memories.keys()].at(-1)
    if (!from) return undefined
    const memory = this.memories.get(from)
    this.memories.delete(from)
    return memory
  }
}
