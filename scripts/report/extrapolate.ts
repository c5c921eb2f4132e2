/** From measured slopes to sizes that do not fit here. Pure; each assumption is a sentence that the report prints. */
import type { CodecCost, Scaling } from '../measure/scaling.ts'

/** y = at + slope x, by least squares. */
export interface Line {
  readonly at: number
  readonly slope: number
}

/** A straight line through points; through one point and the origin where there is one only. */
export function lineThrough(points: readonly (readonly [x: number, y: number])[]): Line {
  const n = points.length
  const [sx, sy] = [points.reduce((sum, [x]) => sum + x, 0), points.reduce((sum, [, y]) => sum + y, 0)]
  const spread = points.reduce((sum, [x]) => sum + (x - sx / n) ** 2, 0)
  if (spread === 0) return { at: 0, slope: sx === 0 ? 0 : sy / sx }
  const slope = points.reduce((sum, [x, y]) => sum + (x - sx / n) * (y - sy / n), 0) / spread
  return { at: sy / n - (slope * sx) / n, slope }
}

export function at(line: Line, x: number): number {
  return line.at + line.slope * x
}

const GB = 1e9

/** Seconds that one core takes to encode (or decode, where that is slower) so many bytes of QEMU at this cost. */
export function cpuSecondsFor(cost: CodecCost, rawBytes: number): number {
  return (Math.max(cost.encodeCpuSeconds, cost.decodeCpuSeconds) / cost.rawBytes) * rawBytes
}

/** The best effort for a link and what it gives. */
export interface LinkForecast {
  readonly bitsPerSecond: number
  readonly effort: number
  readonly seconds: number
  readonly directSeconds: number
  readonly wanBytes: number
  readonly bound: 'link' | 'CPU'
}

/**
 * What a migration of `rawBytes` takes at each link: link and CPU work side by side, so the slower of both decides, and
 * the pair takes the effort with which that is least.
 */
export function forecast(efforts: Scaling['efforts'], rawBytes: number, bitsPerSecond: number): LinkForecast {
  const directSeconds = (rawBytes * 8) / bitsPerSecond
  let best: LinkForecast | undefined
  for (const cost of efforts) {
    const wanBytes = (cost.wanBytes / cost.rawBytes) * rawBytes
    const linkSeconds = (wanBytes * 8) / bitsPerSecond
    const cpu = cpuSecondsFor(cost, rawBytes)
    const seconds = Math.max(linkSeconds, cpu)
    if (best === undefined || seconds < best.seconds)
      best = {
        bitsPerSecond,
        effort: cost.effort,
        seconds,
        directSeconds,
        wanBytes,
        bound: cpu > linkSeconds ? 'CPU' : 'link',
      }
  }
  return best!
}

/** How much of a guest's memory QEMU sends: bytes of its stream a byte of memory, measured on guests of several sizes. */
export function streamShare(scaling: Scaling): number {
  return lineThrough(scaling.guests.map(({ memoryBytes, rawBytes }) => [memoryBytes, rawBytes] as const)).slope
}

/** Rows of the forecast for larger things than there were here. */
export interface Extrapolation {
  readonly what: string
  readonly rawBytes: number
  readonly forecast: LinkForecast
  readonly cpuSeconds: number
}

/** @throws where efforts or guests were not measured */
export function extrapolations(scaling: Scaling): Extrapolation[] {
  const share = streamShare(scaling)
  const rows: Extrapolation[] = []
  for (const [what, memoryBytes] of [
    ['a guest of 16 GB', 16 * GB],
    ['a guest of 64 GB', 64 * GB],
    ['100 guests of 4 GB', 400 * GB],
  ] as const) {
    const rawBytes = memoryBytes * share
    for (const bitsPerSecond of [1e9, 10e9]) {
      const found = forecast(scaling.efforts, rawBytes, bitsPerSecond)
      const cost = scaling.efforts.find(({ effort }) => effort === found.effort)!
      rows.push({
        what,
        rawBytes,
        forecast: found,
        cpuSeconds: ((cost.encodeCpuSeconds + cost.decodeCpuSeconds) / cost.rawBytes) * rawBytes,
      })
    }
  }
  return rows
}
