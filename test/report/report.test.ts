/**
 * The report, out of a results file that is made up (made-up-results.ts): its figures, its Markdown, and its page in a
 * real browser.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { inflateSync } from 'node:zlib'
import { HtmlValidate } from 'html-validate'
import t from 'tap'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import type { CodecCost, Scaling } from '../../scripts/measure/scaling.ts'
import { cpuSecondsFor, forecast, lineThrough } from '../../scripts/report/extrapolate.ts'
import { Figures, spreadOf } from '../../scripts/report/figures.ts'
import { indexedPng } from '../../scripts/report/png.ts'
import { scalingBlocks } from '../../scripts/report/scaling-content.ts'
import { BrowserPage, findBrowser } from './browser.ts'
import {
  madeUpFirstMigration,
  madeUpLadder,
  madeUpMap,
  madeUpPassage,
  madeUpRawLink,
  madeUpResults,
  madeUpScaling,
  madeUpThreads,
} from './made-up-results.ts'

t.setTimeout(590_000) // the machine may be busy

const program = new URL('../../scripts/report/report.ts', import.meta.url).pathname
const { path: folder, remove } = temporaryFolder('report')
t.teardown(remove)

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

/** What axe-core finds wrong, a line each. */
async function violations(page: BrowserPage): Promise<string[]> {
  await page.evaluate(axe)
  return await page.evaluate<string[]>(`axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) =>
    violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => id + ': ' + target + ': ' + failureSummary)))`)
}

function report(results: unknown, out: string): { status: number | null; said: string } {
  const fresh = join(folder, 'fresh')
  mkdirSync(fresh, { recursive: true })
  writeFileSync(join(fresh, 'results.json'), JSON.stringify(results))
  writeFileSync(join(fresh, 'page-map.json'), JSON.stringify(madeUpMap()))
  writeFileSync(join(fresh, 'scaling.json'), JSON.stringify(madeUpScaling()))
  writeFileSync(join(fresh, 'ladder.json'), JSON.stringify(madeUpLadder()))
  writeFileSync(join(fresh, 'first-migration.json'), JSON.stringify(madeUpFirstMigration()))
  writeFileSync(join(fresh, 'raw-link.json'), JSON.stringify(madeUpRawLink()))
  writeFileSync(join(fresh, 'threads.json'), JSON.stringify(madeUpThreads()))
  writeFileSync(join(fresh, 'passage.json'), JSON.stringify(madeUpPassage()))
  const readme = join(folder, 'README.md')
  writeFileSync(readme, 'Before.\n\n<!-- make report: begin -->\nold\n<!-- make report: end -->\n\nBehind.\n')
  const args = [
    '--take',
    fresh,
    '--measured',
    join(folder, 'measured'),
    '--out',
    out,
    '--page',
    out,
    '--readme',
    readme,
  ]
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], { encoding: 'utf8' })
  return { status, said: stdout + stderr }
}

t.test('figures: medians, ratios and marks', t => {
  const figures = new Figures(madeUpResults())
  t.same(spreadOf([3, null, 1, 2, 10]), { median: 2.5, least: 1, most: 10, count: 4 })
  t.equal(spreadOf([null]), undefined)
  t.equal(figures.main.name, 'wan')
  t.equal(figures.lan?.name, 'lan')
  t.same(figures.workloads, ['nginx', 'postgres'], 'what is made to be hard is no workload')
  const direct = figures.cell('wan', 'nginx', 'direct')!
  t.same(direct.totalMs, { median: 21_000, least: 20_000, most: 22_000, count: 2 })
  t.equal(direct.wanBytes!.median, 201e6, 'both ways')
  t.match(figures.cell('wan', 'never-converging', 'direct'), {
    completed: 0,
    reasons: ['did not converge: given up after 60 s'],
  })
  const states = Object.fromEntries(figures.marks().map(({ id, state, measured }) => [id, [state, measured]]))
  t.same(states, {
    'templates-time': ['met', '0.100'],
    'templates-multifd': ['met', '0.333'],
    'image-time': ['met', '0.060'],
    'image-multifd': ['met', '0.200'],
    time: ['met', '0.100'],
    bytes: ['met', '0.080'],
    'multifd-time': ['met', '0.333'],
    'multifd-bytes': ['met', '0.267'],
    downtime: ['met', '0.652'],
    converges: ['met', '2 of 2 runs'],
    'paper-bytes': ['met', '0.500'],
    'paper-time': ['met', '0.600'],
    lan: ['missed', '1.200'],
  })
  const { runs, ...rest } = madeUpResults()
  const only = new Figures({ ...rest, runs: runs.filter(({ method }) => method === 'direct') })
  t.ok(
    only.marks().every(({ state }) => state === 'not measured'),
    'nothing is met by not being measured',
  )
  t.throws(() => new Figures({ ...rest, runs: [] }), /no runs/)
  const stopped = new Figures({
    ...rest,
    runs: runs.map(run =>
      run.guest === 'postgres' && run.profile === 'wan' && run.method === 'direct'
        ? { ...run, outcome: 'did-not-converge', reason: 'given up', totalMs: 63_000, downtimeMs: null }
        : run,
    ),
  })
  const time = stopped.marks().find(({ id }) => id === 'time')!
  t.match(time, { measured: 'at most 0.075', state: 'met' }, 'where the base was stopped, a bound')
  t.match(time.detail, /^nginx 0.10, postgres at most 0.05: .* Without those guests: 0.100.$/)
  t.match(stopped.marks().find(({ id }) => id === 'downtime')!.detail, /^nginx [\d.]+$/, 'no bound of a downtime')
  t.end()
})

t.test('extrapolation: lines, and the slower of link and CPU', t => {
  t.same(
    lineThrough([
      [1, 3],
      [2, 5],
      [3, 7],
    ]),
    { at: 1, slope: 2 },
  )
  t.same(lineThrough([[2, 8]]), { at: 0, slope: 4 }, 'one point: through the origin')
  const cost = (wanBytes: number, encodeCpuSeconds: number): CodecCost => ({
    rawBytes: 1e9,
    wanBytes,
    encodeCpuSeconds,
    decodeCpuSeconds: 1,
    encodePeakBytes: 0,
    decodePeakBytes: 0,
  })
  const efforts: Scaling['efforts'] = [
    { effort: 0, name: 'light', ...cost(500e6, 2) },
    { effort: 1, name: 'hard', ...cost(100e6, 10) },
  ]
  t.equal(cpuSecondsFor(efforts[1]!, 3e9), 30)
  t.match(forecast(efforts, 1e9, 80e6), { effort: 1, seconds: 10, directSeconds: 100, wanBytes: 100e6 })
  t.match(forecast(efforts, 1e9, 8e9), { effort: 0, seconds: 2, directSeconds: 1, bound: 'CPU' })
  t.match(forecast(efforts, 1e9, 8e6), { effort: 1, seconds: 100, bound: 'link' })
  t.end()
})

t.test('a picture of few colours', t => {
  const png = indexedPng(Uint8Array.of(1, 2, 3, 4, 5), 3, [
    '#000000',
    '#ff0000',
    '#00ff00',
    '#0000ff',
    '#ffffff',
    '#123456',
  ])
  t.equal(png.subarray(1, 4).toString(), 'PNG')
  t.same([png.readUInt32BE(16), png.readUInt32BE(20)], [3, 2], 'as wide as said, as high as needed')
  const at = png.indexOf('IDAT')
  const rows = inflateSync(png.subarray(at + 4, at + 4 + png.readUInt32BE(at - 4)))
  t.same([...rows], [0, 0x12, 0x30, 0, 0x45, 0])
  t.end()
})

t.test('the Markdown says what was measured, and what was not', t => {
  const out = join(folder, 'text')
  const { status, said } = report(madeUpResults(), out)
  t.equal(status, 0, said)
  const text = readFileSync(join(out, 'results.md'), 'utf8')
  for (const line of [
    'Made-up figures, for a test',
    '| **average** | 50 % | 92 % | 97 % | 40 % | 90 % | 94 % |',
    '| reported by the paper | 38 % |  |  | 27 % |  |  |',
    '| the pair, image and a guest known | 2 of 2 | 1.57 s | 0.060 | 0.200 | 7.5 MB | 0.030 | 0.100 |',
    'of the direct migration | met | 0.060 | at most 0.08 | nginx 0.06, postgres 0.06 |',
    '| the pair, golden image known | 1 of 1 | 55.0 MB | 18 s | 20.0 MB | 2 s | 75.0 MB | 5.0 % | 20 s | 7 |',
    '| the pair, nothing known | the mirror ended |  |',
    '| nginx | the pair | 2 s | 2.10 s (2 s to 2.20 s) | 1.05 | 20.0 MB | 16.1 MB | 0.80 | 15 s | 21 s (20 s to 22 s) |',
    '| wan | the pair | 6 of 8 | 8 of 8 | 8 of 8 | 6 of 8 | 38 % |',
    'Sets of golden image, idle: 300,000 pages (1.2 GB).',
    '| nginx | the pair | 2 of 2 | 2.10 s (2 s to 2.20 s) | 0.10 |',
    'did not converge: given up after 60 s',
    'failed: the <pipe> broke & ended',
    'wanproxy: no program',
    'total time of the pair on a LAN, of the direct migration | missed | 1.200 | at most 1.05 |',
    'a guest of 64 GB',
    'Made-up CPU',
    'Beaten in both: nginx: effort 1 (60.0 MB in 1.50 s) by zstd --single-thread -3 (50.0 MB in 1.00 s).',
    '| nginx | 50.0 MB in 1.00 s | 70.0 MB in 2.00 s | 60.0 MB in 1.50 s |',
    '| nginx | 1 | aaaaaaa | 50.0 MB | 0.05 | 1.00 | 1.00 | 0.20 | 0.25 | **2.50** | 0.50 | 0.40 | 0.05 | 0.05 | **1.00** |',
    '| nginx | 200.0 MB | 2 | 2 | 50.2 MB | 1.0040 | 1.00 s | 2.00 | 0.50 s | 2.00 |',
    '| 90 % | 0 | x509 | 3 | 1100 MB/s (1000 to 1200) | 1500 MB | 2000 MB |',
    '| auto | CPU seconds of both | 0.90 | 3.30 | 3.00 | 1.10 |',
    '| nginx | 2.0 GB | 3 | the pair, effort auto | 2.40 s (2.40 to 2.40) | 1.20 | 1.00 | 0.50 | 1.00 | 0.50 | 2.00 |',
  ]) {
    t.ok(text.includes(line), line)
  }
  t.notMatch(text, /NaN|undefined|Infinity|\[object/)
  t.end()
})

t.test('parts of scaling that the time was over for are left out of the report, and break nothing', t => {
  for (const part of ['efforts', 'migrations', 'replays', 'guests', 'templates', 'all'] as const) {
    const none = { efforts: [], migrations: [], replays: [], guests: [], templates: [] }
    const some = { ...madeUpScaling(), ...(part === 'all' ? none : { [part]: [] }) }
    const text = JSON.stringify(scalingBlocks(some, undefined))
    t.notMatch(text, /NaN|undefined|Infinity/, part)
  }
  t.end()
})

t.test('what is kept of a measurement renders to the same', t => {
  const out = join(folder, 'fresh-and-kept')
  t.equal(report(madeUpResults(), out).status, 0)
  const first = readFileSync(join(out, 'results.md'), 'utf8')
  const readme = join(folder, 'README.md')
  const args = ['--measured', join(folder, 'measured'), '--out', out, '--page', out, '--readme', readme]
  t.equal(spawnSync(process.execPath, [program, ...args]).status, 0)
  t.equal(readFileSync(join(out, 'results.md'), 'utf8'), first)
  const check = () => spawnSync(process.execPath, [program, ...args, '--check'], { encoding: 'utf8' })
  t.match(check(), { status: 0, stderr: '' })
  writeFileSync(readme, readFileSync(readme, 'utf8').replace('| the pair |', '| the best |'))
  t.match(check(), { status: 1, stderr: /README\.md: not what .* renders to/ }, 'a figure that was written by hand')
  t.end()
})

t.test("the README's tables are made of it, and what is around them stays", t => {
  t.equal(report(madeUpResults(), join(folder, 'readme')).status, 0)
  const text = readFileSync(join(folder, 'README.md'), 'utf8')
  t.match(text, /^Before\.\n\n<!-- make report: begin -->\n[\s\S]+\n<!-- make report: end -->\n\nBehind\.\n$/)
  t.notMatch(text, /old|NaN|undefined/)
  for (const line of [
    '| Link | direct | multifd + zstd | the pair |',
    '| wan: 100 Mbit/s, 40 ms | 21 s (20 s to 22 s) | 6.30 s (6 s to 6.60 s) | 2.10 s (2 s to 2.20 s) |',
    '| the pair | 2 of 2 | 2.63 s | 0.100 | 0.333 | 20.1 MB | 0.080 | 0.267 |',
  ])
    t.ok(text.includes(line), line)
  writeFileSync(join(folder, 'none'), 'nothing')
  const args = ['--measured', join(folder, 'measured'), '--out', folder, '--readme', join(folder, 'none')]
  const { status, stderr } = spawnSync(process.execPath, [program, ...args, '--check'], { encoding: 'utf8' })
  t.match({ status, stderr }, { status: 1, stderr: /no place for figures/ })
  t.end()
})

t.test("docs/results.md and the README's tables are what docs/measured/ renders to", t => {
  const { status, stderr } = spawnSync(process.execPath, [program, '--check'], { encoding: 'utf8' })
  t.equal(status, 0, stderr)
  t.end()
})

t.test('made-up results do not get into docs/', t => {
  const docs = new URL('../../docs', import.meta.url).pathname
  const { status, said } = report(madeUpResults(), docs)
  t.equal(status, 1)
  t.match(said, /no place in docs/)
  t.match(report({ ...madeUpResults(), format: 2 }, join(folder, 'x')), { status: 1, said: /format 2/ })
  t.end()
})

const browser = findBrowser()
t.test('the page in a browser', { skip: browser ? false : 'no Chromium: scripts/setup.sh tap, as root' }, async t => {
  const out = join(folder, 'page')
  t.equal(report(madeUpResults(), out).status, 0)
  const path = join(out, 'results.html')
  const size = readFileSync(path).length
  t.ok(size < 1e6, `${size} bytes`)
  await using page = await BrowserPage.open(browser!)
  const url = pathToFileURL(path).href
  await page.look(1200, 900, 'light')
  await page.go(url)

  await t.test('it is all there', async t => {
    const rows = await page.evaluate<string[]>(
      `[...document.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.textContent.trim()).join(' | '))`,
    )
    for (const row of [
      'average | 50 % | 92 % | 97 % | 40 % | 90 % | 94 %',
      'total time of the pair, of the direct migration | ✓ met | 0.100 | at most 0.15 | nginx 0.10, postgres 0.10',
    ]) {
      t.ok(rows.includes(row), row)
    }
    t.ok(
      rows.some(row => row.includes('the <pipe> broke & ended')),
      'text stays text',
    )
    const widths = await page.evaluate<number[]>(
      `[...document.querySelector('svg[aria-label="Total time over wan"]').querySelectorAll('rect')].map(bar => bar.getBoundingClientRect().width)`,
    )
    t.equal(widths.length, 7, 'a bar a method')
    t.ok(
      Math.abs(widths.at(-2)! / widths[0]! - 0.1) < 0.005,
      `the pair's bar is a tenth of the direct one's: ${widths}`,
    )
    t.match(
      await page.evaluate(`({
        figures: document.querySelectorAll('.figure').length,
        behind: document.querySelectorAll('.figure details.behind table').length,
        unnamed: document.querySelectorAll('svg:not([aria-label]):not(svg svg), img:not([alt])').length,
        maps: [...document.querySelectorAll('.map img')].map(image => [image.naturalWidth, image.naturalHeight]),
        saved: JSON.parse(document.getElementById('data').textContent).results.runs.length,
      })`),
      {
        figures: 13,
        behind: 13,
        unnamed: 0,
        maps: [
          [512, 4],
          [512, 4],
        ],
        saved: 112,
      },
    )
  })

  await t.test('its first screen is time against link, and what was missed stands at its end', async t => {
    const found = await page.evaluate<{
      top: number
      bottom: number
      first: string
      last: string
      misses: string[]
    }>(`(() => {
      const plot = document.querySelector('.plot')
      const { top, bottom } = plot.getBoundingClientRect()
      const headings = [...document.querySelectorAll('main h2')].map(one => one.textContent)
      const states = [...document.querySelectorAll('#marks ~ .scroll tbody tr')].map(row => row.cells[1].textContent)
      return { top, bottom, first: headings[0], last: headings.at(-1), misses: states }
    })()`)
    t.ok(found.top > 0 && found.bottom <= 900, `the plot is from ${found.top} to ${found.bottom}`)
    t.match(found, { first: 'Time against link', last: 'What was promised, and what came out' })
    t.match(found.misses.at(-1), /missed/)
    t.notOk(found.misses.slice(0, -1).some(state => state.includes('missed')))
    const dots = await page.evaluate<Record<string, number>>(
      `Object.fromEntries([...document.querySelectorAll('#links + .figure .series')].map(one => [one.dataset.series, one.querySelectorAll('.dot').length]))`,
    )
    t.same(dots, { direct: 2, 'multifd-zstd': 2, pair: 2 }, 'a dot for each link that was measured')
  })

  await t.test('by the keyboard, and with axe-core', async t => {
    const plot = `document.querySelector('#links + .figure .plot')`
    await page.evaluate(`${plot}.focus()`)
    for (const key of ['ArrowRight', 'Home', 'End'])
      for (const type of ['keyDown', 'keyUp']) await page.send('Input.dispatchKeyEvent', { type, key, code: key })
    const said = await page.evaluate<string>(`${plot}.getAttribute('aria-valuetext')`)
    t.match(said, /^direct: 1(\.\d+)? s at lan: 10 Gbit\/s, .*, the pair: 1\.\d+ s at lan/)
    t.equal(await page.evaluate(`document.getElementById('tip').hidden`), false, 'and it is seen')
    for (const scheme of ['light', 'dark'] as const) {
      await page.look(1200, 900, scheme)
      t.same(await violations(page), [], scheme)
    }
    await page.look(1200, 900, 'light')
    const validator = new HtmlValidate({
      extends: ['html-validate:recommended'],
      // widths and colours of plots are data
      rules: { 'no-inline-style': 'off', 'long-title': 'off' },
    })
    const { results } = await validator.validateString(readFileSync(path, 'utf8'))
    const wrong = results.flatMap(({ messages }) =>
      messages.map(({ ruleId, message, line }) => `${line}: ${message} (${ruleId})`),
    )
    t.same(wrong.slice(0, 20), [], 'html-validate has nothing to say')
  })

  await t.test('pointing tells what is there', async t => {
    const tip = () =>
      page.evaluate<string>(`document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent`)
    await page.pointAt('svg[aria-label="Total time over wan"] .s-pair .bar')
    t.equal(await tip(), 'the pair: 2.63 s')
    await page.pointAt('svg[aria-label="What was left to send over time, nginx"]', 0.02)
    t.match(await tip(), /direct: [\d.]+ MB at [\d.]+ s\n[\s\S]*the pair: [\d.]+ MB at/)
    await page.pointAt('.map:last-child img', 0.001)
    t.match(await tip(), /^page at 0x[0-9a-f]+: in the templates$/)
    await page.pointAt('h1')
    t.equal(await tip(), '')
  })

  await t.test('a series is picked out, and given back', async t => {
    const seen = `[...document.querySelectorAll('svg[aria-label^="What was left"] .series')].slice(0, 6).map(one => getComputedStyle(one).opacity)`
    const key = `[...document.querySelectorAll('.figure')].find(figure => figure.querySelector('[aria-label^="What was left"]')).querySelector('.key[data-series=pair]')`
    await page.evaluate(`${key}.click()`)
    t.same(await page.evaluate(seen), ['0.12', '0.12', '0.12', '0.12', '0.12', '1'])
    t.equal(await page.evaluate(`${key}.getAttribute('aria-pressed')`), 'true')
    await page.evaluate(`${key}.click()`)
    t.same(await page.evaluate(seen), ['1', '1', '1', '1', '1', '1'])
    const covered = `(() => {
      const cover = document.querySelector('.map canvas')
      const { data } = cover.getContext('2d').getImageData(0, 0, cover.width, cover.height)
      return data.filter((value, i) => i % 4 === 3 && value > 0).length
    })()`
    await page.evaluate(`[...document.querySelectorAll('.key')].find(key => key.textContent === 'zero').click()`)
    t.equal(await page.evaluate(covered), 1024, 'all pages but the zero ones are covered')
  })

  await t.test('it fits a phone, light and dark', async t => {
    for (const scheme of ['light', 'dark'] as const) {
      await page.look(360, 740, scheme)
      await page.evaluate(`document.querySelectorAll('details').forEach(one => { one.open = true })`)
      const found = await page.evaluate<{ wide: number; ground: number[]; text: number[] }>(`(() => {
        const rgb = value => value.match(/\\d+/g).map(Number)
        const style = getComputedStyle(document.body)
        return { wide: document.documentElement.scrollWidth, ground: rgb(style.backgroundColor), text: rgb(style.color) }
      })()`)
      t.equal(found.wide, 360, 'nothing sticks out')
      t.equal(found.ground[0]! > 128, scheme === 'light', `${scheme}: ${found.ground}`)
      t.ok(Math.abs(found.ground[0]! - found.text[0]!) > 150, 'text stands out')
    }
  })

  const asked = page.events.filter(({ method }) => method === 'Network.requestWillBeSent')
  const foreign = asked
    .map(({ params }) => (params.request as { url: string }).url)
    .filter(one => one !== url && !one.startsWith('data:'))
  t.same(foreign, [], 'nothing is asked of a network')
  const wrong = page.events.filter(
    ({ method }) =>
      method === 'Runtime.exceptionThrown' || method === 'Log.entryAdded' || method === 'Runtime.consoleAPICalled',
  )
  t.same(wrong, [], 'the console stays empty')
})
