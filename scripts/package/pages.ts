/**
 * Manual pages and completions of every command and format, out of the commands' own help and the documents: what the
 * program says of itself is all that they are made of, so they cannot say anything else.
 *
 *   node scripts/package/pages.ts SHARE EPOCH VERSION     into SHARE/man, SHARE/bash-completion, SHARE/zsh
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import yargs from 'yargs'
import { commandsFor } from '../../src/cli/commands.ts'
import { bashCompletion, zshCompletion } from './completion.ts'
import { type Command, type Option, readHelp } from './help.ts'
import { escapeRoff, inline, markdown, page, sectionOf, verbatim } from './roff.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const [share, epoch, version] = process.argv.slice(2)
if (share === undefined || epoch === undefined || version === undefined)
  throw new Error('usage: pages.ts SHARE EPOCH VERSION')
const date = new Date(Number(epoch) * 1000).toISOString().slice(0, 10)
const document = (name: string): string => readFileSync(join(root, 'docs', name), 'utf8')
const operations = document('operations.md')

/** A command's help as it prints it, each entry in one line. */
async function helpOf(words: readonly string[]): Promise<string> {
  return yargs([...words])
    .scriptName('pageferry')
    .usage('$0 COMMAND')
    .command(await commandsFor(words))
    .wrap(null)
    .version(version!)
    .alias('h', 'help')
    .exitProcess(false)
    .getHelp()
}

/** A command, and those below it. */
async function* commands(words: readonly string[]): AsyncGenerator<Command> {
  const command = readHelp(words, await helpOf(words))
  yield command
  for (const { name } of command.commands) yield* commands([...words, name])
}

function write(path: string, text: string | Uint8Array): void {
  const file = join(share!, path)
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, text)
  console.log(file)
}

function writePage(name: string, section: number, what: string, body: readonly string[]): void {
  const text = page({ name, section, date, version: version! }, what, body)
  write(`man/man${section}/${name}.${section}.gz`, gzipSync(text, { level: 9 }))
}

function optionEntry({ flags, value, text, notes }: Option): string[] {
  const shown = flags.map(flag => `\\fB${escapeRoff(flag)}\\fR`).join(', ')
  return ['.TP', value === '' ? shown : `${shown} \\fI${value}\\fR`, inline([text, ...notes].join(' ').trim() || ' ')]
}

const nameOf = (words: readonly string[]): string => ['pageferry', ...words].join('-')
const lower = (text: string): string => (/^[A-Z][a-z ]/.test(text) ? text[0]!.toLowerCase() + text.slice(1) : text)

function commandBody(command: Command): string[] {
  const { words, usage, commands, positionals, options, examples } = command
  const body = ['.SH SYNOPSIS', `\\fB${escapeRoff(usage)}\\fR${options.length > 0 ? ' [\\fIoptions\\fR]' : ''}`]
  body.push('.SH DESCRIPTION')
  if (words.length === 0) {
    body.push(
      'Pageferry is a pair of transparent proxies on the path of the live migration of QEMU, one beside each QEMU, the WAN',
      'between them. Pages of guest memory that the other site already holds cross as references, and the rest is',
      'compressed as hard as the link allows.',
      '.PP',
      'Where to begin, and what to do when something goes wrong: \\fBpageferry\\-operations\\fR(7).',
    )
  } else body.push(`${inline(command.what)}.`)
  if (commands.length > 0) {
    body.push('.SH COMMANDS')
    for (const { name, text } of commands)
      body.push('.TP', `\\fB${escapeRoff(nameOf([...words, name]))}\\fR(1)`, inline(text))
  }
  if (positionals.length > 0) body.push('.SH ARGUMENTS', ...positionals.flatMap(optionEntry))
  if (options.length > 0) body.push('.SH OPTIONS', ...options.flatMap(optionEntry))
  if (examples.length > 0) {
    body.push('.SH EXAMPLES')
    for (const { command, text } of examples)
      body.push(...verbatim([command]), ...(text ? ['.RS 4', inline(text), '.RE'] : []))
  }
  body.push('.SH "EXIT STATUS"', ...markdown(sectionOf(operations, 'Exit statuses')))
  const above = words.length > 0 ? [`\\fB${escapeRoff(nameOf(words.slice(0, -1)))}\\fR(1)`] : []
  body.push(
    '.SH "SEE ALSO"',
    [...above, ...['operations', 'security'].map(name => `\\fBpageferry\\-${name}\\fR(7)`)].join(', '),
  )
  return body
}

const all: Command[] = []
for await (const command of commands([])) {
  all.push(command)
  const what = command.words.length === 0 ? 'moves virtual machines between sites' : lower(command.what)
  writePage(nameOf(command.words), 1, what, commandBody(command))
}

/** The options that stand in the file of `serve` under the same name. */
function sharedKeys(): Option[] {
  const schema = readFileSync(join(root, 'src/daemon/configuration-schema.ts'), 'utf8')
  const keys = new Set([...schema.matchAll(/^ {4}'?([a-z][a-z-]+)'?: /gm)].map(([, key]) => `--${key}`))
  const options = ['source', 'destination'].flatMap(name => all.find(({ words }) => words.join() === name)!.options)
  const shared = new Map(
    options.filter(({ flags: [flag] }) => keys.has(flag!)).map(option => [option.flags[0]!, option]),
  )
  return [...shared.values()].map(option => ({ ...option, flags: [option.flags[0]!.slice(2)], value: '' }))
}

writePage('pageferry.yaml', 5, 'settings of pageferry serve', [
  '.SH DESCRIPTION',
  ...markdown(sectionOf(operations, 'Both directions: `pageferry serve`')),
  '.SH "KEYS THAT ARE OPTIONS TOO"',
  ...sharedKeys().flatMap(optionEntry),
  '.SH "THE FILE AS IT IS INSTALLED"',
  ...verbatim(readFileSync(join(root, 'systemd/pageferry.yaml'), 'utf8').trimEnd().split('\n')),
  '.SH "SEE ALSO"',
  '\\fBpageferry\\-serve\\fR(1), \\fBpageferry\\-operations\\fR(7)',
])
const FORMATS = [
  ['pageferry-set', 5, 'template-format.md', 'a set of template pages, as a file'],
  ['pageferry-file', 5, 'example-file.md', 'a file of pageferry encode, byte by byte'],
  ['pageferry-protocol', 7, 'protocol.md', 'what crosses the WAN, and what an encoded file holds'],
  ['pageferry-qemu-stream', 7, 'qemu-wire-format.md', "QEMU's migration stream, as Pageferry knows it"],
  ['pageferry-operations', 7, 'operations.md', 'installing and running Pageferry'],
  ['pageferry-security', 7, 'security.md', 'what Pageferry protects, against whom'],
] as const
for (const [name, section, file, what] of FORMATS) {
  const others = FORMATS.filter(other => other[0] !== name).map(other => `\\fB${escapeRoff(other[0])}\\fR(${other[1]})`)
  const text = document(file)
  const intro = /^# .*\n+(?!#)/.test(text) ? ['.SH DESCRIPTION'] : []
  writePage(name, section, what, [
    ...intro,
    ...markdown(text),
    '.SH "SEE ALSO"',
    ['\\fBpageferry\\fR(1)', ...others].join(', '),
  ])
}

write('bash-completion/completions/pageferry', bashCompletion(all))
write('zsh/vendor-completions/_pageferry', zshCompletion(all))
