/** `pageferry dashboard` with plain options is read without yargs: as yargs would, or not at all. */
import t from 'tap'
import yargs from 'yargs'
import { dashboardCommand, plainArguments } from '../../src/cli/dashboard-command.ts'

/** What yargs makes of them. */
async function read(args: readonly string[]): Promise<object> {
  let seen: object = {}
  const handler = ({ control, listen }: { control?: string; listen?: string }): void => {
    seen = { control, listen }
  }
  await yargs(['dashboard', ...args])
    .command({ ...dashboardCommand, handler: handler as never })
    .strict()
    .parseAsync()
  return seen
}

t.test('plain ones', async t => {
  const plain: readonly (readonly string[])[] = [
    [],
    ['--control', '/run/a b/control'],
    ['--control=/run/a=b', '--listen', '127.0.0.1:9480'],
    ['--listen=unix:/run/page', '--control', '/c'],
  ]
  for (const args of plain) t.same(plainArguments(args), await read(args), args.join(' '))
})

t.test('all else is for yargs: help, mistakes, what is said twice', t => {
  const others: readonly (readonly string[])[] = [
    ['--help'],
    ['--control'],
    ['--control='],
    ['--control', '--listen'],
    ['--control', '/a', '--control', '/b'],
    ['--listen', '-'],
    ['--listne', '127.0.0.1:1'],
    ['--no-control'],
    ['-h'],
    ['more'],
    ['--', '--control', '/a'],
  ]
  for (const args of others) t.equal(plainArguments(args), undefined, args.join(' '))
  t.end()
})
