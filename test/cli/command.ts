/** Runs the real `bin/pageferry`, as an operator does. */
import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

export const PAGEFERRY = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))

/** Longer than any command here may take, on the slowest machine: a command that hangs ends as `hung`. */
const PATIENCE_MS = 90_000
/** A command that says more than this has lost its way. */
const OUTPUT_CHARS_MAX = 4 << 20

export interface CommandOptions {
  readonly cwd: string
  /** Bytes on standard input; else there is none. */
  readonly input?: string | Uint8Array | undefined
  /** Descriptor for standard output or error, or `closed`: the other end of a pipe that nobody reads any more. */
  readonly stdout?: number | 'closed' | undefined
  readonly stderr?: number | 'closed' | undefined
  readonly env?: Readonly<Record<string, string>> | undefined
  readonly uid?: number | undefined
  /** As systemd starts it: LISTEN_PID is its own process id. */
  readonly activated?: boolean | undefined
  /** What to do with a command that goes on, as soon as its output so far matches. */
  readonly when?: readonly (readonly [pattern: RegExp, act: (command: ChildProcess) => void])[] | undefined
}

export interface Outcome {
  /** Exit status, the name of the signal that ended it, or `hung`. */
  readonly status: number | string
  readonly stdout: string
  readonly stderr: string
  readonly seconds: number
}

/** Runs a command to its end. */
export async function run(args: readonly string[], options: CommandOptions): Promise<Outcome> {
  const { cwd, input, stdout, stderr, env, uid, activated = false, when = [] } = options
  const startMs = performance.now()
  const pipes: StdioOptions = [
    input === undefined ? 'ignore' : 'pipe',
    typeof stdout === 'number' ? stdout : 'pipe',
    typeof stderr === 'number' ? stderr : 'pipe',
  ]
  // tap has every Node that is spawned write down that it ran, by NODE_OPTIONS, where another user may not write
  const command = spawn(
    'sh',
    ['-c', `${activated ? 'export LISTEN_PID=$$; ' : ''}unset NODE_OPTIONS; exec "$0" "$@"`, PAGEFERRY, ...args],
    {
      cwd,
      stdio: pipes,
      env: { ...process.env, ...env },
      ...(uid === undefined ? {} : { uid, gid: uid }),
    },
  )
  const said = { stdout: '', stderr: '' }
  let next = 0
  let hung = false
  const end = (): void => {
    hung = true
    command.kill('SIGKILL')
  }
  const timer = setTimeout(end, PATIENCE_MS)
  for (const name of ['stdout', 'stderr'] as const) {
    const stream = command[name]
    if (!stream) continue
    if (options[name] === 'closed') {
      stream.destroy()
      continue
    }
    stream.setEncoding('utf8').on('data', (text: string) => {
      said[name] += text
      if (said[name].length > OUTPUT_CHARS_MAX) end()
      while (next < when.length && when[next]![0].test(said.stdout + said.stderr)) when[next++]![1](command)
    })
  }
  command.stdin?.on('error', () => {}) // it need not read all
  command.stdin?.end(input)
  const [code, signal] = (await once(command, 'close')) as [number | null, NodeJS.Signals | null]
  clearTimeout(timer)
  return {
    status: hung ? 'hung' : (code ?? signal!),
    ...said,
    seconds: Math.round(performance.now() - startMs) / 1000,
  }
}
