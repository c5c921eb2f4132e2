/** What `pageferry migrate` sets beside what is advised: what it was told to, and what it needs itself. */
import type { Change, QemuSide } from './advice.ts'

/** What the operator said; what is not said stays as it is, or as it is advised. */
export interface MigrationWishes {
  readonly hasDestination: boolean
  /** Mirrors end while the guest stands still. */
  readonly endsMirrors?: boolean
  /** The switch to postcopy will be asked for. */
  readonly postcopy: boolean
  readonly autoConverge: boolean
  /** Percent of the processors' time: at first, more each time, at most. */
  readonly throttleInitial?: number | undefined
  readonly throttleIncrement?: number | undefined
  readonly throttleMax?: number | undefined
  readonly downtimeLimitMs?: number | undefined
  /** Bytes a second of QEMU; 0: no limit. */
  readonly maxBandwidthBytes?: number | undefined
  /** Settings that stay as they are, by name. */
  readonly keep: readonly string[]
}

export type Wish = Change & { readonly why: string }

/** @returns a change of each setting that is wished for, whether it is so already or not */
export function wishesOf(wishes: MigrationWishes): Wish[] {
  const { hasDestination, keep } = wishes
  const found: Wish[] = []
  const capability = (side: QemuSide, name: string, value: boolean, why: string): void => {
    found.push({ side, kind: 'capability', name, value, why })
  }
  const parameter = (name: string, value: number | undefined, option: string): void => {
    if (value !== undefined) found.push({ side: 'source', kind: 'parameter', name, value, why: `${option} says so` })
  }
  if (!keep.includes('events')) capability('source', 'events', true, 'QEMU tells at once how the migration goes')
  if (wishes.endsMirrors) capability('source', 'pause-before-switchover', true, '--mirror needs it')
  else if (!keep.includes('pause-before-switchover'))
    capability('source', 'pause-before-switchover', false, 'nobody would let it go on')
  if (wishes.postcopy) {
    for (const side of hasDestination ? (['source', 'destination'] as const) : (['source'] as const))
      capability(side, 'postcopy-ram', true, '--postcopy-after needs it')
  }
  if (wishes.autoConverge) capability('source', 'auto-converge', true, '--auto-converge says so')
  parameter('cpu-throttle-initial', wishes.throttleInitial, '--throttle-initial')
  parameter('cpu-throttle-increment', wishes.throttleIncrement, '--throttle-increment')
  parameter('max-cpu-throttle', wishes.throttleMax, '--throttle-max')
  parameter('downtime-limit', wishes.downtimeLimitMs, '--downtime-limit')
  parameter('max-bandwidth', wishes.maxBandwidthBytes, '--max-bandwidth')
  return found
}
