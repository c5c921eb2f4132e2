/** The page's server: what it gives, to whom, and what those who misuse it cost. The page itself: page.test.ts. */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { lstatSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { HtmlValidate } from 'html-validate'
import t from 'tap'
import { printable } from '../../src/bytes/printable.ts'
import type { SiteStatus } from '../../src/daemon/control-api.ts'
import { Dashboard } from '../../src/dashboard/dashboard.ts'
import type { Look, PastLook } from '../../src/dashboard/dashboard-api.ts'
import { Lookout, type Proxies } from '../../src/dashboard/lookout.ts'
import { printableJson } from '../../src/dashboard/outside-json.ts'
import { makePage } from '../../src/dashboard/page.ts'
import { ProxyError } from '../../src/errors.ts'
import { CONTROL_CLIENT_MS, CONTROL_CLIENTS_MAX } from '../../src/limits.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { run } from '../cli/command.ts'
import { closed } from '../daemon/daemons.ts'

t.setTimeout(590_000) // the machine may be busy

const folder = mkdtempSync(join(tmpdir(), 'pageferry-dashboard-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

const STATUS: SiteStatus = {
  ...{ api: 1, version: '1.2.3', process: 7, started: '2026-11-29T12:00:00.000Z' },
  ...{ sources: [], destination: undefined },
}
const bytes = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
const GONE = new ProxyError('IO', 'no proxy answers at /b', undefined, 'start it')

function proxiesOf(more: Partial<Proxies> = {}): Proxies {
  return {
    sockets: () => ['/a'],
    statusOf: async () => bytes(STATUS),
    historyOf: async () => bytes({ api: 1, migrations: [] }),
    ...more,
  }
}

async function served(proxies: Proxies, at = 'tcp:127.0.0.1:0') {
  const dashboard = new Dashboard(parseAddress(at), proxies, error => t.fail(String(error)))
  const address = await dashboard.start()
  return { dashboard, address, [Symbol.asyncDispose]: () => dashboard.close() }
}

/** What a lookout's pieces say. */
const said = (pieces: readonly Buffer[]): Look => JSON.parse(Buffer.concat(pieces).toString())

interface Said {
  readonly status: number
  readonly headers: http.IncomingHttpHeaders
  readonly body: string
}

function ask(url: string, options: http.RequestOptions = {}): Promise<Said> {
  return new Promise((done, failed) => {
    const request = http.request(url, { agent: false, ...options }, response => {
      let body = ''
      response.setEncoding('utf8').on('data', text => {
        body += text
      })
      response.on('end', () => done({ status: response.statusCode!, headers: response.headers, body }))
    })
    request.on('error', failed)
    request.end()
  })
}

t.test('one page, and nothing that a browser could do beside showing it', async t => {
  await using server = await served(proxiesOf())
  const { address } = server
  t.match(address, /^http:\/\/127\.0\.0\.1:\d+\/[\w-]{22}\/$/, '128 random bits')
  const { status, headers, body } = await ask(address)
  t.equal(status, 200)
  t.match(headers, {
    'content-type': 'text/html; charset=utf-8',
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'no-referrer',
    'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'same-origin',
    'x-frame-options': 'DENY',
  })
  const policy = new Map(
    String(headers['content-security-policy'])
      .split('; ')
      .map(text => [text.replace(/ .*/, ''), text.replace(/^\S+ /, '')]),
  )
  const within = (name: string): string => new RegExp(`<${name}[^>]*>([\\s\\S]*?)</${name}>`).exec(body)![1]!
  const hashed = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`
  t.same(Object.fromEntries(policy), {
    'default-src': "'none'",
    'script-src': hashed(within('script')),
    'style-src': hashed(within('style')),
    'img-src': 'data:',
    'connect-src': "'self'",
    'base-uri': "'none'",
    'form-action': "'none'",
    'frame-ancestors': "'none'",
    'require-trusted-types-for': "'script'",
    'trusted-types': "'none'",
  })
  const addresses = (body.match(/https?:[^'"\s)]*/g) ?? []).filter(one => one !== 'http://www.w3.org/2000/svg')
  t.same(addresses, [], 'it names no other place')
  t.notMatch(body, / style=| on[a-z]+=/, 'nothing that the policy forbids')
  for (const name of ['data', 'history']) {
    const said = await ask(`${address}${name}`)
    t.equal(said.headers['content-type'], 'application/json')
    t.match(said.headers['content-security-policy'], /default-src 'none'/)
  }
})

t.test('what the page is put together of', async t => {
  const { html } = makePage()
  const script = /<script type="module">([\s\S]*)<\/script>/.exec(html)![1]!
  t.notMatch(script, /^(?:import|export) /m)
  t.doesNotThrow(() => new Function(script), 'names of all modules go together')
  t.notMatch(html, /\/\* (style\.css|scripts) \*\//)
  for (const name of readdirSync(new URL('../../src/dashboard/page/', import.meta.url)))
    if (name.endsWith('.js')) t.notMatch(script, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(/, name)
  t.ok(html.length < 100_000, `${html.length} characters`)
  const validator = new HtmlValidate({ extends: ['html-validate:recommended'] })
  const { results } = await validator.validateString(html)
  t.same(
    results.flatMap(({ messages }) => messages.map(({ ruleId, message, line }) => `${line}: ${message} (${ruleId})`)),
    [],
    'html-validate has nothing to say',
  )
})

t.test('figures read as commands print them', async t => {
  const { formatDuration, formatRate, formatSize } = (await import(
    new URL('../../src/dashboard/page/text.js', import.meta.url).href
  )) as Record<string, (value: number) => string>
  const own = await import('../../src/quantity.ts')
  const text = await import('../../src/cli/status-text.ts')
  for (const value of [0, 1, 59, 60, 999, 1000, 86_399, 999_949, 999_950, 1e9, 1.25e8, 3.3e12, 9e15]) {
    t.equal(formatSize!(value), own.formatSize(value))
    t.equal(formatRate!(value), own.formatRate(value))
    t.equal(formatDuration!(value), text.formatDuration(value))
  }
})

t.test('whoever does not have the address gets nothing', async t => {
  let asked = 0
  const proxies = proxiesOf({
    statusOf: async () => {
      asked++
      return bytes(STATUS)
    },
  })
  await using server = await served(proxies)
  const { address } = server
  const secret = new URL(address).pathname
  for (const path of ['/', '/data', '/history', '/status', '/x/']) {
    const { status, body } = await ask(new URL(path, address).href)
    t.equal(status, 404, path)
    t.notMatch(body, secret.slice(1, -1), 'and is not told')
    t.match(JSON.parse(body), { error: { code: 'USAGE', action: /pageferry dashboard/ } })
  }
  for (const path of [secret.slice(0, -1), `${secret}status`, `${secret}rate`, `${secret}metrics`])
    t.equal((await ask(new URL(path, address).href)).status, 404, 'there is nothing else, for who has it')
  for (const host of ['evil.example', 'evil.example:80', '127.0.0.1.evil.example']) {
    for (const name of ['', 'data', 'history'])
      t.equal((await ask(`${address}${name}`, { headers: { host } })).status, 403, `Host: ${host}`)
  }
  for (const host of ['localhost:9480', '[::1]:1', '127.0.0.1'])
    t.equal((await ask(address, { headers: { host } })).status, 200, `a tunnel: ${host}`)
  for (const method of ['POST', 'PUT', 'DELETE', 'PATCH', 'HEAD', 'OPTIONS']) {
    for (const name of ['', 'data', 'history']) {
      const { status, headers } = await ask(`${address}${name}`, { method })
      t.match([status, headers.allow], [405, 'GET'], `${method} ${name}`)
    }
  }
  t.equal(asked, 0, 'and no proxy was asked for any of it')
  await ask(`${address}data`)
  t.equal(asked, 1, 'as it is for this')
})

t.test('only on this host', async t => {
  const beyond = new Dashboard(parseAddress('tcp:0.0.0.0:0'), proxiesOf(), error => t.fail(String(error)))
  await t.rejects(beyond.start(), { code: 'ADDRESS', what: /other hosts/ })
  const path = join(folder, 'page')
  await using server = await served(proxiesOf(), `unix:${path}`)
  t.equal(server.address, `unix:${path}`)
  t.equal(lstatSync(path).mode & 0o777, 0o600, 'a Unix socket is its owner’s: without a secret')
  const over = (host: string): Promise<Said> => ask('http://localhost/', { socketPath: path, headers: { host } })
  t.match((await over('localhost:9480')).body, /<!DOCTYPE html>/)
  t.equal((await over('evil.example:9480')).status, 403, 'a tunnel leads to it, and a page may be lured there')
})

t.test('what proxies say, and that one does not', async t => {
  const named = (peer: string) => bytes({ ...STATUS, sources: [{ peer }] })
  const past = { api: 1, migrations: [{ ended: '2026-01-01', peer: 'dc\x1b2' }] }
  let sockets = (): string[] => ['/a', '/b']
  await using server = await served({
    sockets: () => sockets(),
    statusOf: async path => {
      if (path === '/b') throw GONE
      return named('<b>\u202eevil\n')
    },
    historyOf: async path => {
      if (path === '/b') throw GONE
      return bytes(past)
    },
  })
  const look = JSON.parse((await ask(`${server.address}data`)).body) as Look
  t.match(look, {
    at: /^\d{4}-/,
    sites: [
      { control: '/a', status: { version: '1.2.3', sources: [{ peer: '<b>\\u202eevil\\n' }] } },
      { control: '/b', failure: { what: 'no proxy answers at /b', action: 'start it' } },
    ],
  })
  const history = JSON.parse((await ask(`${server.address}history`)).body) as PastLook
  t.same(
    history.histories.map(({ migrations }) => migrations),
    [[{ ended: '2026-01-01', peer: 'dc\\u001b2' }]],
    'nothing invisible',
  )
  t.match(history.failures, [{ what: /\/b/ }])

  sockets = () => {
    throw new ProxyError('IO', 'no control socket', undefined, 'start a proxy')
  }
  await using other = await served({ ...proxiesOf(), sockets: () => sockets() })
  t.match(JSON.parse((await ask(`${other.address}data`)).body), { sites: [], failure: { what: 'no control socket' } })
  t.match(JSON.parse((await ask(`${other.address}history`)).body), { histories: [], failures: [{ action: /start/ }] })
})

t.test('what proxies say passes as it came, and nothing invisible in it does', t => {
  const plain = bytes({ a: 'x "y" z', b: [1, { c: '' }] })
  t.equal(printableJson(plain), plain, 'not even read')
  for (const text of ['\n', '\u202e', '\x7f', '\x1b', '\ud800', '\\', 'ü', '\u2028']) {
    // wherever it stands, so that a look at parts misses none
    for (const before of [0, 1, 65525, 65526, 65527, 65528, 65529, 65530]) {
      const value = { a: `${'x'.repeat(before)}${text}` }
      const made = JSON.parse(printableJson(bytes(value)).toString())
      t.equal(made.a.slice(before), printable(text), `${printable(text)} behind ${before}`)
    }
  }
  t.end()
})

t.test('a proxy is asked once, however many watch, and not again while it hangs', async t => {
  let nowMs = 0
  const answers: ((status: Buffer) => void)[] = []
  const proxies = proxiesOf({ statusOf: () => new Promise(done => answers.push(done)) })
  const lookout = new Lookout(
    proxies,
    () => nowMs,
    () => () => {},
  )
  const crowd = Array.from({ length: 100 }, () => lookout.look())
  nowMs = 60_000
  const late = lookout.look()
  await new Promise(done => setImmediate(done))
  t.equal(answers.length, 1)
  answers[0]!(bytes(STATUS))
  for (const look of await Promise.all([...crowd, late])) t.equal(said(look).sites.length, 1)
  nowMs = 60_001
  const again = lookout.look()
  await new Promise(done => setImmediate(done))
  t.equal(answers.length, 2, 'a second later it is')
  answers[1]!(bytes(STATUS))
  await again
  void lookout.look()
  await new Promise(done => setImmediate(done))
  t.equal(answers.length, 2, 'at once it is not')
})

t.test('one that hangs holds up nobody, and what it said last is told as that', async t => {
  let nowMs = 0
  const asked: string[] = []
  /** How `/slow` answers; nothing: not yet. */
  let slow: Promise<Buffer> | undefined = Promise.resolve(bytes(STATUS))
  let answer!: (status: Buffer) => void
  const never = (): Promise<Buffer> =>
    new Promise(done => {
      answer = done
    })
  const proxies = proxiesOf({
    sockets: () => ['/run/a', '/run/slow'],
    statusOf: async control => {
      asked.push(control)
      return control === '/run/slow' ? (slow ?? never()) : bytes(STATUS)
    },
  })
  const lookout = new Lookout(
    proxies,
    () => nowMs,
    late => {
      setImmediate(() => setImmediate(late)) // 2 s of the product's
      return () => {}
    },
  )
  const look = async () => {
    nowMs += 10_000
    const { sites } = said(await lookout.look())
    return sites.map(({ status, failure }) => [status?.version, failure?.what])
  }
  t.same(await look(), [
    [STATUS.version, undefined],
    [STATUS.version, undefined],
  ])
  slow = undefined
  const [sound, stale] = await look()
  t.same(sound, [STATUS.version, undefined])
  t.match(stale, [
    STATUS.version,
    /^\/run\/slow does not answer just now; what it said at \d\d:\d\d:\d\d UTC is shown$/,
  ])
  t.same(await look(), [sound, stale], 'in the same words, or a screen reader says it each second')
  t.equal(asked.filter(one => one === '/run/slow').length, 2, 'it is not asked again while it hangs')
  answer(bytes({ ...STATUS, version: '7.0.0' }))
  await new Promise(done => setImmediate(done))
  slow = Promise.reject(GONE)
  t.same((await look())[1], [undefined, GONE.what], 'of one that is gone nothing is shown')
  slow = undefined
  t.same((await look())[1], [undefined, '/run/slow does not answer just now'], 'also when it hangs after that')
})

t.test('a proxy that answers late, or never, is told as such: the page is there until then', async t => {
  const statusOf = (): Promise<Buffer> =>
    new Promise((_, failed) => setTimeout(() => failed(GONE), 1.3 * CONTROL_CLIENT_MS))
  await using server = await served(proxiesOf({ statusOf }))
  t.match(JSON.parse((await ask(`${server.address}data`)).body), {
    sites: [{ failure: { what: /does not answer just now$/ } }],
  })
})

t.test('a crowd is bounded, and displaces nobody who asks now', async t => {
  await using server = await served(proxiesOf())
  const { port } = new URL(server.address)
  const connect = async (): Promise<net.Socket> => {
    const socket = net.connect(Number(port), '127.0.0.1')
    socket.on('error', () => {})
    await once(socket, 'connect')
    return socket
  }
  const crowd = []
  for (let i = 0; i < CONTROL_CLIENTS_MAX + 5; i++) crowd.push(await connect())
  for (const oldest of crowd.slice(0, 5)) await closed(oldest.resume())
  t.equal((await ask(server.address)).status, 200)
  for (const socket of crowd) socket.destroy()
})

t.test('the command prints where the page is, and ends when it is told to', async t => {
  const proxy = new http.Server((request, response) =>
    response.end(JSON.stringify(request.url === '/status' ? STATUS : { api: 1, migrations: [] })),
  )
  const control = join(folder, 'control')
  proxy.listen(control)
  await once(proxy, 'listening')
  t.teardown(() => void proxy.close())
  let body = ''
  const path = join(folder, 'its-page')
  for (const listen of ['127.0.0.1:0', `unix:${path}`]) {
    const { status, stdout, stderr } = await run(['dashboard', '--control', control, '--listen', listen], {
      cwd: folder,
      when: [
        [
          /the page is at \S+\n/,
          command => {
            const asked = listen.startsWith('unix:')
              ? ask('http://localhost/', { socketPath: path })
              : Promise.resolve(undefined)
            void asked.then(said => {
              body += said?.body ?? ''
              command.kill('SIGINT')
            })
          },
        ],
      ],
    })
    t.equal(status, 0)
    t.match(stdout, listen.startsWith('unix:') ? `the page is at unix:${path}\n` : /^the page is at http:\/\/127/)
    t.equal(stderr, '')
  }
  t.match(body, /<title>Pageferry<\/title>/)
  t.notOk(readdirSync(folder).includes('its-page'), 'its socket is gone with it')
})
