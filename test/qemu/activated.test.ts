/**
 * A pair that systemd starts: both proxies get their listening sockets by LISTEN_FDS, and run only once someone connects.
 * Here systemd-socket-activate does what systemd does. Certificates are those of `pageferry keygen`.
 */

import { execFileSync, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { claimPort } from '../../scripts/harness/claimed-port.ts'
import { endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { qemu10 } from '../../scripts/harness/qemu/versions.ts'
import { until } from '../helpers/until.ts'
import { Guests } from './pair.ts'

t.setTimeout(590_000)

const pageferry = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))
const found = await qemu10()
const lacks = spawnSync('systemd-socket-activate', ['--version']).status !== 0
const skip = lacks ? 'systemd-socket-activate is missing' : (found.skip ?? false)

/** A proxy that starts with the first connection to one of its sockets. */
function activate(sockets: readonly string[], names: string, args: readonly string[]) {
  const child = spawnOwned(
    [
      'systemd-socket-activate',
      ...sockets.flatMap(socket => ['-l', socket]),
      ...[`--fdname=${names}`, '-E', `PATH=${process.env.PATH}`],
      ...[pageferry, ...args, '--json', '--pool-memory', '32MiB'],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  )
  const log: { msg: string; [field: string]: unknown }[] = []
  createInterface({ input: child.stdout! }).on('line', line => log.push(JSON.parse(line)))
  let stderr = ''
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
  })
  const said = (msg: string, count = 1) =>
    until(
      () => `a line '${msg}': ${JSON.stringify(log)} ${stderr}`,
      () => log.filter(line => line.msg.startsWith(msg))[count - 1],
    )
  return { child, log, said, stderr: () => stderr }
}

t.test('real migrations through a pair that systemd starts', { skip }, async t => {
  const qemu = found.qemu!
  const { path: folder, remove } = temporaryFolder('activated')
  t.teardown(remove)
  const keygen = ['keygen', 'x509', '--dir', folder, '--name', 'near', '--peer-name', 'far', '127.0.0.1']
  execFileSync(pageferry, keygen)
  const [local, wan, target] = [await claimPort(), await claimPort(), await claimPort()]
  const unix = join(folder, 'qemu.sock')

  const destination = activate([`127.0.0.1:${wan}`], 'wan', [
    ...['destination', '--listen', 'fd:wan', '--target', `tcp:127.0.0.1:${target}`],
    ...['--tls-creds', join(folder, 'far'), '--peer-name', 'near'],
  ])
  const source = activate([`127.0.0.1:${local}`, unix], 'qemu:qemu', [
    ...['source', '--listen', 'fd:qemu', '--peer', `127.0.0.1:${wan}`],
    ...['--tls-creds', join(folder, 'near'), '--peer-name', 'far'],
  ])
  t.teardown(() => Promise.all([endChild(source.child), endChild(destination.child)]))
  await until(
    () => `the sockets: ${source.stderr()} ${destination.stderr()}`,
    () => existsSync(unix) && /Listening on .*as 3/.test(destination.stderr()),
  )
  t.same([source.log, destination.log], [[], []], 'neither proxy runs yet')

  const capabilities = { 'return-path': true }
  const cases = [
    ['over TCP, which starts both proxies', `tcp:127.0.0.1:${local}`, { capabilities }, 'main'],
    [
      'over the Unix socket, with multifd',
      `unix:${unix}`,
      { capabilities: { ...capabilities, multifd: true }, parameters: { 'multifd-channels': 2 } },
      'main, 2 multifd',
    ],
  ] as const
  for (const [i, [name, uri, settings, channels]] of cases.entries()) {
    await t.test(name, async t => {
      await using guests = await Guests.start({ qemu, name: `activated-${i}-` })
      await guests.destination.listen(`tcp:127.0.0.1:${target}`, settings)
      await guests.source.migrate(uri, {
        ...settings,
        parameters: { 'max-bandwidth': 0, ...('parameters' in settings ? settings.parameters : {}) },
      })
      t.equal(await guests.differingPages(), 0, 'memory is equal')
      await guests.goesOn()
      t.match(await source.said('migration ended', i + 1), { channels }, 'the migration went through the source proxy')
      t.match(await destination.said('migration ended', i + 1), { target: 'default' }, 'and the destination proxy')
    })
  }
  t.match(await source.said('session open'), { peer: `127.0.0.1:${wan}` })
  t.match(
    destination.log.find(line => line.msg === 'session open'),
    { identity: 'near' },
    'the certificate said who',
  )

  for (const { child, log } of [source, destination]) {
    const gone = once(child, 'exit')
    child.kill('SIGTERM')
    t.same(await gone, [0, null], 'SIGTERM ends it in order')
    t.ok(
      log.every(line => (line.level as number) < 40),
      'nothing to warn of',
    )
  }
})
