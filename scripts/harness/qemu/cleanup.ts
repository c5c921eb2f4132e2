/**
 * What must not outlive this process: child processes, network namespaces, temporary folders. Each is undone once, by
 * its owner or, at the latest, when this process exits, also by an uncaught error, SIGINT, SIGTERM or SIGHUP.
 */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Undoes one thing, at once and without an event loop. */
export type Undo = () => void

const undos = new Set<Undo>()
let watching = false

function undoAll(): void {
  for (const undo of [...undos].reverse()) {
    try {
      undo()
    } catch (error) {
      console.error(`cleanup: ${(error as Error).message}`)
    }
  }
}

function watch(): void {
  if (watching) return
  watching = true
  process.on('exit', undoAll)
  for (const [signal, number] of [
    ['SIGHUP', 1],
    ['SIGINT', 2],
    ['SIGTERM', 15],
  ] as const) {
    process.on(signal, () => {
      // A program with a handler of its own ends itself when it is ready; its exit runs undoAll then.
      if (process.listenerCount(signal) === 1) process.exit(128 + number)
    })
  }
}

/**
 * Has `undo` run when this process exits. What was registered last runs first.
 * @returns a function that runs `undo` now, unless it has run
 */
export function atExit(undo: Undo): Undo {
  watch()
  const once = () => {
    if (undos.delete(once)) undo()
  }
  undos.add(once)
  return once
}

/**
 * A new folder below os.tmpdir(), its name beginning with `pageferry-` and `name`, and the function that removes it.
 */
export function temporaryFolder(name: string): { readonly path: string; readonly remove: Undo } {
  // The path of a unix socket holds 107 bytes: a deep TMPDIR would leave no room for names.
  const base = tmpdir().length < 60 ? tmpdir() : '/tmp'
  const path = mkdtempSync(join(base, `pageferry-${name}-`))
  return { path, remove: atExit(() => rmSync(path, { recursive: true, force: true })) }
}

const setpriv = ['/usr/bin/setpriv', '/bin/setpriv'].find(path => existsSync(path))

/**
 * A child process that ends when this one does, even by SIGKILL where util-linux's setpriv is there.
 * @param command program and arguments; a program that forks must take its children along by itself
 */
export function spawnOwned(command: readonly string[], options: SpawnOptions = {}): ChildProcess {
  const [program, ...args] = setpriv ? [setpriv, '--pdeathsig', 'KILL', ...command] : command
  const child = spawn(program!, args, options)
  const kill = atExit(() => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
  })
  child.once('exit', kill)
  child.once('error', kill)
  return child
}

/** Ends a child by SIGTERM, after `graceMs` by SIGKILL, and waits until it is gone. */
export async function endChild(child: ChildProcess, graceMs = 3000): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise<void>(resolve => child.once('exit', () => resolve()))
  child.kill('SIGTERM')
  const timer = setTimeout(() => child.kill('SIGKILL'), graceMs)
  await gone
  clearTimeout(timer)
}
