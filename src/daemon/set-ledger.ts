/**
 * Notes what sets bring to migrations and disk transfers that end, in the store's own small file: src/store/set-uses.ts.
 * None waits for it; several processes of a host may do so, one at a time. What cannot be written is kept for the next try.
 */
import { join } from 'node:path'
import type { SetGain } from '../codec/set-gains.ts'
import { ioError } from '../io-error.ts'
import { SET_USES_MAX } from '../limits.ts'
import { FileLock } from '../remote/file-lock.ts'
import { readUses, withMigration, writeUses } from '../store/set-uses.ts'
import type { Events, SiteEvent, SiteLog } from './events.ts'
import { LateWriter } from './late-writer.ts'

interface Ended {
  readonly sets: readonly SetGain[]
  readonly endedMs: number
}

export class SetLedger {
  private readonly folder: string
  private readonly log: SiteLog
  /** Those that are not noted yet. */
  private waiting: Ended[] = []
  private readonly writer: LateWriter
  private readonly unsubscribe: () => void

  /** @param folder of the host's own store */
  constructor(folder: string, events: Events) {
    this.folder = folder
    this.log = events
    this.writer = new LateWriter(
      signal => this.write(signal),
      cause => {
        const { what, action } = ioError(cause, 'cannot write', folder)
        this.log.warn('what sets bring is not kept', { error: what, hint: action })
      },
    )
    this.unsubscribe = events.subscribe(told => this.take(told))
  }

  /** Writes what is not written yet, as far as the disk lets it. */
  async close(): Promise<void> {
    this.unsubscribe()
    await this.writer.close()
  }

  private take(told: SiteEvent): void {
    if (told.event !== 'migration ended' && told.event !== 'disk transfer ended') return
    const { sets } = told.fields
    if (sets === undefined) return
    this.waiting.push({ sets, endedMs: Date.now() })
    // a disk that never answers: the latest are worth most
    if (this.waiting.length > SET_USES_MAX) this.waiting.shift()
    this.writer.ask()
  }

  private async write(signal: AbortSignal): Promise<void> {
    const { folder, waiting } = this
    const lock = await FileLock.take(join(folder, '.uses.lock'), signal)
    try {
      const { uses: before, problem, isKept } = await readUses(folder)
      if (problem && isKept) throw problem
      if (problem) this.log.warn('what sets brought is begun anew', { error: problem.what, hint: problem.action })
      let uses = before
      const taken = waiting.length
      for (const { sets, endedMs } of waiting.slice(0, taken)) uses = withMigration(uses, sets, endedMs)
      await writeUses(folder, uses)
      waiting.splice(0, taken)
    } finally {
      await lock.release()
    }
  }
}
