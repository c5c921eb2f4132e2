/** The log of the proxies on a terminal, in a journal or a file: a line of text, or of JSON where that is asked for. */
import { printable } from '../bytes/printable.ts'
import { LineWriter } from './line-writer.ts'
import type { Log } from './log.ts'

type Level = keyof Log

const PREFIX: Readonly<Record<Level, string>> = { info: '', warn: 'warning: ', error: 'error: ' }

/** As collectors know them from bunyan and pino. */
const NUMBER: Readonly<Record<Level, number>> = { info: 30, warn: 40, error: 50 }

/** How long the end of a proxy waits for a log that is slow. */
const SETTLE_MS = 1000

/** A log, and how it ends. */
export interface ProcessLog extends Log {
  /** Resolves when all lines are written, or it has been waited for long enough. */
  settle(): Promise<void>
}

/**
 * The log of this process: one event is one line, whatever outside text stands in it, and nothing waits for its reader.
 * @param json one JSON object a line, for collectors
 * @param fd where to
 */
export function makeLog(json: boolean, fd = 1): ProcessLog {
  const format = json ? jsonLine : textLine
  const writer = new LineWriter(fd, lines =>
    format('warn', 'log lines were lost: they could not be written', { lines }),
  )
  process.once('exit', () => writer.finish())
  const line =
    (level: Level) =>
    (event: string, fields: object = {}): void =>
      writer.write(format(level, event, fields))
  return { info: line('info'), warn: line('warn'), error: line('error'), settle: () => writer.settle(SETTLE_MS) }
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
