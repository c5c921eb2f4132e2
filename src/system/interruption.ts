/** Ctrl-C, and what else asks a command to end before its work is done. */
import { constants } from 'node:os'
import { ProxyError } from '../errors.ts'

/** How long what was interrupted may take to clear up: a write to a pipe that nobody reads never ends. */
const CLEAR_UP_MS = 2000
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Takes signals from when it is made until {@link end}. */
export class Interruption {
  private readonly stop = new AbortController()
  private readonly atLast: () => void
  private readonly hint: string
  private came: NodeJS.Signals | undefined

  /**
   * @param atLast what has to be done at once where clearing up took too long: the process ends right after it
   * @param hint what is left, for people
   */
  constructor(atLast: () => void, hint: string) {
    this.atLast = atLast
    this.hint = hint
    for (const name of SIGNALS) process.on(name, this.interrupt)
  }

  /** Aborts when a signal comes, with a ProxyError as reason. */
  get signal(): AbortSignal {
    return this.stop.signal
  }

  /** With what the process ends where a signal came: 128 and its number, as a shell says it. */
  get status(): number | undefined {
    return this.came && 128 + constants.signals[this.came]
  }

  /** The work is over: signals do again what they do by themselves. */
  end(): void {
    for (const name of SIGNALS) process.off(name, this.interrupt)
  }

  private readonly interrupt = (signal: NodeJS.Signals): void => {
    this.came = signal
    this.end()
    this.stop.abort(new ProxyError('IO', 'interrupted', undefined, this.hint))
    setTimeout(() => {
      this.atLast()
      process.kill(process.pid, signal) // now by the system's own rule
    }, CLEAR_UP_MS).unref()
  }
}
