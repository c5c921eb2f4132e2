/** Commands are loaded when they are called; what help shows of them stands in a table. */
import t from 'tap'
import { COMMANDS, commandsFor } from '../../src/cli/commands.ts'

t.setTimeout(590_000) // the machine may be busy

t.test('help shows of a command what it is', async t => {
  for (const { command, describe, load } of COMMANDS) {
    const module = await load()
    t.same({ command: module.command, describe: module.describe }, { command, describe })
  }
})

t.test('only what is called is loaded', async t => {
  const loaded = (await commandsFor(['--json', 'keygen', 'psk'])).filter(({ builder }) => builder !== undefined)
  t.same(
    loaded.map(({ command }) => command),
    ['keygen <kind>'],
  )
})
