// The guests of the lab: what each runs, on which kernel and QEMU, and which streams are captured from it.

/** One stream captured from a guest. */
export interface Capture {
  /** File name without `.stream`, and key in the manifest. */
  readonly stream: string
  /** Seconds that the load runs before the migration starts (after the one before it, for a second capture). */
  readonly settleSeconds: number
  /** True: at the limited rate, so that a busy guest is sent in several iterations. False: as fast as it goes. */
  readonly limited: boolean
}

/** One boot of a guest, and its captures in order: the same running guest gives all of them. */
export interface Guest {
  readonly name: string
  /** What `/opt/lab/workload` inside the guest runs. */
  readonly workload: 'idle' | 'nginx' | 'redis' | 'compiling' | 'postgres' | 'python' | 'large'
  /** Which of the two kernel builds of the base image. */
  readonly kernel: 'k1' | 'k2'
  /**
   * 'system': the QEMU of this machine; 10: the one of scripts/fetch-qemu10.sh. Limited captures need 10: QEMU before 9.0
   * loses the dirty pages of a running guest under TCG, so that its dirty rounds are not what they are on real hardware.
   */
  readonly qemu: 'system' | 10
  readonly captures: readonly Capture[]
  /** Where it is not that of all guests. */
  readonly memoryMb?: number
  /** Captured where it is named, and not with all others. */
  readonly onlyNamed?: boolean
}

const full = (stream: string, settleSeconds = 45): Capture => ({ stream, settleSeconds, limited: false })
const limited = (stream: string, settleSeconds = 45): Capture => ({ stream, settleSeconds, limited: true })

/** In the order of usefulness: an interrupted run has the most wanted streams. */
export const guests: readonly Guest[] = [
  { name: 'idle', workload: 'idle', kernel: 'k1', qemu: 'system', captures: [full('idle')] },
  { name: 'nginx', workload: 'nginx', kernel: 'k1', qemu: 'system', captures: [full('nginx')] },
  { name: 'redis', workload: 'redis', kernel: 'k1', qemu: 'system', captures: [full('redis')] },
  { name: 'compiling', workload: 'compiling', kernel: 'k1', qemu: 'system', captures: [full('compiling')] },
  {
    name: 'nginx-k2',
    workload: 'nginx',
    kernel: 'k2',
    qemu: 'system',
    captures: [full('nginx-k2'), full('nginx-k2-again', 60)],
  },
  { name: 'nginx-k2-limited', workload: 'nginx', kernel: 'k2', qemu: 10, captures: [limited('nginx-k2-limited')] },
  { name: 'postgres', workload: 'postgres', kernel: 'k1', qemu: 'system', captures: [full('postgres')] },
  { name: 'postgres-limited', workload: 'postgres', kernel: 'k1', qemu: 10, captures: [limited('postgres-limited')] },
  { name: 'python', workload: 'python', kernel: 'k1', qemu: 'system', captures: [full('python')] },
  { name: 'nginx-q10', workload: 'nginx', kernel: 'k1', qemu: 10, captures: [full('nginx-q10')] },
  {
    name: 'large',
    workload: 'large',
    kernel: 'k1',
    qemu: 'system',
    captures: [full('large', 5)],
    memoryMb: 4096,
    onlyNamed: true,
  },
]
