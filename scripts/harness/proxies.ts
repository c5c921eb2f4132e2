/** The pair as an operator runs it: two processes of bin/pageferry, mutually authenticated TLS between them. */
import { type ChildProcess, execFile } from 'node:child_process'
import { cpSync, linkSync, mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { DiskDepartureSummary, MigrationSummary } from '../../src/migration/summary.ts'
import { claimPort } from './claimed-port.ts'
import { endChild } from './qemu/cleanup.ts'
import { hear } from './told.ts'
import type { SiteName, Wan } from './wan/open.ts'

const run = promisify(execFile)
const program = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))
const START_MS = 60_000
/** A set of a gigabyte takes minutes to write where the disk is busy. */
const COMMAND_MS = 900_000

/** Runs `pageferry ARGS` to its end. @returns its stdout @throws Error with what it said */
export async function pageferry(...args: string[]): Promise<string> {
  try {
    return (await run(program, args, { timeout: COMMAND_MS })).stdout
  } catch (error) {
    throw new Error(`pageferry ${args[0]}: ${(error as { stderr?: string }).stderr || (error as Error).message}`)
  }
}

/** How the pair is to run, beyond its defaults. */
export interface ProxiesOptions {
  /** Default x509. */
  readonly tls?: 'x509' | 'psk'
  /** Carry disks too: see diskNear and diskFar. */
  readonly disks?: boolean
  /** More arguments for both proxies, and for one of them alone. */
  readonly both?: readonly string[]
  readonly source?: readonly string[]
  readonly destination?: readonly string[]
}

/** A store of its own with the same sets: by links where that can be, since nobody writes to a set and an image has gigabytes. */
function shareStore(store: string, folder: string): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  for (const name of readdirSync(store)) {
    const [from, to] = [join(store, name), join(folder, name)]
    try {
      if (!name.endsWith('.pfset')) throw new Error('may be written to')
      linkSync(from, to)
    } catch {
      cpSync(from, to, { recursive: true, preserveTimestamps: true })
    }
  }
}

/** Both proxies, running. */
export class Proxies implements AsyncDisposable {
  /** Where the source QEMU migrates to. */
  readonly sourceUri: string
  /** Where the destination QEMU listens. */
  readonly targetUri: string
  /** Unix sockets: where a client of disks connects, and where its server listens. */
  readonly diskNear: string
  readonly diskFar: string
  readonly summaries: MigrationSummary[] = []
  readonly disks: Omit<DiskDepartureSummary, 'level'>[] = []
  private readonly children = new Map<SiteName, ChildProcess>()
  private said = ''
  private isOpen = false
  /** Template sets of the session that the source proxy has, in memory or on its disk. */
  private sets = 0

  private constructor(folder: string, sourceUri: string, targetUri: string) {
    this.diskNear = join(folder, 'disk-near')
    this.diskFar = join(folder, 'disk-far')
    this.sourceUri = sourceUri
    this.targetUri = targetUri
  }

  /**
   * Makes credentials in `folder`, gives each site a store with the same sets, since proxies learn into theirs, and starts
   * both.
   * @param store undefined: no templates
   */
  static async start(
    wan: Wan,
    folder: string,
    store: string | undefined,
    options: ProxiesOptions = {},
  ): Promise<Proxies> {
    const names = { source: 'source.example', destination: 'destination.example' }
    const keys = join(folder, 'keys')
    const sites = ['--name', names.source, '--peer-name', names.destination]
    await pageferry('keygen', options.tls ?? 'x509', '--dir', keys, ...sites)
    const pair = new Proxies(folder, `tcp:127.0.0.1:${await claimPort()}`, `tcp:127.0.0.1:${await claimPort()}`)
    const storeOf = (site: SiteName): string => join(folder, 'stores', site)
    // before either is started: a link changes what tells a set's file from another, and it would be read again
    if (store !== undefined) for (const site of ['source', 'destination'] as const) shareStore(store, storeOf(site))
    const settings = (site: SiteName) => {
      const peerName = names[site === 'source' ? 'destination' : 'source']
      return [
        ...['--tls-creds', join(keys, names[site]), ...(options.tls === 'psk' ? [] : ['--peer-name', peerName])],
        ...(store === undefined ? [] : ['--store', storeOf(site)]),
        ...(options.disks ? ['--disks', `unix:${site === 'source' ? pair.diskNear : pair.diskFar}`] : []),
        ...(options.both ?? []),
      ]
    }
    try {
      const wanPort = await claimPort()
      const destination = ['--listen', `tcp:${wan.listenHost}:${wanPort}`, '--target', pair.targetUri]
      await pair.launch(wan, 'destination', [
        ...destination,
        ...settings('destination'),
        ...(options.destination ?? []),
      ])
      const peer = await wan.reach(wanPort)
      const source = ['--listen', pair.sourceUri, '--peer', `${peer.host}:${peer.port}`, ...settings('source')]
      await pair.launch(wan, 'source', [...source, ...(options.source ?? [])])
      return pair
    } catch (error) {
      await pair[Symbol.asyncDispose]()
      throw error
    }
  }

  /** Process id of each. */
  get pids(): Readonly<Record<SiteName, number>> {
    return { source: this.children.get('source')!.pid!, destination: this.children.get('destination')!.pid! }
  }

  /**
   * Waits until both have agreed on what both hold: a migration then starts at once.
   * @param sets that are to be among that: a large one may be too late for the first session
   */
  async ready(timeoutMs = START_MS, sets = 0): Promise<void> {
    const end = performance.now() + timeoutMs
    while (!this.isOpen || this.sets < sets) {
      if (performance.now() > end) throw new Error(`the proxies do not find each other: ${this.log}`)
      await new Promise(done => setTimeout(done, 20))
    }
  }

  /** What the source proxy says of the migration that has just ended. */
  async summary(): Promise<MigrationSummary | undefined> {
    for (let i = 0; i < 100 && this.summaries.length === 0; i++) await new Promise(done => setTimeout(done, 50))
    return this.summaries.shift()
  }

  /** What it says of the disk that has just left. */
  async disk(): Promise<Omit<DiskDepartureSummary, 'level'> | undefined> {
    for (let i = 0; i < 100 && this.disks.length === 0; i++) await new Promise(done => setTimeout(done, 50))
    return this.disks.shift()
  }

  /** The last lines of both logs, for when something went wrong. */
  get log(): string {
    return this.said.split('\n').slice(-12).join('\n')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.children.values()) await endChild(child)
    this.children.clear()
  }

  private async launch(wan: Wan, site: SiteName, args: string[]): Promise<void> {
    const child = wan.spawn(site, [program, site, '--json', ...args])
    this.children.set(site, child)
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.said += text
    })
    await new Promise<void>((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`the ${site} proxy does not start: ${this.log}`)), START_MS)
      child.once('error', reject)
      child.once('exit', code => reject(new Error(`the ${site} proxy ended with ${code}: ${this.log}`)))
      hear(child, ({ event, fields, level }, line) => {
        this.said += `${site}: ${line}\n`
        if (event === 'session open') {
          this.isOpen = true
          if (site === 'source') this.sets = fields.sets.length + (fields.cold?.length ?? 0)
        }
        if (event === 'migration ended' && 'bytesWan' in fields)
          this.summaries.push({ ...fields, level: level as 'info' })
        if (event === 'disk transfer ended' && 'bytesWan' in fields) this.disks.push(fields)
        if (event !== 'listening for QEMU' && event !== 'listening for source proxies') return
        clearTimeout(late)
        resolve()
      })
    })
  }
}
