/** How people read the end of a migration: one line, where JSON has all fields. */

import type { SiteEvent, SiteEvents } from '../daemon/events.ts'
import type { Sentence } from '../daemon/text-log.ts'
import type {
  ArrivalSummary,
  DiskArrivalSummary,
  DiskDepartureSummary,
  MigrationSummary,
  PageCounts,
} from '../migration/summary.ts'
import { formatRate, formatSize, plural } from '../quantity.ts'
import { formatPause } from './status-text.ts'

type Departure = Omit<MigrationSummary, 'level'>
type Arrival = Omit<ArrivalSummary, 'level'>

/** The sentence of an event; undefined where its name and fields are as good. */
export function sentenceOf(told: SiteEvent): Sentence | undefined {
  if (told.event === 'disk transfer ended') return diskSentence(told.fields)
  if (told.event === 'started') return { text: startLine(told.fields), fields: {} }
  if (told.event !== 'migration ended') return undefined
  const { fields } = told
  const line = 'bytesWan' in fields ? summaryLine(fields) : arrivalLine(fields)
  const { id, target, machine, uuid } = fields
  // by what one finds the same migration at the other site, and the guest
  return { text: `migration ${fields.migration} ended: ${line}`, fields: { id, target, machine, uuid } }
}

const TLS = { x509: 'TLS with certificates', psk: 'TLS with a pre-shared key', none: 'no TLS' } as const

/** What is slower than it could be is said; else nobody needs to know. */
const LZ4 = { lz4: [], 'lz4-napi': ['LZ4 by lz4-napi, which is slower'] } as const
const KERNEL = { simd: [], twin: ['no WebAssembly kernel, its slow twin'] } as const

function startLine(fields: SiteEvents['started']): string {
  const { version, role, tls, sets, learn, rates = {}, node, lz4, kernel } = fields
  const caps = Object.entries(rates).map(
    ([peer, rate]) => `to ${peer} ${rate === 'none' ? 'without a cap' : `at most ${formatRate(rate)}`}`,
  )
  const store = sets === undefined ? ['no store'] : [plural(sets, 'template set'), `learning ${learn}`]
  return `pageferry ${version}, ${role}: ${[TLS[tls], ...store, ...caps, `Node ${node.slice(1)}`, ...LZ4[lz4], ...KERNEL[kernel]].join(', ')}`
}

/** From so much more than the first pass on, what the guest wrote meanwhile is told of. */
const AGAIN_FROM = 1.05

/** The one line at the end of a migration that leaves. */
export function summaryLine(summary: Departure): string {
  const { pages, forecast, firstPass } = summary
  const said = forecast
    ? `forecast ${range(forecast.seconds, seconds => seconds.toFixed(1))} s, ${range(forecast.bytesWan, formatSize)}`
    : undefined
  // the forecast is of one pass over the guest's memory
  const again = firstPass !== undefined && summary.bytesIn > AGAIN_FROM * firstPass.bytesIn
  const once = again
    ? `the first pass took ${firstPass.seconds.toFixed(1)} s, ${formatSize(firstPass.bytesWan)}`
    : undefined
  const beside = said || once ? ` (${[said, once].filter(text => text !== undefined).join('; ')})` : ''
  return (
    `${outcome(summary)}; ${summary.channels}: ${formatSize(summary.bytesIn)} from QEMU, ` +
    `${formatSize(summary.bytesWan)} on the WAN (${(100 * summary.ratio).toFixed(1)} %), ${summary.seconds.toFixed(1)} s${beside}; ` +
    (summary.pauseSeconds === undefined ? '' : `the guest stood still for ${formatPause(summary.pauseSeconds)}; `) +
    `pages: ${countsText(pages)}; ${summary.endedBy}`
  )
}

function countsText(counts: PageCounts): string {
  const parts = Object.entries(counts).filter(([, count]) => count > 0)
  return parts.map(([name, count]) => `${count} ${name}`).join(', ') || 'none'
}

function diskSentence(fields: Omit<DiskDepartureSummary, 'level'> | Omit<DiskArrivalSummary, 'level'>): Sentence {
  const { transfer, id, target, connections, seconds, bytesBack, endedBy } = fields
  const many = plural(connections, 'connection')
  const passed =
    'bytesWan' in fields
      ? `${formatSize(fields.bytesIn)} from clients, ${formatSize(fields.bytesWan)} on the WAN (${(100 * fields.ratio).toFixed(1)} %)`
      : `${formatSize(fields.bytesOut)} to the server`
  const blocks = 'blocks' in fields ? `; blocks: ${countsText(fields.blocks)}` : ''
  const line = `${many}: ${passed}, ${formatSize(bytesBack)} back, ${seconds.toFixed(1)} s${blocks}; ${endedBy}`
  const exports = 'exports' in fields && fields.exports.length > 0 ? { exports: fields.exports } : {}
  return { text: `disk transfer ${transfer} ended: ${line}`, fields: { id, target, ...exports } }
}

function arrivalLine(summary: Arrival): string {
  return (
    `${outcome(summary)}; ${formatSize(summary.bytesOut)} to QEMU, ` +
    `${formatSize(summary.bytesBack)} back, ${summary.seconds.toFixed(1)} s; ${summary.endedBy}`
  )
}

/** 'completed (the destination QEMU has taken over)'. */
function outcome({ outcome, reason }: Departure | Arrival): string {
  return `${outcome} (${reason})`
}

function range([least, most]: readonly [number, number], text: (value: number) => string): string {
  const [from, to] = [text(least), text(most)]
  return from === to ? from : `${from} to ${to}`
}
