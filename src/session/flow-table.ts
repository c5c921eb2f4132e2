/** The flows of a session by number, and how many of them a client may open how fast. */

import { FLOWS_MAX, FLOWS_UNENDED_MAX, OPENS_BURST, OPENS_PER_SECOND } from '../limits.ts'
import type { FlowInfo } from '../wan/bodies.ts'
import type { Flow } from './flow.ts'
import type { SessionState } from './states.ts'

const NUMBER_MAX = 65535

/** Which flows may be opened: of any migration, of those that run, none. */
export type Opens = 'any' | 'running' | 'none'

/** @param drains whether running migrations alone may have further flows */
export function opensIn(state: SessionState, drains: boolean): Opens {
  if (state === 'closed' || state === 'closing' || state === 'stranded') return 'none'
  return drains ? 'running' : 'any'
}

export class FlowTable {
  private readonly flows = new Map<number, Flow>()
  /** Numbers that the client has opened at least once: frames for them may come late. */
  private readonly opened = new Uint8Array((NUMBER_MAX + 1) / 8)
  private next = 1
  /** OPENs that may still be taken at once; below 0: how many came beyond that. */
  private opensLeft = OPENS_BURST
  private opensAtMs = 0

  get size(): number {
    return this.flows.size
  }

  get(number: number): Flow | undefined {
    return this.flows.get(number)
  }

  all(): Flow[] {
    return [...this.flows.values()]
  }

  get isFull(): boolean {
    return this.flows.size >= FLOWS_MAX
  }

  add(flow: Flow): void {
    this.flows.set(flow.number, flow)
    this.opened[flow.number >> 3]! |= 1 << (flow.number & 7)
  }

  delete(flow: Flow): void {
    this.flows.delete(flow.number)
  }

  clear(): void {
    this.flows.clear()
  }

  wasOpened(number: number): boolean {
    return ((this.opened[number >> 3]! >> (number & 7)) & 1) === 1
  }

  /** Client: a number that is free. They go on before they come again. */
  freeNumber(): number {
    while (this.flows.has(this.next)) this.next = (this.next % NUMBER_MAX) + 1
    const number = this.next
    this.next = (this.next % NUMBER_MAX) + 1
    return number
  }

  /**
   * Server: one more OPEN came. A migration is refused at its first channel or not at all: its further channels may
   * overdraw what is left by another burst, which is as many as a client that minds FLOWS_MAX can have on the way.
   * @param endsUnacked flows that the client may still take for open
   * @returns of which migrations it is taken, else refused; or why the session must end
   */
  admit(endsUnacked: number, nowMs: number): { readonly opens: Opens } | { readonly fault: string } {
    if (this.isFull) return { fault: `more than ${FLOWS_MAX} flows` }
    if (this.flows.size + endsUnacked >= FLOWS_UNENDED_MAX) {
      return { fault: `${endsUnacked} flows have ended, and the peer does not acknowledge it` }
    }
    const more = ((nowMs - this.opensAtMs) * OPENS_PER_SECOND) / 1000
    this.opensLeft = Math.min(OPENS_BURST, this.opensLeft + more) - 1
    this.opensAtMs = nowMs
    if (this.opensLeft < -2 * OPENS_BURST) return { fault: 'OPEN over and over' }
    return { opens: this.opensLeft >= 0 ? 'any' : this.opensLeft >= -OPENS_BURST ? 'running' : 'none' }
  }

  /** Whether another flow of the same migration is open that was neither reset nor refused. */
  isRunning(flow: { readonly info: FlowInfo }): boolean {
    for (const other of this.flows.values()) {
      const same = other !== flow && other.info.migration === flow.info.migration
      if (same && other.send !== 'reset' && other.receive !== 'reset') return true
    }
    return false
  }
}
