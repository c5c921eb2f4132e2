/** The log of the proxies on a terminal, in a journal or a file: a line of text, or of JSON where that is asked for. */
import { fstatSync } from 'node:fs'
import { printable } from '../bytes/printable.ts'
import { PEER_LINES_PER_MINUTE, PEER_OUTCOMES_PER_MINUTE, QEMU_OUTCOMES_PER_MINUTE } from '../limits.ts'
import type { Level } from '../log.ts'
import { QEMUS, type SiteEvent } from './events.ts'
import { LineBudget } from './line-budget.ts'
import { LineWriter } from './line-writer.ts'

const PREFIX: Readonly<Record<Level, string>> = { debug: '', info: '', warn: 'warning: ', error: 'error: ' }

/** As collectors know them from bunyan and pino. */
const NUMBER: Readonly<Record<Level, number>> = { debug: 20, info: 30, warn: 40, error: 50 }

/** As the journal sorts them: sd-daemon(3). It takes them off again, so JSON stays JSON. */
const PRIORITY: Readonly<Record<Level, string>> = { debug: '<7>', info: '<6>', warn: '<4>', error: '<3>' }

export const LEVELS = ['debug', 'info', 'warn', 'error'] as const satisfies readonly Level[]

/** How long the end of a proxy waits for a log that is slow. */
const SETTLE_MS = 1000

/** What people read in place of an event's name and fields. */
export interface Sentence {
  readonly text: string
  readonly fields: object
}

/** The log of this process: one event is one line, whatever outside text stands in it, and nothing waits for its reader. */
export class EventLog {
  private readonly json: boolean
  private readonly least: number
  private readonly priority: (level: Level) => string
  private readonly sentenceOf: (event: SiteEvent) => Sentence | undefined
  private readonly writer: LineWriter
  /** How migrations ended is apart: what alerting waits for is not pushed out by noise. */
  private readonly outcomes = new LineBudget((cause, lines) => this.tellLeftOut(`${cause}, outcomes`, lines))
  private readonly others = new LineBudget((cause, lines) => this.tellLeftOut(cause, lines))

  /**
   * @param json one JSON object a line, for collectors
   * @param sentenceOf how people read an event, where its name and fields are not all
   * @param fd where to
   * @param level what is less is left out
   * @param isJournal `fd` is read by journald
   */
  constructor(
    json: boolean,
    sentenceOf: (event: SiteEvent) => Sentence | undefined = () => undefined,
    fd = 1,
    level: Level = 'info',
    isJournal = isReadByJournal(fd),
  ) {
    this.json = json
    this.least = NUMBER[level]
    this.priority = isJournal ? level => PRIORITY[level] : () => ''
    this.sentenceOf = sentenceOf
    this.writer = new LineWriter(fd, lines =>
      this.format('warn', 'log lines were lost: they could not be written', { lines }),
    )
    process.once('exit', () => this.writer.finish())
  }

  /** Writes an event, unless its cause has had its lines. */
  readonly take = (told: SiteEvent): void => {
    if (NUMBER[told.level] < this.least) return
    if (told.cause !== undefined && !this.hasRoom(told.event, told.cause)) return
    const sentence = this.json ? undefined : this.sentenceOf(told)
    this.write(told.level, sentence?.text ?? told.event, sentence?.fields ?? told.fields)
  }

  /** Resolves when all lines are written, or it has been waited for long enough. */
  settle(patienceMs = SETTLE_MS): Promise<void> {
    return this.writer.settle(patienceMs)
  }

  private hasRoom(event: string, cause: string): boolean {
    if (event !== 'migration ended') return this.others.takes(cause, PEER_LINES_PER_MINUTE - PEER_OUTCOMES_PER_MINUTE)
    return this.outcomes.takes(cause, cause === QEMUS ? QEMU_OUTCOMES_PER_MINUTE : PEER_OUTCOMES_PER_MINUTE)
  }

  private tellLeftOut(cause: string, lines: number): void {
    this.write('warn', 'lines left out: too many in a minute', { cause, lines })
  }

  private write(level: Level, event: string, fields: object): void {
    this.writer.write(this.format(level, event, fields))
  }

  private format(level: Level, event: string, fields: object): string {
    return this.priority(level) + (this.json ? jsonLine(level, event, fields) : textLine(level, event, fields))
  }
}

/** Whether a descriptor is the one that systemd connected to the journal: JOURNAL_STREAM of systemd.exec(5). */
function isReadByJournal(fd: number): boolean {
  const { JOURNAL_STREAM } = process.env
  if (JOURNAL_STREAM === undefined) return false
  try {
    const { dev, ino } = fstatSync(fd)
    return JOURNAL_STREAM === `${dev}:${ino}`
  } catch {
    return false
  }
}

function textLine(level: Level, event: string, fields: object): string {
  const rest = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => ` ${key}=${show(value)}`)
    .join('')
  return `${printable(`${new Date().toISOString()} ${PREFIX[level]}${event}${rest}`)}\n`
}

function jsonLine(level: Level, event: string, fields: object): string {
  const time = new Date().toISOString()
  return `${printable(inJson({ level: NUMBER[level], time, ...fields, msg: event }))}\n`
}

function show(value: unknown): string {
  if (typeof value === 'string' && /^[\w./:@+-]+$/.test(value)) return value
  return inJson(value)
}

/** JSON of anything: a value that has none must not end a migration. */
function inJson(value: unknown): string {
  try {
    return JSON.stringify(value) ?? 'null'
  } catch (error) {
    return JSON.stringify(`cannot be written: ${(error as Error).message}`)
  }
}
