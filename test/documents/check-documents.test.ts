/** The check for cited documents finds what it must, and nothing in this tree. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { danglingCitations } from '../../scripts/check-documents.ts'

/** What is found in a tree of these files, as `file:line what`. */
function found(files: Readonly<Record<string, string>>): string[] {
  const root = mkdtempSync(join(tmpdir(), 'pageferry-documents-'))
  try {
    for (const [path, content] of Object.entries(files)) {
      mkdirSync(dirname(join(root, path)), { recursive: true })
      writeFileSync(join(root, path), content)
    }
    return danglingCitations(root).map(({ file, line, what }) => `${file}:${line} ${what}`)
  } finally {
    rmSync(root, { recursive: true })
  }
}

const FORMAT = '# The format\n## 2. Things\n### 2.7 Bodies\n\n**9.11** A trap.\n'

t.test('what is there is not told', t => {
  t.same(
    found({
      'docs/some-format.md': `${FORMAT}See [above](#27-bodies), [the other](adr/0003-memory.md) and https://host/gone.md.`,
      'docs/a.md': '`src/a.ts`, `../src/b.ts`, `gone.ts`, `src/*.ts`, `{src,gone}/x.ts`',
      'docs/adr/0003-memory.md': '# 3. Memory\n[back](../some-format.md#2-things)',
      'src/a.ts': '/** Source: some-format 2, 2.7 and 9.11; docs/some-format.md §2.7 to §9.11, adr/0003, ADR 3. */',
      'src/b.ts': '// as some-format\n// 2.7 says, in docs/adr/0003-memory.md\nconst x = y + `.md`',
      'node_modules/x/README.md': '[gone](gone.md)',
    }),
    [],
  )
  t.end()
})

t.test('what is not there is, with its line', t => {
  const docs = { 'docs/some-format.md': FORMAT }
  const cases: readonly [string, string, string[]][] = [
    ['src/a.ts', '\n// docs/gone.md says', ['src/a.ts:2 docs/gone.md is not there']],
    ['src/a.ts', '// Source: gone-format 2.7', ['src/a.ts:1 gone-format.md is not there']],
    ['src/a.ts', '// some-format 2.8', ['src/a.ts:1 some-format.md has no section 2.8']],
    ['src/a.ts', '// some-format 2, 3 and 9.1', ['3', '9.1'].map(n => `src/a.ts:1 some-format.md has no section ${n}`)],
    ['src/a.ts', '// some-format\n  // 4', ['src/a.ts:1 some-format.md has no section 4']],
    ['src/a.ts', '// docs/some-format.md §2 to §5', ['src/a.ts:1 docs/some-format.md has no section 5']],
    ['src/a.ts', '// docs/adr/0009, ADR 12', ['0009', '12'].map(n => `src/a.ts:1 ADR ${n} is not there`)],
    [
      'README.md',
      'a\n\n[b](docs/gone.md)',
      ['README.md:3 docs/gone.md is not there', 'README.md:3 docs/gone.md is not there'],
    ],
    [
      'docs/a.md',
      'in `src/gone.ts`,\n`x/gone.ts`',
      ['1 src/gone.ts', '2 x/gone.ts'].map(s => `docs/a.md:${s} is not there`),
    ],
    ['README.md', '[b](docs)\n[c](gone/)', ['README.md:2 gone/ is not there']],
    ['README.md', '[b](docs/some-format.md#28-gone)', ['README.md:1 docs/some-format.md has no heading #28-gone']],
  ]
  for (const [file, content, expected] of cases) t.same(found({ ...docs, [file]: content }), expected, content)
  t.end()
})

t.test('in this tree nothing is cited that is not there', t => {
  t.same(danglingCitations(fileURLToPath(new URL('../..', import.meta.url))), [])
  t.end()
})
