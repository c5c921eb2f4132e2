import { setTimeout as sleep } from 'node:timers/promises'

/**
 * Waits for what nobody announces: looks every few milliseconds until there is something to see. Where an event tells,
 * wait for the event. The patience is for a hang, not for a slow machine, on which a proxy takes 15 s to start, and what runs at nice 19 a minute.
 *
 * @param what that is waited for, for the error; a function where it can say more when the time is over
 * @param look gives anything but false, undefined and null once it is there; what it throws ends the waiting
 * @returns what `look` gave
 */
export async function until<T>(
  what: string | (() => string),
  look: () => T | Promise<T>,
  patienceMs = 180_000,
): Promise<Exclude<T, false | undefined | null>> {
  for (const end = performance.now() + patienceMs; ; await sleep(5)) {
    const seen = await look()
    if (seen !== false && seen !== undefined && seen !== null) return seen as Exclude<T, false | undefined | null>
    if (performance.now() > end) throw new Error(`waited in vain for ${typeof what === 'string' ? what : what()}`)
  }
}
