/**
 * A counter of bytes of what runs and of what has ended, by peer, direction and side. What runs is asked anew each time, and
 * told once when it ends: a counter never falls because of that.
 */
import type { Counter } from 'prom-client'

export type Direction = 'out' | 'in'
export type Side = 'qemu' | 'wan'
export type BytesLabel = 'peer' | 'direction' | 'side'

export class MovedBytes {
  private readonly counter: Counter<BytesLabel>
  /** Of those that have ended; of those that run, as they are added; and all that was exported: by labels. */
  private readonly ended = new Map<string, number>()
  private readonly running = new Map<string, number>()
  private readonly exported = new Map<string, number>()

  constructor(counter: Counter<BytesLabel>) {
    this.counter = counter
  }

  /** One has ended. @param wan undefined: it is not known at this side */
  end(peer: string, direction: Direction, qemu: number, wan: number | undefined): void {
    add(this.ended, peer, direction, qemu, wan)
  }

  /** One runs; 0 and 0: there may be some, and a counter that begins at 1 has no increase that Prometheus sees. */
  run(peer: string, direction: Direction, qemu: number, wan: number | undefined): void {
    add(this.running, peer, direction, qemu, wan)
  }

  /** All that run have been told. One that goes on in another session begins anew there. */
  export(): void {
    const { counter, ended, running, exported } = this
    for (const key of new Set([...ended.keys(), ...running.keys()])) {
      const more = (ended.get(key) ?? 0) + (running.get(key) ?? 0) - (exported.get(key) ?? 0)
      if (more < 0) continue
      addTo(exported, key, more)
      const [peer, direction, side] = JSON.parse(key) as [string, Direction, Side]
      counter.inc({ peer, direction, side }, more)
    }
    running.clear()
  }
}

function add(
  sums: Map<string, number>,
  peer: string,
  direction: Direction,
  qemu: number,
  wan: number | undefined,
): void {
  addTo(sums, keyOf(peer, direction, 'qemu'), qemu)
  if (wan !== undefined) addTo(sums, keyOf(peer, direction, 'wan'), wan)
}

function keyOf(peer: string, direction: Direction, side: Side): string {
  return JSON.stringify([peer, direction, side])
}

function addTo(sums: Map<string, number>, key: string, more: number): void {
  sums.set(key, (sums.get(key) ?? 0) + more)
}
