/** Figures as people read them in tables: units stand with each. */
import type { Spread } from './figures.ts'

export { formatCount, formatSize } from '../../src/quantity.ts'

export function seconds(ms: number): string {
  const value = ms / 1000
  return value >= 3600
    ? `${(value / 3600).toFixed(1)} h`
    : value >= 600
      ? `${(value / 60).toFixed(0)} min`
      : `${digits(value)} s`
}

export function milliseconds(ms: number): string {
  return `${Math.round(ms)} ms`
}

export function percent(part: number): string {
  return `${(part * 100).toFixed(Math.abs(part) < 0.0995 ? 1 : 0)} %`
}

export function rate(bitsPerSecond: number): string {
  const [unit, name] = bitsPerSecond >= 1e9 ? [1e9, 'Gbit/s'] : bitsPerSecond >= 1e6 ? [1e6, 'Mbit/s'] : [1e3, 'kbit/s']
  return `${digits(bitsPerSecond / unit)} ${name}`
}

/** Three digits that count, at most two behind the point. */
export function digits(value: number): string {
  const size = Math.abs(value)
  return value.toFixed(size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : 2)
}

/** The median, and least to most where there are several. */
export function spread(figure: Spread | undefined, text: (value: number) => string): string {
  if (figure === undefined) return ''
  const [least, most] = [text(figure.least), text(figure.most)]
  return least === most ? text(figure.median) : `${text(figure.median)} (${least} to ${most})`
}
