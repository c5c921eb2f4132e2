/**
 * Debian guests of the lab's base image that write files and sync them, moved with their disks over a WAN that breaks: a part
 * of faults.ts. What was written is compared by qemu-img, what is in memory byte for byte, and the guest looks after its files
 * itself, past its page cache, when it has arrived.
 */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { QemuGuest } from '../../scripts/harness/qemu/guest.ts'
import { compareMemory } from '../../scripts/harness/qemu/memory.ts'
import { type CopyMode, exportDisk, Mirror } from '../../scripts/harness/qemu/mirror.ts'
import type { QemuVersion } from '../../scripts/harness/qemu/versions.ts'
import type { Random } from '../../scripts/harness/random.ts'
import { type ComparedGuest, type PreparedGuest, prepareGuest } from '../../scripts/measure/compare/guests.ts'
import { until } from '../helpers/until.ts'
import { FAULTS, type Fault, Pair } from './pair.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const MIB = 1 << 20
const FAR = 'far'
/** Of the cuts of one move, those while its disk is mirrored first; the others come while its memory moves. */
const MIRROR_CUTS = 14
const CUTS = 20
/** Bytes on the WAN from the end of a cut to the next. */
const DISK_STEP = 8 * MIB
const MEMORY_STEP = 2 * MIB

const GUEST: ComparedGuest = {
  ...{ name: 'files', workload: 'files written and synced', memoryMb: 384, templates: [] },
  debian: { kernel: 'k1', labWorkload: 'idle', load: { file: 'files', init: true } },
}
const COPY_MODES = ['background', 'write-blocking'] as const

/** Why there can be none of this here. */
export function diskFaultsSkip(): string | undefined {
  return existsSync(join(root, '.cache/lab/base/disk.raw'))
    ? undefined
    : 'no base image of the lab: node scripts/lab/lab.ts --base-only'
}

/** A guest that runs on its disk, and the QEMU that waits for it with an empty one. */
class Move implements AsyncDisposable {
  readonly source: QemuGuest
  readonly destination: QemuGuest
  private readonly images: readonly [string, string]
  private readonly remove: () => void

  private constructor(
    source: QemuGuest,
    destination: QemuGuest,
    images: readonly [string, string],
    remove: () => void,
  ) {
    this.source = source
    this.destination = destination
    this.images = images
    this.remove = remove
  }

  static async start(prepared: PreparedGuest): Promise<Move> {
    const { path: folder, remove } = temporaryFolder('disk-faults')
    try {
      const images = [join(folder, 'disk.qcow2'), join(folder, 'far.qcow2')] as const
      const { source, destination: twin } = await prepared.start(folder, {})
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', images[1], '4G'])
      const boot = twin.boot!.map(word =>
        word.replace(images[0], images[1]).replace('id=disk,', `id=disk,node-name=${FAR},`),
      )
      try {
        const destination = await QemuGuest.start({
          ...twin,
          boot,
          name: 'destination',
          incoming: 'defer',
          paused: true,
        })
        return new Move(source, destination, images, remove)
      } catch (error) {
        await source.quit()
        throw error
      }
    } catch (error) {
      remove()
      throw error
    }
  }

  /** Waits until a guest has written so many files more. */
  async writes(guest: QemuGuest, more = 5): Promise<void> {
    const done = (): number => guest.heartbeats.at(-1)?.work ?? 0
    await guest.waitHeartbeats(1, 120_000)
    const from = done()
    await until(`${guest.name} to write on`, () => done() >= from + more, 120_000)
  }

  /** @throws Error where memory or disks differ, or the guest does not find its files. Ends the source. */
  async compare(qemu: QemuVersion): Promise<void> {
    const { source, destination, images } = this
    const memory = await compareMemory(await source.snapshot(), await destination.snapshot())
    if (qemu.tcgTracksDirtyPages && memory.differingPages > 0)
      throw new Error(`${memory.differingPages} pages of memory differ`)
    await source.quit()
    const compared = execFileSync('qemu-img', ['compare', '-U', ...images], { encoding: 'utf8' })
    if (!compared.includes('identical')) throw new Error(compared.trim())
    await destination.cont()
    // What was read before it left stands in memory: the next look is at the disk.
    const [, verdict] = await destination.waitSerial(/^FILES \d+ (ok|bad)$/m, 240_000)
    if (verdict !== 'ok') throw new Error('the guest does not find its files')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.source.quit(), this.destination.quit()])
    this.remove()
  }
}

export interface DiskFaults {
  failures: number
  readonly notes: string[]
}

/** Moves a guest with 20 cuts, `moves` times; then either proxy is killed in a mirror. */
export async function diskFaults(
  qemus: readonly QemuVersion[],
  moves: number,
  chance: Random,
  progress: (text: string) => void,
): Promise<DiskFaults> {
  const outcome: DiskFaults = { failures: 0, notes: [] }
  const attempt = async (what: string, work: () => Promise<string>): Promise<void> => {
    try {
      outcome.notes.push(`${what}: ${await work()}`)
    } catch (error) {
      outcome.failures++
      outcome.notes.push(`${what}: ${(error as Error).message}`)
    }
  }
  for (const qemu of qemus) {
    const cache = join(root, `.cache/disks/qemu-${qemu.version}`)
    const prepared = await prepareGuest(GUEST, qemu, 'tcg', cache, progress)
    for (let i = 0; i < moves; i++) {
      const copyMode = COPY_MODES[i % COPY_MODES.length]!
      await attempt(`QEMU ${qemu.version}, ${copyMode}`, () => moveWithCuts(qemu, prepared, copyMode, chance, progress))
    }
    for (const side of ['source', 'destination'] as const)
      await attempt(`QEMU ${qemu.version}, the ${side} proxy killed`, () => killed(prepared, side, chance))
  }
  return outcome
}

async function moveWithCuts(
  qemu: QemuVersion,
  prepared: PreparedGuest,
  copyMode: CopyMode,
  chance: Random,
  progress: (text: string) => void,
): Promise<string> {
  await using pair = await Pair.start({ disks: true, effort: 1, patienceMs: 60_000, wan: '400Mbit,10ms' })
  await using move = await Move.start(prepared)
  const { source, destination } = move
  await source.cont()
  await move.writes(source)
  await exportDisk(destination, pair.diskFar, FAR)
  const counts: Record<Fault, number> = { reset: 0, drop: 0, stall: 0 }
  let cuts = 0
  const cut = async (stepBytes: number, over: Promise<unknown>): Promise<void> => {
    const passed = pair.wan.cutAfter('forward', chance.between(stepBytes / 2, stepBytes))
    const cutIt = await Promise.race([passed.then(() => true), over.then(() => false)])
    if (!cutIt) return
    const fault = chance.pick(FAULTS)
    await pair.breakWanOnce(fault, fault === 'drop' ? 0 : chance.between(20, 500))
    counts[fault]++
    cuts++
    progress(`${copyMode}: ${cuts} cuts`)
  }
  const mirror = await Mirror.begin(source, pair.diskNear, { copyMode, disk: 'disk' })
  const ready = mirror.ready(1_200_000)
  let isReady = false
  const over = ready.then(
    () => {
      isReady = true
    },
    () => {
      isReady = true
    },
  )
  while (!isReady && cuts < MIRROR_CUTS) await cut(DISK_STEP, over)
  await ready
  const inMirror = cuts
  await move.writes(source)
  // So slow that it does not end before it is let go.
  const endless = { 'max-bandwidth': 8_000_000, 'downtime-limit': 1 }
  const following = mirror.follow(
    destination,
    { source: pair.sourceUri(), target: pair.targetUri() },
    { parameters: endless },
  )
  let hasFollowed = false
  const followed = following.then(
    () => {
      hasFollowed = true
    },
    () => {
      hasFollowed = true
    },
  )
  while (!hasFollowed && cuts < CUTS) await cut(MEMORY_STEP, followed)
  if (!hasFollowed) await source.configure({ parameters: { 'max-bandwidth': 0, 'downtime-limit': 2000 } })
  await following
  const { bytesWan, bytesIn } = (await pair.summary()) ?? {}
  await move.compare(qemu)
  if (cuts < CUTS) throw new Error(`only ${cuts} cuts`)
  const kinds = FAULTS.map(fault => `${counts[fault]} ${fault}`).join(', ')
  return `${cuts} cuts (${inMirror} in the mirror; ${kinds}), all equal; memory ${bytesIn} bytes, ${bytesWan} on the WAN`
}

async function killed(prepared: PreparedGuest, side: 'source' | 'destination', chance: Random): Promise<string> {
  await using pair = await Pair.start({ disks: true, processes: true, patienceMs: 1000 })
  await using move = await Move.start(prepared)
  const { source, destination } = move
  await source.cont()
  await move.writes(source)
  await exportDisk(destination, pair.diskFar, FAR)
  const mirror = await Mirror.begin(source, pair.diskNear, { copyMode: 'write-blocking', disk: 'disk' })
  await sleep(chance.between(0, 3000))
  await pair.kill(side)
  const error = await mirror.end()
  if (error === undefined) throw new Error('the job did not fail')
  await mirror.release()
  await move.writes(source)
  const [, verdict] = await source.waitSerial(/^FILES \d+ (ok|bad)$/m, 240_000, source.serial.length)
  if (verdict !== 'ok') throw new Error('the guest does not find its files')
  return `the job fails (${error}), the guest goes on`
}
