/**
 * Results that nobody measured, for report.test.ts: every figure follows from the formulas below. They have what
 * reports must cope with: a guest that does not converge, one of random memory, failures, something left out, a method
 * that tells no downtime.
 */
import { deflateSync } from 'node:zlib'
import type { DiskRun, Method, Results, Run } from '../../scripts/measure/compare/results.ts'
import type { FirstMigration, Passage, RawLink, RawWay, Threads } from '../../scripts/measure/cost-files.ts'
import type { Ladder } from '../../scripts/measure/ladder.ts'
import { PAGE_CLASSES, type PageClass, type PageMap } from '../../scripts/measure/page-map-file.ts'
import type { Scaling } from '../../scripts/measure/scaling.ts'

const GUESTS = [
  { name: 'nginx', workload: 'nginx under wrk', memoryBytes: 768 << 20 },
  { name: 'postgres', workload: 'PostgreSQL under pgbench', memoryBytes: 768 << 20 },
  { name: 'never-converging', workload: 'a table that changes faster than the link', memoryBytes: 768 << 20 },
  { name: 'random', workload: '320 MB of random data', memoryBytes: 768 << 20 },
] as const

/** Of the direct migration: bytes, time. */
const FACTORS: Readonly<Partial<Record<Method, readonly [bytes: number, time: number]>>> = {
  direct: [1, 1],
  xbzrle: [0.99, 0.98],
  'multifd-zstd': [0.3, 0.3],
  'zstd-pipe': [0.12, 0.25],
  paper: [0.5, 0.6],
  pair: [0.08, 0.1],
  'pair-image': [0.03, 0.06],
}

const PROFILES = [
  { name: 'wan', link: '100Mbit,40ms', kind: 'tap', measured: { bitsPerSecond: 94_100_000, roundTripMs: 40.6 } },
  { name: 'lan', link: '10Gbit,0.1ms', kind: 'veth', measured: { bitsPerSecond: 8_800_000_000, roundTripMs: 0.1 } },
] as const

/** Direct: 200 MB in 20 s on the WAN for nginx, half as much again for postgres. Round 1 takes 10 % longer than round 0. */
function runOf(guest: string, profile: string, method: Method, round: number): Run {
  const [bytes, time] = FACTORS[method]!
  const size = guest === 'nginx' ? 1 : 1.5
  const wan = profile === 'wan'
  // through the pair a LAN is slower than without: the mark is missed
  const totalMs = wan ? 20_000 * time * size : method === 'pair' ? 1200 : 1000
  const never = guest === 'never-converging' && wan && !['pair', 'pair-image', 'multifd-zstd'].includes(method)
  const failed = guest === 'random' && method === 'zstd-pipe'
  const wholeMs = totalMs * (1 + round / 10)
  const forward = 200e6 * size * (guest === 'random' ? 1 : bytes)
  return {
    guest,
    profile,
    method,
    round,
    outcome: never ? 'did-not-converge' : failed ? 'failed' : 'completed',
    ...(never ? { reason: 'given up after 60 s' } : failed ? { reason: 'the <pipe> broke & ended' } : {}),
    totalMs: wholeMs,
    downtimeMs: method === 'zstd-pipe' ? null : method === 'pair' ? 90 : 138,
    guestPauseMs: method === 'pair' ? 120 : 170,
    wanBytes: { forward, back: 1e6 * (forward / 200e6) },
    passes: 4,
    qemuBytes: 190e6,
    cpuSeconds: {
      'source qemu': 1.5,
      'destination qemu': 1,
      ...(method === 'pair' ? { 'source proxy': 2, 'destination proxy': 1 } : {}),
    },
    guestSpeed: 0.9,
    progress: Array.from({ length: 80 }, (_, i) => ({
      ms: (wholeMs * (i + 1)) / 80,
      pass: 1 + Math.floor(i / 20),
      remainingBytes: (200e6 * (20 - (i % 20))) / 20 / (1 + Math.floor(i / 20)),
      transferredBytes: (200e6 * i) / 80,
      wanBytes: (forward * i) / 80,
    })),
    classes:
      method === 'pair'
        ? {
            zero: { pages: 150_000, bytes: 1_350_000 },
            template: { pages: 10_000, bytes: 41_040_000 },
            patched: { pages: 20_000, bytes: 82_080_000 },
            compressed: { pages: 12_000, bytes: 49_248_000 },
            other: { pages: 0, bytes: 400_000 },
          }
        : null,
    // of never-converging the first pass took longer than was said
    ...(method === 'pair' && {
      forecast: {
        atSeconds: wholeMs / 2000,
        seconds: guest === 'never-converging' ? [0.1, wholeMs / 2000] : [wholeMs / 2000, wholeMs / 1000],
        bytesIn: [100e6, 200e6],
        bytesWan: [forward / 2, forward],
        firstPass: { seconds: wholeMs / 1250, bytesIn: 180e6, bytesWan: forward * 0.9 },
        ended: { seconds: wholeMs / 1000, bytesIn: 190e6, bytesWan: forward },
      },
    }),
  }
}

const disk = (name: DiskRun['disk'], wanBytes: number, seconds: number): DiskRun => ({
  ...{ guest: 'nginx', profile: 'wan', disk: name, round: 0, outcome: 'completed', downtimeMs: 90 },
  mirror: { qemuBytes: 1.4e9, wanBytes, seconds, cpuSeconds: [3, 2] },
  memory: { qemuBytes: 190e6, wanBytes: 20e6, seconds: 2, cpuSeconds: [1, 1] },
})

export function madeUpResults(): Results {
  const methods = Object.keys(FACTORS) as Method[]
  const runs = [0, 1].flatMap(round =>
    PROFILES.flatMap(profile =>
      GUESTS.flatMap(guest => methods.map(method => runOf(guest.name, profile.name, method, round))),
    ),
  )
  return {
    format: 1,
    startedAt: '2001-02-03T04:05:06.000Z',
    commit: 'made-up',
    command: 'make bench-migrate',
    machine: { cpu: 'Made-up CPU', cores: 2, memoryBytes: 24e9, kernel: '0.0.0', accelerator: 'tcg', loadAverage: 0.1 },
    versions: { qemu: '10.0', node: '24', pageferry: '0.0.0' },
    profiles: PROFILES,
    guests: GUESTS,
    templates: { from: ['idle', 'redis'], pages: 20_000, bytes: 81_920_000 },
    images: [{ name: 'golden image, idle', pages: 300_000, bytes: 1_228_800_000 }],
    disks: [
      disk('direct', 1480e6, 128),
      disk('known', 55e6, 18),
      {
        ...{ guest: 'nginx', profile: 'wan', disk: 'unknown', round: 0, downtimeMs: null },
        ...{ outcome: 'failed', reason: 'the mirror ended' },
      },
    ],
    estimates: [
      {
        ...{ guest: 'nginx', profile: 'wan', method: 'pair', bytesIn: 190e6, directSeconds: 15 },
        efforts: [
          { effort: 1, wanBytes: 40e6, seconds: 3.2 },
          { effort: 3, wanBytes: 20e6, seconds: 2 },
        ],
      },
    ],
    skipped: [{ what: 'wanproxy', reason: 'no program wanproxy in PATH' }],
    runs,
  }
}

/** Four rows of 512 pages: zero, zero, in the templates, partly known. */
export function madeUpMap(): PageMap {
  const rows: readonly PageClass[] = ['zero', 'zero', 'template', 'parts']
  const classes = rows.flatMap(name => new Array<number>(512).fill(PAGE_CLASSES.indexOf(name)))
  const sent = Object.fromEntries(PAGE_CLASSES.map(name => [name, 512 * rows.filter(row => row === name).length]))
  const map = {
    classes: deflateSync(Uint8Array.from(classes)).toString('base64'),
    sent: sent as Record<PageClass, number>,
  }
  return {
    format: 1,
    command: 'made up',
    stream: 'made-up',
    streamBytes: 4e6,
    templates: { from: ['a', 'b'], minVms: 2, pages: 10 },
    block: 'pc.ram',
    pages: 2048,
    maps: [
      { method: 'paper', ...map },
      { method: 'pair', ...map },
    ],
  }
}

/** Everything grows in proportion: 5 CPU seconds a GB at effort 0, 5 more with each. */
export function madeUpScaling(): Scaling {
  const cost = (rawBytes: number, wanPart: number, secondsPerGb: number) => ({
    rawBytes,
    wanBytes: rawBytes * wanPart,
    encodeCpuSeconds: (rawBytes / 1e9) * secondsPerGb,
    decodeCpuSeconds: rawBytes / 1e9,
    encodePeakBytes: 2e8,
    decodePeakBytes: 2e8,
  })
  const session = (count: number) => ({
    count,
    rawBytes: count * 2e8,
    wanBytes: count * 4e7,
    seconds: count,
    sourceCpuSeconds: count,
    destinationCpuSeconds: count / 2,
    sourcePeakBytes: 2e8 + count * 1e7,
    destinationPeakBytes: 2e8,
  })
  return {
    format: 1,
    startedAt: '2001-02-03T04:05:06.000Z',
    commit: 'made-up',
    command: 'made up',
    minutes: 6,
    machine: { cpu: 'Made-up CPU', cores: 2, memoryBytes: 24e9, loadAverage: 0.1 },
    versions: {},
    stream: 'made-up',
    effortStreams: ['made-up', 'another'],
    templatesFrom: ['a', 'b'],
    efforts: [0, 1, 2].map(effort => ({
      effort,
      name: `effort ${effort}`,
      ...cost(5e8, 0.5 / (effort + 1), 5 * (effort + 1)),
    })),
    guests: [1, 2].map(n => ({ memoryBytes: n * 8e8, effort: 1, ...cost(n * 2e8, 0.25, 10) })),
    templates: [1e7, 5e8].map(templateBytes => ({
      templateBytes,
      minVms: 2,
      effort: 1,
      ...cost(2e8, 0.2, 10),
      openSeconds: templateBytes / 1e9,
      openCpuSeconds: templateBytes / 1e9,
      lookupCpuSeconds: 1,
    })),
    migrations: [1, 2].map(session),
    replays: [{ link: '100Mbit,40ms', kind: 'made up', ...session(1) }],
    templateBytesMax: { longMatches: 4e9, exactOnly: 4.1e9 },
    flowsMax: 1024,
    skipped: ['something: the time was up'],
  }
}

const PROVENANCE = {
  format: 1,
  startedAt: '2026-11-23T12:00:00.000Z',
  commit: 'made-up',
  command: 'none',
  machine: { cpu: 'made up', cores: 2, loadAverage: 0.5 },
  node: '24.0.0',
} as const

/** Two checkouts; the second one's effort 1 is beaten by a zstd. */
export function madeUpLadder(): Ladder {
  const whole = (by: string, bytes: number, cpuSeconds: number, program?: string): Ladder['whole'][number] => ({
    ...{ stream: 'nginx', rawBytes: 2e8, by, bytes, cpuSeconds, cpuSecondsMin: cpuSeconds, cpuSecondsMax: cpuSeconds },
    ...(program && { program }),
  })
  const warm = (program: string, seconds: number): Ladder['warm'][number] => ({
    ...{ stream: 'nginx', program, effort: 1, rawBytes: 2e8, bytes: 5e7 },
    encode: { parse: 0.01, match: seconds, pack: 0.2, mainRest: 0.04, otherThreads: 0.05, all: seconds + 0.3 },
    decode: { unpack: 0.1, expand: 0.08, mainRest: 0.01, otherThreads: 0.01, all: 0.2 },
  })
  return {
    ...{ format: 1, startedAt: PROVENANCE.startedAt, commits: { base: 'aaaaaaa', main: 'bbbbbbb' }, command: 'none' },
    ...{ machine: PROVENANCE.machine, versions: {}, rounds: 3 },
    whole: [
      whole('zstd --single-thread -3', 5e7, 1),
      whole('effort 1', 7e7, 2, 'base'),
      whole('effort 1', 6e7, 1.5, 'main'),
    ],
    warm: [warm('main', 0.1), warm('base', 0.2)],
    beaten: ['nginx: effort 1 (60.0 MB in 1.50 s) by zstd --single-thread -3 (50.0 MB in 1.00 s)'],
  }
}

export function madeUpFirstMigration(): FirstMigration {
  const one = (seconds: number) => ({ seconds, sourceCpuSeconds: 2 * seconds, destinationCpuSeconds: seconds })
  return {
    ...{ ...PROVENANCE, stream: 'nginx', bytes: 2e8, link: '1Gbit,2ms', rounds: 3 },
    variants: [
      {
        ...{ effort: 'auto', program: 'main', startCpuSeconds: 0.9, residentBytes: 6e8 },
        migrations: [one(1.1), one(1)],
        firstToLast: { seconds: 1.1, cpuSeconds: 1.1 },
      },
    ],
  }
}

export function madeUpRawLink(): RawLink {
  const way = (what: string, seconds: number, cpu?: number): RawWay => {
    const use = cpu === undefined ? undefined : { cpu, busiest: cpu / 2 }
    return {
      ...{ what, effort: what === 'pair' ? 'auto' : '', program: what === 'pair' ? 'main' : '' },
      ...{ seconds, secondsMin: seconds, secondsMax: seconds, source: use, destination: use },
    }
  }
  const ways = [way('direct', 2), way('relay', 2.2, 1), way('pair', 2.4, 2)]
  return { ...PROVENANCE, link: '10Gbit', guests: [{ guest: 'nginx', bytes: 2e9, rounds: 3, ways }] }
}

export function madeUpThreads(): Threads {
  const one = (threads: number, bytes: number, seconds: number): Threads['cases'][number] => ({
    ...{ stream: 'nginx', rawBytes: 2e8, effort: 2, threads, bytes },
    ...{ encodeSeconds: 2 * seconds, decodeSeconds: seconds },
  })
  return { ...PROVENANCE, rounds: 3, cases: [one(1, 5e7, 1), one(2, 5.02e7, 0.5)] }
}

export function madeUpPassage(): Passage {
  const row = {
    ...{ match: 90, effort: '0', security: 'x509', program: 'main', rounds: 3 },
    ...{ megabytesPerSecond: 1100, megabytesPerSecondMin: 1000, megabytesPerSecondMax: 1200 },
    ...{ megabytesPerSourceCpuSecond: 1500, megabytesPerDestinationCpuSecond: 2000 },
  }
  return { ...PROVENANCE, over: 'over loopback', rows: [row] }
}
