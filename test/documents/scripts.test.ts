/** Levels of scripts/, as its README says: dependency-cruiser does not parse `using`, which they use. */
import { globSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('../../', import.meta.url))

/** Imports of files below one folder that lead into one of others, as `file: import`. */
function imports(from: string, into: readonly string[]): string[] {
  return globSync(`${from}/**/*.ts`, { cwd: root }).flatMap(file =>
    [...readFileSync(join(root, file), 'utf8').matchAll(/(?:from|import\()\s*'(\.[^']+)'/g)]
      .map(([, path]) => relative(root, join(root, dirname(file), path!)))
      .filter(path => into.some(folder => path.startsWith(`${folder}/`)))
      .map(path => `${file}: ${path}`),
  )
}

t.test('what tests stand on needs nothing that measures or renders, and nothing that ships needs scripts', t => {
  t.ok(imports('scripts/harness', ['src']).length > 0, 'imports are found')
  t.same(imports('scripts/harness', ['scripts/measure', 'scripts/report', 'test']), [])
  t.same(imports('scripts/measure', ['scripts/report', 'test']), [])
  t.same(imports('scripts/report', ['test']), [])
  t.same(imports('src', ['scripts', 'test']), [])
  t.end()
})

t.test('what renders loads no more of what measures than the form of its files', t => {
  const FORMS = ['scripts/measure/compare/results.ts', 'scripts/measure/page-map-file.ts']
  const loaded = globSync('scripts/report/**/*.ts', { cwd: root }).flatMap(file =>
    [...readFileSync(join(root, file), 'utf8').matchAll(/^import (?!type ).* from '(\.[^']+)'/gm)]
      .map(([, path]) => relative(root, join(root, dirname(file), path!)))
      .filter(path => path.startsWith('scripts/measure/')),
  )
  t.same([...new Set(loaded)].sort(), FORMS)
  for (const file of FORMS) t.notMatch(readFileSync(join(root, file), 'utf8'), / from '\./)
  t.end()
})
