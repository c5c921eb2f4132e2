/** The disk that moves with the guest: its image at either host, and what is written to it meanwhile. */
import { execFile } from 'node:child_process'
import { statSync } from 'node:fs'
import { promisify } from 'node:util'
import type { LibvirtHost } from './host.ts'

const run = promisify(execFile)
const MIB = 1 << 20
const BYTES = 32 * MIB
/** Pieces of this program's code, and where they go; the rest are holes. */
const CONTENT = [
  { from: 40, count: 8, to: 0 },
  { from: 48, count: 6, to: 18 },
] as const
const BASE = '/run/images/base.img'
/** The device, as QEMU calls one that libvirt made. */
const DEVICE = '/machine/peripheral/virtio-disk0/virtio-backend'
/** Migrations that do not run. */
const IDLE = /^(none|completed|cancelled|failed)$/

/** Raw and sparse; or what was written on top of an image that both hosts have. */
export type DiskKind = 'raw' | 'overlay'

export class Disk {
  readonly kind: DiskKind
  private writes = 0

  constructor(kind: DiskKind) {
    this.kind = kind
  }

  /** To attach to a domain. With these settings of the driver zeroes stay holes: QEMU 10 fills them in without. */
  get xml(): string {
    const type = this.kind === 'raw' ? 'raw' : 'qcow2'
    return `<disk type='file' device='disk'>
  <driver name='qemu' type='${type}' discard='unmap' detect_zeroes='unmap'/><source file='${this.inside}'/><target dev='vda' bus='virtio'/>
</disk>
`
  }

  /** Makes the image with all that is in it. */
  async fill(host: LibvirtHost): Promise<void> {
    await this.empty(host)
    if (this.kind === 'raw') return put(host.path(this.inside))
    // What the base does not have: text, some of its code elsewhere, and zeroes in place of it.
    const commands = ['write -P 0x17 10M 64k', 'write -P 0x2a 1M 300k', 'write -z 4M 256k']
    await host.execute('qemu-io', ...commands.flatMap(command => ['-c', command]), this.inside)
  }

  /** The image as a host has it to whom nothing was copied. */
  async empty(host: LibvirtHost): Promise<void> {
    await host.execute('rm', '-f', this.inside, BASE)
    if (this.kind === 'raw') return host.execute('truncate', '-s', `${BYTES}`, this.inside)
    await host.execute('truncate', '-s', `${BYTES}`, BASE)
    await put(host.path(BASE))
    await host.execute('qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', BASE, this.inside)
  }

  /**
   * Writes here and there, as the guest would, while the disk is mirrored and until its memory begins to move: behind the
   * end of the mirror QEMU's monitor would write where no guest can.
   * @returns how often it did
   */
  async write(host: LibvirtHost, domain: string, ended: () => boolean): Promise<number> {
    let written = 0
    while (!ended()) {
      try {
        const { status = 'none' } = await host.qmp<{ status?: string }>(domain, 'query-migrate')
        const jobs = await host.qmp<readonly unknown[]>(domain, 'query-block-jobs')
        if (!IDLE.test(status)) break
        if (jobs.length === 0) continue
        const number = this.writes++
        const at = (number * 7919 * 512) % (BYTES - 65536)
        const command = `write -P ${1 + (number % 250)} ${at} ${number % 3 === 0 ? 65536 : 512}`
        const said = await host.virsh('qemu-monitor-command', domain, '--hmp', `qemu-io -d ${DEVICE} "${command}"`)
        // It says nothing, or what is wrong.
        if (/error|failed|not found/i.test(said)) throw new Error(`qemu-io: ${said}`)
        written++
      } catch (error) {
        if (ended()) break
        throw error
      }
    }
    return written
  }

  /** @throws Error where the images are not equal, block for block */
  async compare(left: LibvirtHost, right: LibvirtHost): Promise<void> {
    const flat = `${this.inside}.flat`
    for (const host of [left, right]) {
      await host.execute('qemu-img', 'convert', '-U', '-f', this.kind === 'raw' ? 'raw' : 'qcow2', this.inside, flat)
    }
    await run('cmp', [left.path(flat), right.path(flat)])
    for (const host of [left, right]) await host.execute('rm', flat)
  }

  /** Bytes that the image takes at a host. */
  allocated(host: LibvirtHost): number {
    return statSync(host.path(this.inside)).blocks * 512
  }

  private get inside(): string {
    return `/run/images/guest-${this.kind}.img`
  }
}

async function put(path: string): Promise<void> {
  for (const { from, count, to } of CONTENT) {
    const options = [`if=${process.execPath}`, `of=${path}`, 'bs=1M', 'conv=notrunc,sparse', 'status=none']
    await run('dd', [...options, `skip=${from}`, `count=${count}`, `seek=${to}`])
  }
}
