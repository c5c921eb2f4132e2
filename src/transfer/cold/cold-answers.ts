/** The encoding side's answers: cold pages that the other side cannot read. */
import type { ProxyError } from '../../errors.ts'
import { COLD_READ_MS_MAX } from '../../limits.ts'
import { PAGE_SIZE } from '../../template/wire.ts'
import type { ColdFile } from './cold-list.ts'
import type { ColdLease } from './cold-sets.ts'

export class ColdAnswers {
  private readonly cold: ColdLease
  private readonly send: (number: number, page: Uint8Array | undefined) => void
  private readonly onFailure: (set: ColdFile, error: ProxyError) => void
  private closed = false

  /**
   * @param send takes each page, a view that is valid until it returns; undefined where it cannot be had
   * @param onFailure a set cannot be read here either
   */
  constructor(
    cold: ColdLease,
    send: (number: number, page: Uint8Array | undefined) => void,
    onFailure: (set: ColdFile, error: ProxyError) => void,
  ) {
    this.cold = cold
    this.send = send
    this.onFailure = onFailure
  }

  /**
   * Sends the pages of these numbers, each proven. Only what this side has named in the session: whoever says that it holds
   * a set must not get one by asking.
   * @returns false where one of them was never named: none is sent
   */
  answer(numbers: readonly number[]): boolean {
    if (numbers.some(number => this.cold.named.namedBy(number) === undefined)) return false
    void this.sendAll(numbers)
    return true
  }

  /** The session is over. */
  close(): void {
    this.closed = true
  }

  private async sendAll(numbers: readonly number[]): Promise<void> {
    const { list, reads } = this.cold
    for (const number of numbers) {
      const index = list.setOf(number)
      const set = list.files[index]!
      const page = number - list.fileStarts[index]!
      let sent = false
      try {
        const use = (bytes: Uint8Array): void => {
          if (this.closed) return
          // kept blocks are written over: what lies there now is another one's
          if (set.hasPage?.(page) === false) return
          if (!set.isPage(page, bytes.subarray(0, PAGE_SIZE))) throw set.damaged(page)
          this.send(number, bytes.subarray(0, PAGE_SIZE))
          sent = true
        }
        await reads.within(COLD_READ_MS_MAX, deadline => reads.read(set, page, 1, deadline, use))
      } catch (error) {
        this.onFailure(set, error as ProxyError)
      }
      if (this.closed) return
      if (!sent) this.send(number, undefined)
    }
  }
}
