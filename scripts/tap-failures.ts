/** What failed in a run, shortly: the end of a log is often all that is shown of it. Reads TAP 14 as `tap -R tap` writes it. */

const FAILURES_MAX = 12
const DETAILS_MAX = 6
const LINE_CHARACTERS_MAX = 200
/** Diagnostics that are the same for every file, or lines of its source. */
const USUAL = /^(?:source|compare|jobId|test|stdio|cwd|externalID|command|args|signal: null|signal: ~)\b/

interface Failure {
  /** File, subtests, assertion. */
  readonly path: string
  readonly diagnostics: string[]
  /** Comments before it, at the margin. */
  readonly comments: readonly string[]
}

/** Takes a run's lines, keeps the first failures and counts the rest. */
export class TapFailures {
  private readonly failures: Failure[] = []
  private rest = 0
  /** Names of the subtests around the line at hand, the file's first. */
  private readonly path: string[] = []
  /** Whether something failed at a depth, of what has the same parent: the parent fails for that. */
  private readonly hasFailed: boolean[] = []
  private bailOut: string | undefined
  private comments: string[] = []
  /** Of the last failure. */
  private block: { readonly lines: string[]; readonly indent: number; isOpen: boolean } | undefined

  take(line: string): void {
    const indent = /^ */.exec(line)![0].length
    if (this.block && this.isDiagnostic(line, indent, this.block)) return
    this.block = undefined
    const depth = Math.floor(indent / 4)
    const text = line.slice(indent)
    const result = /^(not )?ok\b(?: \d+)?(?: - )?(.*?)(?: # time=[\d.]+ms)?(?: \{)?$/.exec(text)
    if (result) this.takeResult(depth, result[1] === undefined || /# (?:skip|todo)/i.test(text), result[2]!)
    else if (text.startsWith('# Subtest')) {
      this.path.splice(depth, Number.POSITIVE_INFINITY, text.replace(/^# Subtest:? ?/, ''))
      this.hasFailed.length = depth + 1
    } else if (text.startsWith('Bail out!') && text !== this.bailOut) {
      this.bailOut = text // it comes again at every depth, up to the margin
      this.note(depth, text)
    } else if (depth === 0 && text.startsWith('# ')) this.comments.push(text.slice(2))
  }

  private takeResult(depth: number, isFine: boolean, name: string): void {
    const isExplained = this.hasFailed[depth + 1]
    this.hasFailed.length = depth + 1
    this.path.length = Math.min(this.path.length, depth)
    if (!isFine) {
      this.hasFailed[depth] = true
      if (!isExplained) this.block = { lines: this.note(depth, name), indent: depth * 4 + 2, isOpen: false }
    }
    this.comments = []
  }

  private isDiagnostic(line: string, indent: number, block: NonNullable<typeof this.block>): boolean {
    const text = line.slice(block.indent)
    if (!block.isOpen) {
      block.isOpen = indent === block.indent && text === '---'
      return block.isOpen
    }
    if (indent === block.indent && text === '...') this.block = undefined
    else block.lines.push(text)
    return true
  }

  private note(depth: number, name: string): string[] {
    const path = [...this.path.slice(0, depth), name].join(' > ')
    const failure = { path, diagnostics: [], comments: depth === 0 ? [...this.comments] : [] }
    this.comments = []
    if (this.failures.length < FAILURES_MAX) this.failures.push(failure)
    else this.rest++
    return failure.diagnostics
  }

  /** What has begun and not come to its end: file, subtests. */
  get unfinished(): string {
    return this.path.join(' > ')
  }

  /** What is to be printed. */
  lines(): string[] {
    const lines = this.failures.flatMap(({ path, diagnostics, comments }) => [
      path.startsWith('Bail out!') ? path : `not ok - ${path}`,
      ...(diagnostics.length > 0 ? essence(diagnostics) : comments.slice(-DETAILS_MAX)).map(line => `    ${line}`),
    ])
    const more = this.rest > 0 ? [`... and ${this.rest} more`] : []
    return [...lines, ...more].map(line => line.slice(0, LINE_CHARACTERS_MAX))
  }
}

/** Of diagnostics in YAML: where it is, then what was found and wanted. */
function essence(diagnostics: readonly string[]): string[] {
  const blocks: string[][] = []
  for (const line of diagnostics) {
    if (/^\S/.test(line)) blocks.push([line])
    else if (line.trim() !== '') blocks.at(-1)?.push(line)
  }
  const named = (name: string): string[] | undefined => blocks.find(([first]) => first!.startsWith(`${name}:`))
  const field = (name: string): string | undefined =>
    named('at')
      ?.find(line => line.trim().startsWith(`${name}:`))
      ?.split(': ')[1]
  const place = [field('fileName'), field('lineNumber'), field('columnNumber')].filter(part => part !== undefined)
  const at = place.length > 0 ? [`at: ${place.join(':')}`] : (named('stack')?.slice(0, 2) ?? [])
  const diff = (named('diff') ?? []).filter(line => !/^(?:diff:| {2}(?:--- expected|\+\+\+ actual|@@ ))/.test(line))
  const told = new Set([named('at'), named('stack'), named('diff')])
  const others = blocks.filter(block => !told.has(block) && !USUAL.test(block[0]!))
  return [...at, ...diff, ...others.flat()].slice(0, DETAILS_MAX)
}
