// The list of captured streams, .cache/lab/streams/manifest.json: written anew after each capture, whole or not at all.

import { createHash } from 'node:crypto'
import { createReadStream, existsSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Migration } from './machine.ts'

/** One captured stream. */
export interface StreamEntry {
  readonly name: string
  /** File in the folder of the manifest. */
  readonly file: string
  readonly bytes: number
  readonly sha256: string
  readonly qemu: string
  /** The command line, with paths below the checkout written from there. */
  readonly command: string
  readonly accel: 'kvm' | 'tcg'
  /** When the base disk was made: streams of one image compare, those of two do not. */
  readonly image: string
  /** Release and package version. */
  readonly kernel: string
  readonly workload: string
  readonly memoryMb: number
  /** 0: not limited. */
  readonly bytesPerSecondMax: number
  /** What the migration took, and how it went. */
  readonly seconds: number
  readonly dirtySyncs: number
  readonly normalPages: number
  readonly zeroPages: number
  readonly downtimeMs: number
  /** The stream captured before this one from the same running guest, or null. */
  readonly after: string | null
  readonly captured: string
}

export class Manifest {
  readonly file: string
  private readonly folder: string
  private entries: StreamEntry[]

  constructor(folder: string) {
    this.folder = folder
    this.file = join(folder, 'manifest.json')
    this.entries = existsSync(this.file) ? (JSON.parse(readFileSync(this.file, 'utf8')).streams as StreamEntry[]) : []
  }

  /** The entries of streams that are there in full length. */
  list(): StreamEntry[] {
    return this.entries.filter(entry => this.get(entry.name) !== undefined)
  }

  /** The entry of a stream, where its file is there in full length. */
  get(name: string): StreamEntry | undefined {
    const entry = this.entries.find(candidate => candidate.name === name)
    const size = entry && statSync(join(this.folder, entry.file), { throwIfNoEntry: false })?.size
    return entry && size === entry.bytes ? entry : undefined
  }

  /** Measures the file of a new stream and writes the manifest. */
  async add(
    entry: Omit<StreamEntry, 'bytes' | 'sha256' | 'captured' | keyof Migration>,
    migration: Migration,
  ): Promise<StreamEntry> {
    const path = join(this.folder, entry.file)
    const hash = createHash('sha256')
    let bytes = 0
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
      hash.update(chunk as Buffer)
      bytes += (chunk as Buffer).length
    }
    const { name, file, ...rest } = entry
    const captured = new Date().toISOString()
    const complete: StreamEntry = { name, file, bytes, sha256: hash.digest('hex'), ...rest, ...migration, captured }
    this.entries = [...this.entries.filter(other => other.name !== entry.name), complete]
    writeFileSync(`${this.file}.new`, `${JSON.stringify({ streams: this.entries }, null, 2)}\n`)
    renameSync(`${this.file}.new`, this.file)
    return complete
  }
}
