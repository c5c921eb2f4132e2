/**
 * The pictures of docs/operations.md: the page, dark and light, while a guest moves over 20 Mbit/s. Takes a minute.
 *
 *   node test/dashboard/screenshots.ts [FOLDER]
 */
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { until } from '../helpers/until.ts'
import { BrowserPage, findBrowser } from '../report/browser.ts'
import { FedGuest } from './fed-guest.ts'
import { ShownPair } from './running-dashboard.ts'

const folder = process.argv[2] ?? fileURLToPath(new URL('../../docs/', import.meta.url))
const browser = findBrowser()
if (browser === undefined) throw new Error('no Chromium')

await using shown = await ShownPair.start({ near: ['--rate', '20Mbit'] })
await using page = await BrowserPage.open(browser)
for (const seed of [5, 6, 7]) {
  const before = await FedGuest.start(shown.local, 300 * seed, seed)
  await before.send(0, 1)
  before.end()
  await once(before.socket, 'close')
}
await page.look(1180, 900, 'dark')
await page.go(shown.address)
const guest = await FedGuest.start(shown.local, 5000, 11)
await guest.send(0, 1)
await guest.send(0, 0.7, 4)
const isTold = `/until/.test(document.querySelector('.facts dd')?.textContent)`
await until('an estimate of the end', () => page.evaluate<boolean>(isTold), 300_000)
for (const scheme of ['dark', 'light'] as const) {
  await page.look(1180, 900, scheme)
  const path = join(folder, `dashboard-${scheme}.png`)
  const bytes = await page.screenshot()
  writeFileSync(path, bytes)
  console.log(`${path}: ${bytes.length} bytes`)
}
guest.socket.destroy()
