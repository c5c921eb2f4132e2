/**
 * Every option of every command that takes a number, a size, a rate or a time refuses what is none: by name, as a mistake
 * in the arguments, before anything is done. Which options these are is read out of the commands' own help, so that one
 * that is added is asked about, too.
 */
import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import yargs from 'yargs'
import { readHelp } from '../../scripts/package/help.ts'
import { COMMANDS, commandsFor } from '../../src/cli/commands.ts'
import { isProxyError } from '../../src/errors.ts'
import { PAGEFERRY } from './command.ts'

t.setTimeout(590_000) // the machine may be busy

const folder = mkdtempSync(join(tmpdir(), 'pageferry-numbers-'))
t.teardown(() => rmSync(folder, { recursive: true, force: true }))
const stream = join(folder, 'a.zst')
copyFileSync(fileURLToPath(new URL('../vectors/qemu/streams/7.2-no-footers.0-main.zst', import.meta.url)), stream)
mkdirSync(join(folder, 'store'))
execFileSync(PAGEFERRY, ['store', 'key', join(folder, 'key')])
const at = (name: string): string => join(folder, name)
const STORE = ['--store', at('store')]
const SUPPLY = [...STORE, '--store', `file://${at('store')}`, '--channel', 'a', '--trust', at('key.pub')]
const PROXY = ['--plaintext', ...SUPPLY]

/** What else each command is given, so that nothing but the number is wrong. */
const BESIDE: Readonly<Record<string, readonly string[]>> = {
  source: [...PROXY, '--peer', 'fra:1', '--check'],
  destination: [...PROXY, '--listen', 'tcp:127.0.0.1:0', '--target', 'tcp:127.0.0.1:1', '--check'],
  'template build': [stream, ...STORE],
  'template count': [stream, '-o', at('counts')],
  'template choose': [stream, '-o', at('choice')],
  'store prune': STORE,
  'store sync': SUPPLY,
  'store promote': ['a', 'abcd', '--store', `file://${at('store')}`, '--key', at('key')],
  'store rollback': ['a', '--store', `file://${at('store')}`, '--key', at('key')],
  encode: [stream, '-o', at('encoded')],
  decode: [at('encoded'), '-o', at('decoded')],
  estimate: [stream],
  keygen: ['x509', '--dir', at('keys')],
  check: ['--peer', '127.0.0.1:1', '--plaintext', '--throughput'],
  migrate: ['--qmp', at('none'), '--to', 'tcp:127.0.0.1:1', '--auto-converge'],
  doctor: ['--qmp', at('none')],
}

/** Options by name that take a quantity ... */
const QUANTITIES = new Set([
  ...[
    'store-size',
    'learn-size',
    'learn-age',
    'pool-memory',
    'set-memory',
    'keep-blocks',
    'queue-target',
    'patience',
    'rehearsal',
  ],
  ...[
    'patience-postcopy',
    'effort',
    'threads',
    'connections',
    'rate',
    'sessions-max',
    'min-vms',
    'max-size',
    'memory',
    'grace',
  ],
  ...['max-age', 'max-unused', 'expires', 'serial', 'days', 'max-bandwidth', 'downtime-limit', 'timeout', 'shares'],
  ...['postcopy-after', 'throttle-initial', 'throttle-increment', 'throttle-max', 'rate-schedule', 'socket-mode'],
])
/** ... and those that take something else. */
const OTHERS = new Set([
  ...['store', 'store-key', 'channel', 'trust', 'signers', 'learn', 'tls-creds', 'peer-name', 'control', 'metrics'],
  ...['history', 'log-level', 'hook', 'listen', 'disks', 'peer', 'socket-group', 'tls-server-name', 'rate-file'],
  ...['time-zone', 'target', 'config', 'as', 'snapshot', 'choice', 'key', 'output', 'spill', 'vm', 'prefer'],
  ...['by', 'at', 'to', 'set', 'dir', 'name', 'username', 'qmp', 'far-qmp', 'incoming', 'keep', 'disk-answers'],
  ...['disk-zeroes', 'mirror'],
])
/** Of one command alone: the same name is something else elsewhere. */
const HERE: Readonly<Record<string, boolean>> = {
  'encode channel': true,
  'estimate channel': true,
  'store promote overlap': true,
  'store rollback overlap': true,
  'store rollback to': true,
  'template inspect overlap': false,
  'template inspect summary': false,
}

/** Runs a command in this process. @returns what it threw, if anything, and what it said on standard error */
async function outcomeOf(words: readonly string[]): Promise<{ readonly error: unknown; readonly said: string }> {
  const { stderr } = process
  const { write } = stderr
  let said = ''
  Object.assign(stderr, { write: (text: string) => (said += text) })
  try {
    await yargs(words)
      .command(await commandsFor(words))
      .strict()
      .exitProcess(false)
      .fail((message, error) => {
        throw error ?? new Error(message)
      })
      .parseAsync()
    return { error: undefined, said }
  } catch (error) {
    return { error, said }
  } finally {
    Object.assign(stderr, { write })
  }
}

/** A command's help, as it is printed on a terminal that is wide enough. */
async function helpOf(words: readonly string[]): Promise<ReturnType<typeof readHelp>> {
  const modules = await commandsFor(words)
  const help = await new Promise<string>(done => {
    void yargs([...words, '--help'])
      .scriptName('pageferry')
      .command(modules)
      .wrap(null)
      .exitProcess(false)
      .parse([...words, '--help'], (_error: unknown, _args: unknown, output: string) => done(output))
  })
  return readHelp(words, help)
}

/** Every command that can be run, with its options that take a value. */
async function commands(): Promise<{ readonly words: readonly string[]; readonly options: readonly string[] }[]> {
  const found: { words: readonly string[]; options: readonly string[] }[] = []
  const look = async (words: readonly string[]): Promise<void> => {
    const help = await helpOf(words)
    for (const { name } of help.commands) await look([...words, name])
    if (help.commands.length > 0) return
    const options = help.options.filter(({ value, flags }) => value !== '' && flags[0]!.startsWith('--'))
    found.push({ words, options: options.map(({ flags }) => flags[0]!.slice(2)) })
  }
  for (const { command } of COMMANDS) await look([command.split(' ')[0]!])
  return found
}

t.test('what is no number is refused', async t => {
  let count = 0
  for (const { words, options } of await commands()) {
    const command = words.join(' ')
    for (const option of options) {
      const isQuantity = HERE[`${command} ${option}`] ?? QUANTITIES.has(option)
      if (!isQuantity) {
        t.ok(
          OTHERS.has(option) || `${command} ${option}` in HERE,
          `${command} --${option} is in one of the lists of this test`,
        )
        continue
      }
      const beside = BESIDE[command]
      if (!beside) {
        t.fail(`${command} --${option}: this test does not say what else it needs`)
        continue
      }
      for (const wrong of ['abc', '-1', '1e999', '']) {
        count++
        const { error, said } = await outcomeOf([...words, ...beside, `--${option}=${wrong}`])
        const told = isProxyError(error) ? `${error.code}: ${error.what} (${error.action})` : String(error)
        // `--check` lists mistakes, and throws how many they are
        const isNamed = told.includes(`--${option}`) || said.includes(`--${option}`)
        const saysNaN = /NaN/.test(told + said)
        if (!isProxyError(error, 'USAGE') || !isNamed || saysNaN)
          t.fail(`${command} --${option}=${wrong}: ${said}${told}`)
      }
    }
  }
  t.ok(count > 200, `${count} of them`)
})
