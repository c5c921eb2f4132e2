/**
 * The comparison of `make bench-migrate`, small: the busybox guest, one link, directly and through the pair. What it
 * writes is what the report reads.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { qemu10 } from '../../scripts/harness/qemu/versions.ts'
import { compare } from '../../scripts/measure/compare/comparison.ts'
import { planJobs } from '../../scripts/measure/compare/plan.ts'
import type { Results, Run } from '../../scripts/measure/compare/results.ts'
import { resultTables } from '../../scripts/measure/compare/table.ts'

t.setTimeout(590_000)
const { qemu, skip } = await qemu10()

t.test('one guest, directly and through the pair', { skip: skip ?? false }, async t => {
  const { path: folder, remove } = temporaryFolder('compare-test')
  const out = join(folder, 'results.json')
  const jobs = (methods: ('direct' | 'pair')[]) =>
    planJobs({ guests: ['busybox'], profiles: ['200Mbit,20ms'], methods, rounds: 1 })
  const said: string[] = []
  const options = {
    qemu: qemu!,
    out,
    resume: true,
    limitMs: Infinity,
    command: 'make test',
    report: (text: string) => said.push(text),
    fast: true,
  }
  try {
    await compare({ ...options, steps: jobs(['direct']) })
    // as after Ctrl-C: what is there stays, what is missing is added
    const results = await compare({ ...options, steps: jobs(['direct', 'pair']) })
    t.same(JSON.parse(readFileSync(out, 'utf8')) as Results, results, 'the file holds what is returned')
    t.match(results, {
      format: 1,
      profiles: [{ name: '200Mbit,20ms', measured: { bitsPerSecond: Number, roundTripMs: Number } }],
      guests: [{ name: 'busybox', memoryBytes: 128 * 2 ** 20 }],
      versions: { qemu: qemu!.version },
      skipped: [],
    })
    t.equal(results.runs.length, 2, said.join('\n'))
    const [direct, pair] = results.runs as [Run, Run]
    for (const run of [direct, pair]) {
      t.match(
        run,
        { outcome: 'completed', guest: 'busybox', round: 0, passes: Number, qemuBytes: Number },
        run.reason ?? '',
      )
      t.ok(run.totalMs > 0 && run.downtimeMs! > 0 && run.guestPauseMs! > 0, 'time, downtime and pause')
      t.ok(run.wanBytes.forward > 1e6 && run.wanBytes.back > 0, JSON.stringify(run.wanBytes))
      t.ok(run.progress.length > 0 && run.progress.at(-1)!.wanBytes <= run.wanBytes.forward)
    }
    t.equal(direct.classes, null)
    t.ok(pair.classes!.zero!.pages > 0)
    t.ok(pair.cpuSeconds['source proxy']! > 0 && pair.cpuSeconds['destination proxy']! > 0)
    t.ok(
      pair.wanBytes.forward < direct.wanBytes.forward * 0.7,
      `the pair needs ${pair.wanBytes.forward} bytes, QEMU alone ${direct.wanBytes.forward}`,
    )
    t.match(resultTables(results), /direct .*\n.*pair /)
    t.same(readdirSync(folder), ['results.json'], 'nothing else is left')
  } finally {
    remove()
  }
  t.notOk(existsSync(folder))
})
