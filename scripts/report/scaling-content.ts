/** How cost grows: blocks of the report out of what scaling.ts measured. */
import { POOL_MEMORY_DEFAULT } from '../../src/transfer/pool.ts'
import type { CodecCost, Scaling } from '../measure/scaling.ts'
import { bars, lines } from './charts.ts'
import type { Block, Table, Text } from './document.ts'
import { at, extrapolations, forecast, type Line, lineThrough, streamShare } from './extrapolate.ts'
import { column } from './names.ts'
import { digits, formatCount, formatSize, percent, rate, seconds } from './quantities.ts'

const GB = 1e9
const RATES = [20e6, 100e6, 400e6, 1e9, 2.5e9, 10e9]

const cpuPerGb = (cpuSeconds: number, rawBytes: number): string => digits((cpuSeconds / rawBytes) * GB)
const duration = (value: number): string => seconds(value * 1000)

const CODEC_COLUMNS = [
  column('QEMU sent'),
  column('on the WAN'),
  column('of it'),
  column('encode, CPU s/GB'),
  column('decode, CPU s/GB'),
  column('peak memory, source'),
  column('peak memory, destination'),
]

function codecCells(cost: CodecCost): string[] {
  return [
    formatSize(cost.rawBytes),
    formatSize(cost.wanBytes),
    percent(cost.wanBytes / cost.rawBytes),
    cpuPerGb(cost.encodeCpuSeconds, cost.rawBytes),
    cpuPerGb(cost.decodeCpuSeconds, cost.rawBytes),
    formatSize(cost.encodePeakBytes),
    formatSize(cost.decodePeakBytes),
  ]
}

export function scalingBlocks(scaling: Scaling | undefined, remark: Text | undefined): Block[] {
  const heading: Block = { kind: 'heading', level: 2, id: 'scaling', text: 'How cost grows' }
  if (scaling === undefined) {
    return [heading, { kind: 'text', text: 'Not measured: `make bench-scaling` does, on the lab (`make lab`).' }]
  }
  const { machine, startedAt, commit, command, stream, effortStreams, templatesFrom, skipped } = scaling
  const blocks: Block[] = [
    heading,
    {
      kind: 'text',
      text: `Measured by \`${command}\` ${startedAt.slice(0, 10)} at commit ${commit} (${machine.cpu}, ${machine.cores} cores, load average ${machine.loadAverage} when it began): captured guests through encode and decode, each a process of its own, and through two real proxies. CPU seconds are user and system time of all threads; GB are those of QEMU's stream.`,
    },
    { kind: 'grid', blocks: [...effortFigure(scaling), ...linkFigure(scaling)] },
    ...replayTable(scaling),
    ...tableBlock(scaling.guests.length, 'guests', 'Guest size', guestTable, guestText, scaling),
    ...largeBlocks(scaling),
    ...tableBlock(scaling.templates.length, 'templates', 'Templates', templateTable, templateText, scaling),
    ...tableBlock(scaling.migrations.length, 'at-once', 'Migrations at once', migrationTable, migrationText, scaling),
    ...forecastBlocks(scaling),
  ]
  if (skipped.length > 0) {
    blocks.push({ kind: 'text', text: 'Left out:' }, { kind: 'list', items: [...skipped] })
  }
  if (remark) blocks.push({ kind: 'text', text: remark })
  blocks.push({
    kind: 'text',
    text: `Efforts are measured with ${effortStreams.join(' and ')} in one stream, templates and replays with ${stream}; templates are of ${templatesFrom.join(', ')}.`,
  })
  return blocks
}

/** Nothing where nothing was measured: neither is asked for then. */
function tableBlock(
  rows: number,
  id: string,
  title: Text,
  tableOf: (scaling: Scaling) => Table,
  textOf: (scaling: Scaling) => Text,
  scaling: Scaling,
): Block[] {
  if (rows === 0) return []
  const [table, text] = [tableOf(scaling), textOf(scaling)]
  return [
    { kind: 'heading', level: 3, id, text: title },
    { kind: 'text', text },
    { kind: 'table', table },
  ]
}

function effortFigure({ efforts }: Scaling): Block[] {
  if (efforts.length === 0) return []
  const perGb = (cost: CodecCost, cpu: number): number => (cpu / cost.rawBytes) * GB
  const rows = efforts.flatMap(cost => [
    { cost, side: 'encode', series: 'pair', value: perGb(cost, cost.encodeCpuSeconds) },
    { cost, side: 'decode', series: 'paper', value: perGb(cost, cost.decodeCpuSeconds) },
  ])
  return [
    {
      kind: 'figure',
      figure: {
        title: 'CPU by effort',
        note: 'Seconds of one core for 1 GB of QEMU, by how hard the pair squeezes (`--effort`; by itself it takes what the link leaves time for).',
        legend: [],
        plot: bars(
          'CPU seconds a GB, by effort',
          rows.map(({ cost, side, series, value }) => ({
            label: `effort ${cost.effort}, ${side}`,
            series,
            value,
            text: `${digits(value)} s/GB${side === 'encode' ? `, leaves ${percent(cost.wanBytes / cost.rawBytes)}` : ''}`,
            dots: [],
          })),
          Math.max(...rows.map(({ value }) => value)),
        ),
        table: {
          caption: 'By effort: medians of three rounds',
          columns: [column('Effort'), column('what', false), ...CODEC_COLUMNS],
          rows: efforts.map(cost => [String(cost.effort), cost.name, ...codecCells(cost)]),
        },
      },
    },
  ]
}

function linkFigure({ efforts }: Scaling): Block[] {
  if (efforts.length === 0) return []
  const rows = RATES.map(bits => forecast(efforts, GB, bits))
  return [
    {
      kind: 'figure',
      figure: {
        title: 'Time for 1 GB of QEMU, by link',
        note: 'Arithmetic on the CPU by effort: link and one core work side by side, so the slower decides, at the best effort for each rate. How fast QEMU sends, dirty pages, round trips and TCP are not in it.',
        legend: [
          { series: 'direct', label: 'direct', mark: 'line' },
          { series: 'pair', label: 'the pair', mark: 'line' },
        ],
        plot: lines({
          label: 'Seconds for 1 GB of QEMU by the rate of the link, both axes logarithmic',
          lines: [
            {
              series: 'direct',
              name: 'direct',
              points: rows.map(row => [row.bitsPerSecond, row.directSeconds] as const),
            },
            { series: 'pair', name: 'the pair', points: rows.map(row => [row.bitsPerSecond, row.seconds] as const) },
          ],
          height: 260,
          xTicks: [20e6, 100e6, 1e9, 10e9],
          yTicks: [0.5, 1, 10, 100, 500],
          logarithmic: true,
          xText: rate,
          yText: duration,
          dots: true,
        }),
        table: {
          caption: 'Seconds for 1 GB of QEMU, by link',
          columns: [
            column('Link'),
            column('direct'),
            column('the pair'),
            column('of it'),
            column('effort'),
            column('waits for', false),
          ],
          rows: rows.map(row => [
            rate(row.bitsPerSecond),
            duration(row.directSeconds),
            duration(row.seconds),
            percent(row.seconds / row.directSeconds),
            String(row.effort),
            `the ${row.bound}`,
          ]),
        },
      },
    },
  ]
}

function replayTable({ efforts, replays }: Scaling): Block[] {
  if (efforts.length === 0 || replays.length === 0) return []
  return [
    {
      kind: 'table',
      table: {
        caption: 'The same stream through two proxies over emulated links, effort by itself, beside that arithmetic',
        columns: [
          column('Link', false),
          column('took'),
          column('by arithmetic'),
          column('on the WAN'),
          column('CPU s, source'),
          column('CPU s, destination'),
        ],
        rows: replays.map(replay => {
          const bits = bitsOf(replay.link)
          return [
            `${replay.link} (${replay.kind})`,
            duration(replay.seconds),
            duration(forecast(efforts, replay.rawBytes, bits).seconds),
            formatSize(replay.wanBytes),
            digits(replay.sourceCpuSeconds),
            digits(replay.destinationCpuSeconds),
          ]
        }),
      },
    },
  ]
}

/** `100Mbit,40ms` has its rate first (scripts/harness/wan/link.ts). */
function bitsOf(link: string): number {
  const [, value, unit] = /^(\d+)(M|G)bit/.exec(link)!
  return Number(value) * (unit === 'G' ? 1e9 : 1e6)
}

/** Bytes of memory for each further one; what is no more than a tenth over all that was measured, is noise. */
function growth(memory: Line, most: number): string {
  const noise = memory.slope * most < 0.1 * at(memory, 0)
  return noise ? 'no memory that stands out from the noise' : `${formatSize(Math.round(memory.slope))} of memory`
}

function guestTable({ guests }: Scaling): Table {
  return {
    caption: `Guests made of several captured ones, effort ${guests[0]?.effort ?? ''}`,
    columns: [column('Guest memory'), ...CODEC_COLUMNS],
    rows: guests.map(cost => [formatSize(cost.memoryBytes), ...codecCells(cost)]),
  }
}

function guestText({ guests }: Scaling): Text {
  const cpu = lineThrough(guests.map(one => [one.memoryBytes / GB, one.encodeCpuSeconds] as const))
  const memory = lineThrough(guests.map(one => [one.memoryBytes / GB, one.encodePeakBytes] as const))
  return `Each further GB of guest memory costs the source ${digits(cpu.slope)} CPU seconds and ${growth(memory, guests.at(-1)!.memoryBytes / GB)}, by a straight line through these points. These guests have one captured guest's memory behind the other's; what those share is found as far as the pool of ${POOL_MEMORY_DEFAULT} still holds it.`
}

/** Guests that are larger than what is stored, by pipes and through a pair. */
function largeBlocks(scaling: Scaling): Block[] {
  const { large = [] } = scaling
  const [first] = large
  if (first === undefined) return []
  const columns = [
    column('Guest memory'),
    ...CODEC_COLUMNS,
    column('the pair: on the WAN'),
    column('the pair: CPU s/GB'),
    column('its speed'),
  ]
  const peaks = [column('its peak memory, source'), column('its peak memory, destination')]
  const rows = large.map(({ pair, ...cost }) => [
    formatSize(cost.memoryBytes),
    ...codecCells(cost),
    ...(pair === undefined
      ? ['', '', '', '', '']
      : [
          formatSize(pair.wanBytes),
          cpuPerGb(pair.sourceCpuSeconds + pair.destinationCpuSeconds, pair.rawBytes),
          `${digits(pair.rawBytes / 1e6 / pair.seconds)} MB/s`,
          formatSize(pair.sourcePeakBytes),
          formatSize(pair.destinationPeakBytes),
        ]),
  ])
  const caption = `Guests streamed and stored nowhere: encode and decode by pipes at effort ${first.effort}, and a pair over loopback, effort by itself`
  return tableBlock(
    large.length,
    'large-guests',
    'Large guests',
    () => ({ caption, columns: [...columns, ...peaks], rows }),
    () =>
      'Made of captured guests in turn, with other bytes each time they come again, so that no part is found in another beyond what captured guests share. What came out was what went in, by a checksum of all of it. The place table has an entry for each page of 4 GiB and larger guests share its entries; the ring holds far fewer pages than it has entries, so what an entry loses had left the ring.',
    scaling,
  )
}

function templateTable({ templates }: Scaling): Table {
  return {
    caption:
      'Sets of different size; lookup is the source at effort 0, where finding references is nearly all there is to do',
    columns: [
      column('Set'),
      column('pages of so many guests or more'),
      column('loading, s'),
      column('loading, CPU s'),
      column('lookup, CPU s/GB'),
      ...CODEC_COLUMNS.slice(1),
    ],
    rows: templates.map(cost => [
      formatSize(cost.templateBytes),
      String(cost.minVms),
      digits(cost.openSeconds),
      digits(cost.openCpuSeconds),
      cpuPerGb(cost.lookupCpuSeconds, cost.rawBytes),
      ...codecCells(cost).slice(1),
    ]),
  }
}

function templateText({ templates, templateBytesMax }: Scaling): Text {
  const open = lineThrough(templates.map(one => [one.templateBytes / GB, one.openCpuSeconds] as const))
  const memory = lineThrough(templates.map(one => [one.templateBytes, one.encodePeakBytes] as const))
  return `A GB of templates costs ${digits(open.slope)} CPU seconds when a session opens, and the source ${digits(memory.slope)} bytes of memory a byte. One session addresses 4 GiB, which takes at most ${formatSize(templateBytesMax.longMatches)} of templates with the table that finds parts of pages, ${formatSize(templateBytesMax.exactOnly)} without: **10 GB of templates do not fit one session today**, it refuses with LIMIT_EXCEEDED; they would have to be split by kind of guest over several pairs of proxies.`
}

function migrationTable({ migrations }: Scaling): Table {
  return {
    caption: 'Captured guests at once through two proxies on loopback, effort by itself: no link limits them',
    columns: [
      column('At once'),
      column('QEMU sent'),
      column('on the WAN'),
      column('took'),
      column('MB/s in'),
      column('source, CPU s/GB'),
      column('destination, CPU s/GB'),
      column('peak memory, source'),
      column('peak memory, destination'),
    ],
    rows: migrations.map(one => [
      String(one.count),
      formatSize(one.rawBytes),
      formatSize(one.wanBytes),
      duration(one.seconds),
      digits(one.rawBytes / 1e6 / one.seconds),
      cpuPerGb(one.sourceCpuSeconds, one.rawBytes),
      cpuPerGb(one.destinationCpuSeconds, one.rawBytes),
      formatSize(one.sourcePeakBytes),
      formatSize(one.destinationPeakBytes),
    ]),
  }
}

function migrationText({ migrations, flowsMax }: Scaling): Text {
  const memory = lineThrough(migrations.map(one => [one.count, one.sourcePeakBytes] as const))
  return `All migrations between two sites share one session, one pool and one encoding thread. Each further one costs the source ${growth(memory, migrations.at(-1)!.count)}, by a straight line. A session carries ${formatCount(flowsMax)} channels; a migration without multifd has one.`
}

function forecastBlocks(scaling: Scaling): Block[] {
  if (scaling.efforts.length === 0 || scaling.guests.length === 0) return []
  const memory = lineThrough(scaling.migrations.map(one => [one.count, one.sourcePeakBytes] as const))
  const share = streamShare(scaling)
  const assumptions = [
    `QEMU sends ${digits(share)} bytes a byte of guest memory, as for the captured guests: the rest is zero pages. A fuller guest takes more in proportion.`,
    'Each page is sent once. A guest that keeps changing its memory adds its dirty rate times the time, directly and through the pair.',
    'Ratio and CPU a GB stay as measured at each effort: the guests are as much alike, and the templates fit as well.',
    'One core encodes, one decodes, as fast as here; the link is used fully. The pair takes the effort that is fastest.',
    `Beyond 4 GiB of guest, places in the table that knows each page’s last version are shared; and the pool of ${POOL_MEMORY_DEFAULT} knows only what passed lately. Both cost savings on pages sent again, nothing else.`,
  ]
  if (scaling.migrations.length > 1)
    assumptions.push(
      `Memory of the source grows with migrations at once by the line above: ${formatSize(Math.round(at(memory, 100)))} for 100.`,
    )
  return [
    { kind: 'heading', level: 3, id: 'forecast', text: 'Larger than fits here' },
    { kind: 'text', text: 'Not measured: the slopes above, carried on. It stands on this:' },
    { kind: 'list', items: assumptions },
    {
      kind: 'table',
      table: {
        caption: 'Forecast',
        columns: [
          column('What', false),
          column('Link'),
          column('QEMU sends'),
          column('direct'),
          column('the pair'),
          column('on the WAN'),
          column('effort'),
          column('waits for', false),
          column('CPU s, both sides'),
        ],
        rows: extrapolations(scaling).map(({ what, rawBytes, forecast: found, cpuSeconds }) => [
          what,
          rate(found.bitsPerSecond),
          formatSize(Math.round(rawBytes)),
          duration(found.directSeconds),
          duration(found.seconds),
          formatSize(Math.round(found.wanBytes)),
          String(found.effort),
          `the ${found.bound}`,
          digits(cpuSeconds),
        ]),
      },
    },
  ]
}
