/**
 * What choosing over the counts of a fleet takes: synthetic counts in ten files of four VMs, `template choose` over them.
 *
 *   node test/bench/counts-bench.ts [ROWS] [MEMORY...]      default 10000000 256MiB
 *
 * A quarter of each VM's pages are drawn from as many as give each to five VMs; the others are its own. The counts stay in
 * .cache/counts-bench for the next run. docs/adr/0011-fleet-counts.md has what was measured.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { copySql } from '../../src/counts/count.ts'
import { DuckDb } from '../../src/counts/duckdb.ts'
import { meanwhile } from '../../src/system/meanwhile.ts'

const FILES = 10
const VMS_PER_FILE = 4
const SHARED = 4 // one in so many

const [rowsText = '10000000', ...memories] = process.argv.slice(2)
const rows = Number(rowsText)
const root = new URL('../../', import.meta.url).pathname
const folder = join(root, '.cache/counts-bench', rowsText)
mkdirSync(folder, { recursive: true })

const perVm = Math.floor(rows / (FILES * VMS_PER_FILE))
const pool = Math.ceil((perVm * FILES * VMS_PER_FILE) / SHARED / 5)
for (let file = 0; file < FILES; file++) {
  const path = join(folder, `${file}.parquet`)
  if (existsSync(path)) continue
  const db = await DuckDb.open({ memoryBytes: 1 << 30, spill: folder })
  const vm = `(${file * VMS_PER_FILE} + n // ${perVm})`
  const drawn = `CASE WHEN n % ${SHARED} = 0 THEN hash(n, ${vm}) % ${pool} ELSE n + ${file}::UBIGINT * ${2 ** 40} + ${pool} END`
  await db.run(
    copySql(
      `SELECT digest, vm, 'memory' AS kind, count(*)::BIGINT AS occurrences, min(n)::BIGINT AS first, '' AS key
      FROM (SELECT unhex(md5((${drawn})::VARCHAR)) AS digest, 'vm' || ${vm} AS vm, n FROM range(${perVm * VMS_PER_FILE}) r(n))
      GROUP BY digest, vm ORDER BY digest`,
      `${path}.part`,
      'page count',
    ),
  )
  db.close()
  renameSync(`${path}.part`, path)
}

const counts = readdirSync(folder)
  .filter(name => name.endsWith('.parquet'))
  .map(name => join(folder, name))
const bytes = counts.reduce((sum, path) => sum + statSync(path).size, 0)
console.log(`${counts.length} counts, ${(bytes / 1e6).toFixed(0)} MB`)
for (const memory of memories.length === 0 ? ['256MiB'] : memories) {
  const spill = mkdtempSync(join(folder, 'spill-'))
  const out = join(spill, 'choice')
  const args = ['template', 'choose', ...counts, '--memory', memory, '--max-size', '4GiB', '--spill', spill, '-o', out]
  const { status, stdout, stderr, peakKb } = await measured(args)
  const told = stderr.split('\n').filter(line => /^(error|hint|grouping.*of)/.test(line))
  console.log(`--memory ${memory}: status ${status}, ${(peakKb / 1024).toFixed(0)} MiB at the peak`)
  console.log([...stdout.split('\n').filter(line => !line.startsWith('file')), ...told].join('\n'))
  console.log(/file .*/.exec(stdout)?.[0]?.replace(/ \S+choice/, '') ?? '')
  rmSync(spill, { recursive: true })
}

/** Runs the command, and looks how much memory it has. */
async function measured(args: readonly string[]) {
  const child = spawn(join(root, 'bin/pageferry'), args, { stdio: ['ignore', 'pipe', 'pipe'] })
  let peakKb = 0
  const look = (): void => {
    try {
      const [, kb] = /VmHWM:\s*(\d+)/.exec(readFileSync(`/proc/${child.pid}/status`, 'latin1')) ?? []
      peakKb = Math.max(peakKb, Number(kb ?? 0))
    } catch {} // it has just ended
  }
  const [stdout, stderr, [status]] = await meanwhile(
    Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')]),
    100,
    look,
  )
  return { status, stdout, stderr, peakKb }
}
