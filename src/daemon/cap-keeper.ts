/**
 * The cap in force on what goes to a peer: what a schedule says, or what was said over the control socket, until the
 * schedule's next change. By the clock that people set: it is looked at once a minute, whatever it was set to meanwhile.
 */
import type { CapChange, RateSchedule } from '../rate-schedule.ts'

/** A clock that was put forward or back counts within so long. */
const LOOK_MS = 60_000

/** Why a cap is what it is. */
export interface CapStatus {
  /** `settings`: no time was said of it; `command`: `pageferry rate`. */
  readonly by: 'settings' | 'schedule' | 'command'
  /** The entry of the schedule that counts. */
  readonly entry?: string
  /** When another cap counts, and which, bytes a second. */
  readonly until?: string
  readonly next?: number | 'none'
}

/** A cap that counts from now on. */
export interface CapTold extends Pick<CapStatus, 'by' | 'until'> {
  readonly bytesPerSecond: number | 'none'
}

export interface CapKeeperOptions {
  readonly schedule: RateSchedule
  /** @param bytesPerSecond Infinity: no cap */
  readonly apply: (bytesPerSecond: number) => void
  readonly tell: (told: CapTold) => void
}

export class CapKeeper {
  private readonly options: CapKeeperOptions
  private schedule: RateSchedule
  /** Said by command; Infinity: until something else is said. */
  private said: { readonly bytesPerSecond: number; readonly untilMs: number } | undefined
  /** The schedule's next change, as it was seen last. */
  private next: CapChange | undefined
  private seenMs = 0
  private inForce: number
  private timer: NodeJS.Timeout | undefined

  constructor(options: CapKeeperOptions) {
    this.options = options
    this.schedule = options.schedule
    const nowMs = Date.now()
    this.foresee(nowMs)
    this.inForce = this.schedule.at(nowMs).bytesPerSecond
  }

  /** Bytes a second, Infinity: no cap. */
  get bytesPerSecond(): number {
    return this.inForce
  }

  /** From now on the schedule is followed as time passes. */
  start(): void {
    this.look()
  }

  stop(): void {
    clearTimeout(this.timer)
  }

  /** Settings were read again: what was said by command is over. Told where that makes a difference now. */
  renew(schedule: RateSchedule): void {
    const before = this.told
    this.schedule = schedule
    this.foresee(Date.now())
    this.said = undefined
    this.look()
    const { told } = this
    const isSame = Object.keys({ ...before, ...told }).every(
      key => before[key as keyof CapTold] === told[key as keyof CapTold],
    )
    if (!isSame) this.tell()
  }

  /** Another cap until the schedule's next change; where there is none, until something else is said. */
  say(bytesPerSecond: number): void {
    this.foresee(Date.now())
    this.said = { bytesPerSecond, untilMs: this.next?.atMs ?? Number.POSITIVE_INFINITY }
    this.look()
    this.tell()
  }

  /** What the settings say counts again. */
  follow(): void {
    this.said = undefined
    this.look()
    this.tell()
  }

  status(): CapStatus {
    const { said, schedule, next } = this
    const { text } = schedule.at(Date.now())
    const by = said ? 'command' : text === '' ? 'settings' : 'schedule'
    return {
      by,
      ...(by === 'schedule' && { entry: text }),
      ...(next && { until: new Date(next.atMs).toISOString(), next: orNone(next.bytesPerSecond) }),
    }
  }

  private foresee(nowMs: number): void {
    this.next = this.schedule.nextChange(nowMs)
    this.seenMs = nowMs
  }

  /** What counts now is applied, and told where time alone has changed it. */
  private look(): void {
    clearTimeout(this.timer)
    const nowMs = Date.now()
    // over, or the clock was put back
    if (this.next && (nowMs >= this.next.atMs || nowMs < this.seenMs)) this.foresee(nowMs)
    if (this.said && nowMs >= this.said.untilMs) this.said = undefined
    const bytesPerSecond = this.said?.bytesPerSecond ?? this.schedule.at(nowMs).bytesPerSecond
    if (bytesPerSecond !== this.inForce) {
      this.inForce = bytesPerSecond
      this.options.apply(bytesPerSecond)
    }
    if (this.next) this.timer = setTimeout(() => this.tick(), Math.min(this.next.atMs - nowMs, LOOK_MS)).unref()
  }

  private tick(): void {
    const before = this.inForce
    this.look()
    if (this.inForce !== before) this.tell()
  }

  private tell(): void {
    this.options.tell(this.told)
  }

  private get told(): CapTold {
    const { by, until } = this.status()
    return { bytesPerSecond: orNone(this.inForce), by, ...(until !== undefined && { until }) }
  }
}

function orNone(bytesPerSecond: number): number | 'none' {
  return Number.isFinite(bytesPerSecond) ? bytesPerSecond : 'none'
}
