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
  'pair-image':
    'the pair in full, which knows the golden image that guests began as, and one other guest of the same kernel',
  'pair-image-alone':
    'the pair in full, which knows the golden image and the kernel that boots it: of no guest anything',
} as const
export type Method = keyof typeof METHODS

/**
 * How a guest moves with its disk: past the pair, through it with the golden image that the disk began as in both stores,
 * the same held in memory (`--set-memory`), with nothing known, with nothing known and a pool that holds all of the disk;
 * or its memory alone, nothing known, on a disk that both sites share.
 */
export const DISK_CASES = ['direct', 'known', 'held', 'unknown', 'large', 'memory'] as const
export type DiskCase = (typeof DISK_CASES)[number]

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
  /** Of image methods: what a set of each holds, by its name as in GuestDescription.image. */
  readonly images?: readonly { readonly name: string; readonly pages: number; readonly bytes: number }[]
  /** Guests that moved with their disks. */
  readonly disks?: readonly DiskRun[]
  /** What was said of migrations before anybody migrated. */
  readonly estimates?: readonly Told[]
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
  /** What `pair-image` knows of it: the image, a guest of the lab. Not where the lab has no other guest of its kernel. */
  readonly image?: readonly string[]
}

/** `pageferry estimate --rate` of the guest as it is kept, with the sets that `method` has. */
export interface Told {
  readonly guest: string
  readonly profile: string
  readonly method: Method
  /** Of QEMU. */
  readonly bytesIn: number
  /** At each effort that `auto` takes. */
  readonly efforts: readonly { readonly effort: number; readonly wanBytes: number; readonly seconds: number }[]
  readonly directSeconds: number
}

/** Part of a move: a disk that is mirrored, or the memory behind it. */
export interface DiskPart {
  readonly qemuBytes: number
  /** Of packets on the link, both ways. */
  readonly wanBytes: number
  readonly seconds: number
  /** Of the source proxy, and of the destination proxy. */
  readonly cpuSeconds: readonly [number, number]
}

/** One guest that moved with its disk. */
export interface DiskRun {
  readonly guest: string
  readonly profile: string
  readonly disk: DiskCase
  readonly round: number
  readonly outcome: 'completed' | 'failed'
  readonly reason?: string
  /** Until the mirror is ready; none where the disk is shared. */
  readonly mirror?: DiskPart
  readonly memory?: DiskPart
  /** QEMU's, of the memory. */
  readonly downtimeMs: number | null
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
  /** What the source proxy forecast halfway of the first pass, and what that came to; missing where it said nothing. */
  readonly forecast?: {
    readonly atSeconds: number
    readonly seconds: readonly [number, number]
    readonly bytesIn: readonly [number, number]
    readonly bytesWan: readonly [number, number]
    readonly firstPass: { readonly seconds: number; readonly bytesIn: number; readonly bytesWan: number }
    /** The whole of it. */
    readonly ended: { readonly seconds: number; readonly bytesIn: number; readonly bytesWan: number }
  }
}
