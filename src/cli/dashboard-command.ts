/** `pageferry dashboard`: a page in the browser that shows what the proxies of this host do. */
import type { CommandModule } from 'yargs'
import { parseMetricsAddress } from '../daemon/settings.ts'
import { CONTROL_OPTION, controlSockets, historyOf, statusOf } from './control-option.ts'
import { fail } from './failure.ts'
import { print } from './output.ts'

interface DashboardArguments {
  readonly control: string | undefined
  readonly listen: string
}

export const dashboardCommand: CommandModule<object, DashboardArguments> = {
  command: 'dashboard',
  describe: 'Show what running proxies do as a page in the browser, live, until Ctrl-C',
  builder: yargs =>
    yargs
      .option('control', CONTROL_OPTION)
      .option('listen', {
        describe: 'HOST:PORT on loopback, or unix:PATH; port 0 is one that is free',
        type: 'string',
        requiresArg: true,
        default: '127.0.0.1:0',
      })
      .example('$0 dashboard', 'prints the address to open; the proxies that run as units on this host')
      .example('$0 dashboard --listen 127.0.0.1:9480', 'at a port that stays, for ssh -L 9480:127.0.0.1:9480')
      .example(
        '$0 dashboard --listen unix:/run/user/1000/page',
        'for its owner alone, or for ssh -L 9480:PATH',
      ) as never,
  handler: async ({ control, listen }) => {
    const address = parseMetricsAddress(listen, '--listen')
    const sockets = (): readonly string[] => controlSockets(control)
    for (const path of sockets()) await statusOf(path) // a mistake is told here, and not in the page alone
    const { Dashboard } = await import('../dashboard/dashboard.ts')
    const dashboard = new Dashboard(address, { sockets, statusOf, historyOf }, fail)
    const asked = new Promise<void>(done => {
      for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => done())
    })
    print(`the page is at ${await dashboard.start()}`)
    await asked
    await dashboard.close()
    process.exit() // whatever a proxy that hangs still owes an answer
  },
}
