/** The page in a real browser while a guest of a real QEMU moves: what it shows by itself is test/dashboard/. */
import t from 'tap'
import { qemu10 } from '../../scripts/harness/qemu/versions.ts'
import { until } from '../helpers/until.ts'
import { BrowserPage, findBrowser } from '../report/browser.ts'
import { ShownMigrations } from './shown-migration.ts'

t.setTimeout(590_000) // the machine may be busy
const PATIENCE_MS = 180_000

const found = await qemu10()
const browser = findBrowser()
const skip = found.skip ?? (browser ? false : 'no Chromium: scripts/setup.sh tap, as root')

/** Writes down what the page shows whenever that changes: nothing passes by unseen. */
const RECORDER = `(() => {
  window.seen = []
  const textOf = selector => document.querySelector(selector)?.textContent
  const look = () => {
    const bar = document.querySelector('progress')
    if (!bar || bar.closest('[hidden]')) return
    const points = [...document.querySelectorAll('.plots path[d]')].map(path => path.getAttribute('d').split('L').length)
    const one = {
      pass: Number(/\\d+/.exec(textOf('.pass'))[0]), share: bar.value, map: textOf('.memory-at'),
      again: document.querySelector('.memory .again')?.getAttribute('d')?.length ?? 0, points: Math.max(...points),
    }
    if (JSON.stringify(one) !== JSON.stringify(window.seen.at(-1))) window.seen.push(one)
  }
  new MutationObserver(look).observe(document.getElementById('cards'), { subtree: true, childList: true, attributes: true, characterData: true })
})()`

interface Seen {
  readonly pass: number
  readonly share: number
  readonly map: string
  readonly again: number
  readonly points: number
}

t.test('a guest moves, and is looked at', { skip }, async t => {
  await using shown = await ShownMigrations.start(found.qemu!)
  await using page = await BrowserPage.open(browser!)
  const sees = async (expression: string): Promise<void> => {
    await until(expression, () => page.evaluate<boolean>(`Boolean(${expression})`), PATIENCE_MS)
  }
  await page.look(1200, 900, 'light')
  await page.go(shown.address)
  await sees(`document.querySelector('#session-table tbody tr')?.textContent.includes('live')`)
  t.equal(await page.evaluate(`document.getElementById('none').hidden`), false, 'nothing runs yet')
  await page.evaluate(RECORDER)

  await shown.begin({ memoryMb: 64, parts: 2, writes: 4, bandwidth: 2_500_000 })
  await sees(`window.seen.some(({ pass }) => pass >= 3)`)
  const seen = await page.evaluate<Seen[]>('window.seen')
  const first = seen.filter(({ pass }) => pass === 1)
  const shares = [...new Set(first.map(({ share }) => share))]
  t.ok(shares.length >= 4, `the bar moves: ${shares}`)
  t.same(
    shares,
    shares.toSorted((a, b) => a - b),
    'and only forward in a pass',
  )
  const passed = first.map(({ map }) => Number(/: (\d+) % has passed$/.exec(map)![1]))
  t.same(
    passed,
    passed.toSorted((a, b) => a - b),
    'the map fills',
  )
  t.ok(new Set(passed).size >= 4, `step by step: ${[...new Set(passed)]}`)
  t.match(seen.at(-1)!.map, /^all 6\d\.\d MB: 100 % has passed$/)
  t.equal(first[0]!.again, 0, 'nothing comes twice in the first pass')
  t.ok(seen.at(-1)!.again > 0, 'what the guest has written came again')
  t.ok(seen.at(-1)!.points >= 6, `plots have ${seen.at(-1)!.points} points`)

  const classes = await page.evaluate<Record<string, number>>(
    `Object.fromEntries([...document.querySelectorAll('.memory .area')].map(path => [path.getAttribute('class'), path.getAttribute('d').split('M').length - 1]))`,
  )
  for (const name of ['area s-empty', 'area s-template', 'area s-whole'])
    t.ok(classes[name]! > 5, `${name}: in ${classes[name]} cells`)
  const saved = await page.evaluate<Record<string, string>>(
    `Object.fromEntries([...document.querySelectorAll('.facts div')].map(one => [...one.children].map(part => part.textContent)))`,
  )
  t.match(saved, { Saved: /^[1-9]\d %$/, 'From QEMU so far': /^\d+\.\d MB$/ })

  await shown.converge()
  t.equal(await page.evaluate(`document.querySelectorAll('.card').length`), 1, 'QEMU waits before its last pass')
  t.equal(await shown.finish(), 'completed')
  await sees(`document.querySelector('#history-table tbody tr')`)
  t.match(
    await page.evaluate(`document.querySelector('#history-table tbody tr').textContent`),
    /default, pc-i440fx-7\.2completed/,
  )
  t.equal(await page.evaluate(`document.querySelectorAll('.card').length`), 0)
  const wrong = ['Runtime.exceptionThrown', 'Log.entryAdded', 'Runtime.consoleAPICalled']
  t.same(
    page.events.filter(({ method }) => wrong.includes(method)),
    [],
    'nothing is complained of',
  )
})
