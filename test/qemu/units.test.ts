/**
 * The shipped units under a real systemd, both sites on one host: sockets that start them, hardening, keys as credentials,
 * a list of revoked certificates, a store that root fills, reload, and an orderly stop while a migration runs.
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { qemu10 } from '../../scripts/harness/qemu/versions.ts'
import { NBD_SKIP } from '../daemon/nbd.ts'
import { until } from '../helpers/until.ts'
import { makeCrl } from '../link/crl.ts'
import { Guests } from './pair.ts'
import { type Journal, type Line, SystemdHost } from './systemd-host.ts'

t.setTimeout(590_000)

const pageferry = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))
const SOURCE = 'pageferry-source.service'
const DESTINATION = 'pageferry-destination.service'
const STORE = '/var/lib/pageferry'
/** Where systemd keeps it for a user that it makes. */
const PRIVATE = '/var/lib/private/pageferry'
/** What template sets are made of, three that differ. */
const VECTORS = '/usr/lib/pageferry/test/vectors/qemu/streams'
const INPUTS = ['7.2-no-footers', '7.2-block', '10-virtio-mem'].map(name => `${VECTORS}/${name}.0-main.zst`)

/** As docs/operations.md has it. */
const USERADD = '--system --user-group --no-create-home --shell /usr/sbin/nologin pageferry'

const found = await qemu10()
const made = found.skip ?? (await SystemdHost.start())
const skip = typeof made === 'string' ? made : false

t.test('the shipped units', { skip }, async t => {
  await using host = made as SystemdHost
  const qemu = found.qemu!
  const { path: keys, remove } = temporaryFolder('units')
  t.teardown(remove)
  execFileSync(pageferry, ['keygen', 'x509', '--dir', keys, '--name', 'near', '--peer-name', 'far', '127.0.0.1'])
  const clean = await makeCrl(keys, {}, 'near')
  const revoking = await makeCrl(keys, { revoked: join(keys, 'near/client-cert.pem') }, 'near')

  // What an operator writes. Both sites have one loopback device, so the destination QEMU listens at another address.
  const tls = '/etc/pageferry/tls'
  for (const [site, file] of [
    ['near', 'ca-cert.pem'],
    ['near', 'client-cert.pem'],
    ['near', 'client-key.pem'],
    ['far', 'server-cert.pem'],
    ['far', 'server-key.pem'],
  ] as const)
    host.write(`${tls}/${file}`, readFileSync(join(keys, site, file)), 0o600)
  chmodSync(host.path(tls), 0o700)
  host.write(`${tls}/ca-crl.pem`, clean, 0o600)
  host.write('/etc/pageferry/rate', 'none\n')
  const options = '--json --pool-memory 32MiB'
  host.write(
    '/etc/pageferry/source.env',
    `PAGEFERRY_PEER=127.0.0.1:9444\nPAGEFERRY_OPTIONS=${options} --peer-name far --rate-file /etc/pageferry/rate --disks fd:disks\n`,
  )
  const targets = (text: string): void =>
    host.write(
      '/etc/pageferry/destination.env',
      `PAGEFERRY_TARGETS="--target ${text}"\nPAGEFERRY_OPTIONS=${options} --peer-name near --disks tcp:127.0.0.2:10809\n`,
    )
  targets('tcp:127.0.0.2:4444-4445')
  host.write(
    '/etc/systemd/system/pageferry-source.socket.d/override.conf',
    '[Socket]\nListenStream=127.0.0.1:4445\nListenStream=/run/pageferry/source.sock\nSocketGroup=daemon\n',
  )
  /** Of the lines that say that a peer was refused: one that is on its way out refuses for other reasons, too. */
  const revoked = ({ hint }: Line): boolean => /has revoked it/.test(String(hint))
  const known = new Set<string>()
  /** The set that was not in the store before, as logs name it. */
  const newSet = (folder: string): string => {
    const sets = readdirSync(host.path(folder)).filter(name => name.endsWith('.pfset') && !known.has(name))
    t.equal(sets.length, 1, 'one set is new')
    known.add(sets[0]!)
    return sets[0]!.slice(0, 12)
  }
  const build = (input: number, store: string): Promise<string> =>
    host.run('pageferry', 'template', 'build', '--min-vms', '1', '--store', store, INPUTS[input]!)
  const ownerOf = (path: string): number => statSync(host.path(path)).uid
  const ownerOfSet = (set: string): number => ownerOf(`${PRIVATE}/${[...known].find(name => name.startsWith(set))}`)
  await build(0, STORE)
  await host.run('systemctl', 'daemon-reload')
  const sockets = ['pageferry-source.socket', 'pageferry-source-disks.socket', 'pageferry-destination.socket']
  await host.run('systemctl', 'start', ...sockets)
  for (const unit of [SOURCE, DESTINATION]) t.match(await host.show(unit, 'ActiveState'), { ActiveState: 'inactive' })
  const source = host.follow(SOURCE)
  const destination = host.follow(DESTINATION)

  t.teardown(() => t.comment(`${source.other}\n${destination.other}`))

  /** A guest moves; `meanwhile` happens while it does, if need be for long. */
  const moves = async (from: string, to: string, meanwhile?: (guests: Guests) => Promise<void>): Promise<void> => {
    const [before, arrived] = [source.lines.length, destination.lines.length]
    await using guests = await Guests.start({ qemu, netns: host.netns })
    await guests.destination.listen(to, { capabilities: { 'return-path': true } })
    const slow = meanwhile ? 64 << 10 : 0
    await guests.source.startMigration(from, {
      capabilities: { 'return-path': true },
      parameters: { 'max-bandwidth': slow },
    })
    if (meanwhile) {
      await source.said('migration starts', () => true, before)
      await meanwhile(guests)
      await guests.source.qmp.execute('migrate-set-parameters', { 'max-bandwidth': 0 })
    }
    await guests.source.waitMigration()
    t.equal(await guests.differingPages(), 0, `${from}: memory is equal`)
    await guests.goesOn()
    await source.said('migration ended', ({ outcome }) => outcome === 'completed', before)
    await destination.said('migration ended', ({ outcome }) => outcome === 'completed', arrived)
  }

  await t.test('a connection starts both; what root built before is theirs', async t => {
    await moves('tcp:127.0.0.1:4444', 'tcp:127.0.0.2:4444')
    const set = newSet(PRIVATE)
    for (const journal of [source, destination]) t.match(await journal.said('session open'), { sets: [set] })
    t.match(destination.lines.find(line => line.msg === 'session open') ?? {}, { identity: 'near' })
  })

  await t.test('a disk, at the socket that is there for disks', { skip: NBD_SKIP }, async t => {
    const image = '/root/image'
    await host.run('sh', '-c', `head -c 9000000 /dev/urandom > ${image} && truncate -s 16M ${image}`)
    const far = 'nbd://127.0.0.2:10809'
    const copies = `nbdcopy ${image} nbd://127.0.0.1:10809 && nbdcopy ${far} - | cmp - ${image}`
    await host.run('nbdkit', '-i', '127.0.0.2', '-p', '10809', 'memory', '16M', '--run', copies)
    t.match(await source.said('disk transfer ended'), { target: 'default:10809', level: 30 })
    t.match(await destination.said('disk transfer ended'), { level: 30 })
  })

  await t.test('they have what the units leave them', async t => {
    for (const unit of [SOURCE, DESTINATION]) {
      const { MainPID, ...rest } = await host.show(unit, 'MainPID', 'ActiveState', 'NRestarts', 'StatusText')
      t.match(rest, { ActiveState: 'active', NRestarts: '0', StatusText: /./ }, unit)
      const status = readFileSync(host.path(`/proc/${MainPID}/status`), 'utf8')
      const field = (name: string) => new RegExp(`^${name}:\\s+(\\S+)`, 'm').exec(status)?.[1]
      t.not(field('Uid'), '0', 'no root')
      t.equal(field('Uid'), String(ownerOf(PRIVATE)), "the store's owner")
      t.match([field('CapEff'), field('CapBnd')].join(' '), /^0+ 0+$/, 'no capabilities')
      t.equal(field('NoNewPrivs'), '1')
      t.equal(field('Seccomp'), '2', 'a filter of system calls')
    }
  })

  await t.test('root asks both what they do, and did', async t => {
    const status = await host.run('pageferry', 'status')
    t.match(status, /^to 127\.0\.0\.1:9444: session/m)
    t.match(status, /^from other sites, at /m)
    const history = JSON.parse(await host.run('pageferry', 'history', '--json')) as { direction: string }[]
    t.same(
      history.map(({ direction }) => direction).sort(),
      ['in', 'out'],
      'the migration that started them, as both saw it',
    )
    for (const role of ['source', 'destination'])
      await until(`the history of the ${role}`, () => readdirSync(host.path(PRIVATE)).includes(`${role}.history`))
  })

  await t.test('what root puts into the store while they run', async t => {
    const has = (set: string) => (line: Line) => (line.sets as string[]).includes(set)
    await build(1, STORE)
    const second = newSet(PRIVATE)
    t.equal(ownerOfSet(second), ownerOf(PRIVATE))
    await source.said('session open', has(second))
    await build(2, '/root/store')
    await host.run('sh', '-c', `cp /root/store/*.pfset ${STORE}/ && chmod 600 ${STORE}/*.pfset`)
    const third = newSet(PRIVATE)
    t.equal(ownerOfSet(third), 0)
    for (const journal of [source, destination])
      t.match(await journal.said('template set not used'), { level: 40, set: new RegExp(third) })
    await host.run('sh', '-c', `chown --reference=${STORE}/. ${STORE}/*.pfset`)
    await source.said('session open', has(third))
  })

  await t.test('another port keeps its number; reload and stop disturb no migration', async t => {
    await moves('tcp:127.0.0.1:4445', 'tcp:127.0.0.2:4445', async () => {
      host.write('/etc/pageferry/rate', '200Mbit\n')
      await host.run('systemctl', 'reload', SOURCE, DESTINATION)
      for (const journal of [source, destination]) await journal.said('certificates and keys read again')
      await source.said('rate', ({ bytesPerSecond }) => bytesPerSecond === 25_000_000)
      await host.run('systemctl', 'stop', '--no-block', SOURCE)
      await source.said('stopping', ({ running }) => running === 1)
      t.match(
        await until('the state', async () => {
          const shown = await host.show(SOURCE, 'ActiveState', 'SubState', 'StatusText')
          return shown.StatusText?.startsWith('stopping') ? shown : undefined
        }),
        { ActiveState: 'deactivating', SubState: 'stop-sigterm', StatusText: /^stopping: 1 / },
      )
    })
    t.match(
      await until('the end', async () => {
        const shown = await host.show(SOURCE, 'ActiveState', 'Result', 'ExecMainStatus')
        return shown.ActiveState === 'inactive' ? shown : undefined
      }),
      { Result: 'success', ExecMainStatus: '0' },
    )
    await source.said('stopped')
  })

  await t.test('a Unix socket beside them, and a service that its connection starts again', async t => {
    targets('tcp:127.0.0.2:4444')
    await host.run('systemctl', 'restart', DESTINATION)
    const { mode, gid } = statSync(host.path('/run/pageferry/source.sock'))
    const group = /^daemon:[^:]*:(\d+):/m.exec(readFileSync('/etc/group', 'utf8'))?.[1]
    t.same([mode & 0o777, gid], [0o660, Number(group)])
    await moves(`unix:${host.path('/run/pageferry/source.sock')}`, 'tcp:127.0.0.2:4444')
  })

  await t.test('a revoked certificate is refused, from a restart on', async t => {
    host.write(`${tls}/ca-crl.pem`, revoking, 0o600)
    const from = destination.lines.length
    await host.run('systemctl', 'restart', DESTINATION)
    t.match(await destination.said('link.refused', revoked, from), { level: 40 })
  })

  await t.test('keys of a lasting user are read again by reload', async t => {
    await host.run('systemctl', 'stop', 'pageferry-*')
    await host.run('useradd', ...USERADD.split(' '))
    await host.run('chown', '-R', 'pageferry:', tls)
    for (const unit of [SOURCE, DESTINATION])
      host.write(
        `/etc/systemd/system/${unit}.d/override.conf`,
        `[Service]\nLoadCredential=\nEnvironment=PAGEFERRY_TLS_CREDS=${tls}\n`,
      )
    host.write(`${tls}/ca-crl.pem`, clean)
    await host.run('systemctl', 'daemon-reload')
    const near = source.lines.length
    await host.run('systemctl', 'start', ...sockets, SOURCE)
    await source.said('session open', () => true, near)
    const { MainPID } = await host.show(SOURCE, 'MainPID')
    const user = Number(await host.run('id', '-u', 'pageferry'))
    t.equal(ownerOf(`/proc/${MainPID}`), user)
    t.equal(ownerOf(PRIVATE), user, 'the store went along')
    host.write(`${tls}/ca-crl.pem`, revoking)
    const far = destination.lines.length
    await host.run('systemctl', 'reload', DESTINATION)
    await destination.said('certificates and keys read again', () => true, far)
    t.match(await destination.said('link.refused', revoked, far), { level: 40 })
  })

  await t.test('nothing else was said', async t => {
    const unexpected = (journal: Journal) =>
      journal.lines.filter(({ level, msg }) => level >= 50 || msg === 'systemd is not told')
    t.same([unexpected(source), unexpected(destination)], [[], []])
    t.notMatch(`${source.other}${destination.other}`, /Failed|error|at .*\.ts:\d+|Watchdog/)
  })
})
