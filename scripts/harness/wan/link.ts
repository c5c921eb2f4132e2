/**
 * What a WAN link is, from a description such as `100Mbit,40ms,loss=0.1%,jitter=2ms,outage=5s@30s` or
 * `intercontinental,loss=1%`.
 *
 *   100Mbit         bits per second each way: bit, kbit, Mbit, Gbit; decimal; of Ethernet frames on a packet link
 *   40ms            round trip: half of it each way: us, ms, s
 *   loss=0.1%       of packets, each way, independently
 *   jitter=2ms      up to so much more or less each way, never out of order
 *   outage=5s@30s   nothing passes either way for 5 s from 30 s after the link's clock started; may come again
 *   queue=2MB       what may wait each way before packets are dropped: kB, MB; default twice rate times round trip
 *   seed=7          of everything random; default 1
 *
 * A profile stands for a description; words after it replace its own.
 */

/** A link; both ways alike. */
export interface Link {
  /** Infinity where nothing limits it. */
  readonly bitsPerSecond: number
  readonly roundTripMs: number
  /** 0 to 1. */
  readonly lossPart: number
  readonly jitterMs: number
  readonly outages: readonly Outage[]
  readonly queueBytes: number
  readonly seed: number
}

/** A time in which nothing passes. */
export interface Outage {
  /** After the link's clock started. */
  readonly startMs: number
  readonly lengthMs: number
}

/**
 * Links to try things on: an office's line, which the marks of the comparison stand on; the distances of one city, one
 * continent, two; a mobile uplink; and a data centre's own network.
 */
export const LINK_PROFILES = {
  wan: '100Mbit,40ms',
  metro: '1Gbit,2ms',
  continental: '200Mbit,30ms,loss=0.005%',
  intercontinental: '100Mbit,140ms,loss=0.01%,jitter=1ms',
  lte: '20Mbit,60ms,loss=0.2%,jitter=15ms',
  lan: '10Gbit',
} as const

/** A description that does not follow the grammar above. */
export class LinkSyntaxError extends Error {
  override name = 'LinkSyntaxError'
  /** The word at fault. */
  readonly word: string

  constructor(word: string, problem: string) {
    super(`link: '${word}' ${problem}`)
    this.word = word
  }
}

const rateUnits: Record<string, number> = { bit: 1, kbit: 1e3, mbit: 1e6, gbit: 1e9 }
const timeUnits: Record<string, number> = { us: 0.001, ms: 1, s: 1000 }
const sizeUnits: Record<string, number> = { b: 1, kb: 1e3, mb: 1e6 }
const number = /^(\d+(?:\.\d+)?)([a-z%]*)$/i

function quantity(word: string, value: string, units: Record<string, number>, example: string): number {
  const found = number.exec(value)
  const unit = found ? units[found[2]!.toLowerCase()] : undefined
  if (!found || unit === undefined) throw new LinkSyntaxError(word, `needs a number and a unit, as ${example}`)
  return Number(found[1]) * unit
}

/**
 * Reads a description.
 * @throws LinkSyntaxError
 */
export function parseLink(description: string): Link {
  const link = { bitsPerSecond: Infinity, roundTripMs: 0, lossPart: 0, jitterMs: 0, seed: 1 }
  let outages: Outage[] = []
  let queueBytes: number | undefined
  const words = description.split(',').map(word => word.trim())
  const [profile] = words
  if (profile && Object.hasOwn(LINK_PROFILES, profile)) {
    words.splice(0, 1, ...LINK_PROFILES[profile as keyof typeof LINK_PROFILES].split(','))
  }
  for (const word of words) {
    const [key, value = ''] = word.split('=', 2) as [string, string?]
    switch (word.includes('=') ? key : '') {
      case '': {
        const unit = (number.exec(word)?.[2] ?? '').toLowerCase()
        if (unit in rateUnits) {
          link.bitsPerSecond = quantity(word, word, rateUnits, '100Mbit')
          if (link.bitsPerSecond === 0) throw new LinkSyntaxError(word, 'lets nothing through; an outage says that')
        } else if (unit in timeUnits) link.roundTripMs = quantity(word, word, timeUnits, '40ms')
        else
          throw new LinkSyntaxError(
            word,
            `is neither a rate (100Mbit), a round trip (40ms), an option (loss=0.1%) nor, as the first word, a profile (${Object.keys(LINK_PROFILES).join(', ')})`,
          )
        break
      }
      case 'loss':
        link.lossPart = quantity(word, value, { '%': 0.01 }, 'loss=0.1%')
        if (link.lossPart > 1) throw new LinkSyntaxError(word, 'is more than everything')
        break
      case 'jitter':
        link.jitterMs = quantity(word, value, timeUnits, 'jitter=2ms')
        break
      case 'outage': {
        const [length = '', start, more] = value.split('@')
        if (start === undefined || more !== undefined)
          throw new LinkSyntaxError(word, 'needs a length and a start, as outage=5s@30s')
        const outage = {
          startMs: quantity(word, start, timeUnits, 'outage=5s@30s'),
          lengthMs: quantity(word, length, timeUnits, 'outage=5s@30s'),
        }
        outages = [...outages, outage].sort((a, b) => a.startMs - b.startMs)
        break
      }
      case 'queue':
        queueBytes = quantity(word, value, sizeUnits, 'queue=2MB')
        break
      case 'seed':
        if (!/^\d+$/.test(value)) throw new LinkSyntaxError(word, 'needs a whole number')
        link.seed = Number(value)
        break
      default:
        throw new LinkSyntaxError(word, 'is unknown; there are loss, jitter, outage, queue and seed')
    }
  }
  if (link.jitterMs > link.roundTripMs / 2) {
    throw new LinkSyntaxError(
      `jitter=${link.jitterMs}ms`,
      'is more than half of the round trip: packets would arrive before they were sent',
    )
  }
  return { ...link, outages, queueBytes: queueBytes ?? defaultQueueBytes(link.bitsPerSecond, link.roundTripMs) }
}

/** Twice what is under way: enough for any congestion control to fill the link, and not so much that nobody notices. */
function defaultQueueBytes(bitsPerSecond: number, roundTripMs: number): number {
  const twice = (2 * bitsPerSecond * roundTripMs) / 8000
  return Math.round(Math.min(Math.max(Number.isNaN(twice) ? 0 : twice, 128_000), 64_000_000))
}

/** A description of `link` that parseLink() reads as the same link. */
export function formatLink(link: Link): string {
  const { bitsPerSecond: rate } = link
  const scaled = rate >= 1e9 ? `${rate / 1e9}Gbit` : rate >= 1e6 ? `${rate / 1e6}Mbit` : `${rate / 1e3}kbit`
  return [
    ...(rate === Infinity ? [] : [scaled]),
    `${link.roundTripMs}ms`,
    ...(link.lossPart > 0 ? [`loss=${Number((link.lossPart * 100).toPrecision(12))}%`] : []),
    ...(link.jitterMs > 0 ? [`jitter=${link.jitterMs}ms`] : []),
    ...link.outages.map(({ lengthMs, startMs }) => `outage=${lengthMs}ms@${startMs}ms`),
    ...(link.queueBytes === defaultQueueBytes(rate, link.roundTripMs) ? [] : [`queue=${link.queueBytes / 1e3}kB`]),
    ...(link.seed === 1 ? [] : [`seed=${link.seed}`]),
  ].join(',')
}
