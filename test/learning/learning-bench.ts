/** What learning costs a page: hash and table, in nanoseconds, by what the page is. `node test/learning/learning-bench.ts` */

import { mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { random } from '../../scripts/harness/random.ts'
import { WORKSPACE_BYTES, Workspace } from '../../src/codec/workspace.ts'
import { layoutMemory, loadKernel } from '../../src/kernel/kernel.ts'
import { Learning } from '../../src/learning/learning.ts'
import { TemplateStore } from '../../src/store/template-store.ts'

const PAGES = 32_768
const BATCH = 128
const ROUNDS = 5

const layout = layoutMemory({
  role: 'decoder',
  templatePages: 0,
  ringPages: 16,
  places: 0,
  ioBytes: WORKSPACE_BYTES + PAGES * 4096,
  longEntries: 0,
})
const kernel = loadKernel(layout)
const workspaces = [new Workspace(kernel.bytes, layout.io)]
const at = layout.io + WORKSPACE_BYTES
const words = new Uint32Array(kernel.memory.buffer, at, PAGES * 1024)
const next = random(1)
for (let i = 0; i < words.length; i++) words[i] = next(2 ** 32)
const folder = mkdtempSync(join(process.cwd(), '.cache', 'bench-'))
const log = { info: () => {}, warn: (...told: unknown[]) => console.log(told[0]), error: () => {} }

for (const mode of ['shared', 'all'] as const) {
  const times = new Map<string, number[]>()
  for (let round = 0; round < ROUNDS; round++) {
    const store = new TemplateStore(folder)
    const learning = new Learning({ mode, store, maxBytes: 1e9, maxAgeMs: 1e12, log })
    const session = learning.begin([], [1, 2], { kernel, workspaces }, '')
    const feed = async (name: string, migration: number): Promise<void> => {
      let ns = 0
      for (let from = 0; from < PAGES; from += BATCH) {
        const start = process.threadCpuUsage() // not the clock: other work on this machine does not count
        for (let i = from; i < from + BATCH; i++) session.page(at + i * 4096, i)
        session.batch(migration, 1, at, 0)
        const spent = process.threadCpuUsage(start)
        ns += (spent.user + spent.system) * 1000
        if (from % (BATCH * 16) === 0) await new Promise(done => setImmediate(done)) // as the proxies do between batches
      }
      times.set(name, [...(times.get(name) ?? []), ns / PAGES])
    }
    await feed('new page', 1)
    await feed('again in its migration', 1)
    await feed('of an earlier migration', 2)
    session.end()
    await learning.settled()
  }
  for (const [name, all] of times) {
    all.sort((a, b) => a - b)
    console.log(`${mode.padEnd(7)} ${name.padEnd(26)} ${all.map(ns => ns.toFixed(0)).join(' ')} ns a page`)
  }
}
rmSync(folder, { recursive: true, force: true })
