/** How a layer tells what happens: events by name, each with plain fields of its own. Who listens is decided above. */

/**
 * What an event is to who runs the proxy: nothing to do, to be looked at, lost. And what another event says as well, with
 * less detail: `debug`.
 */
export type Level = 'debug' | 'info' | 'warn' | 'error'

/** A name and its fields, as arguments. `E` maps names to fields; an event whose fields are all optional needs none. */
export type Told<E> = {
  [K in keyof E]: Record<never, never> extends E[K] ? [event: K, fields?: E[K]] : [event: K, fields: E[K]]
}[keyof E]

/** Where a layer tells its events. Names are stable: tests, metrics and scripts compare them. Never one a page or batch. */
export interface Log<E> {
  info(...told: Told<E>): void
  warn(...told: Told<E>): void
  error(...told: Told<E>): void
}

/** Of a layer that tells what is said above it, too. */
export interface DetailLog<E> extends Log<E> {
  debug(...told: Told<E>): void
}
