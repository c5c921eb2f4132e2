/** Ctrl-C, and what else asks a command to end, for one that is asked once and then does not simply end. */
import { constants } from 'node:os'

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Counts signals from when it is made until {@link end}; none of them ends the process. */
export class SignalCount {
  /** How many came. */
  count = 0
  /** Called with each. */
  onSignal: () => void = () => {}
  private last: NodeJS.Signals | undefined

  constructor() {
    for (const name of SIGNALS) process.on(name, this.came)
  }

  /** With what a process ends that was ended by the last of them: 128 and its number, as a shell says it. */
  get status(): number | undefined {
    return this.last && 128 + constants.signals[this.last]
  }

  /** Signals do again what they do by themselves. */
  end(): void {
    for (const name of SIGNALS) process.off(name, this.came)
  }

  private readonly came = (signal: NodeJS.Signals): void => {
    this.last = signal
    this.count++
    this.onSignal()
  }
}
