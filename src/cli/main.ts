/** The command `pageferry`: reads arguments, calls one function, prints, sets the exit status. */
import { VERSION } from '../daemon/version.ts'
import { ProxyError } from '../errors.ts'
import { COMMANDS, commandsFor } from './commands.ts'
import { giveDashes, keepDashes } from './dash.ts'
import { startThreadsEarly } from './early-threads.ts'
import { fail } from './failure.ts'
import { printLines } from './output.ts'

const EPILOGUE = `First real use: docs are in README.md; every option and exit status in docs/operations.md.

A pair for one guest:
  pageferry destination --listen tcp:192.0.2.7:9444 --target tcp:127.0.0.1:4444 --store DIR --tls-creds DIR
  pageferry source --listen tcp:127.0.0.1:4444 --peer 192.0.2.7:9444 --store DIR --tls-creds DIR
  (qemu) migrate tcp:127.0.0.1:4444`

/**
 * yargs makes a list of an option that is given twice, which commands do not expect of one that has one value.
 * @param options what yargs knows of them
 * @throws ProxyError USAGE
 */
function requireOnce(args: Record<string, unknown>, options: unknown): true {
  const { string, number, array, choices } = options as Record<'string' | 'number' | 'array', readonly string[]> & {
    readonly choices: object
  }
  const name = [...string, ...number, ...Object.keys(choices)].find(
    one => Array.isArray(args[one]) && !array.includes(one),
  )
  if (name === undefined) return true
  throw new ProxyError('USAGE', `--${name} is given twice`, undefined, 'say it once: it has one value')
}

/** Options of one of the two proxies that belong to what both do. */
const OF_ONE_SIDE: Readonly<Record<string, string>> = {
  ...{ 'disk-answers': 'source', shares: 'source', rate: 'source', 'rate-schedule': 'source', 'time-zone': 'source' },
  ...{ 'disk-zeroes': 'destination', target: 'destination' },
}

/** @param what yargs says. @param args the command line */
function usageError(what: string, [first = '', second = '-']: readonly string[]): ProxyError {
  const usage = (error: string, hint: string): ProxyError => new ProxyError('USAGE', error, undefined, hint)
  const entry = COMMANDS.find(it => it.command.split(' ')[0] === first)
  if (entry === undefined) return usage(what, '`pageferry --help` and `pageferry COMMAND --help` tell more')
  let command = `pageferry ${first}`
  if (entry.commands?.includes(second)) command += ` ${second}`
  else if (entry.commands !== undefined && !second.startsWith('-')) {
    const error = what.startsWith('Did you mean') ? what : `no command: \`${command} ${second}\``
    return usage(error, `\`${command} --help\` lists them`)
  }
  if (what.startsWith('Not enough non-option arguments'))
    return usage(`an argument is missing behind \`${command}\``, `\`${command} --help\` tells which`)
  const [, option = ''] = /^Unknown arguments?: ([\w-]+)/.exec(what) ?? []
  const isProxy = first === 'source' || first === 'destination'
  if (isProxy && Object.hasOwn(OF_ONE_SIDE, option))
    return usage(what, `it is an option of \`pageferry ${OF_ONE_SIDE[option]}\``)
  return usage(what, `\`${command} --help\` tells more`)
}

async function run(): Promise<void> {
  const args = keepDashes(process.argv.slice(2))
  if (args.includes('--version') && args.includes('--json')) {
    const { about } = await import('../daemon/about.ts')
    return printLines(JSON.stringify(about(), null, 2))
  }
  if (args[0] === 'dashboard') {
    const { plainArguments, runDashboard } = await import('./dashboard-command.ts')
    const plain = plainArguments(args.slice(1))
    if (plain) return await runDashboard(plain)
  }
  startThreadsEarly(args)
  const { default: yargs } = await import('yargs')
  const parser = yargs(args)
    .middleware(giveDashes, true)
    .scriptName('pageferry')
    .usage(
      '$0 COMMAND\n\nMoves virtual machines between sites: pages that the other site already holds cross as references.',
    )
    .command(await commandsFor(args))
    .demandCommand(1, 'a command is missing')
    .recommendCommands()
    .strict()
    .check(requireOnce, true)
    .wrap(Math.min(120, process.stdout.columns ?? 100))
    .version('version', 'Show the version; with --json also Node, codecs, kernel, protocol', VERSION)
    .alias('h', 'help')
    .epilogue(EPILOGUE)
    .exitProcess(false)
    .fail((message, error) => {
      // yargs throws its own for some mistakes in the arguments; ours come from handlers
      if (error && error.name !== 'YError') throw error
      const what = (message ?? error.message).trim().replaceAll(/\s*\n\s*/g, ' ')
      throw usageError(what, args)
    })
  await parser.parseAsync()
}

// The reader of a pipe has enough (`| head`): a good end. A disk that is full is not.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') {
    const what = `standard output cannot be written: ${error.message}`
    process.exitCode = fail(new ProxyError('IO', what, undefined, 'make room, or write elsewhere', { cause: error }))
  }
  process.exit()
})
process.stderr.on('error', () => {}) // nobody is left who could be told; the exit status tells

run().then(
  () => {
    // commands that go on (proxies) set the exit status when they end
  },
  error => {
    const status = fail(error)
    process.exitCode ??= status // a command that was interrupted has set 130
  },
)
