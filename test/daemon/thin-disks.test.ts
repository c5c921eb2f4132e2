/** Thin stays thin: what was said of zeroes reaches a server as it was said, or as holes where that was asked for. */
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { DiskZeroes } from '../../src/daemon/settings.ts'
import { Daemons } from './daemons.ts'
import { NBD_SKIP, Nbdkit, nbdsh, STORAGE_DAEMON_SKIP, StorageDaemon } from './nbd.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20

interface Served extends AsyncDisposable {
  readonly socket: string
}

/** What is allocated of a file. */
const allocated = (path: string): number => statSync(path).blocks * 512

t.test('every command arrives as it was said', { skip: NBD_SKIP }, async t => {
  const folder = t.testdir()
  const log = join(folder, 'log')
  await using kit = await Nbdkit.start('--filter=log', 'memory', '3M', `logfile=${log}`)
  await using pair = await Daemons.start({ disks: `unix:${kit.socket}` })
  await nbdsh(
    `nbd://127.0.0.1:${pair.diskPort}`,
    'h.zero(65536, 0, nbd.CMD_FLAG_NO_HOLE)',
    'h.zero(65536, 65536, 0)',
    'h.trim(65536, 131072)',
    'h.pwrite(bytes(4096), 196608)',
    'h.flush()',
  )
  const said = [...readFileSync(log, 'utf8').matchAll(/ (Zero|Trim|Write) id=\d+ offset=(\S+) count=(\S+)( trim=\d)?/g)]
  t.same(
    said.map(([, name, offset, count, trim = '']) => `${name} ${Number(offset)} ${Number(count)}${trim}`),
    ['Zero 0 65536 trim=0', 'Zero 65536 65536 trim=1', 'Trim 131072 65536', 'Write 196608 4096'],
  )
})

/** A server of a file, in the way that it can have holes. */
const SERVERS: Record<string, { readonly skip: string | false; start(file: string): Promise<Served> }> = {
  nbdkit: { skip: NBD_SKIP, start: file => Nbdkit.start('file', file) },
  'qemu-storage-daemon': { skip: STORAGE_DAEMON_SKIP, start: file => StorageDaemon.start(file) },
}

for (const [zeroes, most, least] of [
  ['as-said', 9, 7],
  ['unmap', 1.2, 1],
] as const satisfies readonly (readonly [DiskZeroes, number, number])[]) {
  for (const [name, { skip, start }] of Object.entries(SERVERS)) {
    t.test(`a disk of zeroes with --disk-zeroes ${zeroes}, ${name}`, { skip: NBD_SKIP || skip }, async t => {
      const far = join(t.testdir(), 'far')
      writeFileSync(far, '')
      truncateSync(far, 8 * MIB)
      await using server = await start(far)
      await using pair = await Daemons.start({ disks: `unix:${server.socket}`, diskZeroes: zeroes })
      await nbdsh(
        `nbd://127.0.0.1:${pair.diskPort}`,
        'for at in range(0, 4 << 20, 1 << 18): h.pwrite(bytes(1 << 18), at)', // as a mirror that does not look
        'h.zero(4 << 20, 4 << 20, nbd.CMD_FLAG_NO_HOLE)', // as QEMU 10's
        'h.pwrite(b"x" * (1 << 20), 1 << 20)',
        'h.flush()',
      )
      const mib = allocated(far) / MIB
      t.ok(mib >= least && mib <= most, `${mib.toFixed(1)} MiB are allocated of 8`)
      const bytes = readFileSync(far)
      t.ok(bytes.subarray(MIB, 2 * MIB).every(byte => byte === 0x78))
      t.ok(bytes.subarray(0, MIB).every(byte => byte === 0) && bytes.subarray(2 * MIB).every(byte => byte === 0))
    })
  }
}
