/** What the daemons decide without sockets: configuration, advice, arguments. */
import t from 'tap'
import { parseEffort } from '../../src/compression/effort.ts'
import { readConfiguration } from '../../src/daemon/configuration.ts'
import { needRestart } from '../../src/daemon/configuration-changes.ts'
import { RepeatedFailure } from '../../src/daemon/repeated-failure.ts'
import { ERROR_EXIT } from '../../src/errors.ts'
import { adviseOn, type QemuSettings } from '../../src/qmp/advice.ts'
import { parsePeer } from '../../src/relay/address.ts'

t.setTimeout(590_000) // the machine may be busy

t.test('a configuration that is right', t => {
  const { configuration, mistakes } = readConfiguration(
    `tls-creds: /etc/pageferry/tls
store: /var/lib/pageferry
effort: 3
peers:
  dc2: { address: "[2001:db8::7]:9444", connections: 4, rate: 200Mbit, peer-name: far.example, tls-server-name: gate.example }
listeners:
  - { at: "tcp:127.0.0.2:49152-49215", peer: dc2 }
  - { at: "unix:/run/pageferry/in.sock", peer: dc2, target: web }
  - { at: "tcp:127.0.0.2:10809", peer: dc2, disks: true }
wan: { listen: ["tcp:[::]:9444", "fd:wan"], peer-name: near.example, sessions-max: 200 }
targets:
  default: tcp:127.0.0.1:49152-49215
disks:
  default: tcp:127.0.0.1:10809
`,
  )
  t.same(mistakes, [])
  t.match(configuration!.peers[0]!.disks, [{ name: 'default', address: { host: '127.0.0.2', port: 10809 } }])
  t.match(configuration!.disks.get('default'), { host: '127.0.0.1', port: 10809 })
  const [peer] = configuration!.peers
  t.match(peer, {
    host: '2001:db8::7',
    port: 9444,
    connections: 4,
    peerName: 'far.example',
    tlsServerName: 'gate.example',
  })
  t.equal(peer!.caps.at(0).bytesPerSecond, 25_000_000)
  t.same(
    peer!.listen.map(({ name }) => name),
    ['default', 'web'],
  )
  t.equal(configuration!.targets.size, 1)
  t.match(configuration, {
    effort: 3,
    patienceMs: 120_000,
    tlsCreds: '/etc/pageferry/tls',
    peerName: 'near.example',
    sessionsMax: 200,
  })
  t.end()
})

t.test('caps by time', t => {
  const file = (more: string) =>
    readConfiguration(`plaintext: true
time-zone: Europe/Amsterdam
listeners: [{ at: "tcp:127.0.0.2:1", peer: dc2 }]
peers:
  dc2:
    address: "a:1"
    rate: 1Gbit
${more}
`)
  const capAt = (more: string, iso: string) =>
    file(more).configuration?.peers[0]?.caps.at(Date.parse(iso)).bytesPerSecond
  const list = `    rate-schedule:
      - mon-fri 08:00-18:00 8Mbit # at work
      - sat,sun none`
  t.equal(capAt(list, '2026-11-30T07:00:00Z'), 1e6, '08:00 there')
  t.equal(capAt(list, '2026-11-30T06:59:00Z'), 125e6, 'else the plain cap')
  t.equal(capAt(list, '2026-12-05T12:00:00Z'), Number.POSITIVE_INFINITY)
  t.equal(capAt('    rate-schedule: mon-fri 08:00-18:00 8Mbit, sat none', '2026-11-30T07:00:00Z'), 1e6, 'or a text')
  t.match(file('    rate-schedule: [mon-fri 8Mbit, weekend none]').mistakes, [
    { line: 8, what: /"weekend" is no day, time or rate/, hint: /mon-fri 08:00-18:00 200Mbit/ },
  ])
  t.match(file('    rate-schedule: []').mistakes, [{ line: 8 }])
  const other = readConfiguration(`plaintext: true
rate: 8Mbit
shares: { disks: 2 }
peers: { dc2: { address: "a:1", share: 5 } }
listeners: [{ at: "tcp:127.0.0.2:1", peer: dc2 }]
`).configuration!
  t.equal(other.caps.at(0).bytesPerSecond, 1e6, 'of all peers')
  t.same(other.weights, { memory: 1, disks: 2 })
  t.equal(other.peers[0]!.share, 5)
  t.same(file(list).configuration!.weights, { memory: 1, disks: 1 })
  const { mistakes } = readConfiguration('plaintext: true\ntime-zone: Mars/Olympus\n')
  t.match(mistakes, [{ line: 2, what: /time-zone "Mars\/Olympus"; give a name such as Europe\/Amsterdam/ }])
  t.end()
})

t.test('what counts only after a restart', t => {
  const file = (text: string) => readConfiguration(`plaintext: true\n${text}`).configuration!
  const site = (peer: string, rest = '') =>
    file(`${rest}peers: { dc2: { ${peer} } }
listeners: [{ at: "tcp:127.0.0.2:1", peer: dc2 }]
wan: { listen: ["tcp:127.0.0.1:9444"] }
targets: { default: tcp:127.0.0.1:1 }
`)
  const before = site('address: "a:1"')
  t.same(needRestart(before, site('address: "a:1", rate: 1Gbit')), [])
  t.same(needRestart(before, site('address: "a:1", rate-schedule: "mon 1Gbit"', 'time-zone: UTC\n')), [])
  t.same(needRestart(before, site('address: "a:1", share: 2', 'rate: 1Gbit\nshares: { disks: 2 }\n')), [])
  const other = { ...before, targets: new Map(), disks: new Map([['d', before.wanListen[0]!]]), wanListen: [] }
  t.same(needRestart(before, other), ['wan'])
  t.same(needRestart(before, site('address: "a:2"', 'queue-target: 20ms\n')), ['queue-target', 'peers.dc2'])
  t.same(needRestart(before, { ...before, peers: [] }), ['peers.dc2'])
  t.same(needRestart(before, site('address: "a:1"', 'patience: 200s\n')), ['patience'], 'nothing that was not said')
  const fetching = (channels: string, rest = '') =>
    site('address: "a:1"', `store: s\nremote-stores: ["file:///s"]\nchannels: [${channels}]\ntrust: k\n${rest}`)
  const storing = (rest = '') => site('address: "a:1"', `store: s\n${rest}`)
  t.same(needRestart(storing(), storing('signers: k\n')), ['signers', 'learn'])
  t.equal(storing('signers: k\n').learn, 'off', 'learned sets are signed by nobody')
  t.same(
    needRestart(fetching('a'), fetching('b', 'store-size: 1GB\n')),
    ['channels', 'store-size'],
    'as the file has it',
  )
  t.end()
})

t.test('a failure that comes again and again', t => {
  const failure = new RepeatedFailure()
  t.equal(failure.recovered(), 0)
  const said: string[] = []
  let now = 0
  for (; now < 4 * 3_600_000; now += failure.retryMs) {
    const say = failure.failed('refused', now)
    if (say) said.push(`${say.times} in ${say.seconds} s`)
  }
  t.equal(failure.retryMs, 30_000)
  t.same(said.slice(0, 4), ['1 in 0 s', '7 in 61 s', '11 in 181 s', '19 in 421 s'])
  t.ok(said.length < 12, `${said.length} lines in four hours`)
  t.match(failure.failed('another', now), { seconds: now / 1000 }, 'another one is said at once')
  t.ok(failure.recovered() > 400)
  t.same(failure.failed('another', now), { times: 1, seconds: 0 })
  t.equal(failure.retryMs, 1000)
  t.end()
})

t.test('every mistake of a configuration has its line', t => {
  const lines = (text: string): string[] => readConfiguration(text).mistakes.map(({ line, what }) => `${line} ${what}`)
  const cases: [string, string, RegExp[]][] = [
    ['not YAML', 'a: [', [/^\d+ /]],
    ['empty', '', [/neither tls-creds nor plaintext/, /nothing to do/]],
    ['unknown settings', 'plaintext: true\ncolour: red\n', [/^2 unknown setting "colour"/]],
    [
      'values',
      'pool-memory: lots\npatience: 3 weeks\neffort: 9\npeers:\n  a:\n    address: here\n    connections: 17\n',
      [/^1 pool-memory/, /^2 patience/, /^3 effort/, /^6 peers.a.address/, /^7 peers.a.connections/],
    ],
    [
      'what does not fit together',
      `plaintext: true
tls-creds: /x
peers:
  a: { address: "10.0.0.1:1" }
listeners:
  - { at: "tcp:0.0.0.0:4444", peer: b }
  - { at: "tcp:127.0.0.1:4445", peer: b }
wan: { listen: ["tcp:0.0.0.0:9444", "unix:/x"] }
targets: { default: "tcp:127.0.0.1:4440-4450" }
`,
      [
        /^1 plaintext and tls-creds/,
        /^4 no listener leads to peer "a"/,
        /^6 no peer "b"/,
        /^6 tcp:0.0.0.0:4444 can be reached/,
        /^7 no peer "b"/,
        /^7 tcp:127.0.0.1:4445 is where target default is dialled/,
        /^8 plaintext at/,
        /^8 unix:\/x/,
      ],
    ],
    [
      'disks',
      `plaintext: true
peers: { a: { address: "10.0.0.1:1" } }
listeners:
  - { at: "tcp:127.0.0.2:1", peer: a, disks: yes }
  - { at: "tcp:127.0.0.1:2", peer: a, disks: true }
wan: { listen: ["tcp:127.0.0.1:9444"] }
targets: { default: "tcp:127.0.0.1:3-5" }
disks: { default: "tcp:127.0.0.1:4", other: "tcp:127.0.0.1:2" }
`,
      [/^4 listeners.0.disks/],
    ],
    [
      'disks that are in the way',
      `plaintext: true
peers: { a: { address: "10.0.0.1:1" } }
listeners: [{ at: "tcp:127.0.0.1:2", peer: a, disks: true }]
wan: { listen: ["tcp:127.0.0.1:9444"] }
targets: { default: "tcp:127.0.0.1:3-5" }
disks: { default: "tcp:127.0.0.1:4", other: "tcp:127.0.0.1:2" }
`,
      [/^3 tcp:127.0.0.1:2 is where target other is dialled/, /^6 tcp:127.0.0.1:4 is a target of migrations, too/],
    ],
    [
      'disks without wan',
      `plaintext: true
peers: { a: { address: "10.0.0.1:1" } }
listeners: [{ at: "tcp:127.0.0.1:2", peer: a }]
disks: { default: "tcp:127.0.0.1:4" }
`,
      [/^4 disks without wan/],
    ],
    [
      'signers, without what they sign, and with what nobody does',
      `plaintext: true
signers: k
learn: all
wan: { listen: ["tcp:127.0.0.1:1"] }
targets: { default: "tcp:127.0.0.1:2" }
`,
      [/^2 signers without store/, /^3 learn without store/, /^3 signers, and learn: all/],
    ],
    ['wan without targets', 'plaintext: true\nwan: { listen: ["tcp:127.0.0.1:1"] }', [/^2 wan without targets/]],
  ]
  for (const [name, text, wanted] of cases) {
    const found = lines(text)
    t.equal(found.length, wanted.length, `${name}: ${found.join(' | ')}`)
    for (const [i, pattern] of wanted.entries()) t.match(found[i], pattern, name)
  }
  t.end()
})

t.test('advice on the settings of QEMU', t => {
  const good: QemuSettings = {
    version: '10.0.13',
    side: 'source',
    capabilities: { 'return-path': true, multifd: false, xbzrle: false, 'postcopy-ram': false },
    parameters: { 'max-bandwidth': 0, 'tls-creds': '', 'avail-switchover-bandwidth': 12_500_000 },
  }
  t.same(adviseOn([good]), [], 'nothing to change')
  const bad: QemuSettings = {
    ...good,
    capabilities: { 'return-path': false, multifd: true, xbzrle: true, compress: true },
    parameters: {
      'max-bandwidth': 134217728,
      'tls-creds': 'tls0',
      'multifd-compression': 'zstd',
      'multifd-channels': 4,
      'avail-switchover-bandwidth': 0,
    },
  }
  const advice = adviseOn([bad], 25_000_000)
  t.same(
    advice.map(({ severity }) => severity),
    ['matters', 'matters', 'matters', 'matters', 'matters', 'better', 'better'],
    'what matters comes first',
  )
  for (const { qmp } of advice) t.ok(JSON.parse(qmp).execute.startsWith('migrate-set-'), qmp)
  t.match(advice.at(-1), { setting: /avail-switchover/, qmp: /25000000/ })
  const other: QemuSettings = { ...good, side: 'destination', parameters: { 'multifd-channels': 2 } }
  t.same(
    adviseOn([bad, other])
      .filter(({ side }) => side === 'destination')
      .map(({ setting }) => setting),
    [
      'multifd off, unlike the source',
      'return-path on, unlike the source',
      'xbzrle off, unlike the source',
      "multifd-channels 2, unlike the source's 4",
    ],
    'both sides must be alike',
  )
  t.same(
    adviseOn([{ ...good, capabilities: { 'return-path': false, 'postcopy-ram': true } }]),
    [],
    'postcopy brings its return path',
  )
  t.end()
})

t.test('arguments', t => {
  t.same(parsePeer('far.example:9444'), { host: 'far.example', port: 9444 })
  t.same(parsePeer('tcp:[::1]:1'), { host: '::1', port: 1 })
  for (const wrong of ['far.example', 'far:0', 'far:65536', '::1:9', ''])
    t.throws(() => parsePeer(wrong), { code: 'ADDRESS' }, wrong)
  t.throws(() => parseEffort('6'), { code: 'USAGE' })
  t.throws(() => parseEffort('0.5'), { code: 'USAGE' }, 'which auto alone takes')
  t.equal(
    new Set(Object.values(ERROR_EXIT).filter(status => status > 2 && status < 126)).size,
    16,
    'exit statuses of the table in operations.md',
  )
  t.end()
})
