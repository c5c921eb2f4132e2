/**
 * `node test/bench/disk-pair-bench.ts [IMAGE]`: CPU seconds of both proxies, two processes of bin/pageferry over loopback with
 * TLS, for each GB of a disk that nbdcopy writes as QEMU's mirror does (16 requests of 1 MiB under way) to an nbdkit that
 * throws it away: blocks of which 90 % are in a template set and the others like one but for a word, at effort 0 and auto; and
 * with an IMAGE (a raw disk: its first GB that is no hole) unknown blocks at effort 2. CPU time counts, not the clock; each round
 * has a pair of its own, and the least of three is told. Another disk of 0.5 GB goes before: a disk is large, and what V8
 * compiles for the first of it would count for all.
 */
import { execFile } from 'node:child_process'
import { closeSync, existsSync, openSync, readSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Proxies } from '../../scripts/harness/proxies.ts'
import { endChild, spawnOwned, temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import type { Wan } from '../../scripts/harness/wan/open.ts'
import { descendantSeconds, ownSeconds } from '../../scripts/measure/compare/cpu.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { until } from '../helpers/until.ts'
import { putPages } from '../template/makers.ts'
import { pagesIn } from './stream-pages.ts'
import { realPages, streamOf } from './streams.ts'

const run = promisify(execFile)
const ROUNDS = 3
const PAGE = 4096
const MIB = 1 << 20
const TEMPLATE_PAGES = 25_600
const DISK_PAGES = 262_144
const WARM_PAGES = 131_072
const IMAGE_BYTES = 1 << 30

const loopback: Wan = {
  kind: 'loopback',
  netns: () => undefined,
  listenHost: '127.0.0.1',
  reach: async port => ({ host: '127.0.0.1', port }),
  spawn: (_, command) => spawnOwned(command, { stdio: ['ignore', 'pipe', 'pipe'] }),
  bytes: async () => 0,
  [Symbol.asyncDispose]: async () => {},
}

interface Case {
  readonly name: string
  readonly disk: string
  readonly bytes: number
  readonly store: string | undefined
  readonly effort: string
}

/** CPU seconds a GB of either proxy, and what part of the bytes was on the WAN. */
interface Measured {
  readonly near: number
  readonly far: number
  readonly left: number
}

async function round({ disk, bytes, store, effort }: Case, warm: string): Promise<Measured> {
  const { path: folder, remove } = temporaryFolder('disk-pair')
  try {
    const options = { tls: 'psk', disks: true, source: ['--effort', effort] } as const
    const both = store === undefined ? [] : ['--learn', 'off']
    await using pair = await Proxies.start(loopback, folder, store, { ...options, both })
    await pair.ready(120_000)
    const nbdkit = ['nbdkit', '-f', '--exit-with-parent', '-U', pair.diskFar, 'null', String(IMAGE_BYTES)]
    const kit = spawnOwned(nbdkit, { stdio: 'ignore' })
    try {
      await until('nbdkit', () => existsSync(pair.diskFar))
      const copy = async (file: string) => {
        const options = ['--connections=1', '--requests=16', '--request-size=1048576', '--sparse=0', '--no-extents']
        await run('nbdcopy', [...options, '--flush', file, `nbd+unix:///?socket=${pair.diskNear}`])
        return await until('the end of the transfer', () => pair.disks.shift())
      }
      const cpu = (pid: number) => ownSeconds(pid) + descendantSeconds(pid)
      const { source, destination } = pair.pids
      await copy(warm)
      const before = { near: cpu(source), far: cpu(destination) }
      const { bytesWan } = await copy(disk)
      const gigabytes = bytes / 1e9
      const near = (cpu(source) - before.near) / gigabytes
      return { near, far: (cpu(destination) - before.far) / gigabytes, left: bytesWan / bytes }
    } finally {
      await endChild(kit)
    }
  } finally {
    remove()
  }
}

async function measure(one: Case, warm: string): Promise<void> {
  const all: Measured[] = []
  for (let i = 0; i < ROUNDS; i++) all.push(await round(one, warm))
  all.sort((a, b) => a.near + a.far - b.near - b.far)
  const { near, far, left } = all[0]!
  const [sum, ...each] = [near + far, near, far].map(seconds => seconds.toFixed(2))
  console.log(`${one.name} | ${one.effort} | ${each.join(' | ')} | ${sum} | ${(100 * left).toFixed(2)}`)
}

/** The first GB of an image that is no hole, as a file. */
function inUse(image: string, path: string): number {
  const [from, to] = [openSync(image, 'r'), openSync(path, 'w')]
  const piece = Buffer.alloc(MIB)
  let bytes = 0
  while (bytes < IMAGE_BYTES && readSync(from, piece) === MIB) {
    if (piece.every(byte => byte === 0)) continue
    bytes += writeSync(to, piece)
  }
  closeSync(from)
  closeSync(to)
  return bytes
}

const { path: folder, remove } = temporaryFolder('disk-pair-bench')
try {
  console.log('blocks | effort | source s/GB | destination s/GB | both | % of the bytes')
  const templates = realPages(TEMPLATE_PAGES)
  const store = new TemplateStore(join(folder, 'store'))
  await putPages(
    store,
    Array.from({ length: TEMPLATE_PAGES }, (_, i) => templates.subarray(i * PAGE, (i + 1) * PAGE)) as Buffer[],
  )
  const [disk, warm] = [join(folder, 'known'), join(folder, 'warm')]
  writeFileSync(disk, pagesIn(streamOf(templates, 0.9, DISK_PAGES), DISK_PAGES))
  writeFileSync(warm, pagesIn(streamOf(templates, 0.899, WARM_PAGES), WARM_PAGES))
  const known = { name: '90 % known', disk, bytes: DISK_PAGES * PAGE, store: store.folder }
  for (const effort of ['0', 'auto']) await measure({ ...known, effort }, warm)
  const image = process.argv[2]
  if (image !== undefined) {
    const path = join(folder, 'image')
    const bytes = inUse(image, path)
    await measure({ name: image, disk: path, bytes, store: undefined, effort: '2' }, warm)
  }
} finally {
  remove()
}
