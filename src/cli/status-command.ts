/** `pageferry status`: what the proxies of this host do, once or over and over. */
import type { CommandModule } from 'yargs'
import { isProxyError } from '../errors.ts'
import { pause } from '../system/control-client.ts'
import { CONTROL_OPTION, controlSockets, JSON_OPTION, statusOf } from './control-option.ts'
import { printLines } from './output.ts'
import { statusText } from './status-text.ts'

interface StatusArguments {
  readonly control: string | undefined
  readonly watch: boolean
  readonly json: boolean
}

/** How often it is looked again. */
const WATCH_MS = 1000
/** The cursor to the upper left corner, and nothing behind it. */
const CLEAR = '\x1b[H\x1b[J'

export const statusCommand: CommandModule<object, StatusArguments> = {
  command: 'status',
  describe: 'Tell what running proxies do: sessions, migrations, how far they are',
  builder: yargs =>
    yargs
      .option('control', CONTROL_OPTION)
      .option('watch', { describe: 'Look again every second, until Ctrl-C', type: 'boolean', default: false })
      .option('json', { ...JSON_OPTION, describe: 'Print JSON; with --watch an object a line' })
      .example('$0 status --watch', 'the proxies that run as units on this host')
      .example('$0 status --control /run/user/1000/pageferry --json', 'one by its socket') as never,
  handler: async args => {
    printLines(await look(args))
    while (args.watch) {
      await pause(WATCH_MS)
      const text = await lookAgain(args)
      if (process.stdout.isTTY && !args.json) process.stdout.write(CLEAR)
      printLines(text)
    }
  },
}

async function look({ control, watch, json }: StatusArguments): Promise<string> {
  const sites = []
  for (const path of controlSockets(control)) sites.push(await statusOf(path))
  if (!json) return sites.map(site => statusText(site, new Date())).join('\n\n')
  const [site] = sites
  return JSON.stringify(control === undefined ? sites : site, null, watch ? undefined : 2)
}

/** A proxy may be started again while somebody watches. */
async function lookAgain(args: StatusArguments): Promise<string> {
  try {
    return await look(args)
  } catch (error) {
    if (!isProxyError(error)) throw error
    return args.json ? JSON.stringify({ error }) : `error: ${error.what}`
  }
}
