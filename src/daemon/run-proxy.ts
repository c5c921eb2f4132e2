/** How a proxy runs as a process: signals, what systemd is told, a look at its certificates now and then. */
import { isProxyError } from '../errors.ts'
import { CredentialsWatch } from './credentials-watch.ts'
import type { Events } from './events.ts'
import { leave } from './leave.ts'
import { Notifier } from './systemd.ts'
import type { EventLog } from './text-log.ts'

/** A process that tells what happens, and its log. */
export interface Teller {
  readonly events: Events
  readonly log: EventLog
}

/** A proxy as its process sees it. */
export interface Runnable {
  start(): Promise<void>
  stop(): Promise<void>
  abort(): Promise<void>
  /** Reads certificates and keys again. @returns whether they are others: sessions are renewed then, else nothing is done */
  reload(): boolean
  /** What should be mended in the credentials, though they work. */
  readonly warnings: readonly string[]
  readonly running: number
  /** Settles once running migrations have finished after `stop`, where `stop` itself does not wait for them. */
  readonly ended?: Promise<void>
}

/** What those who run a proxy ask, from before it listens until it has ended. */
export interface Beside {
  start(): Promise<void>
  close(): Promise<void>
}

/** Where a proxy tells how it is: its `onStatus`, wired to systemd by `runProxy`. */
export interface StatusLine {
  tell: (status: string) => void
}

/**
 * Runs until a signal ends it: SIGTERM and the first SIGINT let running migrations finish, a second SIGINT ends them
 * (their source guests go on), SIGHUP reads certificates and keys again. Tells systemd where it started us.
 *
 * @param reloadSettings what else SIGHUP reads again; throws where the old settings stay
 * @param rehearse before it listens, until the signal says that nothing would come of it; never rejects
 * Behind its end the process ends, whatever a disk does.
 */
export async function runProxy(
  proxy: Runnable,
  { events, log }: Teller,
  status: StatusLine,
  beside: Beside,
  started: () => void,
  reloadSettings: () => void = () => {},
  rehearse: (signal: AbortSignal) => Promise<void> = async () => {},
): Promise<void> {
  const notifier = new Notifier(why => events.warn('systemd is not told', { reason: why }))
  status.tell = text => notifier.status(text)
  const watch = new CredentialsWatch(
    () => proxy.warnings,
    warning => events.warn('credentials', { warning }),
  )
  watch.start()
  let running = false
  const rehearsal = new AbortController()
  let reloadAsked = false
  let asked: NodeJS.Signals | undefined
  let end: () => void
  const ended = new Promise<void>(done => {
    end = done
  })
  const tellStop = (signal: NodeJS.Signals): void => {
    events.info('stopping', { signal, running: proxy.running })
    notifier.stopping(`stopping: ${proxy.running} running`)
  }
  const stop = (signal: NodeJS.Signals): void => {
    asked = signal
    rehearsal.abort()
    if (!running) return // as soon as it runs, or in place of it
    tellStop(signal)
    void proxy
      .stop()
      .then(() => proxy.ended)
      .then(end)
  }
  const onSignal = (signal: NodeJS.Signals): void => {
    if (asked === undefined) stop(signal)
    else if (signal === 'SIGINT') {
      events.warn('ending running migrations: their source guests go on')
      process.exitCode = 130
      void proxy.abort().then(end)
    }
  }
  const reload = (): void => {
    if (!running) {
      reloadAsked = true // they were read before the rehearsal
      return
    }
    notifier.reloading()
    try {
      events.info('certificates and keys read again', { changed: proxy.reload() })
      watch.renew()
    } catch (error) {
      events.error('certificates and keys not read: the old ones stay', reasonOf(error))
    }
    try {
      reloadSettings()
    } catch (error) {
      events.error('settings not read: the old ones stay', reasonOf(error)) // whatever it is: migrations run
    }
    notifier.ready()
  }
  // before anybody can have been told that it runs
  process.on('SIGTERM', onSignal)
  process.on('SIGINT', onSignal)
  process.on('SIGHUP', reload)
  try {
    await beside.start()
    await rehearse(rehearsal.signal) // behind what can fail of the settings, and before anybody may come
    if (!rehearsal.signal.aborted) {
      await proxy.start()
      running = true
    }
  } catch (error) {
    await beside.close()
    await proxy.abort() // what was started before it failed would keep the process alive
    throw error
  }
  if (running) {
    started()
    notifier.ready()
    notifier.startWatchdog()
    if (reloadAsked) reload()
    if (asked !== undefined) stop(asked)
    await ended
  } else {
    if (asked !== undefined) tellStop(asked)
    await proxy.abort()
  }
  await beside.close()
  await notifier.close()
  events.info('stopped')
  await log.settle()
  leave()
}

function reasonOf(error: unknown): { readonly error: string; readonly hint?: string } {
  return isProxyError(error) ? { error: error.what, hint: error.action } : { error: String(error) }
}
