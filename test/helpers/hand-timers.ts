import { EVENT_LOOP, type EventLoop } from '../../src/transfer/event-loop.ts'

/** Time that passes when a test says so. */
export class HandTimers implements EventLoop {
  private readonly waiting = new Set<() => void>()
  private onWaiting = (): void => {}

  nowMs(): number {
    return EVENT_LOOP.nowMs()
  }

  soon(then: () => void): void {
    EVENT_LOOP.soon(then)
  }

  after(_ms: number, then: () => void): () => void {
    this.waiting.add(then)
    this.onWaiting()
    return () => this.waiting.delete(then)
  }

  /** So long that all that is waited for is due, once there is something. */
  async pass(): Promise<void> {
    if (this.waiting.size === 0)
      await new Promise<void>(done => {
        this.onWaiting = done
      })
    this.passNow()
  }

  /** So long that all that is waited for now is due. */
  passNow(): void {
    const due = [...this.waiting]
    this.waiting.clear()
    for (const then of due) then()
  }
}
