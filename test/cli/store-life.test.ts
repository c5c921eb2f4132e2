/** The life of a set, as people type it: what it brought, what goes first, who made it. */
import { existsSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { readUses, withMigration, writeUses } from '../../src/store/set-uses.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { page, putPages, scratch } from '../template/makers.ts'
import { type Outcome, run } from './command.ts'

t.setTimeout(590_000) // the machine may be busy

const { folder } = scratch(t.teardown)
const at = (name: string): string => join(folder, name)
const built = new TemplateStore(at('sets'))
const DAY = 86_400_000
const nowMs = Date.now()
const sets: string[] = []
for (let i = 0; i < 3; i++) {
  const pages = Array.from({ length: 30 }, (_, n) => page(100 * i + n + 1))
  const digest = await putPages(built, pages)
  utimesSync(built.pathOf(digest), nowMs / 1000, (nowMs - (20 + i) * DAY) / 1000)
  sets.push(digest)
}
const [newest, middle, oldest] = sets as [string, string, string]
const size = statSync(built.pathOf(newest)).size
// the oldest brings most; the newest brought nothing yet
const gains = (pages: number, set: string) => [{ set, pages, bytes: 4096 * pages }]
let uses = withMigration(new Map(), gains(25, oldest), nowMs - 3 * DAY)
uses = withMigration(uses, gains(5, middle), nowMs - 40 * DAY)
await writeUses(at('sets'), uses)

const store = async (...args: readonly string[]): Promise<Outcome> =>
  run(['store', ...args, '--store', 'sets'], { cwd: folder })

async function good(...args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await store(...args)
  if (status !== 0) throw new Error(`${args.join(' ')}: ${status} ${stderr}`)
  return stdout
}

/** Sets that a prune would remove, by their place. */
async function gone(...args: readonly string[]): Promise<number[]> {
  const told = JSON.parse(await good('prune', '--dry-run', '--json', ...args))
  return told.removed.map(({ digest }: { digest: string }) => sets.indexOf(digest)).sort()
}

t.test('a list has what each set brought', async t => {
  const text = await good('list')
  t.match(
    text,
    new RegExp(`${oldest.slice(0, 16)}.*102.4 kB.*1.*${new Date(nowMs - 3 * DAY).toISOString().slice(0, 10)}`),
  )
  t.match(text, new RegExp(`${newest.slice(0, 16)}.*nothing`))
  const listed = JSON.parse(await good('list', '--json')) as { digest: string; use: unknown; signedBy: unknown }[]
  const use = (digest: string) => listed.find(set => set.digest === digest)!.use
  t.match(use(oldest), { migrations: 1, pages: 25, bytes: 102_400, last: new Date(nowMs - 3 * DAY).toISOString() })
  t.equal(use(newest), null)
  t.same(listed[0]!.signedBy, [])
})

t.test('a prune goes by it', async t => {
  t.same(await gone('--max-size', `${size}`), [0, 1])
  t.same(await gone('--max-size', `${2 * size}`), [0], 'the newest, which brought nothing')
  t.same(await gone('--max-size', `${2 * size}`, '--by', 'age'), [2])
  t.same(await gone('--max-size', `${2 * size}`, '--grace', '21d'), [1], 'the newest may still show what it brings')
  t.same(await gone('--max-unused', '30d'), [])
  t.same(await gone('--max-unused', '10d'), [0, 1])
  t.match(await good('prune', '--dry-run', '--max-size', '1'), /would remove .* brought 102.4 kB, last .*\n/)
  t.equal((await built.digests()).length, 3, 'dry runs remove nothing')
})

t.test('a file that is damaged is said, and nothing is removed by it', async t => {
  const path = at('sets/.uses.json')
  const before = readFileSync(path)
  writeFileSync(path, 'rubbish')
  const listed = await store('list')
  t.equal(listed.status, 0)
  t.match(listed.stderr, /warning: .*uses\.json is damaged.*begun anew/)
  const pruned = await store('prune', '--max-size', '1')
  t.equal(pruned.status, 1)
  t.match(pruned.stderr, /damaged.*hint: .*--by age/s)
  t.same(await gone('--max-size', `${2 * size}`, '--by', 'age'), [2])
  t.equal((await built.digests()).length, 3)
  writeFileSync(path, before)
})

t.test('who made them', async t => {
  await run(['store', 'key', 'set.key'], { cwd: folder })
  await run(['store', 'key', 'other.key'], { cwd: folder })
  const unsigned = await store('verify', '--signers', 'set.key.pub')
  t.equal(unsigned.status, 4)
  t.match(unsigned.stderr, /3 of 3 template sets are not signed/)
  t.match(await good('sign', newest.slice(0, 12), middle, '--key', 'set.key'), /signed .*\nsigned /)
  const [told] = JSON.parse(await good('sign', oldest, '--key', 'other.key', '--json'))
  t.match(told, { digest: oldest, signedBy: [/^[0-9a-f]{16}$/] })
  const half = await store('verify', '--signers', 'set.key.pub')
  t.equal(half.status, 4)
  t.match(half.stdout, new RegExp(`unsigned ${oldest}: .*not signed by a trusted key, but by ${told.signedBy[0]}`))
  t.match(half.stdout, /signed [\s\S]*sound [\s\S]*sound [\s\S]*sound /, 'and every page is looked at all the same')
  const json = await store('verify', '--signers', 'set.key.pub', '--json')
  t.equal(json.status, 4)
  const sets = JSON.parse(json.stdout) as { digest: string; signedBy?: string; unsigned?: string; damaged: unknown[] }[]
  t.match(sets.find(({ digest }) => digest === oldest)!, { unsigned: /not signed by a trusted key/, damaged: [] })
  t.equal(sets.filter(({ signedBy }) => signedBy !== undefined).length, 2)
  await good('sign', oldest, '--key', 'set.key')
  t.match(await good('verify', '--signers', 'set.key.pub'), /signed .*signed .*signed .*sound .*sound .*sound /s)
  const listed = JSON.parse(await good('list', '--json')) as { digest: string; signedBy: string[] }[]
  t.equal(listed.find(({ digest }) => digest === oldest)!.signedBy.length, 2)
  t.match(await good('list'), new RegExp(told.signedBy[0]))
  // a set that is damaged is not signed
  const path = built.pathOf(middle)
  const bytes = readFileSync(path)
  bytes[bytes.length - 1]! ^= 1
  writeFileSync(path, bytes)
  rmSync(`${path}.sig`)
  const both = await store('verify', '--signers', 'set.key.pub')
  t.equal(both.status, 4)
  t.match(both.stdout, new RegExp(`unsigned ${middle}[\\s\\S]*damaged .*[\\s\\S]*`))
  t.match(
    both.stderr,
    /1 of 3 template sets is damaged; .*not signed|1 of 3 template sets is damaged; .*nobody/,
    'both are said',
  )
  const damaged = await store('sign', middle, '--key', 'set.key')
  t.equal(damaged.status, 4)
  t.notOk(existsSync(`${path}.sig`))
  t.equal((await store('sign', newest, '--key', 'set.key.pub')).status, 2, 'a public key signs nothing')
})

t.test('what goes, goes with its signature; what it brought stays noted', async t => {
  await good('prune', '--max-size', '1')
  t.same(await built.digests(), [])
  t.notOk(existsSync(`${built.pathOf(newest)}.sig`))
  t.ok((await readUses(at('sets'))).uses.has(oldest))
})
