/**
 * What a comparison of ways to migrate measured: written by compare.ts, read by the report. One JSON file, kept below
 * .cache/compare; the report's own copy of it travels inside the HTML page.
 */

/** How the bytes went. */
export const METHODS = {
  direct: 'QEMU alone',
  xbzrle: 'QEMU with XBZRLE',
  'multifd-zstd': 'QEMU with multifd (4 channels) and zstd',
  'auto-converge': 'QEMU with auto-converge',
  'zstd-pipe': 'a pipe through zstd -3 --long=31 --patch-from=TEMPLATES',
  wanproxy: 'WANProxy',
  paper: "the pair, template pages by count and exact matches only (the paper's method)",
  pair: 'the pair in full, defaults',
} as const
export type Method = keyof typeof METHODS

export interface Results {
  readonly format: 1
  /** ISO 8601, UTC. */
  readonly startedAt: string
  readonly commit: string
  /** What to type to get such a file again. */
  readonly command: string
  readonly machine: {
    readonly cpu: string
    readonly cores: number
    readonly memoryBytes: number
    readonly kernel: string
    /** 'tcg' or 'kvm', as probed by booting. */
    readonly accelerator: string
    /** 1-minute load average when the comparison began. */
    readonly loadAverage: number
  }
  /** Program to version: qemu, node, zstd, pageferry. */
  readonly versions: Readonly<Record<string, string>>
  readonly profiles: readonly Profile[]
  readonly guests: readonly GuestDescription[]
  /** The template set of the pair and of zstd-pipe. Never from the guest that is migrated. */
  readonly templates: { readonly from: readonly string[]; readonly pages: number; readonly bytes: number }
  /** What was left out, and why: methods, profiles, guests. */
  readonly skipped: readonly { readonly what: string; readonly reason: string }[]
  readonly runs: readonly Run[]
}

export interface Profile {
  readonly name: string
  /** As parseLink() of scripts/harness/wan/link.ts takes it. */
  readonly link: string
  readonly kind: 'netem' | 'tap' | 'veth' | 'relay'
  /** What the link really delivered, measured before the first run over it. */
  readonly measured: { readonly bitsPerSecond: number; readonly roundTripMs: number }
}

export interface GuestDescription {
  readonly name: string
  readonly workload: string
  readonly memoryBytes: number
  /** Guests of the lab that this guest's template set was made of. */
  readonly templates?: readonly string[]
}

/** One migration. */
export interface Run {
  readonly guest: string
  readonly profile: string
  readonly method: Method
  /** From 0: all methods run once, then all a second time, and so on. */
  readonly round: number
  readonly outcome: 'completed' | 'did-not-converge' | 'failed'
  /** Why, where it did not complete. */
  readonly reason?: string
  /** From the migrate command to the destination's RESUME, wall clock. */
  readonly totalMs: number
  /** QEMU's own figure; null where it has none. */
  readonly downtimeMs: number | null
  /** The longest silence in the guest's heartbeat around the switch, by the host's clock; null where it has no heartbeat. */
  readonly guestPauseMs: number | null
  /** Bytes of packets on the link, headers included, both directions: forward (to the destination) and back. */
  readonly wanBytes: { readonly forward: number; readonly back: number }
  /** query-migrate ram.dirty-sync-count. */
  readonly passes: number | null
  /** query-migrate ram.transferred. */
  readonly qemuBytes: number | null
  /** User and system CPU time of every process that takes part, without the guests' vCPUs, by part: 'source qemu', 'destination qemu', 'source proxy', 'destination proxy', 'zstd'. */
  readonly cpuSeconds: Readonly<Record<string, number>>
  /** Work that the guest did a second while it migrated, as a part of what it did before; null where it is not known. */
  readonly guestSpeed: number | null
  /** query-migrate, about four times a second. */
  readonly progress: readonly {
    readonly ms: number
    readonly pass: number
    readonly remainingBytes: number
    readonly transferredBytes: number
    /** On the link so far, forward. */
    readonly wanBytes: number
  }[]
  /** Where `progress` was thinned out: the last sample of each pass, eight at most, and whether there were more. */
  readonly passEnds?: {
    readonly samples: readonly { readonly ms: number; readonly remainingBytes: number }[]
    readonly more: boolean
  }
  /** The pair's own account: class of bytes (as `pageferry estimate` names them) to pages and bytes of QEMU's stream; null for other methods. */
  readonly classes: Readonly<Record<string, { readonly pages: number; readonly bytes: number }>> | null
}
