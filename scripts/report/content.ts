/** What the report says, as blocks. Pure: the same results give the same report. */
import { parseLink } from '../harness/wan/link.ts'
import { METHODS, type Method, type Profile } from '../measure/compare/results.ts'
import type { PageMap } from '../measure/page-map-file.ts'
import type { Scaling } from '../measure/scaling.ts'
import { type BarRow, bars, lines, stacks, ticksTo } from './charts.ts'
import { type Costs, costBlocks } from './cost-content.ts'
import { diskBlocks } from './disk-content.ts'
import type { Block, Figure, Report, Table, TableCell, Text } from './document.ts'
import { type Average, type Base, type Cell, type Figures, type Mark, mean, PAPER } from './figures.ts'
import { forecastBlocks } from './forecast-content.ts'
import { linkFigure } from './link-content.ts'
import { memoryMapBlocks } from './map-content.ts'
import { passEnds } from './measured.ts'
import { column, METHOD_NAMES, outcomeText } from './names.ts'
import { digits, formatCount, formatSize, milliseconds, percent, rate, seconds, spread } from './quantities.ts'
import { scalingBlocks } from './scaling-content.ts'

/** Everything that a report is made of. */
export interface Sources {
  readonly figures: Figures
  readonly map: PageMap | undefined
  readonly scaling: Scaling | undefined
  readonly costs: Costs
  /** By heading of remarks.md. */
  readonly remarks: ReadonlyMap<string, Text>
}

/** Classes of bytes, in the order in which they are drawn: name in the results, series in style.css, name for people. */
const CLASSES: readonly (readonly [name: string, series: string, label: string])[] = [
  ['zero', 'zero', 'zero pages'],
  ['fill', 'fill', 'one byte repeated'],
  ['previous', 'same', 'as last sent'],
  ['template', 'template', 'in the templates'],
  ['earlier', 'earlier', 'passed earlier'],
  ['patched', 'parts', 'partly known'],
  ['compressed', 'whole', 'new, compressed'],
  ['incompressible', 'incompressible', 'new, incompressible'],
  ['opaque', 'other', "QEMU's own deltas"],
  ['other', 'other', 'device state, heads'],
]

/** The whole report. */
export function reportOf(sources: Sources): Report {
  const { figures } = sources
  const { startedAt, commit } = figures.results
  return {
    title: 'Pageferry: what migrations cost',
    subtitle: `The same running guests, moved by QEMU alone, by its own helpers, by what a skilled user would rig up, and through Pageferry. Measured ${startedAt.slice(0, 10)} at commit ${commit}.`,
    blocks: [
      ...linkFigure(figures),
      ...summaryBlocks(sources),
      ...paperBlocks(figures),
      ...averageBlocks(figures),
      ...diskBlocks(figures.results),
      ...forecastBlocks(figures),
      ...overviewBlocks(figures),
      ...peerBlocks(figures),
      ...memoryMapBlocks(sources.map, sources.remarks.get('map')),
      ...scalingBlocks(sources.scaling, sources.remarks.get('scaling')),
      ...costBlocks(sources.costs),
      ...machineBlocks(sources),
      ...markBlocks(sources),
    ],
  }
}

function summaryBlocks({ figures, remarks }: Sources): Block[] {
  const blocks: Block[] = []
  if (figures.results.commit === 'made-up') {
    blocks.push({ kind: 'warning', text: 'Made-up figures, for a test: nothing here was measured.' })
  }
  const marks = figures.marks()
  const met = marks.filter(({ state }) => state === 'met').length
  const average = (figure: 'totalMs' | 'wanBytes'): string | undefined => {
    const ratios = figures.ratios(figures.main.name, 'pair', 'direct', figure)
    return ratios.length === 0 ? undefined : percent(mean(ratios.map(([, ratio]) => ratio)))
  }
  const [bytes, time] = [average('wanBytes'), average('totalMs')]
  const tiles = [{ value: `${met} of ${marks.length}`, text: 'marks met' }]
  const over = `over ${figures.main.name}, on average of the workloads that QEMU alone brings across`
  if (time) tiles.unshift({ value: time, text: `of the direct migration's time, ${over}` })
  if (bytes) tiles.unshift({ value: bytes, text: `of the direct migration's bytes on the link, ${over}` })
  blocks.push({ kind: 'tiles', tiles })
  const general = remarks.get('general')
  if (general) blocks.push({ kind: 'text', text: general })
  return blocks
}

function markBlocks({ figures, remarks }: Sources): Block[] {
  // what was missed stands at the end
  const marks = figures.marks().toSorted((a, b) => Number(a.state === 'missed') - Number(b.state === 'missed'))
  const why = ({ id, state, detail }: Mark): Text => {
    const reason = state === 'missed' ? (remarks.get(id) ?? 'The reason is not known yet.') : ''
    return [detail, reason].filter(Boolean).join(detail.endsWith('.') ? ' ' : '. ')
  }
  return [
    { kind: 'heading', level: 2, id: 'marks', text: 'What was promised, and what came out' },
    {
      kind: 'text',
      text: `Set before anything was measured. Over ${profileText(figures.main)}, unless a line says otherwise; each figure is the mean over the workloads (${figures.workloads.join(', ')}) of the ratio of medians. Where the other method never brought a guest across, the ratio to what it had used when it was stopped counts, which is more than the true one; what the mean is without such guests stands beside it.`,
    },
    {
      kind: 'table',
      table: {
        caption: 'Marks',
        columns: [
          column('Mark', false),
          column('Came out', false),
          column('Measured'),
          column('Promised'),
          column('By guest; why, where it was missed', false),
        ],
        rows: marks.map(mark => [
          mark.text,
          { text: mark.state, state: mark.state },
          mark.measured,
          mark.limit,
          why(mark),
        ]),
      },
    },
  ]
}

function paperBlocks(figures: Figures): Block[] {
  const profile = figures.main
  const methods = (['paper', 'pair', 'pair-image'] as const).filter(method => figures.methods.includes(method))
  const saved = (ratio: number): string => (ratio > 1 ? `${percent(ratio - 1)} more` : percent(1 - ratio))
  const cells = (guest: string, figure: 'wanBytes' | 'totalMs'): TableCell[] =>
    methods.map(method => {
      const found = figures.ratios(profile.name, method, 'direct', figure, [guest])
      return found.length === 0 ? missing(figures, profile.name, guest, method) : saved(found[0]![1])
    })
  const average = (figure: 'wanBytes' | 'totalMs'): TableCell[] =>
    methods.map(method => {
      const ratios = figures.ratios(profile.name, method, 'direct', figure)
      return ratios.length === 0 ? '' : saved(mean(ratios.map(([, ratio]) => ratio)))
    })
  const workloads = figures.workloads
  const reported = (value: number): TableCell[] => methods.map(method => (method === 'paper' ? percent(value) : ''))
  return [
    { kind: 'heading', level: 2, id: 'paper', text: "The paper's table" },
    {
      kind: 'text',
      text: `Li, Zheng and Hu (IC2E 2014, doi 10.1109/IC2E.2014.61) replace pages that are in a set of templates by their number, and report 38 % less data and 27 % less time than default QEMU-KVM, on average. Here the same method, the pair in full with the same templates, and the pair that knows the golden image and one other guest, against QEMU alone, over ${profileText(profile)}.`,
    },
    {
      kind: 'table',
      table: {
        caption: 'Saved against the direct migration',
        columns: [
          column('Workload', false),
          ...methods.map(method => column(`Data, ${METHOD_NAMES[method]}`)),
          ...methods.map(method => column(`Time, ${METHOD_NAMES[method]}`)),
        ],
        rows: [
          ...workloads.map(guest => [guest, ...cells(guest, 'wanBytes'), ...cells(guest, 'totalMs')]),
          ['**average**', ...average('wanBytes'), ...average('totalMs')],
          ['reported by the paper', ...reported(PAPER.data), ...reported(PAPER.time)],
        ],
      },
    },
  ]
}

/** Why there is no figure. */
function missing(figures: Figures, profile: string, guest: string, method: Method): TableCell {
  for (const one of ['direct', method] as const) {
    const cell = figures.cell(profile, guest, one)
    if (cell === undefined) return { text: `${METHOD_NAMES[one]}: not run`, state: 'not measured' }
    if (cell.completed === 0) return { text: `${METHOD_NAMES[one]}: ${outcomeText(cell)}`, state: 'failed' }
  }
  return ''
}

/** What methods took on average of the lab's guests, beside what QEMU alone takes. */
export function averageBlocks(figures: Figures, methods: readonly Method[] = figures.methods): Block[] {
  const rows = figures.averages(methods)
  const ratio = (found: Average['time'][Base]): string => {
    if (found === undefined) return ''
    const { ratio: value, guests, bounds } = found
    const over = bounds > 0 ? `; at most, in ${bounds} of ${guests + bounds}` : ''
    return `${value.toFixed(3)}${over}`
  }
  return [
    { kind: 'heading', level: 2, id: 'averages', text: "Averages over the lab's guests" },
    {
      kind: 'text',
      text: `Over ${profileText(figures.main)}; workloads: ${figures.workloads.join(', ')}. Seconds and bytes are means of the medians of the guests that a method brought across: so of different guests where it did not bring all. A ratio is the mean of the guests' own ratios, of those that have both; where it says "at most, in n of m", in n of m guests the other method was stopped before it converged, and what it had used by then stands for what it needs.`,
    },
    {
      kind: 'table',
      table: {
        caption: `Means over the lab's guests, over ${linkText(figures.main)}`,
        columns: [
          column('Method', false),
          column('Guests that came across', false),
          column('Total time'),
          column('of direct'),
          column('of multifd + zstd'),
          column('Bytes on the link'),
          column('of direct'),
          column('of multifd + zstd'),
        ],
        rows: rows.map(({ method, guests, all, totalMs, wanBytes, time, bytes }) => [
          METHOD_NAMES[method],
          `${guests} of ${all}`,
          totalMs === undefined ? '' : seconds(totalMs),
          ratio(time.direct),
          ratio(time['multifd-zstd']),
          wanBytes === undefined ? '' : formatSize(wanBytes),
          ratio(bytes.direct),
          ratio(bytes['multifd-zstd']),
        ]),
      },
    },
  ]
}

/** `wan: 100 Mbit/s, 40 ms` */
function linkText({ name, link }: Profile): string {
  const { bitsPerSecond, roundTripMs } = parseLink(link)
  return `${name}: ${rate(bitsPerSecond)}, ${digits(roundTripMs)} ms`
}

/** `metro: 1 Gbit/s, 2 ms (netem)`, as it was measured. */
function profileText({ name, link, measured, kind }: Profile): string {
  const same = name === link ? '' : `${name}: `
  return `${same}${link} (${kind}; measured ${rate(measured.bitsPerSecond)}, ${digits(measured.roundTripMs)} ms)`
}

const METHOD_LEGEND = (figures: Figures, mark: 'area' | 'line'): Figure['legend'] =>
  figures.methods.map(method => ({ series: method, label: METHOD_NAMES[method], mark }))

function overviewBlocks(figures: Figures): Block[] {
  return [
    { kind: 'heading', level: 2, id: 'plots', text: 'At a glance' },
    ...classesFigure(figures),
    {
      kind: 'grid',
      blocks: [
        ...figures.results.profiles.map(profile => barFigure(figures, profile, 'Total time', 'totalMs', seconds)),
        barFigure(figures, figures.main, 'Downtime by QEMU', 'downtimeMs', milliseconds),
        barFigure(figures, figures.main, "Pause by the guest's own clock", 'guestPauseMs', milliseconds),
      ],
    },
    ...progressBlocks(figures),
  ]
}

function classesFigure(figures: Figures): Block[] {
  const guests = figures.results.guests.flatMap(({ name }) => {
    const cell = figures.cell(figures.main.name, name, 'pair')
    const run = cell?.runs.find(one => one.outcome === 'completed' && one.classes !== null)
    return run ? [{ name, run, classes: run.classes! }] : []
  })
  if (guests.length === 0) return []
  const known = CLASSES.filter(([name]) => guests.some(({ classes }) => (classes[name]?.bytes ?? 0) > 0))
  const plot = stacks(
    'Bytes of QEMU by how they travelled, guest by guest',
    guests.map(({ name, run, classes }) => {
      const parts = known
        .filter(([id]) => (classes[id]?.bytes ?? 0) > 0)
        .map(([id, series, label]) => ({
          series,
          name: label,
          value: classes[id]!.bytes,
          text: formatSize(classes[id]!.bytes),
        }))
      const whole = parts.reduce((sum, { value }) => sum + value, 0)
      return { label: name, note: `${formatSize(whole)} in, ${formatSize(run.wanBytes.forward)} on the link`, parts }
    }),
  )
  const legend = [...new Map(known.map(([, series, label]) => [series, label]))].map(([series, label]) => ({
    series,
    label,
    mark: 'area' as const,
  }))
  return [
    {
      kind: 'figure',
      figure: {
        title: 'Bytes by class',
        note: `What QEMU sent to the pair, by how it crossed the link (${figures.main.name}, first completed run). References cost next to nothing; what is partly known or new is compressed.`,
        legend,
        plot,
        table: {
          caption: 'Pages and bytes of QEMU, by class',
          columns: [column('Guest', false), ...known.map(([, , label]) => column(label)), column('on the link')],
          rows: guests.map(({ name, run, classes }) => [
            name,
            ...known.map(([id]) => {
              const one = classes[id]
              if (!one) return ''
              return one.pages > 0 ? `${formatCount(one.pages)} pages, ${formatSize(one.bytes)}` : formatSize(one.bytes)
            }),
            formatSize(run.wanBytes.forward),
          ]),
        },
      },
    },
  ]
}

function barFigure(
  figures: Figures,
  profile: Profile,
  title: string,
  figure: 'totalMs' | 'downtimeMs' | 'guestPauseMs',
  text: (value: number) => string,
): Block {
  const here = figures.cells.filter(cell => cell.profile === profile.name)
  const guests = figures.workloads.filter(guest => here.some(cell => cell.guest === guest))
  const methods = figures.methods.filter(method => here.some(cell => cell.method === method))
  const cellsOf = (method: Method): Cell[] => guests.flatMap(guest => figures.cell(profile.name, guest, method) ?? [])
  // a mean over other guests would compare nothing: only those that every method brought across
  const shared = guests.filter(guest =>
    methods.every(method => {
      const cell = figures.cell(profile.name, guest, method)
      return cell === undefined || cell[figure] !== undefined || cellsOf(method).every(one => one[figure] === undefined)
    }),
  )
  const rows: BarRow[] = methods.map(method => {
    const cells = cellsOf(method)
    const dots = cells.flatMap(cell =>
      cell[figure]
        ? [{ value: cell[figure].median, tip: `${METHOD_NAMES[method]}, ${cell.guest}: ${spread(cell[figure], text)}` }]
        : [],
    )
    const values = cells.flatMap(cell => (shared.includes(cell.guest) && cell[figure] ? [cell[figure].median] : []))
    const value = values.length === 0 ? undefined : mean(values)
    const label = METHOD_NAMES[method]
    if (value === undefined) {
      const outcomes = [...new Set(cells.map(outcomeText))].filter(outcome => outcome !== 'completed')
      return {
        label,
        series: method,
        value,
        text: cells.length === 0 ? 'not run' : outcomes.join(', ') || 'not told',
        dots,
      }
    }
    const bad = cells.reduce((sum, cell) => sum + cell.runs.length - cell.completed, 0)
    return { label, series: method, value, text: `${text(value)}${bad > 0 ? `; ${bad} runs did not end` : ''}`, dots }
  })
  const most = Math.max(1, ...rows.flatMap(({ value = 0, dots }) => [value, ...dots.map(dot => dot.value)]))
  const name = `${title} over ${profile.name}`
  return {
    kind: 'figure',
    figure: {
      title: name,
      note: `Bars: mean over the workloads${shared.length === guests.length ? '' : ` that all methods brought across (${shared.join(', ')})`}. Dots: each workload's median.`,
      legend: [],
      plot: bars(name, rows, most),
      table: {
        caption: `${name}: medians`,
        columns: [column('Method', false), ...guests.map(guest => column(guest)), column('mean')],
        rows: methods.map((method, i) => [
          METHOD_NAMES[method],
          ...guests.map((guest): TableCell => {
            const cell = figures.cell(profile.name, guest, method)
            if (cell === undefined) return { text: 'not run', state: 'not measured' }
            if (cell.completed === 0) return { text: outcomeText(cell), state: 'failed' }
            return spread(cell[figure], text)
          }),
          rows[i]!.value === undefined ? '' : text(rows[i]!.value!),
        ]),
      },
    },
  }
}

const PROGRESS_POINTS = 60

const sizeTick = (bytes: number): string => (bytes === 0 ? '0' : formatSize(bytes).replace('.0 ', ' '))

function progressBlocks(figures: Figures): Block[] {
  const profile = figures.main.name
  const blocks: Block[] = []
  for (const { name: guest } of figures.results.guests) {
    const runs = figures.methods.flatMap(method => {
      const run = figures.cell(profile, guest, method)?.runs.find(one => one.progress.length > 1)
      return run ? [{ method, run }] : []
    })
    if (runs.length === 0) continue
    const thin = <T>(all: readonly T[]): T[] => {
      const step = Math.max(1, Math.ceil(all.length / PROGRESS_POINTS))
      return all.filter((_, i) => i % step === 0 || i === all.length - 1)
    }
    const plotted = runs.map(({ method, run }) => ({
      series: method,
      name: METHOD_NAMES[method],
      points: thin(run.progress).map(({ ms, remainingBytes }) => [ms, remainingBytes] as const),
    }))
    const all = plotted.flatMap(({ points }) => points)
    // the time axis in round seconds
    const xTicks = ticksTo(Math.max(...all.map(([ms]) => ms)) / 1000).map(second => second * 1000)
    const yTicks = ticksTo(Math.max(...all.map(([, bytes]) => bytes)))
    const title = guest
    blocks.push({
      kind: 'figure',
      figure: {
        title,
        note: guestText(figures, guest),
        legend: METHOD_LEGEND(figures, 'line').filter(({ series }) => runs.some(({ method }) => method === series)),
        plot: lines({
          label: `What was left to send over time, ${guest}`,
          lines: plotted,
          height: 220,
          xTicks,
          yTicks,
          xText: seconds,
          yText: sizeTick,
        }),
        table: {
          caption: `${guest}: the last sample of each pass`,
          columns: [
            column('Method', false),
            column('passes'),
            column('left at the end of each pass, at second', false),
          ],
          rows: runs.map(({ method, run }) => {
            const { samples, more } = passEnds(run)
            const shown = samples.map(({ ms, remainingBytes }) => `${formatSize(remainingBytes)} at ${seconds(ms)}`)
            return [METHOD_NAMES[method], String(run.passes ?? ''), `${shown.join(', ')}${more ? ', …' : ''}`]
          }),
        },
      },
    })
  }
  if (blocks.length === 0) return []
  return [
    { kind: 'heading', level: 3, id: 'progress', text: 'Passes over time' },
    {
      kind: 'text',
      text: `What was left to send, by QEMU's own count, over ${profile}, one run a method. Each rise is a new pass over pages that the guest has changed meanwhile.`,
    },
    { kind: 'grid', blocks },
  ]
}

function guestText(figures: Figures, guest: string): Text {
  return figures.results.guests.find(({ name }) => name === guest)?.workload ?? ''
}

const PARTS = ['source qemu', 'destination qemu', 'source proxy', 'destination proxy', 'zstd'] as const

function peerBlocks(figures: Figures): Block[] {
  const { profiles, guests, skipped } = figures.results
  const blocks: Block[] = [
    { kind: 'heading', level: 2, id: 'peers', text: 'All runs, beside their peers' },
    {
      kind: 'text',
      text: `Medians; in brackets least to most, where there were several runs. Bytes are those of packets on the link, both ways, headers included. Pause is the longest silence of the guest's own heartbeat around the switch. CPU is user and system time of all processes that take part, its parts in this order: ${PARTS.join(' / ')}. Guest speed is the guest's work a second while it migrated, of what it did before.`,
    },
    { kind: 'list', items: figures.methods.map(method => `**${METHOD_NAMES[method]}**: ${METHODS[method]}`) },
  ]
  for (const profile of profiles) {
    blocks.push({
      kind: 'details',
      title: `Over ${profileText(profile)}`,
      open: profile === figures.main,
      blocks: [
        {
          kind: 'table',
          table: peerTable(
            figures,
            profile,
            guests.map(({ name }) => name),
          ),
        },
      ],
    })
  }
  if (skipped.length > 0) {
    blocks.push({ kind: 'text', text: 'Left out:' })
    blocks.push({ kind: 'list', items: skipped.map(({ what, reason }) => `${what}: ${reason}`) })
  }
  return blocks
}

function peerTable(figures: Figures, profile: Profile, guests: readonly string[]): Table {
  const rows: TableCell[][] = []
  for (const guest of guests) {
    for (const method of figures.methods) {
      const cell = figures.cell(profile.name, guest, method)
      if (cell === undefined) continue
      rows.push(peerRow(figures, cell))
    }
  }
  return {
    caption: `Over ${profile.name}`,
    columns: [
      column('Guest', false),
      column('Method', false),
      column('Completed', false),
      column('Total time'),
      column('of direct'),
      column('Bytes on the link'),
      column('of direct'),
      column('Downtime, QEMU'),
      column('Pause, guest'),
      column('Passes'),
      column('CPU seconds'),
      column('CPU by part'),
      column('Guest speed'),
      column('Why not all completed', false),
    ],
    rows,
  }
}

/** What went wrong; where nothing completed, also how far it got. */
function reasonsOf(cell: Cell): Text {
  const reasons = cell.reasons.join('; ')
  if (cell.completed > 0) return reasons
  const { totalMs, wanBytes } = cell.runs[0]!
  const bytes = wanBytes.forward + wanBytes.back
  return bytes > 0 ? `${reasons}; by then ${seconds(totalMs)} and ${formatSize(bytes)} on the link` : reasons
}

function peerRow(figures: Figures, cell: Cell): TableCell[] {
  const { guest, method, profile } = cell
  const all = cell.runs.length
  const runs: TableCell =
    cell.completed < all ? { text: `${cell.completed} of ${all}`, state: 'failed' } : `${all} of ${all}`
  const ofDirect = (figure: 'totalMs' | 'wanBytes'): string => {
    if (method === 'direct') return ''
    const found = figures.ratios(profile, method, 'direct', figure, [guest])
    return found.length === 0 ? '' : found[0]![1].toFixed(2)
  }
  const parts = PARTS.map(part => (cell.cpuByPart[part] === undefined ? '–' : digits(cell.cpuByPart[part])))
  return [
    guest,
    METHOD_NAMES[method],
    runs,
    spread(cell.totalMs, seconds),
    ofDirect('totalMs'),
    spread(cell.wanBytes, formatSize),
    ofDirect('wanBytes'),
    spread(cell.downtimeMs, milliseconds),
    spread(cell.guestPauseMs, milliseconds),
    spread(cell.passes, digits),
    spread(cell.cpuSeconds, digits),
    cell.completed === 0 ? '' : parts.join(' / '),
    spread(cell.guestSpeed, percent),
    reasonsOf(cell),
  ]
}

function machineBlocks({ figures }: Sources): Block[] {
  const { machine, versions, guests, templates, images = [], startedAt, commit, command, profiles } = figures.results
  return [
    { kind: 'heading', level: 2, id: 'machine', text: 'On what, and how to do it again' },
    {
      kind: 'list',
      items: [
        `Machine: ${machine.cpu}, ${machine.cores} cores, ${formatSize(machine.memoryBytes)} of memory, Linux ${machine.kernel}; accelerator ${machine.accelerator}; load average ${machine.loadAverage} when it began. Source, destination, guest and link share these cores.`,
        `Versions: ${Object.entries(versions)
          .map(([name, version]) => `${name} ${version}`)
          .join(', ')}; commit ${commit}, started ${startedAt}.`,
        `Links: ${profiles.map(profileText).join('; ')}.`,
        `Guests: ${guests.map(({ name, workload, memoryBytes }) => `${name} (${workload}, ${formatSize(memoryBytes)})`).join('; ')}.`,
        `Templates: ${formatCount(templates.pages)} pages (${formatSize(templates.bytes)}) of ${templates.from.join(', ')}; never from the guest that is migrated.`,
        ...images.map(
          ({ name, pages, bytes }) => `Sets of ${name}: ${formatCount(pages)} pages (${formatSize(bytes)}).`,
        ),
      ],
    },
    { kind: 'text', text: 'To do it again, as root on Debian 12:' },
    {
      kind: 'code',
      text: `make lab\n${command}\nmake bench-scaling\nmake report`,
    },
  ]
}
