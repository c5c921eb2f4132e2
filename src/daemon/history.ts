/**
 * The migrations that ended last, kept over restarts in a file: a line of JSON each, the oldest first. Whatever becomes of
 * the file, migrations do not wait for it: it is written beside them, whole or not at all, once a second at most.
 */
import { open, rename, rm } from 'node:fs/promises'
import { isProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { HISTORY_BYTES_MAX, HISTORY_MIGRATIONS_MAX, HISTORY_SETS_MAX } from '../limits.ts'
import { CONTROL_API, type PastMigration, type SiteHistory } from './control-api.ts'
import type { Events, SiteEvent, SiteLog } from './events.ts'
import { LateWriter } from './late-writer.ts'
import { readSmallFile } from './small-file.ts'

/** Characters of a text: a peer's name may be a whole certificate's. */
const TEXT_LENGTH_MAX = 300

export class History {
  private readonly path: string | undefined
  private readonly log: SiteLog
  /** As lines: one that is written, or told, a thousand times is made once. */
  private readonly lines: string[] = []
  private readonly since = new Date().toISOString()
  /** Migrations that have ended since then. */
  private count = 0
  /** The file is none of ours: it is left as it is. */
  private isStrange = false
  private readonly writer: LateWriter
  private readonly unsubscribe: () => void

  /** @param path undefined: it is kept in memory alone */
  constructor(path: string | undefined, events: Events) {
    this.path = path
    this.log = events
    this.writer = new LateWriter(
      () => this.write(path!),
      cause => {
        const { what, action } = ioError(cause, 'cannot write', path!)
        this.log.warn('history is not kept', { error: what, hint: action })
      },
    )
    if (path !== undefined) this.read(path)
    this.unsubscribe = events.subscribe(told => this.take(told))
  }

  /** JSON of a {@link SiteHistory}. */
  get json(): string {
    const head: Omit<SiteHistory, 'migrations'> = { api: CONTROL_API, mark: this.mark }
    return `${JSON.stringify(head).slice(0, -1)},"migrations":[${this.lines.join(',')}]}\n`
  }

  /** Another with each migration that ends. */
  get mark(): string {
    return `${this.since} ${this.count}`
  }

  /** Writes what is not written yet. */
  async close(): Promise<void> {
    this.unsubscribe()
    await this.writer.close()
  }

  private take(told: SiteEvent): void {
    if (told.event !== 'migration ended') return
    const { fields } = told
    this.count++
    const out = 'bytesWan' in fields
    this.add({
      ended: new Date().toISOString(),
      id: fields.id,
      direction: out ? 'out' : 'in',
      peer: cut(fields.peer),
      target: cut(fields.target),
      ...(fields.machine !== undefined && { machine: cut(fields.machine) }),
      ...(fields.uuid !== undefined && { uuid: fields.uuid }),
      outcome: fields.outcome,
      reason: cut(fields.reason),
      seconds: fields.seconds,
      ...(out && fields.pauseSeconds !== undefined && { pauseSeconds: fields.pauseSeconds }),
      bytes: out ? fields.bytesIn : fields.bytesOut,
      ...(out && { bytesWan: fields.bytesWan }),
      ...(fields.sets && { sets: fields.sets.slice(0, HISTORY_SETS_MAX) }),
    })
    if (this.path === undefined || this.isStrange) return
    this.writer.ask()
  }

  private add(migration: PastMigration): void {
    this.lines.push(`${JSON.stringify(migration)}\n`)
    if (this.lines.length > HISTORY_MIGRATIONS_MAX) this.lines.shift()
  }

  private async write(path: string): Promise<void> {
    const part = `${path}.part`
    try {
      await rm(part, { force: true }) // of a process that was killed
      const file = await open(part, 'wx', 0o600)
      try {
        await file.writeFile(this.lines.join(''))
        await file.datasync()
      } finally {
        await file.close()
      }
      await rename(part, path)
    } catch (cause) {
      await rm(part, { force: true }).catch(() => {})
      throw cause
    }
  }

  private read(path: string): void {
    let text: string
    try {
      text = readSmallFile(path, '--history', HISTORY_BYTES_MAX)
    } catch (error) {
      if (!isProxyError(error)) throw error
      if ((error.cause as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') return // the first time
      this.isStrange = true
      this.log.warn('history is not kept', { error: error.what, hint: error.action })
      return
    }
    let damaged = 0
    for (const line of text.split('\n')) {
      if (line === '') continue
      const migration = parse(line)
      if (migration) this.add(migration)
      else damaged++
    }
    if (damaged > 0) this.log.warn('lines of the history are damaged', { file: path, lines: damaged })
  }
}

function cut(text: string): string {
  return text.slice(0, TEXT_LENGTH_MAX)
}

const TEXTS = ['ended', 'id', 'direction', 'peer', 'target', 'outcome', 'reason'] as const
const NUMBERS = ['seconds', 'bytes'] as const

/** @returns undefined where the line is not one of ours */
function parse(line: string): PastMigration | undefined {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null) return undefined
  const fields = value as Record<string, unknown>
  const isWhole =
    TEXTS.every(name => typeof fields[name] === 'string') && NUMBERS.every(name => Number.isFinite(fields[name]))
  return isWhole ? (value as PastMigration) : undefined
}
