/** Where and when something was measured, as each file in docs/measured says it. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, renameSync, writeFileSync } from 'node:fs'
import { cpus, loadavg } from 'node:os'
import { dirname } from 'node:path'
import { root } from './lab-streams.ts'

export interface Provenance {
  readonly format: 1
  readonly startedAt: string
  readonly commit: string
  /** What to type to get such a file again. */
  readonly command: string
  readonly machine: { readonly cpu: string; readonly cores: number; readonly loadAverage: number }
  readonly node: string
}

/** To be asked before anything is measured: the load is the machine's own then. */
export function provenance(command: string): Provenance {
  return {
    format: 1,
    startedAt: new Date().toISOString(),
    commit: commitOf(root),
    command,
    machine: { cpu: cpus()[0]!.model, cores: cpus().length, loadAverage: Math.round(loadavg()[0]! * 100) / 100 },
    node: process.versions.node,
  }
}

export function commitOf(checkout: string): string {
  return execFileSync('git', ['-C', checkout, 'rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim()
}

/** Whole or not at all: a measurement that is ended leaves what it had kept before. */
export function keepJson(path: string, value: object): void {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(`${path}.part`, `${JSON.stringify(value, null, 1)}\n`)
  renameSync(`${path}.part`, path)
}
