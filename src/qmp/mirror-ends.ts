/** Mirrors of a guest's disks that end while it stands still: which are wanted, and what became of them. Pure. */
import { ProxyError } from '../errors.ts'

/** What a QEMU says by itself. */
export interface QemuEvent {
  readonly event: string
  readonly data: Readonly<Record<string, unknown>>
}

/** A block job, as far as it is looked at. */
export interface BlockJob {
  readonly name: string
  readonly isMirror: boolean
  readonly isReady: boolean
}

/** What query-block-jobs returned. @throws ProxyError IO where it is no answer of QEMU's */
export function jobsOf(answer: unknown): BlockJob[] {
  if (!Array.isArray(answer)) throw notAnAnswer()
  return answer.map((job: unknown) => {
    if (typeof job !== 'object' || job === null) throw notAnAnswer()
    const { device, type, ready } = job as Record<string, unknown>
    return { name: String(device), isMirror: type === 'mirror', isReady: ready === true }
  })
}

function notAnAnswer(): ProxyError {
  return new ProxyError('IO', 'query-block-jobs: no list of jobs', undefined, 'is that socket a QMP of QEMU?')
}

export class MirrorEnds {
  /** Block jobs, as QEMU calls them. */
  readonly names: readonly string[]
  /** They are still to be ended. */
  areDue: boolean
  /** By name: how it ended, '' where well. */
  private readonly ends = new Map<string, string>()

  constructor(names: readonly string[]) {
    this.names = names
    this.areDue = names.length > 0
  }

  get any(): boolean {
    return this.names.length > 0
  }

  /** Whether the guest has lost one. */
  get haveBegunToEnd(): boolean {
    return this.ends.size > 0
  }

  /** What of them is not there or not in sync; undefined: nothing. */
  missing(jobs: readonly BlockJob[]): string | undefined {
    for (const name of this.names) {
      const job = jobs.find(one => one.name === name)
      if (job === undefined) return `the source QEMU has no block job ${JSON.stringify(name)}`
      if (!job.isMirror) return `the block job ${name} of the source QEMU is no mirror`
      if (!job.isReady) return `the mirror ${name} of the source QEMU is not ready`
    }
    return undefined
  }

  /** Mirrors that nobody wants to end. */
  others(jobs: readonly BlockJob[]): readonly BlockJob[] {
    return jobs.filter(({ name, isMirror }) => isMirror && !this.names.includes(name))
  }

  /** An event of the source QEMU: says how a job ended, before the list of jobs lacks it. */
  hear({ event, data }: QemuEvent): void {
    if (event !== 'BLOCK_JOB_COMPLETED' && event !== 'BLOCK_JOB_CANCELLED') return
    const { device, error } = data
    if (typeof device !== 'string' || !this.names.includes(device)) return
    const isWell = event === 'BLOCK_JOB_COMPLETED' && error === undefined
    this.ends.set(device, isWell ? '' : String(error ?? 'it was cancelled by force'))
  }

  haveEnded(jobs: readonly BlockJob[]): boolean {
    return !jobs.some(({ name }) => this.names.includes(name))
  }

  /** What went wrong with those that have ended; undefined: nothing. */
  get failed(): string | undefined {
    for (const name of this.names) {
      const end = this.ends.get(name) ?? 'QEMU did not say how'
      if (end !== '') return `the mirror ${name} did not end in sync: ${end}`
    }
    return undefined
  }
}
