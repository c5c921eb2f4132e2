/** The first plot: how long one guest takes over links from 20 Mbit/s to 10 Gbit/s. Only what was measured is a point. */
import { parseLink } from '../harness/wan/link.ts'
import type { Method, Profile } from '../measure/compare/results.ts'
import { lines, logarithmicTicks, type Point } from './charts.ts'
import type { Block, TableCell } from './document.ts'
import type { Figures } from './figures.ts'
import { column, METHOD_NAMES, outcomeText } from './names.ts'
import { digits, rate, seconds, spread } from './quantities.ts'

const SHOWN: readonly Method[] = ['direct', 'multifd-zstd', 'pair']
const FROM = 20e6
const TO = 10e9

interface Link {
  readonly profile: Profile
  readonly bitsPerSecond: number
  readonly roundTripMs: number
}

/** None where no guest was moved over two links. */
export function linkFigure(figures: Figures): Block[] {
  const all: Link[] = figures.results.profiles
    .map(profile => ({ profile, ...parseLink(profile.link) }))
    .filter(({ bitsPerSecond }) => bitsPerSecond >= FROM && bitsPerSecond <= TO)
    .sort((a, b) => a.bitsPerSecond - b.bitsPerSecond || a.roundTripMs - b.roundTripMs)
  const linksOf = (guest: string): Link[] =>
    all.filter(({ profile }) => SHOWN.some(method => figures.cell(profile.name, guest, method)))
  const [guest] = figures.workloads.toSorted((a, b) => linksOf(b).length - linksOf(a).length)
  const links = guest === undefined ? [] : linksOf(guest)
  if (guest === undefined || links.length < 2) return []

  /** A line goes through one link of each rate: that with the shortest round trip. */
  const isOnLine = ({ bitsPerSecond }: Link, i: number): boolean => links[i - 1]?.bitsPerSecond !== bitsPerSecond
  const plotted = SHOWN.flatMap(method => {
    const [points, loose]: [Point[], Point[]] = [[], []]
    for (const [i, link] of links.entries()) {
      const ms = figures.cell(link.profile.name, guest, method)?.totalMs?.median
      const into = isOnLine(link, i) ? points : loose
      if (ms !== undefined) into.push([link.bitsPerSecond, ms, linkText(link)])
    }
    return points.length + loose.length === 0 ? [] : [{ series: method, name: METHOD_NAMES[method], points, loose }]
  })
  const times = plotted.flatMap(({ points, loose }) => [...points, ...loose].map(([, ms]) => ms))
  if (times.length === 0) return []
  const cells = links.map(({ profile }) =>
    SHOWN.map((method): TableCell => {
      const cell = figures.cell(profile.name, guest, method)
      if (cell === undefined) return { text: 'not run', state: 'not measured' }
      return cell.completed === 0 ? { text: outcomeText(cell), state: 'failed' } : spread(cell.totalMs, seconds)
    }),
  )
  const none = links.flatMap(({ profile }, i) =>
    SHOWN.flatMap((method, k) => {
      const cell = cells[i]![k]!
      return typeof cell === 'string' ? [] : [`${METHOD_NAMES[method]} over ${profile.name} (${cell.text})`]
    }),
  )
  const workload = figures.results.guests.find(({ name }) => name === guest)?.workload ?? guest
  return [
    { kind: 'heading', level: 2, id: 'links', text: 'Time against link' },
    {
      kind: 'figure',
      figure: {
        title: 'Seconds to move one guest, by the rate of the link',
        note: `The guest: ${workload}. Both axes logarithmic. Each dot was measured, a line joins those of one method: of links of the same rate it goes through that with the shortest round trip.${none.length > 0 ? ` No dot: ${none.join(', ')}.` : ''}`,
        legend: plotted.map(({ series, name }) => ({ series, label: name, mark: 'line' })),
        plot: lines({
          label: 'Seconds to move one guest by the rate of the link, both axes logarithmic',
          lines: plotted,
          height: 380,
          xTicks: [FROM, 100e6, 1e9, TO],
          yTicks: logarithmicTicks(Math.min(...times), Math.max(...times)),
          logarithmic: true,
          xText: rate,
          yText: seconds,
          dots: true,
        }),
        table: {
          caption: 'Seconds to move one guest, by link',
          columns: [column('Link', false), column('measured'), ...SHOWN.map(method => column(METHOD_NAMES[method]))],
          rows: links.map((link, i) => [
            linkText(link),
            `${rate(link.profile.measured.bitsPerSecond)}, ${digits(link.profile.measured.roundTripMs)} ms`,
            ...cells[i]!,
          ]),
        },
      },
    },
  ]
}

function linkText({ profile, bitsPerSecond, roundTripMs }: Link): string {
  return `${profile.name}: ${rate(bitsPerSecond)}${roundTripMs > 0 ? `, ${digits(roundTripMs)} ms` : ''}`
}
