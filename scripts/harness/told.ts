/** What a proxy in a process of its own tells: lines of its JSON log as the events that they are. */
import type { ChildProcess } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { SiteEvent } from '../../src/daemon/events.ts'

/** An event as the log has it. */
export type Told = { [E in SiteEvent as E['event']]: Pick<E, 'event' | 'level' | 'fields'> }[SiteEvent['event']]

const LEVELS = new Map([
  [20, 'debug'],
  [30, 'info'],
  [40, 'warn'],
  [50, 'error'],
])

/** @param line of `--json` */
export function toldIn(line: string): Told {
  const { level, time: _, msg: event, ...fields } = JSON.parse(line) as { level: number; time: string; msg: string }
  return { level: LEVELS.get(level), event, fields } as unknown as Told
}

/** Calls `hears` for each event of a proxy that was started with --json, and hands it the line too. */
export function hear(proxy: ChildProcess, hears: (told: Told, line: string) => void): void {
  createInterface({ input: proxy.stdout! }).on('line', line => hears(toldIn(line), line))
}
