/** What was said of migrations, beforehand and halfway, and how they went: of the same runs as all other figures. */
import type { Method, Run, Told } from '../measure/compare/results.ts'
import type { Block, TableCell } from './document.ts'
import type { Figures } from './figures.ts'
import { column, METHOD_NAMES } from './names.ts'
import { formatSize, percent, seconds, spread } from './quantities.ts'

type Said = NonNullable<Run['forecast']>
type Kind = 'seconds' | 'bytesIn' | 'bytesWan'

/** None where nothing was said. */
export function forecastBlocks(figures: Figures): Block[] {
  const blocks = [...beforehand(figures), ...halfway(figures)]
  if (blocks.length === 0) return []
  return [{ kind: 'heading', level: 2, id: 'forecasts', text: 'Forecasts, and what came' }, ...blocks]
}

function beforehand(figures: Figures): Block[] {
  const { estimates = [] } = figures.results
  const rows = estimates.flatMap(told => {
    const fact = figures.cell(told.profile, told.guest, told.method)
    const best = bestOf(told)
    if (!fact?.totalMs || !fact.wanBytes || !best) return []
    const beside = (said: number, came: number): string => (came / said).toFixed(2)
    const direct = figures.cell(told.profile, told.guest, 'direct')?.totalMs
    return [
      [
        told.guest,
        METHOD_NAMES[told.method],
        seconds(best.seconds * 1000),
        spread(fact.totalMs, seconds),
        beside(best.seconds * 1000, fact.totalMs.median),
        formatSize(best.wanBytes),
        spread(fact.wanBytes, formatSize),
        beside(best.wanBytes, fact.wanBytes.median),
        seconds(told.directSeconds * 1000),
        direct ? spread(direct, seconds) : 'did not converge',
      ],
    ]
  })
  if (rows.length === 0) return []
  return [
    {
      kind: 'text',
      text: '`pageferry estimate --rate` of the guest as it is kept, before anybody migrates, at the effort that it finds best for the link; beside it the medians of the migrations. It knows nothing of what the guest writes meanwhile, nor of what the hosts have to do beside.',
    },
    {
      kind: 'table',
      table: {
        caption: 'Said beforehand',
        columns: [
          column('Guest', false),
          column('Method', false),
          column('time said'),
          column('time'),
          column('of what was said'),
          column('on the link said'),
          column('on the link'),
          column('of what was said'),
          column('direct, said'),
          column('direct'),
        ],
        rows,
      },
    },
  ]
}

function bestOf({ efforts }: Told): Told['efforts'][number] | undefined {
  return efforts.toSorted((a, b) => a.seconds - b.seconds)[0]
}

function halfway(figures: Figures): Block[] {
  const groups = Map.groupBy(
    figures.results.runs.filter(run => run.outcome === 'completed' && run.forecast),
    ({ profile, method }) => JSON.stringify([profile, method]),
  )
  if (groups.size === 0) return []
  const rows = [...groups.values()].map((runs): TableCell[] => {
    const said = runs.map(run => run.forecast!)
    const within = (kind: Kind, of: (one: Said) => Said['ended']): string =>
      `${said.filter(one => of(one)[kind] >= one[kind][0] && of(one)[kind] <= one[kind][1]).length} of ${said.length}`
    const { profile, method } = runs[0]!
    return [
      profile,
      METHOD_NAMES[method as Method],
      within('seconds', ({ firstPass }) => firstPass),
      within('bytesIn', ({ firstPass }) => firstPass),
      within('bytesWan', ({ firstPass }) => firstPass),
      within('seconds', ({ ended }) => ended),
      worst(said),
    ]
  })
  return [
    {
      kind: 'text',
      text: 'What the source proxy forecasts halfway of the first pass, as a range from least to most: in how many of the runs what the first pass came to was within it, and the time of the whole migration, with what the guest wrote meanwhile. Last how far outside the worst time of a first pass was, of that time.',
    },
    {
      kind: 'table',
      table: {
        caption: 'Said halfway',
        columns: [
          column('Link', false),
          column('Method', false),
          column('first pass: time'),
          column("QEMU's bytes"),
          column('bytes on the WAN'),
          column('all of it: time'),
          column('worst time'),
        ],
        rows,
      },
    },
  ]
}

function worst(said: readonly Said[]): string {
  const outside = said.map(({ seconds: [least, most], firstPass: { seconds: took } }) =>
    took === 0 ? 0 : Math.max(0, least - took, took - most) / took,
  )
  const most = Math.max(...outside)
  return most === 0 ? 'within' : percent(most)
}
