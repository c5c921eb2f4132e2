/**
 * The process that runs the program of `--hook` for a proxy. Started by hook.ts with the program's path, and ends when that
 * one does, once what it runs has ended. Programs run without a shell and without arguments, a few at once, those of one
 * migration in their order; one that takes too long is killed with all that it has started.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import type { Readable } from 'node:stream'
import { HOOK_MS_MAX, HOOKS_RUNNING_MAX } from '../limits.ts'

/** One run of the program. */
export interface HookCall {
  /** The event that it is told of. */
  readonly at: string
  readonly migration: string
  readonly environment: Readonly<Record<string, string>>
}

/** It is over. */
export interface HookMessage {
  readonly at: string
  readonly migration: string
  /** Why it came to nothing. */
  readonly error?: string
}

/** Characters of what a program said last on standard error, where it failed. */
const WORDS_MAX = 500

const [program = ''] = process.argv.slice(2)
const waiting: HookCall[] = []
/** Ids of migrations whose program runs. */
const running = new Set<string>()

function next(): void {
  while (running.size < HOOKS_RUNNING_MAX) {
    const at = waiting.findIndex(({ migration }) => !running.has(migration))
    if (at < 0) break
    const [call] = waiting.splice(at, 1)
    run(call!)
  }
  if (running.size === 0 && !process.connected) process.exit()
}

function run(call: HookCall): void {
  const { migration, environment, at } = call
  running.add(migration)
  let isOver = false
  let words = ''
  let timer: NodeJS.Timeout | undefined
  const over = (error?: string): void => {
    if (isOver) return
    isOver = true
    clearTimeout(timer)
    running.delete(migration)
    const message: HookMessage = { at, migration, ...(error !== undefined && { error }) }
    if (process.connected) process.send!(message, () => {})
    next()
  }
  const child = start(environment)
  if (child instanceof Error) {
    setImmediate(over, child.message)
    return
  }
  timer = setTimeout(() => {
    kill(child.pid)
    child.stderr.destroy()
    over(`killed: it ran for ${HOOK_MS_MAX / 1000} s`)
  }, HOOK_MS_MAX)
  child.stderr.setEncoding('utf8').on('data', (text: string) => (words = (words + text).slice(-WORDS_MAX)))
  child.on('error', error => over(error.message))
  // not 'close': what it has left running may keep standard error
  child.on('exit', (status, signal) => {
    kill(child.pid)
    const why = signal ?? `status ${status}`
    const said = words.trim()
    over(status === 0 ? undefined : said === '' ? why : `${why}: ${said}`)
  })
}

/** Some errors Node tells at once: a program that is being written, a system without memory, descriptors or processes. */
function start(environment: HookCall['environment']): ChildProcessByStdio<null, null, Readable> | Error {
  try {
    // a group of its own, so that all of it can be killed
    const child = spawn(program, [], {
      cwd: '/',
      env: { PATH: process.env.PATH ?? '/usr/bin:/bin', ...environment },
      stdio: ['ignore', 'ignore', 'pipe'],
      detached: true,
    })
    if (child.stderr) return child
    child.on('error', () => {})
    return new Error('it cannot be started: too many open files')
  } catch (error) {
    return error as Error
  }
}

/** A program's group, with whatever is left of it. */
function kill(pid: number | undefined): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, 'SIGKILL')
  } catch {
    // nothing is left
  }
}

// a terminal's Ctrl-C comes to all of its processes: a proxy lets migrations end first
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {})
process.on('message', (call: HookCall) => {
  waiting.push(call)
  next()
})
process.on('disconnect', next)
