/** What the pair itself costs: beside plain zstd, by effort and stage, at its first migration, and where the link is as fast. */
import type { FirstMigration, Passage, RawLink, Threads } from '../measure/cost-files.ts'
import type { Ladder, WholeCost } from '../measure/ladder.ts'
import type { Block, Table, Text } from './document.ts'
import { column } from './names.ts'
import { digits, formatSize } from './quantities.ts'

/** Each may be missing. */
export interface Costs {
  readonly ladder: Ladder | undefined
  readonly first: FirstMigration | undefined
  readonly raw: RawLink | undefined
  readonly threads: Threads | undefined
  readonly passage: Passage | undefined
}

const GB = 1e9
const fixed = (value: number): string => value.toFixed(2)

export function costBlocks({ ladder, first, raw, threads, passage }: Costs): Block[] {
  const blocks = [
    ...ladderBlocks(ladder),
    ...threadBlocks(threads),
    ...firstBlocks(first),
    ...passageBlocks(passage),
    ...rawBlocks(raw),
  ]
  if (blocks.length === 0) return []
  return [{ kind: 'heading', level: 2, id: 'own-cost', text: 'What the pair itself costs' }, ...blocks]
}

function section(id: string, title: Text, text: Text, ...tables: readonly Table[]): Block[] {
  return [
    { kind: 'heading', level: 3, id, text: title },
    { kind: 'text', text },
    ...tables.map((table): Block => ({ kind: 'table', table })),
  ]
}

/** By whom and when: sentences that stand before a table. */
function measuredBy(about: Pick<FirstMigration, 'command' | 'startedAt' | 'machine'>, commit: string): Text {
  const { command, startedAt, machine } = about
  return `Measured ${startedAt.slice(0, 10)} at ${commit} by \`${command}\` (${machine.cpu}, ${machine.cores} cores, load average ${digits(machine.loadAverage)} when it began).`
}

function ladderBlocks(ladder: Ladder | undefined): Block[] {
  if (ladder === undefined) return []
  const { warm, rounds, beaten, commits } = ladder
  const [before, after] = endsOf(ladder)
  const commit = Object.values(commits)
    .map(text => `commit ${text}`)
    .join(' and ')
  const blocks: Block[] = []
  if (ladder.whole.length > 0) {
    const found =
      beaten.length === 0 ? 'Nothing of zstd beats an effort above 0 in both.' : `Beaten in both: ${beaten.join('; ')}.`
    const text = `${measuredBy(ladder, commit)} Whole processes, their start included, no templates, one thread of zstd; medians of ${rounds}. ${found}`
    blocks.push(...section('ladder', 'Beside plain zstd', text, wholeTable(ladder, before, after)))
  }
  if (warm.length > 0) {
    const text = `${measuredBy(ladder, commit)} In a process that has done it before, everything in memory, no templates: seconds of CPU for a GB of QEMU's stream, by stage of the main thread, and all other threads together; medians of ${rounds}.`
    blocks.push(...section('stages', 'CPU by effort and stage', text, warmTable(ladder)))
  }
  return blocks
}

/** The first and the last checkout that were compared; the first is undefined where there was one. */
function endsOf({ commits }: Ladder): [before: string | undefined, after: string] {
  const programs = Object.keys(commits)
  return [programs.length > 1 ? programs[0] : undefined, programs.at(-1)!]
}

function wholeTable({ whole, commits }: Ladder, before: string | undefined, after: string): Table {
  const of = (stream: string, by: string, program?: string): WholeCost | undefined =>
    whole.find(cost => cost.stream === stream && cost.by === by && cost.program === program)
  const cell = (cost: WholeCost | undefined): string =>
    cost === undefined ? '' : `${formatSize(cost.bytes)} in ${fixed(cost.cpuSeconds)} s`
  const peers = [...new Set(whole.filter(({ program }) => program === undefined).map(({ by }) => by))]
  const efforts = [...new Set(whole.filter(({ program }) => program !== undefined).map(({ by }) => by))]
  const rows = [...new Set(whole.map(({ stream }) => stream))].map(stream => [
    stream,
    ...peers.map(by => cell(of(stream, by))),
    ...efforts.flatMap(by => [
      ...(before === undefined ? [] : [cell(of(stream, by, before))]),
      cell(of(stream, by, after)),
    ]),
  ])
  return {
    caption: 'Bytes, and CPU seconds',
    columns: [
      column('Stream', false),
      ...peers.map(by => column(`\`${by.replace('--single-thread ', '')}\``)),
      ...efforts.flatMap(by => [
        ...(before === undefined ? [] : [column(`${by} at ${commits[before]}`)]),
        column(before === undefined ? by : `${by} at ${commits[after]}`),
      ]),
    ],
    rows,
  }
}

function warmTable({ warm, commits }: Ladder): Table {
  const programs = Object.keys(commits)
  const sorted = warm.toSorted(
    (a, b) =>
      a.stream.localeCompare(b.stream) ||
      a.effort - b.effort ||
      programs.indexOf(a.program) - programs.indexOf(b.program),
  )
  return {
    caption: 'CPU seconds a GB, warm',
    columns: [
      column('Stream', false),
      column('Effort'),
      ...(programs.length > 1 ? [column('Commit', false)] : []),
      column('leaves'),
      ...['parse', 'match', 'pack', 'rest of the main thread', 'other threads'].map(name => column(name)),
      column('**encode**'),
      ...['unpack', 'expand', 'rest of the main thread', 'other threads'].map(name => column(name)),
      column('**decode**'),
    ],
    rows: sorted.map(({ stream, effort, program, rawBytes, bytes, encode, decode }) => {
      const perGb = (seconds: number): string => fixed((seconds / rawBytes) * GB)
      return [
        stream,
        effort === 0.5 ? '0.5 (auto alone)' : String(effort),
        ...(programs.length > 1 ? [commits[program] ?? program] : []),
        formatSize(bytes),
        ...[encode.parse, encode.match, encode.pack, encode.mainRest, encode.otherThreads].map(perGb),
        `**${perGb(encode.all)}**`,
        ...[decode.unpack, decode.expand, decode.mainRest, decode.otherThreads].map(perGb),
        `**${perGb(decode.all)}**`,
      ]
    }),
  }
}

function threadBlocks(threads: Threads | undefined): Block[] {
  if (threads === undefined) return []
  const { cases, rounds } = threads
  const rows = cases.map(({ stream, rawBytes, effort, threads: count, bytes, encodeSeconds, decodeSeconds }) => {
    const one = cases.find(other => other.stream === stream && other.effort === effort && other.threads === 1)
    const beside = (alone: number | undefined, value: number): string =>
      count === 1 || alone === undefined ? '' : fixed(alone / value)
    return [
      ...[stream, formatSize(rawBytes), String(effort), String(count), formatSize(bytes)],
      ...[one === undefined || count === 1 ? '' : (bytes / one.bytes).toFixed(4)],
      ...[`${fixed(encodeSeconds)} s`, beside(one?.encodeSeconds, encodeSeconds)],
      ...[`${fixed(decodeSeconds)} s`, beside(one?.decodeSeconds, decodeSeconds)],
    ]
  })
  return section(
    'threads',
    'What threads bring',
    `${measuredBy(threads, `commit ${threads.commit}`)} Seconds that \`encode\` and \`decode\` tell of themselves, no templates; the bytes that came out were compared with the stream. Medians of ${rounds}, by turns.`,
    {
      caption: 'By threads',
      columns: [
        ...[column('Stream', false), column('QEMU sent'), column('Effort'), column('Threads'), column('leaves')],
        ...[
          column('of one thread'),
          column('encode'),
          column('times as fast'),
          column('decode'),
          column('times as fast'),
        ],
      ],
      rows,
    },
  )
}

function firstBlocks(first: FirstMigration | undefined): Block[] {
  if (first === undefined) return []
  const { stream, bytes, link, rounds, variants } = first
  const several = new Set(variants.map(({ program }) => program)).size > 1
  const count = Math.max(...variants.map(({ migrations }) => migrations.length))
  const rows = variants.flatMap(({ effort, program, startCpuSeconds, migrations, firstToLast }) => {
    const row = (what: string, start: string, of: (one: (typeof migrations)[number]) => number, ratio: string) => [
      effort,
      ...(several ? [program] : []),
      what,
      start,
      ...migrations.map(one => fixed(of(one))),
      ratio,
    ]
    return [
      row('seconds', '', one => one.seconds, fixed(firstToLast.seconds)),
      row('CPU seconds of the source proxy', '', one => one.sourceCpuSeconds, ''),
      row('CPU seconds of the destination proxy', '', one => one.destinationCpuSeconds, ''),
      row(
        'CPU seconds of both',
        fixed(startCpuSeconds),
        one => one.sourceCpuSeconds + one.destinationCpuSeconds,
        fixed(firstToLast.cpuSeconds),
      ),
    ]
  })
  return section(
    'first-migration',
    'The first migration of a pair that has just started',
    `${measuredBy(first, `commit ${first.commit}`)} Guests like ${stream} (${formatSize(bytes)}) one behind the other over ${link}, none of whose pages were seen before; medians of ${rounds} pairs.`,
    {
      caption: 'Fresh against warm',
      columns: [
        column('Effort', false),
        ...(several ? [column('Program', false)] : []),
        column('of', false),
        column('until ready'),
        ...Array.from({ length: count }, (_, i) => column(`migration ${i + 1}`)),
        column('first by last'),
      ],
      rows,
    },
  )
}

function passageBlocks(passage: Passage | undefined): Block[] {
  if (passage === undefined) return []
  const several = new Set(passage.rows.map(({ program }) => program)).size > 1
  const rows = passage.rows.map(row => [
    `${row.match} %`,
    row.effort,
    row.security,
    ...(several ? [row.program] : []),
    String(row.rounds),
    `${digits(row.megabytesPerSecond)} MB/s (${digits(row.megabytesPerSecondMin)} to ${digits(row.megabytesPerSecondMax)})`,
    `${digits(row.megabytesPerSourceCpuSecond)} MB`,
    `${digits(row.megabytesPerDestinationCpuSecond)} MB`,
  ])
  return section(
    'passage',
    'How fast a warm pair is',
    `${measuredBy(passage, `commit ${passage.commit}`)} Streams of real pages, of which so many are in a template set of 100 MB, ${passage.over}; feeder and sink cost next to nothing. MB are those of QEMU's stream.`,
    {
      caption: 'Through a warm pair',
      columns: [
        ...[column('Pages known'), column('Effort', false), column('Link', false)],
        ...(several ? [column('Program', false)] : []),
        ...[column('rounds'), column('wall'), column('a CPU second of the source'), column('of the destination')],
      ],
      rows,
    },
  )
}

function rawBlocks(raw: RawLink | undefined): Block[] {
  if (raw === undefined || raw.guests.length === 0) return []
  const several = new Set(raw.guests.flatMap(({ ways }) => ways.map(way => way.program)).filter(Boolean)).size > 1
  const names: Record<string, string> = { relay: 'TLS alone', pair: 'the pair' }
  const rows = raw.guests.flatMap(({ guest, bytes, rounds, ways }) => {
    const direct = ways.find(({ what }) => what === 'direct')?.seconds
    return ways.map(({ what, effort, program, seconds, secondsMin, secondsMax, source, destination }) => {
      const busiest = Math.max(source?.busiest ?? 0, destination?.busiest ?? 0)
      const perGb = (value: number | undefined): string => (value === undefined ? '' : fixed(value / (bytes / GB)))
      return [
        guest,
        formatSize(bytes),
        String(rounds),
        [names[what] ?? what, effort && `effort ${effort}`, several && program].filter(Boolean).join(', '),
        `${fixed(seconds)} s (${fixed(secondsMin)} to ${fixed(secondsMax)})`,
        direct === undefined ? '' : fixed(seconds / direct),
        ...[perGb(source?.cpu), perGb(source?.busiest), perGb(destination?.cpu), perGb(destination?.busiest)],
        busiest === 0 ? '' : fixed(bytes / GB / busiest),
      ]
    })
  })
  return section(
    'fast-links',
    'Where the link takes more than the pair makes',
    `${measuredBy(raw, `commit ${raw.commit}`)} Recorded streams, played several times over with other bytes each time so that no page comes again, over ${raw.link}; feeder, sink, both proxies and TLS share the cores. TLS alone: the plainest pair that Node and TLS allow. What the busiest thread bounds is what a host with cores to spare would reach.`,
    {
      caption: 'Fast links',
      columns: [
        column('Guest', false),
        column('QEMU sent'),
        column('rounds'),
        column('Way', false),
        column('time'),
        column('of direct'),
        column('source, CPU s/GB'),
        column('busiest thread'),
        column('destination, CPU s/GB'),
        column('busiest thread'),
        column('GB/s that it bounds'),
      ],
      rows,
    },
  )
}
