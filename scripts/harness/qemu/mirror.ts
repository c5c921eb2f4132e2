/** A disk that a source QEMU mirrors to a destination QEMU, as libvirt has them do it, and the guest's memory behind it. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { MigrationSettings, MigrationStats, QemuGuest } from './guest.ts'

const JOB = 'mirror'
const TARGET = 'remote'
const EXPORT = 'disk'

/** Where an export is: the path of a Unix socket, or an address. */
export type ExportAddress = string | { readonly host: string; readonly port: number }

/** How QEMU copies what the guest writes meanwhile: later, or before the guest is told that it was written. */
export type CopyMode = 'background' | 'write-blocking'

export interface MirrorOptions {
  readonly copyMode: CopyMode
  /** `top`: only what lies above the image that both sites have. Default: all of it. */
  readonly sync?: 'full' | 'top'
  /** QEMU's name of the disk, at both; default `disk`. */
  readonly disk?: string
  /** Bytes a second, before the pair. */
  readonly speed?: number
}

/** Has a destination export its disk, for anybody to write to. */
export async function exportDisk(destination: QemuGuest, at: ExportAddress, disk = 'disk'): Promise<void> {
  const { type, ...data } = socketAddress(at)
  await destination.qmp.execute('nbd-server-start', { addr: { type, data } })
  const exported = { type: 'nbd', id: 'export', 'node-name': disk, name: EXPORT, writable: true }
  await destination.qmp.execute('block-export-add', exported)
}

function socketAddress(at: ExportAddress) {
  if (typeof at === 'string') return { type: 'unix', path: at } as const
  return { type: 'inet', host: at.host, port: String(at.port) } as const
}

/** What a guest stands still for when its memory follows its disk: milliseconds, one after the other. */
export interface StandStill {
  /** Its writes come to their end and all of its disks are flushed, those at the other site too. */
  readonly flushMs: number
  /** The mirror is completed, and its connection closed. */
  readonly mirrorMs: number
  /** The rest of its memory, and its devices. */
  readonly memoryMs: number
}

/** A job of the source's. */
export class Mirror {
  readonly source: QemuGuest
  /** Of the source's events, those from here on are about this job. */
  private readonly since: number

  private constructor(source: QemuGuest) {
    this.source = source
    this.since = source.qmp.events.length
  }

  /** Begins to mirror the source's disk to an export. @throws QmpError where it is not there */
  static async begin(source: QemuGuest, to: ExportAddress, options: MirrorOptions): Promise<Mirror> {
    const { copyMode, sync = 'full', disk = 'disk', speed } = options
    const mirror = new Mirror(source)
    await source.qmp.execute('blockdev-add', {
      ...{ 'node-name': TARGET, driver: 'raw', discard: 'unmap', 'detect-zeroes': 'unmap' },
      file: { driver: 'nbd', server: socketAddress(to), export: EXPORT },
    })
    const more = { sync, 'copy-mode': copyMode, ...(speed === undefined ? {} : { speed }) }
    await source.qmp.execute('blockdev-mirror', { 'job-id': JOB, device: disk, target: TARGET, ...more })
    return mirror
  }

  /** Waits until all has been copied but what the guest goes on to write. @throws Error where the job ends first */
  async ready(patienceMs?: number): Promise<void> {
    const { qmp } = this.source
    const { event, data } = await qmp.waitEvent(
      ({ event }) => event === 'BLOCK_JOB_READY' || event === 'BLOCK_JOB_COMPLETED' || event === 'BLOCK_JOB_CANCELLED',
      patienceMs ?? 120_000,
      this.since,
    )
    if (event !== 'BLOCK_JOB_READY') throw new Error(`the mirror ended: ${data.error ?? event}`)
  }

  /** Ends one that is ready, in sync: nothing of the source is missing at the other site. @throws Error where it failed */
  async complete(): Promise<void> {
    await this.source.qmp.execute('block-job-cancel', { device: JOB })
    const error = await this.end()
    if (error !== undefined) throw new Error(`the mirror failed at its end: ${error}`)
    await this.release()
  }

  /** Ends it as it is. */
  async cancel(): Promise<void> {
    await this.source.qmp.execute('block-job-cancel', { device: JOB, force: true })
    await this.end()
    await this.release()
  }

  /** Waits for its end. @returns what QEMU says was wrong, where something was */
  async end(): Promise<string | undefined> {
    const { qmp } = this.source
    const ended = ({ event }: { event: string }) => event === 'BLOCK_JOB_COMPLETED' || event === 'BLOCK_JOB_CANCELLED'
    const { data } = await qmp.waitEvent(ended, 120_000, this.since)
    while ((await this.jobs()).length > 0) await sleep(5)
    return data.error as string | undefined
  }

  /** As `end`, of one that is ready: it is told to end, so that what it asks next meets what has happened. */
  async concluded(): Promise<string | undefined> {
    await this.source.qmp.execute('block-job-cancel', { device: JOB }).catch(() => {}) // it may have ended
    return await this.end()
  }

  /** Closes the connection of a job that has ended. */
  async release(): Promise<void> {
    await this.source.qmp.execute('blockdev-del', { 'node-name': TARGET })
  }

  /** Bytes that the job has copied, of all that it knows. */
  async jobs(): Promise<readonly { readonly offset: number; readonly len: number; readonly ready?: boolean }[]> {
    return await this.source.qmp.execute('query-block-jobs')
  }

  /**
   * Moves the guest's memory behind its disk: the guest is stopped, then the mirror is completed, then comes the rest.
   * The destination stays stopped.
   * @returns `still` where the guest ran until then
   */
  async follow(
    destination: QemuGuest,
    uris: { readonly source: string; readonly target: string },
    settings: MigrationSettings = {},
  ): Promise<MigrationStats & { readonly still?: StandStill }> {
    const { source } = this
    const { events } = source.qmp
    const began = events.length
    const capabilities = { 'return-path': true, 'pause-before-switchover': true, ...settings.capabilities }
    await destination.listen(uris.target, { capabilities: { 'return-path': true } })
    await source.startMigration(uris.source, { capabilities, parameters: settings.parameters ?? {} })
    for (let status: string | undefined; status !== 'pre-switchover'; await sleep(5)) {
      const info = await source.migrationInfo()
      status = info.status
      if (status === 'failed' || status === 'cancelled') throw new Error(`migration ${status}: ${info['error-desc']}`)
    }
    const flushed = performance.now()
    await this.complete()
    const mirrored = performance.now()
    await source.qmp.execute('migrate-continue', { state: 'pre-switchover' })
    const stats = await source.waitMigration()
    await destination.waitStatus(['paused', 'prelaunch'])
    const ended = performance.now()
    await destination.qmp.execute('nbd-server-stop')
    const stop = events.slice(began).find(({ event }) => event === 'STOP')
    if (!stop) return stats
    const still = { flushMs: flushed - stop.atMs, mirrorMs: mirrored - flushed, memoryMs: ended - mirrored }
    return { ...stats, still }
  }
}
