/** Manual pages and completions of the Debian package, as they are made out of help and documents. */
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gunzipSync } from 'node:zlib'
import t from 'tap'
import { temporaryFolder } from '../../scripts/harness/qemu/cleanup.ts'
import { readHelp } from '../../scripts/package/help.ts'
import { markdown } from '../../scripts/package/roff.ts'
import { COMMANDS } from '../../src/cli/commands.ts'

t.setTimeout(590_000) // a help for each command, and the machine may be busy

const program = fileURLToPath(new URL('../../scripts/package/pages.ts', import.meta.url))
const { path: share, remove } = temporaryFolder('pages')
t.teardown(remove)
execFileSync(process.execPath, [program, share, '0', '1.2.3'])
const page = (name: string): string => gunzipSync(readFileSync(join(share, `man/man1/${name}.1.gz`))).toString()

t.test('a page for every command, with its options and exit statuses', t => {
  for (const { command } of COMMANDS) {
    const text = page(`pageferry-${command.split(' ')[0]}`)
    t.match(text, '.SH OPTIONS', command)
    t.match(text, '.SH "EXIT STATUS"', command)
  }
  t.match(
    page('pageferry-template-build'),
    /^\\fB\\-\\-min\\-vms\\fR \\fIVMS\\fR$/m,
    'one of a command below a command',
  )
  for (const name of [
    'man5/pageferry.yaml.5',
    'man5/pageferry-set.5',
    'man5/pageferry-file.5',
    'man7/pageferry-protocol.7',
  ])
    t.ok(existsSync(join(share, `man/${name}.gz`)), name)
  t.end()
})

t.test(
  'man has nothing to say of any',
  { skip: spawnSync('man', ['--version']).error ? 'man is not there' : false },
  t => {
    for (const path of globSync(join(share, 'man/*/*.gz'))) {
      const options = { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C.UTF-8', MANWIDTH: '80' } } as const
      const { stdout, stderr } = spawnSync('man', ['--warnings', '-E', 'UTF-8', '-l', '-Tutf8', '-Z', path], options)
      if (/groff|troff|not found/.test(stderr) && stdout === '') continue // a man without a groff
      t.equal(stderr, '', path.slice(share.length))
    }
    t.end()
  },
)

t.test('bash takes the completions, and offers what help has', t => {
  const complete = (...words: string[]): string => {
    const script = `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _pageferry; echo "\${COMPREPLY[*]}"`
    const file = join(share, 'bash-completion/completions/pageferry')
    return execFileSync('bash', ['-c', script, '-', file, ...words], { encoding: 'utf8' }).trim()
  }
  t.equal(complete('pageferry', 'des'), 'destination')
  t.equal(complete('pageferry', 'store', 'pr'), 'prune promote')
  t.equal(complete('pageferry', 'keygen', ''.padEnd(0)).split(' ').slice(0, 2).join(' '), 'psk x509')
  t.equal(complete('pageferry', 'source', '--learn', ''), 'off shared all')
  t.end()
})

t.test('what roff would understand otherwise is escaped', t => {
  t.same(markdown('.TH is `-x` \\ here'), ['.PP', '\\&.TH is \\fB\\-x\\fR \\e here'])
  t.same(markdown('| a | b | c |\n| --- | --- | --- |\n| `x` | `1|2` | |'), [
    '.TP',
    '\\fBx\\fR',
    '\\fIb\\fR: \\fB1|2\\fR',
  ])
  t.same(markdown('1. one\n   more\n2. *two*'), ['.IP 1. 4', 'one\nmore', '.IP 2. 4', '\\fItwo\\fR'])
  t.end()
})

t.test('a line of help that is not understood is told', t => {
  t.throws(() => readHelp([], 'usage\n\nOptions:\n  what is this'), /not understood: {3}what is this/)
  t.end()
})
