/** What `pageferry status` prints of a migration on its way. */
import t from 'tap'
import { capText, mapText, statusText } from '../../src/cli/status-text.ts'
import type { SiteStatus } from '../../src/daemon/control-api.ts'

const NOW = new Date('2027-01-01T00:01:00Z')

t.test('one of each is said as one', t => {
  const session = { link: 'ab12', peer: 'ams', sets: 1, coldSets: 0, stats: { state: 'live', rttMs: 0, rate: 0 } }
  const textOf = (sets: number, waiting: number): string => {
    const source = { role: 'source', peer: 'ams', address: 'ams', listening: [], certificates: [], waiting }
    const status = {
      ...{ api: 1, version: '1', process: 7, started: NOW.toISOString(), threads: 1, destination: undefined },
      sources: [{ ...source, session: { ...session, sets, migrations: [], disks: [] } }],
    }
    return statusText(status as unknown as SiteStatus, NOW)
  }
  t.match(textOf(1, 1), /, 1 thread\n[\s\S]*, 1 template set\n[\s\S]* 1 connection of QEMU waits for a session$/)
  t.match(textOf(2, 3), /, 2 template sets\n[\s\S]* 3 connections of QEMU wait for a session$/)
  t.match(textOf(0, 0), /, 0 template sets\n/)
  t.end()
})

/** The line about its progress. */
function lineOf(progress: object): string | undefined {
  const migration = { id: 'a-1', target: 'default', seconds: 60, bytes: 4e9, bytesWan: 1e9, effort: 3, progress }
  const session = { link: 'ab12', peer: 'ams', sets: 1, coldSets: 0, stats: { state: 'live', rttMs: 20, rate: 1e7 } }
  const source = { role: 'source', peer: 'ams', address: '192.0.2.1:9444', listening: ['tcp:127.0.0.1:4444'] }
  const status = {
    ...{ api: 1, version: '1.2.3', process: 7, started: '2027-01-01T00:00:00Z', destination: undefined },
    sources: [{ ...source, certificates: [], session: { ...session, migrations: [migration] }, waiting: 0 }],
  } as unknown as SiteStatus
  return statusText(status, NOW)
    .split('\n')
    .find(line => line.includes('pass '))
    ?.trim()
}

const rates = { bytesPerSecond: 30_000_000, wanBytesPerSecond: 10_000_000 }

t.test('how far, and between which times it ends', t => {
  t.equal(
    lineOf({ pass: 1, share: 0.257, ...rates, passSeconds: 125 }),
    'pass 1, 25 %: 240.0 Mbit/s from QEMU, 80.0 Mbit/s on the WAN, 2 min 5 s to the end of the pass',
  )
  t.equal(
    lineOf({
      ...{ pass: 2, share: 0.6, ...rates, passSeconds: 12, seconds: 16.2 },
      ...{ converges: true, secondsBetween: [14.1, 70] },
    }),
    'pass 2, 60 %: 240.0 Mbit/s from QEMU, 80.0 Mbit/s on the WAN, 12.0 s to the end of the pass, 14.1 s to 1 min 10 s to that of the migration',
  )
  t.match(
    lineOf({ pass: 3, share: 0.6, ...rates, passSeconds: 12, converges: false }),
    /the end of the pass, the guest writes as fast as this: it does not converge$/,
  )
  t.end()
})

t.test('a cap on all peers has a line of its own', t => {
  const status = {
    api: 1,
    version: '1',
    process: 7,
    started: NOW.toISOString(),
    sources: [],
    destination: undefined,
  } as const
  const lines = (all: SiteStatus['all']): string[] =>
    statusText({ ...status, ...(all && { all }) }, NOW)
      .split('\n')
      .slice(1)
  t.same(lines({ rate: 1e6, cap: { by: 'command' } }), ['to all peers together: cap 8.0 Mbit/s by command'])
  t.same(lines({ rate: undefined, cap: { by: 'settings' } }), [], 'not where there is none')
  t.same(lines(undefined), [])
  t.end()
})

t.test('a cap, why it is that, and what comes next', t => {
  process.env.TZ = 'Europe/Amsterdam' // as clocks show it where the command runs
  const until = '2026-11-30T17:00:00.000Z'
  t.equal(capText(25e6, undefined), 'cap 200.0 Mbit/s', 'of a proxy of before')
  t.equal(capText(25e6, { by: 'settings' }), 'cap 200.0 Mbit/s')
  t.equal(
    capText(25e6, { by: 'schedule', entry: 'mon-fri 08:00-18:00 200Mbit', until, next: 'none' }),
    'cap 200.0 Mbit/s (mon-fri 08:00-18:00 200Mbit) until 2026-11-30 18:00, then no cap',
  )
  t.equal(
    capText(undefined, { by: 'settings', until, next: 1e6 }),
    'no cap until 2026-11-30 18:00, then cap 8.0 Mbit/s',
  )
  t.equal(capText(1e6, { by: 'command' }), 'cap 8.0 Mbit/s by command')
  t.equal(capText(1e6, { by: 'command', until: 'x', next: 'none' }), 'cap 8.0 Mbit/s by command until ?, then no cap')
  t.end()
})

t.test('which of the memory has passed: a line of blocks', t => {
  const zeros = (count: number): number[] => new Array(count).fill(0)
  const line = (sent: number[], bytes = sent.length * 4096): string =>
    mapText({ bytes, cellBytes: 4096, empty: zeros(sent.length), known: zeros(sent.length), sent })
  t.equal(line([100, 50, 1, 0]), 'memory ▕█▄▁ ▏ 37 % of 16.4 kB')
  t.equal(
    line([250, 99, 0]),
    'memory ▕█▇ ▏ 66 % of 12.3 kB',
    'sent again is no more than all; all but a little is not all',
  )
  t.equal(line([100, 100, 0, 100], 3 * 4096 + 1), 'memory ▕██ █▏ 66 % of 12.3 kB', 'the last is smaller')
  const wide = line(Array.from({ length: 512 }, (_, i) => (i < 260 ? 100 : 0)))
  t.equal(wide, `memory ▕${'█'.repeat(32)}▄${' '.repeat(31)}▏ 50 % of 2.1 MB`)
  t.equal(line(Array.from({ length: 100 }, () => 100)), `memory ▕${'█'.repeat(64)}▏ 100 % of 409.6 kB`)
  t.end()
})

t.test('disk transfers: how far each disk is, rates, and what is owed', t => {
  const transfer = {
    ...{ transfer: 4, id: 'a-4', target: 'web', seconds: 4.2, connections: 2, requests: 16, effort: 2 },
    ...{ bytes: 8e9, bytesWan: 2e9, bytesPerSecond: 3e7, wanBytesPerSecond: 1e7 },
    ...{ bytesBack: 2e6, bytesBackWan: 1e6, bytesBackPerSecond: 1e5, wanBytesBackPerSecond: 5e4 },
    owed: { writes: 3, bytes: 3e6 },
    exports: [
      { name: 'v\nda', bytes: 2e10, bytesWritten: 8.6e9, pass: 1, share: 0.4399, passSeconds: 125 },
      { name: 'vdb', bytes: 1e9, bytesWritten: 5e7, pass: 2, share: 0.01 },
      { name: '', bytes: 1e9, bytesWritten: 0 },
    ],
  }
  const session = { link: 'ab12', peer: 'ams', sets: 1, coldSets: 0, stats: { state: 'live', rttMs: 20, rate: 1e7 } }
  const source = {
    ...{ role: 'source', peer: 'ams', address: 'ams', listening: [], disksAt: [], certificates: [], waiting: 0 },
    ...{ session: undefined, left: [{ ...session, migrations: [], disks: [transfer] }] },
  }
  const destination = {
    ...{ role: 'destination', certificates: [], listening: ['x'], stopping: false },
    sessions: [{ ...session, migrations: [], disks: [{ ...transfer, bytesBackWan: transfer.bytesBack }] }],
  }
  const status = { api: 1, version: '1', process: 7, started: NOW.toISOString(), sources: [source], destination }
  const lines = statusText(status as unknown as SiteStatus, NOW).split('\n')
  t.same(lines.slice(4, 9), [
    '    disks a-4 (web), 2 connections for 4.2 s: 2.0 MB of the server back (1.0 MB on the WAN), 8.0 GB from its clients, 2.0 GB on the WAN (25.0 %), effort 2; 16 requests not answered; 3 writes answered early (3.0 MB)',
    '      240.0 Mbit/s from its clients, 80.0 Mbit/s of it on the WAN; back 0.8 Mbit/s, 0.4 Mbit/s of it on the WAN',
    '      export v\\nda of 20.0 GB: 8.6 GB written; pass 1, 43 %, 2 min 5 s to the end of the pass',
    '      export vdb of 1.0 GB: 50.0 MB written; pass 2, 1 %',
    '      export (without a name) of 1.0 GB: 0 bytes written',
  ])
  t.equal(lines.at(-1), '    disks a-4 (web), 2 connections for 4.2 s: 2.0 MB of the server back, 8.0 GB to the server')
  t.end()
})
