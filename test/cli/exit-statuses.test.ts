/** The table of exit statuses in docs/operations.md is the one in errors.ts. */
import { readFileSync } from 'node:fs'
import t from 'tap'
import { ERROR_EXIT } from '../../src/errors.ts'

const document = readFileSync(new URL('../../docs/operations.md', import.meta.url), 'utf8')
const rows = [...document.split('## Exit statuses')[1]!.matchAll(/^\| (\d+) \| ([A-Z_, ]*) \|/gm)]
const documented = Object.fromEntries(
  rows.flatMap(([, status, codes]) => codes!.split(', ').map(code => [code.trim(), Number(status)] as const)),
)
delete documented['']
t.same(documented, ERROR_EXIT)
