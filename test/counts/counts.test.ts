/**
 * Counts that hosts write and one reads: choices against a plain count in memory, sets by choice against `template build`,
 * files that are no counts, the commands from outside. One run of 10^7 rows with COUNTS_LONG=1.
 */
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import {
  copyFileSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import type { DuckDBValue } from '@duckdb/node-api'
import fc from 'fast-check'
import t from 'tap'
import { COMMANDS } from '../../src/cli/commands.ts'
import { type ChooseRule, choosePages, readChoice } from '../../src/counts/choose.ts'
import { type CountInput, type CountKey, countPages } from '../../src/counts/count.ts'
import { DuckDb } from '../../src/counts/duckdb.ts'
import { writeWhole } from '../../src/counts/write-whole.ts'
import { ProxyError } from '../../src/errors.ts'
import { buildChosen, buildSet } from '../../src/store/build.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { BatchPool } from '../../src/template/batch.ts'
import { PageTagger } from '../../src/template/page-tag.ts'
import { pageferry } from '../template/cli-harness.ts'
import { failure, migration, PAGE, page, scratch, sha256 } from '../template/makers.ts'

t.setTimeout(590_000) // the machine may be busy

const HARNESS = new URL('../template/cli-harness.ts', import.meta.url).pathname
const MEMORY = 256 << 20
const KEY: CountKey = { bytes: Buffer.alloc(32, 7), id: '0707070707070707' }

/** An input of the pages of these numbers. */
function input(vm: string, ids: readonly number[], kind: CountInput['kind'] = 'memory'): CountInput {
  const pool = new BatchPool()
  return {
    name: vm,
    vm,
    kind,
    lengthBytes: ids.length * PAGE,
    async *pages() {
      let batch = pool.take(0)
      for (const [i, id] of ids.entries()) {
        if (batch.full) {
          yield batch
          batch = pool.take(i)
        }
        page(id).copy(batch.bytes, batch.count++ * PAGE)
      }
      yield batch
    },
  }
}

/** Rows of a query over a parquet file, as a stranger would ask. */
async function ask(sql: string, memoryBytes = MEMORY): Promise<Record<string, DuckDBValue>[]> {
  const db = await DuckDb.open({ memoryBytes })
  try {
    return await db.rows(sql)
  } finally {
    db.close()
  }
}

t.test('the tag of a page', async t => {
  const digests = Buffer.from(sha256(page(1)) + sha256(page(2)), 'hex')
  const tag = Buffer.alloc(20)
  new PageTagger().write(digests, 32, tag, 2)
  t.equal(tag.toString('hex'), `0000${sha256(page(2)).slice(0, 32)}0000`, 'the beginning of its SHA-256')
  new PageTagger(KEY.bytes).write(digests, 32, tag, 2)
  const keyed = createHash('sha256').update(KEY.bytes).update(digests.subarray(32)).digest('hex')
  t.equal(tag.toString('hex'), `0000${keyed.slice(0, 32)}0000`, 'under a key the beginning of another one')
})

t.test('a count, as any engine reads it', async t => {
  const path = join(scratch(t.teardown).folder, "it's a count.parquet")
  const inputs = [input('web', [1, 0, 2, 1]), input('image', [2, 3], 'disk'), input('web', [3, 3, 2])]
  const report = await countPages(inputs, path, { memoryBytes: MEMORY })
  t.match(report, { pages: 9, uniformPages: 1, rows: 7, vms: 2 })
  const rows = await ask(
    `SELECT lower(hex(digest)) AS digest, vm, kind, occurrences::INT AS n, first::INT AS first, key FROM read_parquet('${path.replaceAll("'", "''")}')`,
  )
  const row = (id: number, vm: string, kind: string, n: number, first: number) => {
    return { digest: sha256(page(id)).slice(0, 32), vm, kind, n, first, key: '' }
  }
  const rowOfVm = (vm: string, kind: string) => ({ digest: '', vm, kind, n: 0, first: 0, key: '' })
  const expected = [
    row(1, 'web', 'memory', 2, 0),
    row(2, 'web', 'memory', 2, 2),
    row(2, 'image', 'disk', 1, 4),
    row(3, 'image', 'disk', 1, 5),
    row(3, 'web', 'memory', 2, 6),
  ].sort((a, b) => (a.digest + a.vm < b.digest + b.vm ? -1 : 1))
  expected.unshift(rowOfVm('image', 'disk'), rowOfVm('web', 'memory'))
  t.same(rows, expected, 'by digest, a row a VM and kind')
  t.same(readdirSync(join(path, '..')), ["it's a count.parquet"], 'and nothing beside it')
  t.equal(statSync(path).mode & 0o777, 0o600, 'for its owner alone')
})

t.test('a count is the same file in however many parts its pages are sorted', async t => {
  const { folder } = scratch(t.teardown)
  const ids = Array.from({ length: 3000 }, (_, i) => i + 1)
  const inputs = [input('b', ids), input('a', ids.slice(1000), 'disk'), input('b', [...ids, 5, 4000])]
  const files: Buffer[] = []
  for (const parts of [1, 2, 7]) {
    const path = join(folder, `${parts}`)
    const { rows } = await countPages(inputs, path, { memoryBytes: MEMORY, parts })
    t.equal(rows, 2 + 3000 + 2000 + 1)
    files.push(readFileSync(path))
  }
  for (const file of files) t.ok(file.equals(files[0]!))
})

t.test('many VMs in one count take few bytes a row', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  const ids = Array.from({ length: 4000 }, (_, i) => i + 1)
  const clones = Array.from({ length: 8 }, (_, i) => input(`clone ${i}`, ids))
  const count = at('count')
  const { rows, fileBytes } = await countPages(clones, count, { memoryBytes: MEMORY })
  t.equal(rows, 8 * 4001)
  t.comment(`${fileBytes} bytes, ${(fileBytes / rows).toFixed(1)} a row`)
  const report = await choosePages([count], { minVms: 8 }, at('choice'), { memoryBytes: MEMORY })
  t.match(report, { rows, vms: 8, pages: 4000 })
})

t.test('VMs without a page that is counted are VMs', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  const paths = ['a', 'b', 'c'].map(at)
  await countPages([input('full', [1, 2])], paths[0]!, { memoryBytes: MEMORY })
  await countPages([input('empty', [0, 0, 0])], paths[1]!, { memoryBytes: MEMORY })
  await countPages([input('none', [])], paths[2]!, { memoryBytes: MEMORY })
  const choice = at('choice')
  t.match(await choosePages(paths, { minVms: 1 }, choice, { memoryBytes: MEMORY }), { vms: 3, pages: 2 })
  t.match(await readChoice(choice, { memoryBytes: MEMORY }), { metadata: { vms: 3 } })
  t.equal(
    await failure(() => choosePages(paths.slice(1), { minVms: 1 }, choice, { memoryBytes: MEMORY })),
    'TEMPLATE_MISSING',
  )
})

interface Fleet {
  readonly vms: readonly { ids: number[]; disk: boolean }[]
  readonly cut: number
  readonly minVms: number
  readonly mostPages: number | undefined
  readonly keyed: boolean
  readonly parts: number
}

t.test('what is chosen over counts is what template build chooses over their inputs', async t => {
  const folder = scratch(t.teardown).folder
  const ids = fc.array(fc.integer({ min: 0, max: 24 }), { minLength: 1, maxLength: 40 })
  const fleets: fc.Arbitrary<Fleet> = fc.record({
    vms: fc.array(fc.record({ ids, disk: fc.boolean() }), { minLength: 1, maxLength: 5 }),
    cut: fc.integer({ min: 0, max: 5 }),
    minVms: fc.integer({ min: 1, max: 3 }),
    mostPages: fc.option(fc.integer({ min: 1, max: 12 }), { nil: undefined }),
    keyed: fc.boolean(),
    parts: fc.integer({ min: 1, max: 5 }),
  })
  let runs = 0
  const property = fc.asyncProperty(fleets, async ({ vms, cut, minVms, mostPages, keyed, parts }) => {
    const run = join(folder, String(runs++))
    mkdirSync(run)
    const inputs = vms.map(({ ids, disk }, i) => input(`vm${i}`, ids, disk ? 'disk' : 'memory'))
    const rule = { minVms, maxBytes: mostPages === undefined ? undefined : 8192 + mostPages * 4136 }
    let built: string | undefined
    const wrong = await failure(async () => {
      built = (await buildSet(inputs, { ...rule, memoryBytes: 1 << 20 }, new TemplateStore(join(run, 'a')))).digest
    })
    const key = keyed ? KEY : undefined
    const counts: string[] = []
    for (const [i, part] of [inputs.slice(0, cut), inputs.slice(cut)].entries()) {
      if (part.length === 0) continue
      counts.push(join(run, `${i}.parquet`))
      await countPages(part, counts.at(-1)!, { memoryBytes: MEMORY, key })
    }
    const out = join(run, 'choice.parquet')
    let chosen: string | undefined
    const wrongToo = await failure(async () => {
      await choosePages(counts, rule, out, { memoryBytes: MEMORY, parts })
      const { table, metadata } = await readChoice(out, { memoryBytes: MEMORY })
      const store = new TemplateStore(join(run, 'b'))
      chosen = (await buildChosen(inputs, table, new PageTagger(key?.bytes), metadata, store)).digest
    })
    return wrong === wrongToo && built === chosen
  })
  await fc.assert(property, { numRuns: 40 })
  t.ok(runs >= 40)
})

t.test('a VM is counted once, on whatever days and hosts', async t => {
  const folder = scratch(t.teardown).folder
  const at = (name: string): string => join(folder, name)
  await countPages([input('web', [1, 2, 2])], at('monday'), { memoryBytes: MEMORY })
  await countPages([input('web', [2, 3]), input('db', [3, 4])], at('tuesday'), { memoryBytes: MEMORY })
  await countPages([input('golden', [4, 1], 'disk')], at('image'), { memoryBytes: MEMORY })
  const choose = async (rule: ChooseRule): Promise<unknown> => {
    const paths = ['monday', 'tuesday', 'image'].map(at)
    const report = await choosePages(paths, rule, at('choice'), { memoryBytes: MEMORY })
    t.equal(report.vms, 3)
    const rows = await ask(
      `SELECT lower(hex(digest)) AS digest, vms::INT AS vms, occurrences::INT AS n, images::INT AS images FROM read_parquet('${at('choice')}') ORDER BY place`,
    )
    const names = new Map([1, 2, 3, 4].map(id => [sha256(page(id)).slice(0, 32), id]))
    return rows.map(({ digest, vms, n, images }) => [names.get(String(digest)), vms, n, images])
  }
  t.same(await choose({ minVms: 1 }), [
    [1, 2, 2, 1],
    [3, 2, 2, 0],
    [4, 2, 2, 1],
    [2, 1, 2, 0],
  ])
  t.same(await choose({ minVms: 2, preferImages: true, maxBytes: 4096 + 3 * 4136 }), [
    [1, 2, 2, 1],
    [4, 2, 2, 1],
    [3, 2, 2, 0],
  ])
})

t.test('the SQL of the documents chooses the same', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  const operations = readFileSync(new URL('../../docs/operations.md', import.meta.url), 'utf8')
  const [, sql = ''] = /```sql\n([\s\S]*?)```/.exec(operations) ?? []
  const inputs = [input('web', [5, 4, 3, 2, 1, 5]), input('db', [1, 2, 3, 7, 0]), input('golden', [3, 7, 1], 'disk')]
  await countPages(inputs.slice(0, 2), at('a'), { memoryBytes: MEMORY })
  await countPages([...inputs.slice(2), input('web', [5, 5, 5, 9])], at('b'), { memoryBytes: MEMORY })
  await choosePages([at('a'), at('b')], { minVms: 2, maxBytes: 2 ** 32 }, at('choice'), { memoryBytes: MEMORY })
  await ask(
    `COPY (WITH counts AS (SELECT * FROM read_parquet(['${at('a')}', '${at('b')}'])) ${sql}) TO '${at('by-sql')}' (FORMAT parquet)`,
  )
  const digests: string[] = []
  for (const name of ['choice', 'by-sql']) {
    const { table, metadata } = await readChoice(at(name), { memoryBytes: MEMORY })
    t.same(metadata, { maxBytes: 2 ** 32, minVms: 2, vms: 3 })
    const store = new TemplateStore(at(`store of ${name}`))
    digests.push((await buildChosen(inputs, table, new PageTagger(), metadata, store)).digest)
  }
  t.equal(digests[0], digests[1])
})

t.test('files that are no counts', async t => {
  const folder = scratch(t.teardown).folder
  const at = (name: string): string => join(folder, name)
  await countPages([input('a', [1, 2, 3])], at('sound'), { memoryBytes: MEMORY })
  await countPages([input('b', [1, 2, 3])], at('keyed'), { memoryBytes: MEMORY, key: KEY })
  const choose = (...names: string[]): Promise<string | undefined> =>
    failure(() => choosePages(names.map(at), { minVms: 1 }, at('choice'), { memoryBytes: MEMORY }))
  writeFileSync(at('empty'), '')
  writeFileSync(at('text'), 'digest,vm\n1,2\n')
  writeFileSync(at('magic'), 'PAR1xxxxxxxxxxxxxxxxPAR1')
  copyFileSync(at('sound'), at('cut'))
  truncateSync(at('cut'), 200)
  symlinkSync(at('sound'), at('link [*].parquet'))
  const columns = 'digest::BLOB AS digest, vm, kind, occurrences, first, key'
  const write = async (name: string, select: string): Promise<void> => {
    await ask(`COPY (SELECT ${select} FROM read_parquet('${at('sound')}')) TO '${at(name)}' (FORMAT parquet)`)
  }
  await write('columns', 'digest, vm')
  await write('types', columns.replace('occurrences', 'occurrences::VARCHAR AS occurrences'))
  await write('short', columns.replace('digest::BLOB', "'\\xAB'::BLOB"))
  await write('null', columns.replace('digest::BLOB', 'NULL::BLOB'))
  await write('kind', columns.replace('kind', "'tape' AS kind"))
  await write('none', columns.replace('occurrences', '0::BIGINT AS occurrences'))
  await write('far', columns.replace('first', '(1::BIGINT << 41) AS first'))
  await write('key', columns.replace('key', "'0707\n' AS key"))
  await write(
    'long key',
    columns.replace('key', "repeat('0', 17 + occurrences::INTEGER * (first::INTEGER + 1)) AS key"),
  )
  await write('name', columns.replace('vm', "repeat('a', 8193) AS vm"))
  await write('keyless', columns.replace('key', 'NULL::VARCHAR AS key'))
  await write('no name', columns.replace('vm', 'NULL::VARCHAR AS vm'))
  await write('no place', columns.replace('first', 'NULL::BIGINT AS first'))
  await ask(
    `COPY (SELECT repeat('a', 16)::BLOB AS digest, 'a' AS vm, 'disk' AS kind, 1::BIGINT AS occurrences, 1::BIGINT AS first, '' AS key FROM range(1000000)) TO '${at('absurd')}' (FORMAT parquet, COMPRESSION zstd)`,
  )
  for (const name of [
    'empty',
    'text',
    'magic',
    'cut',
    'columns',
    'types',
    'short',
    'null',
    'kind',
    'none',
    'far',
    'key',
    'long key',
    'name',
    'no name',
    'no place',
    'keyless',
    'absurd',
  ]) {
    for (const names of [['sound', name], [name, 'sound'], [name]]) {
      const error = await choosePages(names.map(at), { minVms: 1 }, at('choice'), { memoryBytes: MEMORY }).catch(e => e)
      if (name.endsWith('key') && names.length > 1) t.match(error, { code: 'USAGE', what: /different keys/ })
      else t.match(error, { code: 'TEMPLATE_FORMAT', what: new RegExp(`/${name}\\b|no key`) }, names.join())
    }
  }
  t.equal(await choose('sound', 'keyed'), 'USAGE', 'another key')
  t.equal(await choose('missing'), 'IO')
  t.equal(await choose('.'), 'TEMPLATE_FORMAT', 'a folder')
  t.notOk(
    readdirSync(folder).some(name => /choice/.test(name)),
    'nothing was written',
  )
  t.equal(await choose('link [*].parquet'), undefined, 'whatever its name')
  t.equal(await choose('sound', 'sound'), undefined, 'the same twice')
  for (const name of ['sound', 'short', 'absurd'])
    t.equal(
      await failure(() => readChoice(at(name), { memoryBytes: MEMORY })),
      'TEMPLATE_FORMAT',
      `${name} as a choice`,
    )
})

t.test('a choice is read within its memory', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  await countPages([input('a', [1, 2, 3])], at('count'), { memoryBytes: MEMORY })
  await choosePages([at('count')], { minVms: 1 }, at('choice'), { memoryBytes: MEMORY })
  const read = (memoryBytes: number) => readChoice(at('choice'), { memoryBytes }).catch(error => error)
  const needBytes = (128 << 20) + 3 * 76 // DuckDB and three pages
  t.match(await read(needBytes), { metadata: { vms: 1 } })
  const where = { stream: at('choice') }
  t.match(await read(needBytes - 1), { code: 'LIMIT_EXCEEDED', where, action: 'give --memory at least 129MiB' })
  t.match(await read(100), { code: 'USAGE', action: /at least 128MiB/ })
})

t.test('files that are no choices', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  await countPages([input('a', [1, 2, 3])], at('count'), { memoryBytes: MEMORY })
  await choosePages([at('count')], { minVms: 1 }, at('choice'), { memoryBytes: MEMORY })
  const read = async (name: string): Promise<unknown> =>
    readChoice(at(name), { memoryBytes: MEMORY }).catch(error => error)
  const second = (column: string, value: string): string =>
    `CASE WHEN place = 1 THEN ${value} ELSE ${column} END AS ${column}`
  const cases: readonly [string, string, RegExp][] = [
    ['digest', second('digest', 'NULL'), /row 1 has no digest of 16 bytes/],
    ['digest', second('digest', "'\\x00'::BLOB"), /row 1 has no digest of 16 bytes/],
    ['key', second('key', 'NULL'), /row 1 has no key/],
    ['key', 'NULL::VARCHAR AS key', /row 0 has no key/],
    ['min_vms', second('min_vms', 'NULL'), /row 1 has no key .*, min_vms or of_vms/],
    ['of_vms', second('of_vms', 'NULL'), /row 1 has no key .*, min_vms or of_vms/],
    ['max_bytes', second('max_bytes', '1'), /rows of several choices/],
    ['max_bytes', '0::BIGINT AS max_bytes', /a rule that cannot be: min_vms 1, max_bytes 0, of_vms 1/],
    ['vms', second('vms', 'NULL'), /row 1: 1 occurrences in null of 1 VMs/],
    ['occurrences', second('occurrences', '0'), /row 1: 0 occurrences in 1 of 1 VMs/],
  ]
  for (const [column, value, what] of cases) {
    await ask(
      `COPY (SELECT * REPLACE (${value}) FROM read_parquet('${at('choice')}') ORDER BY place) TO '${at('bad')}' (FORMAT parquet)`,
    )
    const expected = { code: 'TEMPLATE_FORMAT', what, where: { stream: at('bad') }, action: /template choose` wrote/ }
    t.match(await read('bad'), expected, `${column}: ${value}`)
  }
  const bytes = readFileSync(at('choice'))
  bytes.fill(0xff, 4, 200)
  writeFileSync(at('bad'), bytes)
  t.match(await read('bad'), {
    code: 'TEMPLATE_FORMAT',
    where: { stream: at('bad') },
    action: /template choose` wrote/,
  })
})

t.test('texts of a size that no length of the file suggests', async t => {
  const folder = scratch(t.teardown).folder
  const at = (name: string): string => join(folder, name)
  const options = { memoryBytes: MEMORY / 2 }
  const giant = `repeat('a', ${80 << 20})`
  const others = `'memory' AS kind, 1::BIGINT AS occurrences, 1::BIGINT AS first, 1::BIGINT AS vms, 0::BIGINT AS images,
    1::BIGINT AS min_vms, 1::BIGINT AS max_bytes, 1::BIGINT AS of_vms`
  for (const [name, columns] of [
    ['digest', `${giant}::BLOB AS digest, 'a' AS vm, '' AS key`],
    ['key', `repeat('a', 16)::BLOB AS digest, 'a' AS vm, ${giant} AS key`],
  ] as const) {
    const sql = `COPY (SELECT ${columns}, ${others}) TO '${at(name)}' (FORMAT parquet, COMPRESSION zstd)`
    await ask(sql, 4 * MEMORY)
    t.ok(statSync(at(name)).size < 1 << 16, `${name}: a small file`)
    t.equal(await failure(() => choosePages([at(name)], { minVms: 1 }, at('choice'), options)), 'LIMIT_EXCEEDED', name)
    t.equal(await failure(() => readChoice(at(name), options)), 'LIMIT_EXCEEDED', `${name} of a choice`)
  }
})

t.test('damaged counts end in a typed error, or are read', async t => {
  const folder = scratch(t.teardown).folder
  const at = (name: string): string => join(folder, name)
  await countPages(
    [
      input(
        'a',
        Array.from({ length: 300 }, (_, i) => i + 1),
      ),
    ],
    at('sound'),
    { memoryBytes: MEMORY },
  )
  await choosePages([at('sound')], { minVms: 1 }, at('choice'), { memoryBytes: MEMORY })
  // In a process of its own: what DuckDB makes of them must not end it by a signal.
  const script = `
    import { readFileSync, writeFileSync } from 'node:fs'
    import { choosePages, readChoice } from '${new URL('../../src/counts/choose.ts', import.meta.url).pathname}'
    import { random } from '${new URL('../../scripts/harness/random.ts', import.meta.url).pathname}'
    const next = random(1)
    const options = { memoryBytes: ${MEMORY} }
    for (let i = 0; i < 80; i++) {
      const bytes = readFileSync(i % 4 < 2 ? '${at('sound')}' : '${at('choice')}')
      const from = i % 2 === 0 ? 4 : Math.max(4, bytes.length - 700)
      for (let n = next(3) + 1; n > 0; n--) bytes[from + next(bytes.length - 8 - from)] = next(256)
      writeFileSync('${at('damaged')}', bytes)
      try {
        if (i % 4 < 2) await choosePages(['${at('damaged')}'], { minVms: 1 }, '${at('chosen')}', options)
        else await readChoice('${at('damaged')}', options)
      } catch (error) {
        if (error.name !== 'ProxyError') throw error
      }
    }`
  const { status, signal, stderr } = spawnSync(process.execPath, ['--input-type=module-typescript', '-e', script], {
    encoding: 'utf8',
  })
  t.same([status, signal], [0, null], stderr)
})

t.test('the commands', async t => {
  const folder = scratch(t.teardown).folder
  const at = (name: string): string => join(folder, name)
  const guest = (name: string, ids: readonly number[]): void => writeFileSync(at(name), migration(ids.map(page)))
  guest('web.stream', [1, 2, 3])
  guest('db.stream', [2, 3, 4])
  writeFileSync(at('key'), '11'.repeat(32), { mode: 0o600 })
  const count = (name: string, ...args: string[]) =>
    pageferry('template', 'count', at(`${name}.stream`), '-o', at(`${name}.parquet`), ...args)
  t.match(await count('web', '--vm', 'web', '--key', at('key')), {
    status: 0,
    out: /VM web\n[\s\S]*4 rows, 1 VM/,
    err: /^counting, pass 1: .*\nsorting: 3 pages\n/,
  })
  const json = await count('db', '--json', '--key', at('key'))
  t.equal(json.status, 0, json.err)
  t.match(JSON.parse(json.out), { pages: 3, rows: 4, vms: 1, inputs: [{ vm: /:\/.*db\.stream$/ }] })
  const counts = [at('web.parquet'), at('db.parquet')]
  const chosen = await pageferry('template', 'choose', ...counts, '-o', at('choice'))
  t.match(chosen, { status: 0, out: /2 files, 8 rows, 2 VMs\nchosen {3}2 of 2 pages/ }, chosen.err)
  t.equal(chosen.err, 'reading names: 8 rows\ngrouping: 8 rows\nranking: 2 pages\n', 'a line a step')
  const quiet = await pageferry('template', 'choose', ...counts, '-o', at('choice'), '--json')
  t.match(JSON.parse(quiet.out), { files: 2, rows: 8, vms: 2, pages: 2, eligiblePages: 2 })
  t.equal(quiet.err, '')
  for (const name of ['count', 'choose', 'build']) {
    t.match((await pageferry('template', name, '--help')).out, /Examples:\n {2}\S/)
  }
  const build = (...args: string[]) =>
    pageferry('template', 'build', at('db.stream'), '--store', at('store'), '--choice', at('choice'), ...args)
  t.match(await build(), { status: 2, err: /counted with the key/ })
  t.match(await build('--key', at('key'), '--min-vms', '2'), { status: 2 })
  const built = await build('--key', at('key'))
  t.match(built, { status: 0, out: /set {6}2 pages[\s\S]*missing {2}0 pages/ }, built.err)
  const plain = await pageferry(
    'template',
    'build',
    at('web.stream'),
    at('db.stream'),
    '--store',
    at('store'),
    '--json',
  )
  const set = JSON.parse((await build('--key', at('key'), '--json')).out)
  t.same([set.digest, set.missing, set.existed], [JSON.parse(plain.out).digest, 0, true], 'the set of template build')
  guest('db.stream', [3, 4])
  t.match(JSON.parse((await build('--key', at('key'), '--json')).out), { pages: 1, missing: 1 })
  guest('db.stream', [9])
  t.match(await build('--key', at('key')), { status: 4, err: /no page of the choice/ })
  t.match(await pageferry('template', 'choose', at('web.stream'), '-o', at('x')), {
    status: 4,
    err: /not a page count/,
  })
  t.match(await pageferry('template', 'choose', ...counts, '--min-vms', '3', '-o', at('x')), { status: 2 })
  t.match(await pageferry('template', 'choose', ...counts, '--memory', '1MiB', '-o', at('x')), {
    status: 2,
    err: /128MiB/,
  })
  t.match(await count('web', '--vm', 'a', '--vm', 'b'), { status: 2, err: /2 --vm for 1 inputs/ })
  t.match(await count('web', '--vm', ''), { status: 2, err: /an empty --vm/ })
  t.match(await count('web', '--vm', 'a'.repeat(8193)), { status: 2, err: /a --vm of 8193 bytes/ })
  t.match(await count('web', '--spill', at('no')), { status: 1, err: /does not exist/ })
})

t.test('without DuckDB the commands say how to get it, and all others work', t => {
  const { folder, put } = scratch(t.teardown)
  const hooks = `import { registerHooks } from 'node:module'
    registerHooks({ resolve(name, context, next) {
      if (name.startsWith('@duckdb/')) throw Object.assign(new Error(name), { code: 'ERR_MODULE_NOT_FOUND' })
      return next(name, context)
    } })`
  const main = new URL('../../src/cli/main.ts', import.meta.url).pathname
  const run = (...args: string[]) =>
    spawnSync(process.execPath, ['--import', `data:text/javascript,${encodeURIComponent(hooks)}`, main, ...args], {
      encoding: 'utf8',
    })
  const guest = put('a.stream', migration([1, 2, 3].map(page)))
  const other = put('b.stream', migration([2, 3, 4].map(page)))
  const [store, out] = [join(folder, 'store'), join(folder, 'out')]
  const inputs = [guest, other]
  for (const args of [
    ['count', ...inputs, '-o', out],
    ['choose', 'x', '-o', out],
    ['build', ...inputs, '--store', store, '--choice', 'x'],
  ]) {
    const { status, stderr } = run('template', ...args)
    t.match(
      stderr,
      /@duckdb\/node-api, which is not installed\nhint: in \/\S+: npm install --no-save @duckdb\/node-api@1\.5\.6-r\.1\n/,
    )
    t.equal(status, 2, args[0])
  }
  t.equal(JSON.parse(run('template', 'choose', 'x', '-o', out, '--json').stderr).error.code, 'USAGE')
  const commands = COMMANDS.map(({ command }) => [command.split(' ')[0]!, '--help'])
  for (const args of [
    ['--version'],
    ['--help'],
    ...commands,
    ...['count', 'choose', 'build'].map(name => ['template', name, '--help']),
    ['template', 'build', ...inputs, '--store', store],
    ['store', 'list', '--store', store],
    ['estimate', guest, '--store', store],
  ]) {
    const { status, stderr } = run(...args)
    t.equal(status, 0, `${args.join(' ')}: ${stderr}`)
  }
  const { peerDependencies } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
  t.equal(peerDependencies['@duckdb/node-api'], '1.5.6-r.1', 'the version that is tested')
  t.end()
})

t.test('an interrupted choice leaves nothing', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  await countPages([input('a', [1, 2, 3])], at('count'), { memoryBytes: MEMORY })
  const stop = new AbortController()
  const reason = new Error('stop')
  const progress = (): void => stop.abort(reason)
  const choice = choosePages([at('count')], { minVms: 1 }, at('choice'), {
    memoryBytes: MEMORY,
    spill: folder,
    signal: stop.signal,
    progress,
  })
  await t.rejects(choice, reason)
  t.same(readdirSync(folder), ['count'])
})

t.test('counts of other versions, and of nothing', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  await countPages([input('a', [1, 2, 3])], at('a'), { memoryBytes: MEMORY })
  await countPages([input('b', [2, 3, 4])], at('b'), { memoryBytes: MEMORY })
  const write = (name: string, select: string) =>
    ask(`COPY (SELECT ${select} FROM read_parquet('${at('b')}')) TO '${at(name)}' (FORMAT parquet)`)
  await write('later', '{x: 1} AS host, *, now() AS seen')
  await write('other later', "'x' AS host, *")
  await ask(
    `COPY (SELECT key, first, occurrences, kind, vm, digest FROM read_parquet('${at('b')}')) TO '${at('turned')}' (FORMAT parquet)`,
  )
  await ask(`COPY (SELECT * FROM read_parquet('${at('b')}') WHERE false) TO '${at('none')}' (FORMAT parquet)`)
  const choose = async (...names: string[]) => {
    const { vms, pages } = await choosePages(names.map(at), { minVms: 2 }, at('choice'), { memoryBytes: MEMORY })
    return { vms, pages }
  }
  for (const other of ['b', 'later', 'turned']) {
    t.same(await choose('a', other), { vms: 2, pages: 2 }, other)
    t.same(await choose(other, 'none', 'a', other), { vms: 2, pages: 2 }, `${other} first`)
  }
  t.same(await choose('a', 'later', 'other later'), { vms: 2, pages: 2 }, 'columns of one name and two types')
  t.equal(await failure(() => choose('none')), 'USAGE')
  await write('pages', "repeat('a', 32)::BLOB AS digest, * EXCLUDE digest")
  t.equal(await failure(() => choose('a', 'pages')), 'TEMPLATE_FORMAT', 'digests of another length')
})

t.test('names are names', async t => {
  const { folder } = scratch(t.teardown)
  const names = [
    'a\'b"c',
    'line\nfeed',
    '[*].parquet',
    "x'); DROP TABLE vms; --",
    '$1 %s',
    'key=1',
    `${'n'.repeat(250)}`,
  ]
  for (const name of names) {
    const within = join(folder, name)
    mkdirSync(within)
    const count = join(within, name)
    const choice = join(within, `${name.slice(0, 100)} choice`)
    // DuckDB takes patterns in the path of its own folder for patterns
    const spill = /[*?[\]]/.test(name) ? undefined : within
    const options = { memoryBytes: MEMORY, spill }
    await countPages([input(name, [1, 2]), input(`${name}2`, [2, 3])], count, options)
    t.match(await choosePages([count], { minVms: 2 }, choice, options), { vms: 2, pages: 1 }, name)
    t.match(await readChoice(choice, options), { metadata: { vms: 2 } }, name)
    t.same(readdirSync(within).sort(), [name, `${name.slice(0, 100)} choice`].sort(), 'and nothing beside')
    t.equal(statSync(choice).mode & 0o777, 0o600)
  }
  const spill = join(folder, '[*].parquet')
  t.equal(
    await failure(() => countPages([input('a', [1])], join(folder, 'x'), { memoryBytes: MEMORY, spill })),
    'USAGE',
  )
})

t.test('what is written is a file, or nothing', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  const count = (path: string) =>
    failure(() => countPages([input('a', [1])], path, { memoryBytes: MEMORY, spill: folder }))
  spawnSync('mkfifo', [at('fifo')])
  for (const path of [at('fifo'), folder, '-']) t.equal(await count(path), 'USAGE', path)
  t.ok(lstatSync(at('fifo')).isFIFO())
  t.equal(await count(at('none/x')), 'IO')
  mkdirSync(at('elsewhere'))
  writeFileSync(at('elsewhere/file'), 'old')
  symlinkSync(at('elsewhere/file'), at('link'))
  t.equal(await count(at('link')), undefined)
  t.ok(lstatSync(at('link')).isSymbolicLink())
  t.ok(readFileSync(at('elsewhere/file')).subarray(0, 4).equals(Buffer.from('PAR1')), 'a link leads to the file')
  t.same(readdirSync(folder).sort(), ['elsewhere', 'fifo', 'link'])
  t.same(readdirSync(at('elsewhere')), ['file'])
})

t.test('what fails while cleaning up does not hide what failed before', async t => {
  const { folder } = scratch(t.teardown)
  const first = new ProxyError('IO', 'first', undefined, '')
  const work = writeWhole(join(folder, 'out'), async path => {
    rmSync(path)
    mkdirSync(path)
    writeFileSync(join(path, 'x'), '') // a folder with something in it is not removed as a file is
    throw first
  })
  await t.rejects(work, first)
})

t.test('a full disk', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  mkdirSync(at('disk'))
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', at('disk')])
  if (mounted.status !== 0) return void t.pass('skipped: a tmpfs cannot be mounted here', { skip: true })
  t.teardown(() => spawnSync('umount', [at('disk')]))
  const ids = Array.from({ length: 20_000 }, (_, i) => i + 1)
  writeFileSync(at('disk/count'), 'before')
  const options = { memoryBytes: MEMORY, spill: folder }
  const full = { code: 'IO', what: /no space left|No space left/, action: /make room/ }
  t.match(await countPages([input('a', ids)], at('disk/count'), options).catch(error => error), full)
  await countPages([input('a', ids)], at('count'), options)
  t.match(await choosePages([at('count')], { minVms: 1 }, at('disk/count'), options).catch(error => error), full)
  t.equal(readFileSync(at('disk/count'), 'latin1'), 'before', 'what was there is there')
  t.same(readdirSync(at('disk')), ['count'], 'no half file is left')
  t.same(readdirSync(folder).sort(), ['count', 'disk'])
  const error = await countPages([input('a', ids)], at('x'), { memoryBytes: 128 << 20, spill: at('disk') }).catch(
    e => e,
  )
  t.notOk(
    error instanceof Error && error.name !== 'ProxyError',
    'where nothing is to be spilled, that disk may be full',
  )
})

t.test('what DuckDB says of disks and memory', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  mkdirSync(at('disk'))
  // In a namespace of its own: nobody else sees the disk, and it goes with the process.
  const script = `
    import { writeFileSync } from 'node:fs'
    import { DuckDb } from '${new URL('../../src/counts/duckdb.ts', import.meta.url).pathname}'
    const outcomes = {}
    const sort = db => db.run('CREATE TABLE x AS SELECT sha256(n::VARCHAR) AS d FROM range(2000000) r(n) ORDER BY d')
    const append = async db => {
      await db.run('CREATE TABLE pages (digest BLOB)')
      const appender = await db.connection.createAppender('pages')
      try {
        for (let i = 0; i < 1e7; i++) {
          appender.appendBlob(Buffer.alloc(16, i))
          appender.endRow()
        }
      } catch (error) {
        throw db.typed(error)
      }
    }
    for (const [name, work] of Object.entries({
      sort,
      append,
      'no disk': async db => {
        await db.run("SET temp_directory = ''")
        await append(db)
      },
      'filled by others': async db => {
        try {
          for (let i = 0; ; i++) writeFileSync('${at('disk')}/' + i, Buffer.alloc(65536))
        } catch {}
        await sort(db)
      },
    })) {
      const db = await DuckDb.open({ memoryBytes: 128 << 20, spill: '${at('disk')}' })
      try {
        await work(db)
        outcomes[name] = 'done'
      } catch (error) {
        outcomes[name] = error.name === 'ProxyError' ? error : String(error)
      }
      db.close()
    }
    console.log(JSON.stringify(outcomes))`
  const mount = 'mount -t tmpfs -o size=8m tmpfs "$1" && shift && exec "$@"'
  const mounted = (...command: string[]) =>
    spawnSync('unshare', ['--mount', 'sh', '-c', mount, 'sh', at('disk'), ...command], { encoding: 'utf8' })
  if (mounted('true').status !== 0)
    return void t.pass('skipped: nothing can be mounted here (not root)', { skip: true })
  const { status, stdout, stderr } = mounted(process.execPath, '--input-type=module-typescript', '-e', script)
  t.equal(status, 0, stderr)
  const outcomes = JSON.parse(stdout)
  const full = { code: 'IO', where: { stream: at('disk') }, action: /make room there, or give --spill another folder/ }
  for (const name of ['sort', 'append', 'filled by others']) t.match(outcomes[name], full, name)
  t.match(outcomes['no disk'], { code: 'LIMIT_EXCEEDED', action: /--memory more/ })
  t.same(readdirSync(folder), ['disk'])
})

t.test('an error is what DuckDB says it is, whatever files are called', async t => {
  const folder = join(scratch(t.teardown).folder, 'a folder: No space left on device')
  mkdirSync(folder)
  const name = join(folder, 'corrupt Out of Memory.parquet')
  await countPages([input('a', [1, 2, 3])], name, { memoryBytes: MEMORY, spill: folder })
  const db = await DuckDb.open({ memoryBytes: MEMORY, spill: folder })
  try {
    const { path } = await db.file(name, {}, { what: 'a page count', action: 'leave it out' })
    const typed = (text: string): unknown => db.typed(new Error(text))
    t.match(typed(`IO Error: Could not read from file "${path}": Input/output error`), {
      code: 'IO',
      what: `Could not read from file "${name}": Input/output error`,
      where: { stream: name },
      action: /check/,
    })
    const damaged = { code: 'TEMPLATE_FORMAT', where: { stream: name }, action: 'leave it out' }
    t.match(typed(`IO Error: Could not read enough bytes from file "${path}": attempted to read 9 bytes`), damaged)
    t.match(typed(`Invalid Input Error: No magic bytes found at end of file '${path}'`), damaged)
    t.match(typed("Invalid Error: don't know what type: Out of Memory"), damaged, 'by its type alone')
    t.match(typed('Invalid Input Error: pageferry: bad row in 0'), damaged)
    for (const text of ['INTERNAL Error: x', 'INTERRUPT Error: Interrupted!', 'Parser Error: x', 'x is undefined']) {
      t.equal((typed(text) as Error).message, text, 'a defect of ours passes as it is')
    }
  } finally {
    db.close()
  }
})

t.test('a process that ends in the middle takes along what it began', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  const source = (path: string): string => new URL(`../../src/${path}`, import.meta.url).pathname
  // Something that does not react to the signal: the time to clear up passes.
  const script = `
    import { writeFileSync } from 'node:fs'
    import { discardUnfinished, unfinished } from '${source('system/unfinished.ts')}'
    import { writeWhole } from '${source('counts/write-whole.ts')}'
    import { Interruption } from '${source('system/interruption.ts')}'
    const { signal } = new Interruption(discardUnfinished)
    setInterval(() => {}, 1000)
    await writeWhole('${at('out')}', async path => {
      writeFileSync(path, 'half')
      process.send?.('begun')
      if (process.argv[1] === 'exit') process.exit(3)
      await new Promise(() => {})
    })`
  for (const how of ['exit', 'SIGINT'] as const) {
    const args = ['--input-type=module-typescript', '-e', script, how]
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
    await once(child, 'message')
    if (how === 'exit') await once(child, 'exit')
    else {
      t.equal(readdirSync(folder).length, 1, 'a part of it is there')
      child.kill(how)
      t.same(await once(child, 'exit'), [null, how])
    }
    t.same(readdirSync(folder), [], how)
  }
})

t.test('Ctrl-C', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  mkdirSync(at('spill'))
  const pages = Array.from({ length: 5000 }, (_, i) => page(i + 1))
  writeFileSync(at('a.stream'), migration(pages))
  await countPages(
    [
      input(
        'a',
        Array.from({ length: 5000 }, (_, i) => i + 1),
      ),
    ],
    at('count'),
    { memoryBytes: MEMORY },
  )
  const before = readdirSync(folder)
  for (const args of [
    ['count', at('a.stream')],
    ['choose', at('count'), '--min-vms', '1'],
  ]) {
    const all = [HARNESS, 'template', ...args, '-o', at('out'), '--spill', at('spill')]
    const child = spawn(process.execPath, all, { stdio: ['ignore', 'ignore', 'pipe'] })
    let told = ''
    child.stderr.on('data', text => {
      told += text
    })
    await once(child.stderr, 'data')
    child.kill('SIGINT')
    const [status] = await once(child, 'close')
    t.equal(status, 130, `${args[0]}: ${told}`)
    t.match(told, /error: interrupted\nhint: nothing is left behind; start again\n$/)
    t.same([readdirSync(folder), readdirSync(at('spill'))], [before, []], 'nothing is left')
  }
})

t.test('Ctrl-C ends a query that takes long', async t => {
  const { folder } = scratch(t.teardown)
  const at = (name: string): string => join(folder, name)
  mkdirSync(at('spill'))
  // One query that nobody waits for, where a command has its queries.
  const script = `
    import { DuckDb } from '${new URL('../../src/counts/duckdb.ts', import.meta.url).pathname}'
    import { writeWhole } from '${new URL('../../src/counts/write-whole.ts', import.meta.url).pathname}'
    import { interruptible } from '${new URL('../../src/cli/interruptible.ts', import.meta.url).pathname}'
    import { fail } from '${new URL('../../src/cli/failure.ts', import.meta.url).pathname}'
    import { discardUnfinished } from '${new URL('../../src/system/unfinished.ts', import.meta.url).pathname}'
    const work = async signal => {
      const db = await DuckDb.open({ memoryBytes: ${MEMORY}, spill: '${at('spill')}', signal })
      try {
        await writeWhole('${at('out')}', async () => {
          const query = db.rows('SELECT count(*) FROM range(1000000000000) WHERE sha256(range::VARCHAR) = 1::VARCHAR')
          process.send('asked')
          await query
        })
      } finally {
        db.close()
      }
    }
    await interruptible(discardUnfinished, 'hint', work).catch(error => {
      const status = fail(error)
      process.exitCode ??= status
    })
    process.disconnect()`
  const child = spawn(process.execPath, ['--input-type=module-typescript', '-e', script], {
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  })
  let told = ''
  child.stderr!.on('data', text => {
    told += text
  })
  await once(child, 'message')
  child.kill('SIGINT')
  t.same(await once(child, 'close'), [130, null], told)
  t.equal(told, 'error: interrupted\nhint: hint\n')
  t.same([readdirSync(folder), readdirSync(at('spill'))], [['spill'], []], 'nothing is left')
})

const long = process.env.COUNTS_LONG ? {} : { skip: 'ten million rows take a minute: COUNTS_LONG=1' }
t.test('ten million rows in 128 and 256 MiB', long, async t => {
  const folder = scratch(t.teardown).folder
  const at = (i: number): string => join(folder, `${i}.parquet`)
  const rows = 1e7
  const perFile = rows / 10
  for (let i = 0; i < 10; i++) {
    // Pages 0 to half of them are in all files, the others in one.
    await ask(`COPY (SELECT unhex(left(sha256((CASE WHEN n % 2 = 0 THEN n ELSE n + ${i} * 1000000000000 END)::VARCHAR), 32)) AS digest,
      'vm${i}' AS vm, 'memory' AS kind, 1::BIGINT AS occurrences, n AS first, '' AS key FROM range(${perFile}) r(n) ORDER BY digest)
      TO '${at(i)}' (FORMAT parquet, COMPRESSION zstd)`)
  }
  const paths = Array.from({ length: 10 }, (_, i) => at(i))
  for (const memoryBytes of [MEMORY / 2, MEMORY]) {
    const report = await choosePages(paths, { minVms: 2 }, join(folder, 'choice'), { memoryBytes, spill: folder })
    t.match(report, { rows, vms: 10, pages: perFile / 2 })
  }
})
