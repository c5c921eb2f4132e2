/**
 * `make demo`: what the pair does, in a few minutes and without any preparation.
 *
 *   node scripts/demo/demo.ts [--link 100Mbit,40ms] [--system-qemu]
 *
 * Two small Linux guests are booted and captured, and templates made of what they have in common; others are made of the
 * disk image of such a guest, without any guest. A third, running guest is then migrated from the same state over an
 * emulated WAN: directly, and through the pair with either templates. Its memory is compared from outside, page by page, and from inside, by checksums that the guest takes itself. Exit status 1 when anything differs.
 */
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { formatCount, formatSize } from '../../src/quantity.ts'
import { claimPort } from '../harness/claimed-port.ts'
import { Proxies, pageferry } from '../harness/proxies.ts'
import { temporaryFolder } from '../harness/qemu/cleanup.ts'
import { type GuestOptions, QemuGuest, type Workload } from '../harness/qemu/guest.ts'
import { reportHeartbeats } from '../harness/qemu/heartbeat.ts'
import { compareMemory } from '../harness/qemu/memory.ts'
import { type FoundQemu, type QemuVersion, qemu10, systemQemu } from '../harness/qemu/versions.ts'
import { openWan, type Wan } from '../harness/wan/open.ts'
import { guestImage } from './image.ts'
import { type Result, resultBars, resultTable } from './table.ts'

const MEMORY_MB = 256
const BOOT_MS = 240_000
/** Fast enough that the heartbeat tells downtime to 50 ms. */
const HEARTBEAT_MS = 50
/** QEMU's own limit of 128 MB/s has no place on a WAN; return-path as libvirt sets it. */
const SETTINGS = { capabilities: { 'return-path': true }, parameters: { 'max-bandwidth': 0 } } as const

const guests = {
  first: { workload: 'idle', content: 11, contentmb: 32, hb: HEARTBEAT_MS },
  second: { workload: 'busy', rate: 2, busymb: 8, content: 12, contentmb: 24, hb: HEARTBEAT_MS },
  third: { workload: 'busy', rate: 2, busymb: 12, content: 13, contentmb: 48, hb: HEARTBEAT_MS },
} as const

const startMs = performance.now()
/** The guest's kernel command line, without the check of its timer, which fails where the host is very busy. */
function bootArguments(workload: Workload): string[] {
  const words = Object.entries(workload).map(([word, value]) => `${word}=${value}`)
  return ['-append', ['console=ttyS0', 'quiet', 'no_timer_check', ...words].join(' ')]
}

/** One line a step. */
function step(text: string): void {
  console.log(`${`${((performance.now() - startMs) / 1000).toFixed(0)} s`.padStart(6)}  ${text}`)
}

/** Everything that was to be equal and was not. */
const differences: string[] = []
function expect(equal: boolean, what: string): void {
  if (!equal) differences.push(what)
}

/**
 * Boots a guest, and keeps its state, stopped, in a file: the stream that a migration would send. A kernel that finds its
 * timer too late, on a host that is very busy, panics while it boots: it gets another try.
 */
async function capture(options: GuestOptions, path: string, tries = 3): Promise<Record<string, string>> {
  await using guest = await QemuGuest.start(options)
  const [found] = await guest.waitSerial(/^ready|Kernel panic/m, BOOT_MS)
  if (found !== 'ready' && tries > 1) {
    await guest.quit()
    return capture(options, path, tries - 1)
  }
  const sums = await guest.sums(BOOT_MS)
  await guest.stop()
  await guest.migrate(`exec:cat > '${path}'`, { parameters: { 'max-bandwidth': 0 } })
  return sums
}

interface Route {
  readonly name: string
  /** Where the source QEMU migrates to, and the destination QEMU listens. */
  readonly sourceUri: string
  readonly targetUri: string
}

/** Migrates the third guest over the WAN, from the state in `path` on, and checks it at the destination. */
async function migrate(wan: Wan, qemu: QemuVersion, path: string, route: Route, sums: Record<string, string>) {
  const options = { qemu, memoryMb: MEMORY_MB, workload: guests.third }
  const netnsOf = (site: 'source' | 'destination') => {
    const netns = wan.netns(site)
    return netns === undefined ? {} : { netns }
  }
  // QEMU before 9 loses dirty pages of a running guest without KVM: there, the guest is stopped first.
  const running = qemu.tcgTracksDirtyPages
  const atSource = { ...options, ...netnsOf('source'), name: 'source', paused: true, incoming: `exec:cat '${path}'` }
  await using source = await QemuGuest.start(atSource)
  await source.waitStatus(['paused', 'prelaunch'], 60_000)
  if (running) {
    await source.cont()
    await source.waitHeartbeats(2000 / HEARTBEAT_MS)
  }
  const atDestination = { ...options, ...netnsOf('destination'), name: 'destination', paused: true, incoming: 'defer' }
  await using destination = await QemuGuest.start(atDestination)
  await destination.listen(route.targetUri, { capabilities: SETTINGS.capabilities })

  const bytesBefore = await wan.bytes()
  const stats = await source.migrate(route.sourceUri, { ...SETTINGS, timeoutMs: 120_000 })
  // It arrives stopped, is compared while it is, and goes on; the guest's clock is corrected for that pause.
  await destination.waitStatus(['paused', 'prelaunch'])
  const arrivedMs = performance.now()
  const [left, right] = [await source.snapshot(), await destination.snapshot()]
  const continuedMs = performance.now()
  await destination.cont()
  await destination.waitHeartbeats(1000 / HEARTBEAT_MS)
  const wanBytes = (await wan.bytes()) - bytesBefore

  const { pages, differingPages } = await compareMemory(left, right)
  expect(differingPages === 0, `${route.name}: ${differingPages} of ${pages} pages of memory differ`)
  const beats = reportHeartbeats(source.heartbeats, destination.heartbeats)
  expect(beats.disorder === 0 && beats.missing <= 1, `${route.name}: the heartbeat does not go on where it stopped`)
  const after = await destination.sums(BOOT_MS)
  const files = Object.keys(sums).filter(name => name !== 'busy') // which changes all the time
  for (const name of files) expect(sums[name] === after[name], `${route.name}: checksum of /m/${name} in the guest`)
  const busy = await destination.checkBusy(BOOT_MS)
  expect(busy.ok && busy.blocks > 0, `${route.name}: the file that the guest keeps writing`)
  step(
    `  arrived after ${(stats.totalMs / 1000).toFixed(1)} s and runs on; ${formatCount(pages)} pages equal from outside, ` +
      `${files.length} files and ${formatCount(busy.blocks)} written blocks from inside${differences.length > 0 ? ': NO, see below' : ''}`,
  )
  return {
    name: route.name,
    wanBytes,
    totalMs: stats.totalMs,
    downtimeMs: stats.downtimeMs,
    guestDowntimeMs: running ? Math.max(0, beats.downtimeMs - (continuedMs - arrivedMs)) : undefined,
  } satisfies Result
}

async function demo(link: string, onlySystem: boolean): Promise<void> {
  const ten: FoundQemu = onlySystem ? { skip: '--system-qemu' } : await qemu10()
  const system = await systemQemu()
  const qemu = ten.qemu ?? system.qemu
  if (!qemu) throw new Error(`there is no QEMU (${system.skip}); as root this command installs one`)
  const { path: folder, remove } = temporaryFolder('demo')
  try {
    await using wan = await openWan(link)
    console.log(`Pageferry: a ${MEMORY_MB} MB guest moves over ${link.replace(',', ', ')}`)
    console.log(`  QEMU ${qemu.version} without KVM; the WAN: ${wan.kind}`)
    if (!qemu.tcgTracksDirtyPages) {
      console.log(`  without QEMU 10 (${ten.skip}) the guest is stopped before it migrates`)
    }

    step('booting two guests to make templates of, and the third')
    const stream = (name: string) => join(folder, `${name}.stream`)
    const boot = (name: keyof typeof guests) => {
      const workload = guests[name]
      return capture({ qemu, name, memoryMb: MEMORY_MB, workload, args: bootArguments(workload) }, stream(name))
    }
    // two at a time: one a core
    const third = boot('third')
    const [, , sums] = await Promise.all([boot('first').then(() => boot('second')), third, third])
    const captured = ['first', 'second', 'third'].map(name => formatSize(statSync(stream(name)).size))
    step(`captured: ${captured.join(', ')}`)

    const build = async (name: string, ...from: string[]): Promise<string> => {
      const store = join(folder, name)
      await pageferry('template', 'build', '--store', store, ...from)
      const [set] = readdirSync(store).filter(file => file.endsWith('.pfset'))
      step(`templates built from ${name}: ${formatSize(statSync(join(store, set!)).size)}`)
      return store
    }
    const image = await build("the guests' disk image", '--as', 'disk', await guestImage(folder))
    const store = await build('the first two guests', stream('first'), stream('second'))

    const results: Result[] = []
    step('migrating the third directly')
    const port = await claimPort()
    const { host, port: reached } = await wan.reach(port)
    results.push(
      await migrate(
        wan,
        qemu,
        stream('third'),
        { name: 'directly', sourceUri: `tcp:${host}:${reached}`, targetUri: `tcp:${wan.listenHost}:${port}` },
        sums,
      ),
    )

    const throughPair = async (name: string, templates: string) => {
      await using pair = await Proxies.start(wan, join(folder, name), templates)
      const { sourceUri, targetUri } = pair
      try {
        results.push(await migrate(wan, qemu, stream('third'), { name, sourceUri, targetUri }, sums))
      } catch (error) {
        console.error(pair.log)
        throw error
      }
      return await pair.summary()
    }
    step('migrating it through the pair, with TLS, and what the image has')
    await throughPair('through Pageferry, the image alone', image)
    step('migrating it through the pair with what the two guests have')
    const summary = await throughPair('through Pageferry, two guests', store)

    console.log(`\n${resultTable(results)}\n\n${resultBars(results)}`)
    if (summary) {
      const { zero, same, template, earlier, fill, patched, whole } = summary.pages
      const known = same + template + earlier + fill
      console.log(
        `\n  Of ${formatCount(zero + known + patched + whole)} pages sent, ${formatCount(zero)} were zero, ` +
          `${formatCount(template)} in the templates, ${formatCount(same + earlier + fill)} known otherwise, ` +
          `${formatCount(patched)} partly known, ${formatCount(whole)} new.`,
      )
    }
  } finally {
    remove()
  }
  if (differences.length > 0) {
    console.log(`\nNot equal:\n${differences.map(what => `  ${what}`).join('\n')}`)
    process.exitCode = 1
  } else console.log('\nThe guest runs on at the destination, with every page equal, all three ways.')
}

const { values } = parseArgs({
  options: { link: { type: 'string', default: '100Mbit,40ms' }, 'system-qemu': { type: 'boolean', default: false } },
})
try {
  await demo(values.link, values['system-qemu'])
} catch (error) {
  console.error(`error: ${(error as Error).message}`)
  process.exitCode = 1
}
