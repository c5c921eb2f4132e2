/**
 * `make report`: docs/results.md, the README's tables, and a page with plots, out of what was measured.
 *
 *   node scripts/report/report.ts [--take FOLDER] [--measured docs/measured] [--out docs] [--page .cache/report]
 *                                 [--readme README.md]
 *   node scripts/report/report.ts --check     whether the two documents are what docs/measured renders to
 *
 * What was measured is in docs/measured/; `--take .cache/compare` puts there what compare.ts, scaling.ts, page-map.ts and
 * the benches of `make bench-cost` have just made. The page is not kept in the tree: whoever wants it makes it.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { reportOf } from './content.ts'
import type { Text } from './document.ts'
import { Figures } from './figures.ts'
import { html } from './html.ts'
import { markdown } from './markdown.ts'
import { keepMeasured, readMeasured, slimmer } from './measured.ts'
import { withFigures } from './readme.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))

const PAGE_BYTES_MAX = 1e6
const REMARKS = fileURLToPath(new URL('remarks.md', import.meta.url))

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

interface Places {
  readonly measured: string
  readonly out: string
  readonly page: string
  /** Its tables are made anew. */
  readonly readme: string
}

/** What is rendered, by path. */
function rendered({ measured, out, page: pageFolder, readme }: Places): [path: string, text: string][] {
  const { results, map, scaling, ...costs } = readMeasured(measured)
  const docs = resolve(root, 'docs')
  if (results.commit === 'made-up' && resolve(out) === docs) throw new Error('made-up results have no place in docs/')
  const figures = new Figures(results)
  const known = new Set([...figures.marks().map(({ id }) => id), 'general', 'map', 'scaling'])
  const report = reportOf({ figures, map, scaling, costs, remarks: readRemarks(known) })
  const page = html(report, { results: slimmer(results, figures.main.name), scaling, map })
  if (page.length > PAGE_BYTES_MAX) throw new Error(`the page has ${page.length} bytes, ${PAGE_BYTES_MAX} are allowed`)
  return [
    [join(out, 'results.md'), markdown(report)],
    [readme, withFigures(readFileSync(readme, 'utf8'), figures)],
    [join(pageFolder, 'results.html'), page],
  ]
}

/** Documents of the tree that are not what is rendered. */
function stale(places: Places): string[] {
  const documents = rendered(places).filter(([path]) => path.endsWith('.md'))
  return documents.flatMap(([path, text]) => (readFileSync(path, 'utf8') === text ? [] : [path]))
}

const { values } = parseArgs({
  options: {
    take: { type: 'string' },
    measured: { type: 'string', default: join(root, 'docs/measured') },
    out: { type: 'string', default: join(root, 'docs') },
    page: { type: 'string', default: join(root, '.cache/report') },
    readme: { type: 'string', default: join(root, 'README.md') },
    check: { type: 'boolean', default: false },
  },
})
try {
  if (values.take !== undefined) {
    const fresh = readMeasured(values.take, true)
    keepMeasured(values.measured, fresh, new Figures(fresh.results).main.name)
  }
  if (values.check) {
    const old = stale(values)
    if (old.length > 0)
      throw new Error(`${old.join(', ')}: not what ${values.measured} renders to; \`make report\` mends it`)
  } else
    for (const [path, text] of rendered(values)) {
      mkdirSync(dirname(path), { recursive: true })
      writeFileSync(path, text)
      console.log(path)
    }
} catch (error) {
  console.error(`error: ${(error as Error).message}`)
  process.exitCode = 1
}
