/** The guest that libvirt moves: its XML, its serial console, its memory. */
import { closeSync, openSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { type Heartbeat, parseHeartbeat } from '../harness/qemu/heartbeat.ts'
import type { MemorySnapshot } from '../harness/qemu/memory.ts'
import type { LibvirtHost } from './host.ts'

const SERIAL = '/run/pageferry/serial'
/** A QMP socket beside libvirt's own, which serves libvirt alone: for `pageferry doctor`. */
const QMP = '/run/pageferry/qmp'

/** A busybox guest of scripts/harness/guest. */
export interface DomainOptions {
  readonly name: string
  readonly emulator: string
  readonly kernel: string
  readonly initramfs: string
  readonly memoryMb: number
  /** Words of the kernel command line that scripts/harness/guest/init reads. */
  readonly workload: string
}

export class Domain {
  readonly options: DomainOptions

  constructor(options: DomainOptions) {
    this.options = options
  }

  /** Its memory is a file: whoever holds that open can still read it when libvirt has ended the source QEMU. */
  get xml(): string {
    const { name, emulator, kernel, initramfs, memoryMb, workload } = this.options
    return `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>${name}</name>
  <uuid>3c1b2fd0-7d6c-4b86-9a3e-5f0f3a4f1c77</uuid>
  <memory unit='MiB'>${memoryMb}</memory>
  <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
    <kernel>${kernel}</kernel>
    <initrd>${initramfs}</initrd>
    <cmdline>console=ttyS0 quiet no_timer_check ${workload}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>${emulator}</emulator>
    <serial type='unix'><source mode='bind' path='${SERIAL}'/><target port='0'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:${QMP},server=on,wait=off'/>
  </qemu:commandline>
</domain>
`
  }

  static qmpPath(host: LibvirtHost): string {
    return host.path(QMP)
  }

  /** Holds the guest's memory at this host, from address 0 on, also after QEMU has ended. */
  async memory(host: LibvirtHost): Promise<HeldMemory> {
    const id = await host.virsh('domid', this.options.name)
    const path = host.path(`/run/memory/libvirt/qemu/${id}-${this.options.name}/pc.ram`)
    return new HeldMemory(path, this.options.memoryMb << 20)
  }
}

/** Guest memory behind an open file. */
export class HeldMemory implements MemorySnapshot, Disposable {
  readonly path: string
  readonly lengthBytes: number
  private readonly file: number

  constructor(path: string, lengthBytes: number) {
    this.file = openSync(path, 'r')
    this.path = `/proc/self/fd/${this.file}`
    this.lengthBytes = lengthBytes
  }

  [Symbol.dispose](): void {
    closeSync(this.file)
  }
}

/** The guest's serial console at one host. */
export class Console implements Disposable {
  readonly heartbeats: Heartbeat[] = []
  /** All else that it wrote. */
  private text = ''
  private line = ''
  private readonly socket: Socket
  private readonly waiters = new Set<() => void>()

  private constructor(socket: Socket) {
    this.socket = socket
    socket.setEncoding('latin1').on('data', (text: string) => {
      const atMs = performance.now()
      const lines = (this.line + text).split('\n')
      this.line = lines.pop()!
      for (const line of lines) {
        const heartbeat = parseHeartbeat(line, atMs)
        if (heartbeat) this.heartbeats.push(heartbeat)
        else this.text += `${line}\n`
      }
      for (const look of this.waiters) look()
    })
  }

  static async open(host: LibvirtHost): Promise<Console> {
    const socket = connect(host.path(SERIAL))
    await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject))
    socket.on('error', () => {}) // QEMU has ended
    return new Console(socket)
  }

  /** Waits until the guest has booted. Its console is to be open before. */
  async ready(timeoutMs: number): Promise<void> {
    await this.wait(() => /^ready/m.exec(this.text), timeoutMs, 'the guest does not boot')
  }

  /** Types a line and waits for its answer. */
  async ask(line: string, answer: RegExp, timeoutMs = 60_000): Promise<RegExpExecArray> {
    const from = this.text.length
    this.socket.write(`${line}\n`)
    return this.wait(() => answer.exec(this.text.slice(from)), timeoutMs, `no answer to '${line}'`)
  }

  /** Waits until the guest shows so many heartbeats more. */
  async beats(more: number, timeoutMs = 30_000): Promise<void> {
    const want = this.heartbeats.length + more
    await this.wait(() => this.heartbeats.length >= want || null, timeoutMs, 'the guest shows no heartbeat')
  }

  /** MD5 sums that the guest takes of its memory files, but not of the one that it keeps writing. */
  async sums(): Promise<string> {
    const { input, index } = await this.ask('sum', /^sum end$/m, 120_000)
    const lines = input.slice(0, index).match(/^sum \S+ [0-9a-f]{32}$/gm) ?? []
    return lines.filter(line => !line.startsWith('sum busy ')).join('\n')
  }

  /** Has the guest compare what it wrote with what it was to write; it writes on afterwards. */
  async checkBusy(rate: number): Promise<boolean> {
    await this.ask('stop', /^ok stop$/m)
    const [, result] = await this.ask('check', /^check (ok|bad) (\d+)$/m, 120_000)
    await this.ask(`busy ${rate}`, /^ok busy/m)
    return result === 'ok'
  }

  [Symbol.dispose](): void {
    this.socket.destroy()
  }

  private async wait<T>(look: () => T | null, timeoutMs: number, late: string): Promise<T> {
    let wake = () => {}
    let timer: NodeJS.Timeout | undefined
    try {
      return await new Promise<T>((resolve, reject) => {
        wake = () => {
          const value = look()
          if (value !== null) resolve(value)
        }
        timer = setTimeout(
          () => reject(new Error(`${late}; the console ends ${JSON.stringify(this.text.slice(-200))}`)),
          timeoutMs,
        )
        this.waiters.add(wake)
        wake()
      })
    } finally {
      clearTimeout(timer)
      this.waiters.delete(wake)
    }
  }
}
