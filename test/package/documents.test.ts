/** Documents of the Debian package: no link leads to what it does not have. */
import { execFileSync } from 'node:child_process'
import { existsSync, globSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'

const script = fileURLToPath(new URL('../../scripts/package/documents.sh', import.meta.url))
const { path: folder, remove } = temporaryFolder('documents')
t.teardown(remove)
execFileSync('sh', [script, folder])
for (const name of ['changelog.gz', 'copyright']) writeFileSync(join(folder, name), '') // build-deb.sh makes these
const readme = readFileSync(join(folder, 'README.md'), 'utf8')

t.test('every link leads somewhere', t => {
  const links = globSync('**/*.md', { cwd: folder }).flatMap(file => {
    const text = readFileSync(join(folder, file), 'utf8')
    return [...text.matchAll(/\]\(([^)#:\s]+)[#)]/g)].map(([, path]) => join(dirname(file), path!))
  })
  t.ok(links.length > 50, 'links are found')
  const dangling = links.filter(path => !existsSync(join(folder, path)))
  t.same(dangling, [])
  t.end()
})

t.test('the README says nothing of building what its reader has installed', t => {
  t.notMatch(readme, /^## Try it$|make deb|npm ci/m)
  t.match(readme, '\n**1. Install, at both hosts**, the same package: `apt-get install ')
  t.match(readme, '\n## First real use\n')
  t.match(readme, '[copyright](copyright)')
  t.end()
})
