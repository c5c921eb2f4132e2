/** The pair as an operator runs it: two processes of bin/pageferry, mutually authenticated TLS between them. */
import { type ChildProcess, execFile } from 'node:child_process'
import { cpSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { MigrationSummary } from '../../src/daemon/migration-summary.ts'
import { endChild } from '../qemu/cleanup.ts'
import type { SiteName, Wan } from './wan.ts'
import { freePort } from './wan.ts'

const run = promisify(execFile)
const program = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))
const START_MS = 60_000

/** Runs `pageferry ARGS` to its end. @returns its stdout @throws Error with what it said */
export async function pageferry(...args: string[]): Promise<string> {
  try {
    return (await run(program, args, { timeout: 180_000 })).stdout
  } catch (error) {
    throw new Error(`pageferry ${args[0]}: ${(error as { stderr?: string }).stderr || (error as Error).message}`)
  }
}

/** Both proxies, running. */
export class Proxies implements AsyncDisposable {
  /** Where the source QEMU migrates to. */
  readonly sourceUri: string
  /** Where the destination QEMU listens. */
  readonly targetUri: string
  readonly summaries: MigrationSummary[] = []
  private readonly children: ChildProcess[] = []
  private said = ''

  private constructor(sourceUri: string, targetUri: string) {
    this.sourceUri = sourceUri
    this.targetUri = targetUri
  }

  /** Makes credentials in `folder`, copies the store for the other site, and starts both proxies. */
  static async start(wan: Wan, folder: string, store: string): Promise<Proxies> {
    const [source, destination] = ['source.example', 'destination.example'] as const
    const keys = join(folder, 'keys')
    await pageferry('keygen', 'x509', '--dir', keys, '--name', source, '--peer-name', destination)
    const farStore = join(folder, 'destination-store')
    cpSync(store, farStore, { recursive: true })

    const pair = new Proxies(`tcp:127.0.0.1:${await freePort()}`, `tcp:127.0.0.1:${await freePort()}`)
    try {
      const wanPort = await freePort()
      await pair.launch(wan, 'destination', [
        ...['--listen', `tcp:${wan.listenHost}:${wanPort}`, '--target', pair.targetUri, '--store', farStore],
        ...['--tls-creds', join(keys, destination), '--peer-name', source],
      ])
      const peer = await wan.reach(wanPort)
      await pair.launch(wan, 'source', [
        ...['--listen', pair.sourceUri, '--peer', `${peer.host}:${peer.port}`, '--store', store],
        ...['--tls-creds', join(keys, source), '--peer-name', destination],
      ])
      return pair
    } catch (error) {
      await pair[Symbol.asyncDispose]()
      throw error
    }
  }

  /** What the source proxy says of the migration that has just ended. */
  async summary(): Promise<MigrationSummary | undefined> {
    for (let i = 0; i < 100 && this.summaries.length === 0; i++) await new Promise(done => setTimeout(done, 50))
    return this.summaries.shift()
  }

  /** The last lines of both logs, for when something went wrong. */
  get log(): string {
    return this.said.split('\n').slice(-12).join('\n')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.children.splice(0)) await endChild(child)
  }

  private async launch(wan: Wan, site: SiteName, args: string[]): Promise<void> {
    const child = wan.spawn(site, [program, site, '--json', ...args])
    this.children.push(child)
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.said += text
    })
    await new Promise<void>((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`the ${site} proxy does not start: ${this.log}`)), START_MS)
      child.once('error', reject)
      child.once('exit', code => reject(new Error(`the ${site} proxy ended with ${code}: ${this.log}`)))
      createInterface({ input: child.stdout! }).on('line', line => {
        this.said += `${site}: ${line}\n`
        const { msg, ...fields } = JSON.parse(line) as { msg: string }
        if (msg === 'migration ended' && site === 'source') this.summaries.push(fields as never)
        if (!msg.startsWith('listening for')) return
        clearTimeout(late)
        resolve()
      })
    })
  }
}
