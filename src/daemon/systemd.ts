/**
 * What a service owes systemd: sockets passed in (sd_listen_fds(3)), state told back (sd_notify(3)), the watchdog. All
 * of it does nothing where systemd did not start us.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { printable } from '../bytes/printable.ts'
import { ProxyError } from '../errors.ts'

/** The first descriptor that systemd passes: SD_LISTEN_FDS_START. */
const LISTEN_FDS_START = 3

/** More is a mistake in the environment: the kernel's usual hard limit. */
const LISTEN_FDS_MAX = 524288

type Env = Record<string, string | undefined>

/**
 * The listening sockets that systemd passed, by FileDescriptorName=; the `fds` of `ListenOptions`. The variables are
 * removed, so that no child takes the sockets for its own.
 * @param env changed
 * @throws ProxyError USAGE where the variables are ours but make no sense
 */
export function takeListenFds(
  env: Env = process.env,
  pid: number = process.pid,
): ReadonlyMap<string, readonly number[]> {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES } = env
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES', 'LISTEN_PIDFDID']) delete env[name]
  const fds = new Map<string, number[]>()
  // Inherited through a program in between: they were meant for that one, and are closed by now.
  if (LISTEN_PID === undefined || LISTEN_FDS === undefined || Number(LISTEN_PID) !== pid) return fds
  const count = /^\d{1,6}$/.test(LISTEN_FDS) ? Number(LISTEN_FDS) : Number.NaN
  if (!(count <= LISTEN_FDS_MAX)) {
    throw new ProxyError(
      'USAGE',
      `LISTEN_FDS=${LISTEN_FDS} is no count`,
      undefined,
      'it is set by systemd; unset it elsewhere',
    )
  }
  const names = LISTEN_FDNAMES === undefined || LISTEN_FDNAMES === '' ? [] : LISTEN_FDNAMES.split(':')
  for (let i = 0; i < count; i++) {
    const name = names[i] || 'unknown' // sd_listen_fds_with_names says the same
    const known = fds.get(name)
    if (known) known.push(LISTEN_FDS_START + i)
    else fds.set(name, [LISTEN_FDS_START + i])
  }
  return fds
}

/**
 * Reads a message a line, its fields parted by the unit separator, and sends each by systemd-notify. Node opens no
 * datagram socket of the Unix kind. A shell that was forked while we were small, and forks instead of us: a process
 * with gigabytes of templates would stand still while its page tables are copied. `systemctl kill` means all processes
 * of the service, but the helper has to live as long as we do.
 */
const HELPER = `
command -v systemd-notify >/dev/null || exit 127
trap '' HUP INT TERM USR1 USR2
set -f
IFS=$(printf '\\037')
while read -r line; do systemd-notify $line || :; done`

/** A helper that ends is started again, so that no watchdog bites for it; not for ever. */
const HELPER_RESTARTS_MAX = 5

/** STATUS is for people: oftener than this it is only work for systemd. */
const STATUS_INTERVAL_MS = 1000

/** systemd takes longer ones, but `systemctl status` shows one line. */
const STATUS_CHARS_MAX = 400

/** How the service says how it is. Its unit needs `NotifyAccess=all`, because a helper sends the messages. */
export class Notifier {
  /** False where nobody listens: then every method does nothing. */
  readonly enabled: boolean
  /** Milliseconds between two signs of life, half of WatchdogSec=; undefined where none are asked for. */
  readonly watchdogMs: number | undefined
  private helper: ChildProcess | undefined
  private readonly onFailure: (why: string) => void
  /** READY or STOPPING, whichever was last: a new helper says it again, in case it died with the old one. */
  private state: readonly string[] = []
  private statusText = ''
  private statusSent = ''
  private statusTimer: NodeJS.Timeout | undefined
  private watchdogTimer: NodeJS.Timeout | undefined

  /**
   * Takes its variables out of the environment.
   * @param env changed
   * @param onFailure told once, where systemd waits for messages that cannot be sent: it will end the service for that
   */
  constructor(onFailure: (why: string) => void = () => {}, env: Env = process.env, pid: number = process.pid) {
    const { NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID } = env
    for (const name of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) delete env[name]
    this.onFailure = onFailure
    this.enabled = NOTIFY_SOCKET !== undefined && NOTIFY_SOCKET !== ''
    const usec = Number(WATCHDOG_USEC)
    const ours = WATCHDOG_PID === undefined || Number(WATCHDOG_PID) === pid
    if (this.enabled && ours && usec > 0 && Number.isSafeInteger(usec)) this.watchdogMs = Math.max(1, usec / 2000)
    else this.watchdogMs = undefined
    if (NOTIFY_SOCKET !== undefined && this.enabled) {
      this.startHelper({ PATH: env.PATH ?? '/usr/bin:/bin', NOTIFY_SOCKET }, HELPER_RESTARTS_MAX)
    }
  }

  private startHelper(env: NodeJS.ProcessEnv, restarts: number): void {
    const helper = spawn('/bin/sh', ['-c', HELPER], { env, stdio: ['pipe', 'ignore', 'ignore'] })
    this.helper = helper
    const ended = (why: string, again: boolean): void => {
      if (this.helper !== helper) return
      this.helper = undefined
      if (again && restarts > 0) {
        this.startHelper(env, restarts - 1)
        if (this.state.length > 0) this.send(this.state)
      } else this.onFailure(`systemd cannot be told of the state: ${why}`)
    }
    helper.on('error', error => ended(error.message, false))
    helper.on('exit', code => {
      if (code === 127) ended('there is no systemd-notify', false)
      else ended('its helper ended', true)
    })
    helper.stdin?.on('error', () => {}) // the exit tells
    // It must not keep us alive: it ends by itself when we do.
    helper.unref()
    ;(helper.stdin as unknown as { unref?: () => void } | null)?.unref?.()
  }

  /** Serving: sockets are bound, and connections are taken. */
  ready(status?: string): void {
    this.state = ['READY=1']
    this.sendWithStatus(this.state, status)
  }

  /** Reading the configuration anew; {@link ready} says that it is done. */
  reloading(): void {
    // CLOCK_MONOTONIC, which is what hrtime reads; systemd compares it with the time of its own request.
    this.send(['RELOADING=1', `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`])
  }

  /** On the way out: running migrations are finished. */
  stopping(status?: string): void {
    this.state = ['STOPPING=1']
    this.sendWithStatus(this.state, status)
  }

  /** A line for `systemctl status`. May be called at any rate: the last one is sent, once a second. */
  status(text: string): void {
    if (!this.enabled) return
    this.statusText = text.slice(0, STATUS_CHARS_MAX)
    if (this.statusTimer) return
    this.flushStatus()
    this.statusTimer = setTimeout(() => {
      this.statusTimer = undefined
      if (this.statusText !== this.statusSent) this.status(this.statusText)
    }, STATUS_INTERVAL_MS)
    this.statusTimer.unref()
  }

  /**
   * Gives signs of life at half the interval that systemd allows, as long as the event loop turns and `isAlive` says
   * so. Does nothing where the unit has no WatchdogSec=.
   */
  startWatchdog(isAlive: () => boolean = () => true): void {
    if (this.watchdogMs === undefined || this.watchdogTimer) return
    const beat = (): void => {
      if (isAlive()) this.send(['WATCHDOG=1'])
    }
    beat()
    this.watchdogTimer = setInterval(beat, this.watchdogMs)
    this.watchdogTimer.unref()
  }

  /** Sends what is pending and lets the helper go; resolves when it has sent all, or after `patienceMs`. */
  async close(patienceMs = 2000): Promise<void> {
    clearTimeout(this.statusTimer)
    clearInterval(this.watchdogTimer)
    const helper = this.helper
    if (!helper) return
    if (this.statusText !== this.statusSent) this.flushStatus()
    this.helper = undefined
    await new Promise<void>(resolve => {
      const timer = setTimeout(resolve, patienceMs)
      helper.ref()
      helper.once('exit', () => {
        clearTimeout(timer)
        resolve()
      })
      helper.stdin?.end()
    })
    helper.unref()
  }

  private flushStatus(): void {
    this.send([`STATUS=${this.statusText}`])
    this.statusSent = this.statusText
  }

  private sendWithStatus(fields: readonly string[], status: string | undefined): void {
    if (status === undefined) this.send(fields)
    else {
      this.statusText = status.slice(0, STATUS_CHARS_MAX)
      this.statusSent = this.statusText
      this.send([...fields, `STATUS=${this.statusText}`])
    }
  }

  /** One message of systemd: its fields are taken together. */
  private send(fields: readonly string[]): void {
    // escaped, a field ends neither the line nor itself
    const line = fields.map(printable).join('\x1f')
    this.helper?.stdin?.write(`${line}\n`)
  }
}
