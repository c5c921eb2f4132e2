/** Programs of the host that scripts need beyond what scripts/setup.sh brings: installed from the distribution by root. */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'

/** Runs a command to its end, its output to ours. @throws Error naming it where it fails. */
export function run(command: string, ...args: string[]): void {
  const { status, error } = spawnSync(command, args, { stdio: ['ignore', 'inherit', 'inherit'] })
  if (error || status !== 0) throw new Error(`${command} ${args[0] ?? ''} failed${error ? `: ${error.message}` : ''}`)
}

/** Is a program in PATH, or where root's programs are? */
export function hasProgram(program: string): boolean {
  const folders = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin']
  return folders.some(folder => existsSync(join(folder, program)))
}

/** Installs the Debian packages of programs that are missing. @throws Error where apt-get fails. */
export function installTools(
  tools: readonly (readonly [program: string, debianPackage: string])[],
  report: (text: string) => void,
): void {
  const packages = tools.filter(([program]) => !hasProgram(program)).map(([, debianPackage]) => debianPackage)
  if (packages.length === 0) return
  report(`installing ${packages.join(' ')}`)
  process.env.DEBIAN_FRONTEND = 'noninteractive'
  run('apt-get', '-q', '-q', 'update')
  run('apt-get', '-q', '-q', '-y', 'install', '--no-install-recommends', ...packages)
}
