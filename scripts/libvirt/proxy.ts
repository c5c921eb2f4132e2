/** A process of bin/pageferry at one site, and what it says of its migrations. */
import type { ChildProcess } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { DiskDepartureSummary, MigrationSummary } from '../../src/migration/summary.ts'
import { endChild } from '../harness/qemu/cleanup.ts'
import { hear, type Told } from '../harness/told.ts'
import type { Site } from '../harness/wan/packet-link.ts'

/** The program as an operator runs it. */
export const PAGEFERRY = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))
const START_MS = 60_000

/** A disk that left through it. */
export type DiskTransfer = Pick<DiskDepartureSummary, 'bytesIn' | 'bytesWan' | 'endedBy'>

export class ProxyProcess implements AsyncDisposable {
  /** Of the migrations that left through it. */
  private readonly summaries: MigrationSummary[] = []
  private readonly disks: DiskTransfer[] = []
  private readonly child: ChildProcess
  private said = ''

  private constructor(site: Site, args: readonly string[]) {
    this.child = site.spawn([PAGEFERRY, ...args, '--json'], { stdio: ['ignore', 'pipe', 'pipe'] })
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.said += text
    })
  }

  /** Starts `pageferry ARGS` and waits until it is connected to the other proxy, when it is to be. */
  static async start(
    site: Site,
    args: readonly string[],
    until: Told['event'] = 'session open',
  ): Promise<ProxyProcess> {
    const proxy = new ProxyProcess(site, args)
    const { child } = proxy
    await new Promise<void>((resolve, reject) => {
      const fail = (what: string) => reject(new Error(`pageferry ${args[0]} ${what}: ${proxy.log}`))
      const late = setTimeout(() => fail('does not start'), START_MS)
      child.once('error', reject)
      child.once('exit', code => fail(`ended with ${code}`))
      hear(child, ({ event, fields, level }, line) => {
        proxy.said += `${line}\n`
        if (event === 'migration ended' && 'bytesWan' in fields)
          proxy.summaries.push({ ...fields, level: level as 'info' })
        if (event === 'disk transfer ended' && 'bytesWan' in fields) proxy.disks.push(fields)
        if (event !== until) return
        clearTimeout(late)
        resolve()
      })
    })
    return proxy
  }

  /** What it says of the migration that has just ended. */
  async summary(): Promise<MigrationSummary | undefined> {
    for (let i = 0; i < 40 && this.summaries.length === 0; i++) await sleep(50)
    return this.summaries.shift()
  }

  /** What it says of the disk that has just left through it. */
  async disk(): Promise<DiskTransfer | undefined> {
    for (let i = 0; i < 40 && this.disks.length === 0; i++) await sleep(50)
    return this.disks.shift()
  }

  /** Its last lines. */
  get log(): string {
    return this.said
      .trim()
      .split('\n')
      .slice(-4)
      .map(line => line.slice(0, 300))
      .join('\n')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endChild(this.child)
  }
}
