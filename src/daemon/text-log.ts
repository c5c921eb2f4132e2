/** The log of the proxies on a terminal or in a journal: JSON by pino where it is asked for, else a line of text. */
import pino from 'pino'
import type { Log } from './log.ts'

const LEVELS = { info: '', warn: 'warning: ', error: 'error: ' } as const

/** @param json one JSON object a line, for collectors */
export function makeLog(json: boolean): Log {
  if (json) {
    const logger = pino(
      { base: null, timestamp: pino.stdTimeFunctions.isoTime },
      pino.destination({ fd: 1, sync: true }),
    )
    return {
      info: (event, fields) => logger.info(fields ?? {}, event),
      warn: (event, fields) => logger.warn(fields ?? {}, event),
      error: (event, fields) => logger.error(fields ?? {}, event),
    }
  }
  const line =
    (level: keyof typeof LEVELS) =>
    (event: string, fields: object = {}): void => {
      const rest = Object.entries(fields)
        .filter(([, value]) => value !== undefined)
        .map(([key, value]) => ` ${key}=${show(value)}`)
        .join('')
      process.stdout.write(`${new Date().toISOString()} ${LEVELS[level]}${event}${rest}\n`)
    }
  return { info: line('info'), warn: line('warn'), error: line('error') }
}

function show(value: unknown): string {
  if (typeof value === 'string') return /^[\w./:@+-]*$/.test(value) && value !== '' ? value : JSON.stringify(value)
  return JSON.stringify(value)
}
