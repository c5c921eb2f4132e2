/**
 * `make report`: docs/results.md and docs/results.html out of what was measured.
 *
 *   node scripts/report/report.ts [--results .cache/compare/results.json] [--out docs]
 *
 * The map of pages (page-map.ts) and how cost grows (scaling.ts) are taken from beside the results, where they are there.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import type { Results } from '../compare/results.ts'
import { reportOf } from './content.ts'
import type { Text } from './document.ts'
import { Figures } from './figures.ts'
import { html } from './html.ts'
import { COMPARE_FOLDER, root } from './lab-streams.ts'
import { markdown } from './markdown.ts'
import type { PageMap } from './page-map.ts'
import type { Scaling } from './scaling.ts'

const PAGE_BYTES_MAX = 1e6
const REMARKS = fileURLToPath(new URL('remarks.md', import.meta.url))

function read<T extends { readonly format: number }>(path: string): T | undefined {
  if (!existsSync(path)) return undefined
  const value = JSON.parse(readFileSync(path, 'utf8')) as T
  if (value.format !== 1) throw new Error(`${path}: format ${value.format}, this report knows 1`)
  return value
}

/** Texts of remarks.md by heading; one for nothing that there is, is a slip of the pen. */
function readRemarks(known: ReadonlySet<string>): Map<string, Text> {
  const remarks = new Map<string, Text>()
  const [, ...sections] = readFileSync(REMARKS, 'utf8').split(/^## /m)
  for (const section of sections) {
    const end = section.indexOf('\n')
    const id = section.slice(0, end).trim()
    if (!known.has(id)) throw new Error(`remarks.md: '${id}' is none of ${[...known].join(', ')}`)
    remarks.set(id, section.slice(end).trim().replaceAll(/\s+/g, ' '))
  }
  return remarks
}

/** The results without what no plot needs: samples of one run are enough. */
function slimmer(results: Results, profile: string): Results {
  return {
    ...results,
    runs: results.runs.map(run => ({
      ...run,
      progress: run.round === 0 && run.profile === profile ? run.progress.filter((_, i) => i % 4 === 0) : [],
    })),
  }
}

/** @returns paths of what was written */
function writeReport(resultsPath: string, out: string): string[] {
  const results = read<Results>(resultsPath)
  if (results === undefined) throw new Error(`there is no ${resultsPath}: \`make bench-migrate\` makes it`)
  const docs = resolve(root, 'docs')
  if (results.commit === 'made-up' && resolve(out) === docs) throw new Error('made-up results have no place in docs/')
  const beside = dirname(resultsPath)
  const map = read<PageMap>(join(beside, 'page-map.json'))
  const scaling = read<Scaling>(join(beside, 'scaling.json'))
  const figures = new Figures(results)
  const known = new Set([...figures.marks().map(({ id }) => id), 'general', 'map', 'scaling'])
  const report = reportOf({ figures, map, scaling, remarks: readRemarks(known) })
  const page = html(report, { results: slimmer(results, figures.main.name), scaling, map })
  if (page.length > PAGE_BYTES_MAX) throw new Error(`the page has ${page.length} bytes, ${PAGE_BYTES_MAX} are allowed`)
  mkdirSync(out, { recursive: true })
  const paths = [join(out, 'results.md'), join(out, 'results.html')] as const
  writeFileSync(paths[0], markdown(report))
  writeFileSync(paths[1], page)
  return [...paths]
}

const { values } = parseArgs({
  options: {
    results: { type: 'string', default: join(COMPARE_FOLDER, 'results.json') },
    out: { type: 'string', default: join(root, 'docs') },
  },
})
try {
  for (const path of writeReport(values.results, values.out)) console.log(path)
} catch (error) {
  console.error(`error: ${(error as Error).message}`)
  process.exitCode = 1
}
