/**
 * The pictures of docs/operations.md: the page, dark and light, while a guest of a real QEMU moves over 20 Mbit/s. Takes
 * two minutes.
 *
 *   node test/dashboard/screenshots.ts [FOLDER]
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { qemu10 } from '../../scripts/harness/qemu/versions.ts'
import { until } from '../helpers/until.ts'
import { ShownMigrations } from '../qemu/shown-migration.ts'
import { BrowserPage, findBrowser } from '../report/browser.ts'

const folder = process.argv[2] ?? fileURLToPath(new URL('../../docs/', import.meta.url))
const [browser, found] = [findBrowser(), await qemu10()]
if (browser === undefined) throw new Error('no Chromium')
if (!found.qemu) throw new Error(found.skip)

await using shown = await ShownMigrations.start(found.qemu, ['--rate', '20Mbit'])
await using page = await BrowserPage.open(browser)
// a guest before it, for the history
await shown.begin({ memoryMb: 64, parts: 2, writes: 1, bandwidth: 0 })
await shown.converge()
await shown.finish()

await page.look(1180, 1000, 'dark')
await page.go(shown.address)
await shown.begin({ memoryMb: 128, parts: 8, writes: 12, bandwidth: 4_000_000 })
const isFilling = `document.querySelector('progress')?.value >= 60 || /[2-9]/.test(document.querySelector('.pass')?.textContent)`
await until('more than half of the first pass', () => page.evaluate<boolean>(isFilling), 400_000)
for (const scheme of ['dark', 'light'] as const) {
  await page.look(1180, 1000, scheme)
  const path = join(folder, `dashboard-${scheme}.png`)
  const bytes = await page.screenshot()
  writeFileSync(path, bytes)
  console.log(`${path}: ${bytes.length} bytes`)
}
