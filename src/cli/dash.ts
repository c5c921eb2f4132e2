/** `-` among arguments: yargs makes an empty text of one, and drops it from a list. */

/** No argument that a system hands over has a NUL in it. */
const GUARDED = '\0-'

/** Arguments for yargs, with `-` disguised. */
export function keepDashes(args: readonly string[]): string[] {
  return args.map(arg => (arg === '-' ? GUARDED : arg))
}

/** Takes the disguise off what yargs made of them: a middleware, before validation. */
export function giveDashes(parsed: Record<string, unknown>): void {
  const plain = (value: unknown): unknown => (value === GUARDED ? '-' : value)
  for (const [name, value] of Object.entries(parsed)) {
    parsed[name] = Array.isArray(value) ? value.map(plain) : plain(value)
  }
}
