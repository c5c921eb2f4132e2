/** What benches of the pair's own cost write, for docs/measured and the report. */
import type { Provenance } from './provenance.ts'

/** CPU seconds of a process, and of its busiest thread. */
export interface ProcessCost {
  readonly cpu: number
  readonly busiest: number
}

/** A guest's stream moved in one way: medians. */
export interface RawWay {
  /** direct, relay (the plainest pair that Node and TLS allow), or pair */
  readonly what: string
  readonly effort: string
  readonly program: string
  readonly seconds: number
  readonly secondsMin: number
  readonly secondsMax: number
  /** None without a pair. */
  readonly source: ProcessCost | undefined
  readonly destination: ProcessCost | undefined
}

/** test/bench/raw-bench.ts: a link that takes as much as the pair makes. */
export interface RawLink extends Provenance {
  readonly link: string
  readonly guests: readonly {
    readonly guest: string
    readonly bytes: number
    readonly rounds: number
    readonly ways: readonly RawWay[]
  }[]
}

/** test/bench/first-migration-bench.ts: migrations through a pair that has just started, one behind the other. */
export interface FirstMigration extends Provenance {
  readonly stream: string
  readonly bytes: number
  readonly link: string
  readonly rounds: number
  readonly variants: readonly {
    readonly effort: string
    readonly program: string
    readonly startCpuSeconds: number
    readonly residentBytes: number
    readonly migrations: readonly {
      readonly seconds: number
      readonly sourceCpuSeconds: number
      readonly destinationCpuSeconds: number
    }[]
    /** The first by the last, median of the rounds' own ratios. */
    readonly firstToLast: { readonly seconds: number; readonly cpuSeconds: number }
  }[]
}

/** scripts/measure/threads.ts: medians. */
export interface Threads extends Provenance {
  readonly rounds: number
  readonly cases: readonly {
    readonly stream: string
    readonly rawBytes: number
    readonly effort: number
    readonly threads: number
    readonly bytes: number
    readonly encodeSeconds: number
    readonly decodeSeconds: number
  }[]
}

/** test/daemon/pair-bench.ts: streams of which so much per cent matches, through a warm pair; medians. */
export interface Passage extends Provenance {
  /** What the proxies were connected by. */
  readonly over: string
  readonly rows: readonly {
    readonly match: number
    readonly effort: string
    readonly security: string
    readonly program: string
    readonly rounds: number
    readonly megabytesPerSecond: number
    readonly megabytesPerSecondMin: number
    readonly megabytesPerSecondMax: number
    readonly megabytesPerSourceCpuSecond: number
    readonly megabytesPerDestinationCpuSecond: number
  }[]
}
