/** The page in a real browser, during a migration over a real pair; what its server gives: dashboard.test.ts. */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import t from 'tap'
import type { SiteStatus } from '../../src/daemon/control-api.ts'
import { Dashboard } from '../../src/dashboard/dashboard.ts'
import type { Proxies } from '../../src/dashboard/lookout.ts'
import { ProxyError } from '../../src/errors.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { askProxy } from '../../src/system/control-client.ts'
import { until } from '../helpers/until.ts'
import { BrowserPage, findBrowser } from '../report/browser.ts'
import { FedGuest } from './fed-guest.ts'
import { ShownPair } from './running-dashboard.ts'

t.setTimeout(590_000) // the machine may be busy
const PATIENCE_MS = 120_000

const browser = findBrowser()
const skip = browser ? false : 'no Chromium: scripts/setup.sh tap, as root'
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

const textOf = (selector: string): string => `document.querySelector(${JSON.stringify(selector)})?.textContent`

/** Waits until an expression in the page is true. */
async function sees(page: BrowserPage, expression: string): Promise<void> {
  await until(expression, () => page.evaluate<boolean>(`Boolean(${expression})`), PATIENCE_MS)
}

async function press(page: BrowserPage, key: string, modifiers = 0): Promise<void> {
  for (const type of ['keyDown', 'keyUp'])
    await page.send('Input.dispatchKeyEvent', { type, key, code: key, modifiers, ...(CODES[key] ?? {}) })
}
const CODES: Readonly<Record<string, object>> = {
  Tab: { windowsVirtualKeyCode: 9 },
  Enter: { windowsVirtualKeyCode: 13, text: '\r' },
  ArrowLeft: { windowsVirtualKeyCode: 37 },
  Home: { windowsVirtualKeyCode: 36 },
  End: { windowsVirtualKeyCode: 35 },
  PageDown: { windowsVirtualKeyCode: 34 },
}

/** What axe-core finds wrong, a line each. */
async function violations(page: BrowserPage): Promise<string[]> {
  await page.evaluate(axe)
  return await page.evaluate<string[]>(`axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) =>
    violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => id + ': ' + target + ': ' + failureSummary)))`)
}

/** What a browser complains of. */
function complaints(page: BrowserPage): string[] {
  const wrong = ['Runtime.exceptionThrown', 'Log.entryAdded', 'Runtime.consoleAPICalled']
  return page.events.filter(({ method }) => wrong.includes(method)).map(event => JSON.stringify(event))
}

t.test('a migration, from its beginning to its end', { skip }, async t => {
  await using shown = await ShownPair.start()
  await using page = await BrowserPage.open(browser!)
  await page.look(1200, 900, 'light')
  await page.go(shown.address)
  await sees(page, `${textOf('#session-table tbody tr')} ?.includes('live')`)
  t.equal(await page.evaluate(textOf('#cards')), '')
  t.equal(await page.evaluate(`document.getElementById('none').hidden`), false)
  t.equal(await page.evaluate(textOf('#past')), 'No migration has ended.')
  t.match(await page.evaluate(textOf('#proxy-table tbody')), shown.control)

  const guest = await FedGuest.start(shown.local, 1500)
  await t.test('it moves', async t => {
    await guest.send(0, 0.4)
    await sees(page, `document.querySelector('progress')?.value >= 35`)
    const first = await page.evaluate<number>(`document.querySelector('progress').value`)
    t.ok(first <= 41, `${first} %`)
    t.equal(await page.evaluate(textOf('.pass')), 'Pass 1 ')
    await sees(page, `/^all 6\\.1 MB: (39|40) % has passed$/.test(${textOf('.memory-at')})`)
    t.equal(await page.evaluate(textOf('.facts dd')), 'known from half of it on')
    await guest.send(0.4, 1)
    await sees(page, `document.querySelector('progress').value >= 99`)
    t.match(await page.evaluate(textOf('.facts dd')), /^\d.* s to \d.* s$/, 'between which times it ends')
    await guest.send(0, 0.5, 3)
    await sees(page, `${textOf('.pass')} === 'Pass 2 ' && document.querySelector('progress').value >= 45`)
    t.match(await page.evaluate(textOf('.card h3')), /^Guest default, pc-q35-9\.2 leaves for 127\.0\.0\.1:\d+$/)
    t.match(await page.evaluate(`document.title`), '(1) Pageferry')
    t.match(await page.evaluate(textOf('#news')), /^Migration \S+ runs\.$/)
    const facts = await page.evaluate<Record<string, string>>(
      `Object.fromEntries([...document.querySelectorAll('.facts div')].map(one => [...one.children].map(part => part.textContent)))`,
    )
    t.match(facts, { 'From QEMU so far': /^\d+\.\d MB$/, 'On the WAN so far': /^\d+\.\d MB$/, Saved: /^\d+ %$/ })
    t.match(facts['Still to go'], / s, until \d\d:\d\d:\d\d UTC$/)
  })

  await t.test('plots have what the proxy says', async t => {
    const { sources } = (await askProxy(shown.control, 'GET /status')) as SiteStatus
    const { pages } = sources[0]!.session!.migrations[0]!
    const sizeOf = (count: number): string => {
      const bytes = count * 4096
      return bytes < 999_950 ? `${(bytes / 1000).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`
    }
    const said = { empty: pages.zero + pages.fill, 'in template sets': pages.template, new: pages.whole + pages.opaque }
    for (const [name, count] of Object.entries(said)) {
      t.ok(count > 0, `${name}: ${count}`)
      await sees(
        page,
        `[...document.querySelectorAll('.legend li')].some(one => one.textContent === ${JSON.stringify(`${name} ${sizeOf(count)}`)})`,
      )
    }
    const drawn = await page.evaluate<[string, number][]>(
      `[...document.querySelectorAll('.plot path[d]')].map(path => [path.getAttribute('class'), path.getBoundingClientRect().height])`,
    )
    const heights = new Map(drawn)
    for (const name of ['line s-qemu', 'area s-empty', 'area s-template', 'area s-whole'])
      t.ok(heights.get(name)! > 5, `${name}: ${heights.get(name)} pixels`)
    await page.pointAt('.plots .over', 0)
    t.equal(await page.evaluate(textOf('.plots .at')), 'after 0 s')
    await page.pointAt('h1')
    t.equal(await page.evaluate(textOf('.plots .at')), 'now')
  })

  await t.test('the map of its memory has what passed, by address', async t => {
    const { sources } = (await askProxy(shown.control, 'GET /status')) as SiteStatus
    const map = sources[0]!.session!.migrations[0]!.map!
    t.match(map, { bytes: 1500 * 4096, cellBytes: 3 * 4096 })
    const sumOf = (cell: number): number => map.empty[cell]! + map.known[cell]! + map.sent[cell]!
    t.ok(
      map.sent.every((_, cell) => sumOf(cell) >= 100),
      'all of it',
    )
    t.ok(sumOf(0) > 100 && sumOf(499) === 100, 'and one page in three of the first half again')
    await sees(page, `${textOf('.memory-at')} === 'all 6.1 MB: 100 % has passed'`)
    const legend = await page.evaluate<string>(`document.querySelector('.memory').closest('figure').textContent`)
    t.match(legend, /empty \d+ %known to the other side \d+ %sent \d+ %sent again 1\d %$/)
    const boxes = await page.evaluate<Record<string, { width: number; height: number }>>(
      `Object.fromEntries([...document.querySelectorAll('.memory path')].map(path => [path.getAttribute('class'), path.getBoundingClientRect().toJSON()]))`,
    )
    const rows = Math.ceil(500 / 64)
    for (const name of ['ground', 'area s-empty', 'area s-template', 'area s-whole'])
      t.ok(boxes[name]!.height > 14 * (rows - 1), `${name}: ${boxes[name]!.height} pixels high`)
    t.ok(boxes.again!.height < 14 * (rows / 2 + 1), 'the first half was sent again')

    // as where one points: the text says the same as the proxy
    await page.pointAt('.memory', 0.999)
    const cell = 64 * 4 + 63 // the middle of 8 rows is the top of the fifth
    const at = (index: number): string => `${((index * 3 * 4096) / 1e6).toFixed(1)} MB`
    t.equal(await page.evaluate(textOf('.memory-at')), `${at(cell)} to ${at(cell + 1)}: 100 % has passed`)
    await page.pointAt('h1')
    t.match(await page.evaluate(textOf('.memory-at')), /^all /)
  })

  await t.test('light and dark, narrow and wide, axe-core finds nothing', async t => {
    for (const scheme of ['light', 'dark'] as const) {
      for (const width of [1200, 360]) {
        await page.look(width, 800, scheme)
        const found = await page.evaluate<{ wide: number; ground: number[]; text: number[] }>(`(() => {
          const rgb = value => value.match(/\\d+/g).map(Number)
          const style = getComputedStyle(document.body)
          return { wide: document.documentElement.scrollWidth, ground: rgb(style.backgroundColor), text: rgb(style.color) }
        })()`)
        t.ok(found.wide <= width, `nothing sticks out: ${found.wide} of ${width}`)
        t.equal(found.ground[0]! > 128, scheme === 'light', `${scheme}: ${found.ground}`)
        t.ok(Math.abs(found.ground[0]! - found.text[0]!) > 150, 'text stands out')
        t.same(await violations(page), [], `${scheme}, ${width}`)
      }
    }
    await page.look(1200, 900, 'light')
  })

  await t.test('by the keyboard alone', async t => {
    const focused = `(document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.textContent)`
    const first = `document.querySelector('a[href], button, [tabindex="0"]').focus()`
    await page.evaluate(first)
    const order = [await page.evaluate<string>(focused)]
    for (let i = 0; i < 12; i++) {
      await press(page, 'Tab')
      order.push(await page.evaluate<string>(focused))
    }
    t.same(order, [
      'To the running migrations',
      ...['Running', 'Disks', 'Sessions', 'Proxies', 'History', 'pause'],
      'Guest memory by address: part of it',
      'Rate of QEMU and of the WAN: point in time',
      'Guest memory by class, and bytes on the WAN: point in time',
      ...['Table of sessions', 'Table of proxies', 'Table of past migrations'],
    ])
    t.notOk(
      await page.evaluate(`[...document.querySelectorAll('[tabindex]')].some(one => one.tabIndex > 0)`),
      'in the order of the page',
    )
    await page.evaluate(`document.querySelector('.plots .over').focus()`)
    t.not(
      await page.evaluate(`getComputedStyle(document.querySelector('.plots .over')).outlineStyle`),
      'none',
      'where it is can be seen',
    )
    await press(page, 'Home')
    t.equal(await page.evaluate(textOf('.plots .at')), 'after 0 s')
    t.match(
      await page.evaluate(`document.querySelector('.plots .over').getAttribute('aria-valuetext')`),
      /^after 0 s: from QEMU 0\.0 Mbit\/s, on the WAN/,
    )
    const slider = `document.querySelector('[aria-label^="Guest memory by address"]')`
    await page.evaluate(`${slider}.focus()`)
    for (const [key, cell] of [
      ['End', 499],
      ['PageDown', 435],
      ['ArrowLeft', 434],
      ['Home', 0],
    ] as const) {
      await press(page, key)
      t.equal(await page.evaluate(`${slider}.getAttribute('aria-valuenow')`), String(cell), key)
    }
    t.match(
      await page.evaluate(`${slider}.getAttribute('aria-valuetext')`),
      /^0 bytes to 12\.3 kB: 100 % has passed; empty \d+ %, known to the other side \d+ %, sent \d+ %, sent again \d+ %$/,
    )
    await page.evaluate(`document.querySelector('.skip').focus()`)
    await press(page, 'Enter')
    t.equal(await page.evaluate(focused), 'running')
  })

  await t.test('it stands still when it is told to, and without motion for who wants none', async t => {
    await page.evaluate(`document.getElementById('pause').click()`)
    t.equal(await page.evaluate(`document.getElementById('pause').getAttribute('aria-pressed')`), 'true')
    const before = await page.evaluate(`document.querySelector('progress').value`)
    await guest.send(0.5, 1, 3)
    await until('the end of the second pass', async () => {
      const { sources } = (await askProxy(shown.control, 'GET /status')) as SiteStatus
      return sources[0]!.session!.migrations[0]!.progress!.share > 0.98
    })
    t.equal(await page.evaluate(`document.querySelector('progress').value`), before)
    await page.evaluate(`document.getElementById('pause').click()`)
    await sees(page, `document.querySelector('progress').value >= 98`)
    const moves = await page.evaluate<string[]>(
      `[...document.styleSheets[0].cssRules].filter(rule => /transition|animation/.test(rule.cssText)).map(rule => rule.conditionText ?? rule.cssText)`,
    )
    t.same(moves, ['(prefers-reduced-motion: no-preference)'])
  })

  await t.test('it ends, and is history', async t => {
    guest.end()
    await once(guest.socket, 'close')
    await sees(page, `document.querySelector('#history-table tbody tr')`)
    t.equal(await page.evaluate(textOf('#cards')), '')
    t.match(await page.evaluate(textOf('#news')), /^Migration \S+ has ended\.$/)
    t.match(await page.evaluate(textOf('#history-table tbody tr')), /default, pc-q35-9\.2completed/)
    t.match(await page.evaluate(textOf('#past')), /^1 migration has ended, 1 of them completed\. Of \d/)
  })

  await t.test('nothing was asked of another place, and nothing is complained of', async t => {
    const asked = page.events
      .filter(({ method }) => method === 'Network.requestWillBeSent')
      .map(({ params }) => (params.request as { url: string }).url)
    t.ok(asked.length > 3)
    t.same(
      asked.filter(url => !url.startsWith(shown.address) && !url.startsWith('data:')),
      [],
    )
    t.same(complaints(page), [])
  })

  await t.test('a proxy that is gone, and a page that is', async t => {
    shown.pair.near.child.kill('SIGKILL')
    await sees(page, `${textOf('.alarm')}?.includes('no proxy answers at')`)
    t.match(await page.evaluate(textOf('.alarm')), /What to do: /)
    t.match(await page.evaluate(textOf('#proxy-table tbody')), /no proxy answers/)
    t.same(await violations(page), [])
    shown.command.kill('SIGINT')
    await once(shown.command, 'exit')
    await sees(page, `${textOf('.alarm')}?.includes('The command that serves this page does not answer')`)
  })
})

t.test('what has ended is asked for until it is there, and then no more', { skip }, async t => {
  let looks = 0
  const asked: string[] = []
  const one = { ended: '2026-11-30T12:00:00.000Z', id: 'one', direction: 'in', peer: 'a', target: 'guest' }
  const proxies: Proxies = {
    sockets: () => ['/a', '/gone'],
    statusOf: async path => {
      if (path === '/gone') throw new ProxyError('IO', 'no proxy answers', undefined, 'start it')
      looks++
      return Buffer.from(
        JSON.stringify({ api: 1, version: '1', process: 1, started: one.ended, history: 'b', sources: [] }),
      )
    },
    historyOf: async path => {
      if (path === '/gone') throw new ProxyError('IO', 'no proxy answers', undefined, 'start it')
      asked.push(path)
      // what somebody else was told a moment ago is told again
      const migrations = asked.length > 1 ? [{ ...one, outcome: 'failed', reason: 'x', seconds: 1, bytes: 1 }] : []
      return Buffer.from(JSON.stringify({ api: 1, mark: asked.length > 1 ? 'b' : 'a', migrations }))
    },
  }
  const dashboard = new Dashboard(parseAddress('tcp:127.0.0.1:0'), proxies, error => t.fail(String(error)))
  const address = await dashboard.start()
  t.teardown(() => dashboard.close())
  await using page = await BrowserPage.open(browser!)
  await page.go(address)
  await sees(page, `document.querySelector('#history-table tbody tr')`)
  const then = looks
  await until('two more looks', () => looks >= then + 3, PATIENCE_MS)
  t.same(asked, ['/a', '/a'], 'though one of them is gone')
})

t.test('whatever names and texts say is text', { skip }, async t => {
  const evil = `</td><img src=x onerror="document.title='evil'"><script>document.title='evil'</script>\u202e\x1b[31m`
  const migration = {
    ...{ migration: 1, id: evil, target: evil, machine: evil, seconds: 5, channels: 1, postcopy: false },
    ...{ bytes: 1e6, bytesBack: 0 },
  }
  const progress = {
    pass: 2,
    share: 0.5,
    bytesPerSecond: 1e6,
    wanBytesPerSecond: 1e5,
    converges: false,
    passSeconds: 3,
  }
  const disks = {
    ...{ transfer: 3, id: evil, target: evil, seconds: 5, connections: 2, requests: 16, effort: 1 },
    ...{ bytes: 4e8, bytesWan: 1e8, bytesPerSecond: 2e6, wanBytesPerSecond: 5e5, bytesBack: 3e6, bytesBackWan: 1e6 },
    owed: { writes: 3, bytes: 3e6 },
    exports: [
      { name: evil, bytes: 1e9, bytesWritten: 4e8, pass: 1, share: 0.437, passSeconds: 125 },
      { name: '', bytes: 1e9, bytesWritten: 5e7 },
    ],
  }
  const stats = { state: 'broken', rttMs: 3, rate: 1e6, connections: [] }
  const session = { link: evil, peer: evil, sets: 2, coldSets: 1, stats }
  const status = {
    ...{ api: 1, version: evil, process: 1, started: '2026-11-29T12:00:00.000Z' },
    sources: [
      {
        ...{ role: 'source', peer: evil, address: 'a:1', rate: 1e6, listening: [evil], stopping: true, waiting: 1 },
        certificates: [{ file: evil, expires: '2020-01-01T00:00:00.000Z' }],
        // of a proxy of before: without counts of pages
        session: { ...session, migrations: [{ ...migration, bytesWan: 1e5, effort: 3, progress }] },
        left: [{ ...session, migrations: [], disks: [disks] }],
        connections: 1,
      },
    ],
    destination: {
      ...{ role: 'destination', certificates: [], listening: [], stopping: false },
      sessions: [{ ...session, migrations: [{ ...migration, postcopy: true }], dialling: 0, pieces: 0 }],
    },
  } as unknown as SiteStatus
  const past = Array.from({ length: 1000 }, (_, i) => ({
    ...{ ended: new Date(1.7e12 + i * 1000).toISOString(), id: `${i}`, direction: 'in', peer: evil, target: evil },
    ...{ outcome: 'failed', reason: evil, seconds: 1, bytes: 1 },
  }))
  const gone = new ProxyError('IO', evil, undefined, evil)
  const proxies: Proxies = {
    sockets: () => ['/a', evil],
    statusOf: async path => {
      if (path === evil) throw gone
      return Buffer.from(JSON.stringify(status))
    },
    historyOf: async path => {
      if (path === evil) throw gone
      return Buffer.from(JSON.stringify({ api: 1, migrations: past }))
    },
  }
  const dashboard = new Dashboard(parseAddress('tcp:127.0.0.1:0'), proxies, error => t.fail(String(error)))
  const address = await dashboard.start()
  t.teardown(() => dashboard.close())
  await using page = await BrowserPage.open(browser!)
  await page.look(1200, 900, 'dark')
  await page.go(address)
  await sees(page, `document.querySelectorAll('#history-table tbody tr').length === 20`)
  t.match(await page.evaluate(textOf('.card h3')), /^Guest <\/td><img src=x onerror=.*\\u202e\\u001b\[31m, <\/td>/)
  t.equal(await page.evaluate(`document.querySelectorAll('img, main script').length`), 0)
  t.equal(await page.evaluate(`document.title`), '(2) Pageferry')
  t.equal(await page.evaluate(`document.querySelectorAll('#cards .card').length`), 2)
  t.match(await page.evaluate(textOf('#disk-cards h3')), /^Disks <\/td><img src=x onerror=.* leave for /)
  t.match(
    await page.evaluate(textOf('#disk-cards .about')),
    / · for 5\.0 s · 2 connections · 3 writes answered early \(3\.0 MB\)$/,
  )
  const bars = await page.evaluate<[string, boolean, number][]>(
    `[...document.querySelectorAll('.exports li')].map(one => [one.textContent, one.querySelector('label').hidden, one.querySelector('progress').value])`,
  )
  t.match(bars[0], [/^<\/td>.* 1\.0 GB · 400\.0 MB written · 2 min 5 s to the end of the passPass 1 43 %$/, false, 43])
  t.match(bars[1], [/^Disk without a name 1\.0 GB · 50\.0 MB written/, true], 'where no share is known there is no bar')
  const facts = await page.evaluate<Record<string, string>>(
    `Object.fromEntries([...document.querySelectorAll('#disk-cards .facts div')].map(one => [...one.children].map(part => part.textContent)))`,
  )
  t.match(facts, {
    Saved: '75 %',
    'Requests not answered': '16',
    'Of that on the WAN': '1.0 MB',
    'On the WAN': '4.0 Mbit/s',
  })
  t.ok(await page.evaluate(`document.getElementById('no-disks').hidden`))
  t.match(await page.evaluate(textOf('.warning')), /does not converge/)
  t.match(await page.evaluate(`document.querySelectorAll('.card')[1].textContent`), /in postcopy/)
  t.match(await page.evaluate(textOf('#proxy-table tbody')), /has expired/)
  t.same(await violations(page), [])
  await page.evaluate(`document.getElementById('more').click()`)
  t.equal(await page.evaluate(`document.querySelectorAll('#history-table tbody tr').length`), 1000)
  t.equal(await page.evaluate(`document.getElementById('more').getAttribute('aria-expanded')`), 'true')
  await page.evaluate(`document.getElementById('more').click()`)
  t.equal(await page.evaluate(`document.querySelectorAll('#history-table tbody tr').length`), 20)
  t.same(complaints(page), [])
  const refused = await page
    .evaluate(`new Promise((_, no) => { try { document.body.innerHTML = '<b>x</b>' } catch (error) { no(error) } })`)
    .catch(error => String(error))
  t.match(refused, /TrustedHTML/, 'and no mistake of ours would make markup of it')
})
