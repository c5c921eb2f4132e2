/** `pageferry check`: what it makes of what it saw, and the command against daemons that run. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import {
  type CheckedPeer,
  clockFinding,
  type Finding,
  keysFindings,
  peerFindings,
  statusFindings,
} from '../../src/cli/check-findings.ts'
import { Control } from '../../src/daemon/control.ts'
import { Events } from '../../src/daemon/events.ts'
import { Site } from '../../src/daemon/site.ts'
import { AGENT } from '../../src/daemon/version.ts'
import { type ErrorCode, ProxyError } from '../../src/errors.ts'
import type { Probed } from '../../src/link/probe.ts'
import { Daemons, MAIN } from '../daemon/daemons.ts'
import { until } from '../helpers/until.ts'
import { credentials, makeCredentials } from '../link/harness.ts'
import { run } from './command.ts'

t.setTimeout(590_000)

const folder = mkdtempSync(join(tmpdir(), 'pageferry-check-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))

const NOW = Date.parse('2026-06-01T00:00:00Z')
const DAY = 86_400_000
const sets = ['a', 'b', 'c'].map(digit => digit.repeat(64))
const PEER: CheckedPeer = {
  ...{ name: 'fra', host: 'fra.example', port: 9444, peerName: 'fra', isPlaintext: false, targets: ['default'] },
  held: { folder: '/var/lib/pageferry', digests: sets, learned: new Set([sets[2]!]) },
}
const HELLO = { agent: AGENT, token: '', received: 0, credit: 0, sets: [], cold: sets, ring: 0, places: 0 }
const SOUND = {
  ...{ address: '192.0.2.7', identity: 'x509:CN=fra;DNS:fra', roundTripsMs: [9, 7, 8] },
  certificate: { subject: 'CN=fra', names: ['fra'], fromMs: NOW - DAY, toMs: NOW + 300 * DAY },
  hello: { ...HELLO, targets: ['default'] },
} satisfies Probed
const stateOf = (findings: readonly Finding[], what: Finding['what']): Finding | undefined =>
  findings.find(finding => finding.what === what)
const failed = (
  stage: NonNullable<Probed['failure']>['stage'],
  code: ErrorCode,
  what: string,
  cause?: string,
): Probed => ({
  failure: {
    stage,
    error: new ProxyError(code, what, undefined, 'do this', cause === undefined ? {} : { cause: { code: cause } }),
  },
})

t.test('all is well', t => {
  const findings = peerFindings(PEER, SOUND, NOW)
  t.same(new Set(findings.map(({ state }) => state)), new Set(['ok']))
  t.same(
    findings.map(({ what }) => what),
    ['peer', 'certificate', 'version', 'targets', 'sets', 'learning', 'round trip'],
  )
  t.match(stateOf(findings, 'round trip'), { text: '8.0 ms (7.0 ms to 9.0 ms, 3 times)' })
  t.match(stateOf(findings, 'sets'), { text: '3 of 3 here are there too' })
  t.ok(findings.every(finding => !('mend' in finding)))
  t.end()
})

const mishaps: [string, Partial<CheckedPeer>, Probed, Partial<Record<keyof Finding, RegExp | string>>][] = [
  [
    'nobody listens',
    {},
    failed('connect', 'PEER_LOST', 'ECONNREFUSED', 'ECONNREFUSED'),
    { what: 'peer', state: 'wrong', mend: /at fra\.example: systemctl start/ },
  ],
  [
    'no such name',
    {},
    failed('connect', 'PEER_LOST', 'ENOTFOUND', 'ENOTFOUND'),
    { what: 'peer', state: 'wrong', mend: /^getent ahosts fra\.example/ },
  ],
  [
    'no answer',
    {},
    failed('connect', 'PEER_LOST', 'no answer within 10 s', 'X'),
    { what: 'peer', state: 'wrong', mend: /let TCP port 9444/ },
  ],
  [
    'another name',
    {},
    {
      ...failed('tls', 'PEER_AUTH', `the server's certificate does not carry the name "fra"`),
      address: 'a',
      certificate: { ...SOUND.certificate, names: [`x'; rm`] },
    },
    { what: 'certificate', state: 'wrong', text: /its names are/, mend: /^--peer-name 'x'\\''; rm'/ },
  ],
  [
    'expired there',
    {},
    { ...failed('tls', 'PEER_AUTH', 'CERT_HAS_EXPIRED: certificate has expired'), address: 'a' },
    { what: 'certificate', state: 'wrong', mend: /^for fra\.example: pageferry keygen renew --dir DIR/ },
  ],
  [
    "closed at the handshake, as at a source proxy's own port",
    {},
    { ...failed('tls', 'PEER_LOST', 'the server closed the connection during the TLS handshake'), address: 'a' },
    { what: 'certificate', state: 'wrong', mend: /9444 is a source proxy's --listen, this is a port for QEMU/ },
  ],
  [
    'expires soon',
    {},
    { ...SOUND, certificate: { ...SOUND.certificate, toMs: NOW + 3 * DAY } },
    { what: 'certificate', state: 'warning', text: /valid until 2026-06-04/, mend: /keygen renew/ },
  ],
  ['no TLS', { isPlaintext: true }, SOUND, { what: 'certificate', state: 'warning', mend: /keygen x509/ }],
  [
    'our certificate is not theirs',
    {},
    { ...SOUND, ...failed('hello', 'PEER_AUTH', 'refused') },
    { what: 'session', state: 'wrong', mend: /--peer-name/ },
  ],
  [
    'another protocol',
    {},
    { ...SOUND, ...failed('hello', 'PROTOCOL_VERSION', 'version 2') },
    { what: 'version', state: 'wrong', mend: /apt-get install/ },
  ],
  [
    'no place',
    {},
    { ...SOUND, ...failed('hello', 'LIMIT_EXCEEDED', 'full') },
    { what: 'session', state: 'wrong', mend: /--sessions-max/ },
  ],
  [
    'another version',
    {},
    { ...SOUND, hello: { ...SOUND.hello, agent: 'pageferry 9' } },
    { what: 'version', state: 'ok', text: /"pageferry 9" there/ },
  ],
  [
    'no target',
    {},
    { ...SOUND, hello: { ...SOUND.hello, targets: [] } },
    { what: 'targets', state: 'wrong', mend: /--target/ },
  ],
  [
    'another target',
    { targets: ['default', 'lab'] },
    SOUND,
    { what: 'targets', state: 'wrong', text: /^lab: not there/ },
  ],
  [
    'a set that is not there',
    {},
    { ...SOUND, hello: { ...SOUND.hello, cold: sets.slice(1) } },
    {
      what: 'sets',
      state: 'warning',
      text: /2 of 3 here are there too; not there: a{12}/,
      mend: /^rsync -a \/var\/lib\/pageferry\/a{64}\.pfset fra\.example:/,
    },
  ],
  [
    'what was learned is not there',
    {},
    { ...SOUND, hello: { ...SOUND.hello, cold: sets.slice(0, 2) } },
    { what: 'learning', state: 'warning', mend: /--learn-size/ },
  ],
  ['no store here', { held: undefined }, SOUND, { what: 'sets', state: 'unknown', mend: /--store/ }],
  [
    'it goes away',
    {},
    { ...SOUND, roundTripsMs: undefined, ...failed('link', 'PEER_LOST', 'closed') } as Probed,
    { what: 'round trip', state: 'wrong', mend: /journalctl/ },
  ],
]
for (const [name, peer, found, expected] of mishaps) {
  t.test(name, t => {
    const findings = peerFindings({ ...PEER, ...peer }, found, NOW)
    // of several of one kind the one that is meant is not ok
    const finding = findings.find(({ what, state }) => what === expected.what && state === expected.state)
    t.match(finding, expected)
    t.end()
  })
}

t.test('keys and clocks of this site', t => {
  t.match(keysFindings('to send', 'x509 AA', []), [{ state: 'ok', text: 'to send: x509 AA' }])
  t.match(
    keysFindings('to send', '', ['k: others can reach this secret (mode 0644); chmod 600 k', 'c: expired on 2026']),
    [
      { state: 'warning', mend: 'chmod 600 k' },
      { state: 'wrong', mend: /keygen renew/ },
    ],
  )
  t.same(
    [true, false, undefined].map(clockFinding).map(({ state }) => state),
    ['ok', 'warning', 'unknown'],
  )
  t.end()
})

t.test('the command, beside a migration that runs, dialling and by the control sockets of both sites', async t => {
  const keys = await makeCredentials('x509', t, ['ams', 'fra'])
  const events = new Events()
  await using pair = await Daemons.start({
    events,
    credentials: {
      source: credentials(`${keys}/ams`, { role: 'client', peerName: 'fra' }),
      destination: credentials(`${keys}/fra`, { role: 'server' }),
    },
  })
  const [near, far] = [join(folder, 'near'), join(folder, 'far')]
  const controls = [
    new Control({ control: near }, new Site([pair.source], undefined), events),
    new Control({ control: far }, new Site([], pair.destination), events),
  ]
  for (const control of controls) await control.start()
  t.teardown(() => Promise.all(controls.map(control => control.close())))
  const qemu = await pair.dial()
  qemu.write(MAIN)
  await until('the migration', () => pair.target.received[0]?.length === MAIN.length)
  const { port } = pair.destination.addresses[0]!
  const check = async (...args: string[]) => {
    const { status, stdout, stderr } = await run(['check', '--json', ...args], { cwd: folder })
    const { findings } = JSON.parse(stdout || '{"findings":[]}') as { findings: Finding[] }
    return { status, stderr, findings }
  }

  const dialled = await check('--peer', `127.0.0.1:${port}`, '--tls-creds', `${keys}/ams`, '--peer-name', 'fra')
  t.equal(dialled.status, 0, dialled.stderr)
  for (const what of ['keys', 'peer', 'certificate', 'version', 'targets', 'round trip'] as const)
    t.match(stateOf(dialled.findings, what), { state: 'ok' }, what)
  const wrong = await check('--peer', `127.0.0.1:${port}`, '--tls-creds', `${keys}/ams`, '--peer-name', 'elsewhere')
  t.equal(wrong.status, 15)
  t.match(stateOf(wrong.findings, 'certificate'), { state: 'wrong', mend: /^--peer-name fra/ })

  const site = (peer: string, target: string): string => {
    const path = join(folder, 'site.yaml')
    const listener = `{ at: "tcp:127.0.0.1:1", peer: fra, target: ${target} }`
    writeFileSync(path, `tls-creds: ${keys}/ams\npeers: { fra: { ${peer} } }\nlisteners: [${listener}]\n`)
    return path
  }
  const address = `address: "127.0.0.1:${port}", peer-name: fra`
  t.equal((await check('--config', site(address, 'default'), '--peer', 'fra')).status, 0)
  const target = await check('--config', site(address, 'lab'))
  t.equal(target.status, 15)
  t.match(stateOf(target.findings, 'targets'), { of: 'fra', state: 'wrong' })

  const here = await check('--control', near)
  t.equal(here.status, 0)
  t.match(stateOf(here.findings, 'session'), { state: 'ok', text: /^live, with 1 connection$/ })
  const there = await check('--control', far)
  t.match(stateOf(there.findings, 'session'), { state: 'ok', of: /^x509:CN=ams/ })
  const versions = [...here.findings, ...there.findings].filter(({ what }) => what === 'version')
  t.ok(versions.every(({ state }) => state === 'ok'))

  t.equal(pair.count('link.dead'), 0, 'nothing happened to the session')
  t.equal(pair.count('migration ended'), 0, 'and its migration')
  qemu.write('more')
  await until('its bytes', () => pair.target.received[0]!.length === MAIN.length + 4)
})

t.test('of a proxy without a session, and one that an upgrade let run', t => {
  const base = { api: 1, version: '0.0.1', process: 1, started: '' } as const
  const common = { rate: undefined, listening: [], stopping: false, waiting: 0, connections: 0 }
  const expires = new Date(NOW - DAY).toISOString()
  const sources = [
    {
      ...common,
      role: 'source',
      peer: 'fra',
      address: 'fra:9444',
      certificates: [{ file: 'c.pem', expires }],
      disksAt: [],
      session: undefined,
      left: [],
    },
  ] as const
  const findings = statusFindings({ ...base, sources, destination: undefined }, NOW)
  const failure = { what: 'fra:9444 refused the connection', hint: 'start it', times: 2 }
  const failing = statusFindings({ ...base, sources: [{ ...sources[0], failure }], destination: undefined }, NOW)
  t.equal(stateOf(failing, 'session')?.text, 'none: fra:9444 refused the connection')
  t.match(findings, [
    { what: 'version', state: 'warning', mend: /systemctl restart/ },
    { of: 'fra', what: 'session', state: 'wrong', mend: /check --peer fra:9444/ },
    { what: 'keys', state: 'wrong', text: /c\.pem: expired on 2026-05-31/, mend: /^pageferry keygen renew --dir DIR/ },
  ])
  const destination = { role: 'destination', certificates: [], listening: [], stopping: false, sessions: [] } as const
  t.match(stateOf(statusFindings({ ...base, sources: [], destination }, NOW), 'session'), { state: 'unknown' })
  t.end()
})
