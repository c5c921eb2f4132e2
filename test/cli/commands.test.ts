/** Commands are loaded when they are called; what help shows of them stands in a table. */
import t from 'tap'
import yargs from 'yargs'
import { COMMANDS, commandsFor } from '../../src/cli/commands.ts'

t.setTimeout(590_000) // the machine may be busy

t.test('help shows of a command what it is', async t => {
  for (const { command, describe, load } of COMMANDS) {
    const module = await load()
    t.same({ command: module.command, describe: module.describe }, { command, describe })
  }
})

t.test('of a group, which commands it has', async t => {
  for (const { command, commands, load } of COMMANDS) {
    const [name = ''] = command.split(' ')
    const parser = yargs([name, '--help'])
      .scriptName('pageferry')
      .command(await load())
      .exitProcess(false)
      .wrap(200)
    const help = await new Promise<string>(
      done => void parser.parse([name, '--help'], (_error: unknown, _arguments: unknown, text: string) => done(text)),
    )
    const listed = [...help.matchAll(new RegExp(`^ {2}pageferry ${name} ([a-z]+)`, 'gm'))].map(([, it]) => it)
    t.same(commands, command.endsWith(' <command>') ? listed : undefined, name) // examples look alike, of the others
  }
})

t.test('only what is called is loaded', async t => {
  const loaded = (await commandsFor(['--json', 'keygen', 'psk'])).filter(({ builder }) => builder !== undefined)
  t.same(
    loaded.map(({ command }) => command),
    ['keygen <kind>'],
  )
})
