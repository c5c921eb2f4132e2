/** `pageferry dashboard`: a page in the browser that shows what the proxies of this host do. */
import type { CommandModule } from 'yargs'
import { parseMetricsAddress } from '../relay/metrics-address.ts'
import { bytesOf, CONTROL_OPTION, controlSockets } from './control-option.ts'
import { fail } from './failure.ts'
import { print } from './output.ts'

interface DashboardArguments {
  readonly control: string | undefined
  readonly listen: string
}

/** A port that is free. */
const LISTEN = '127.0.0.1:0'

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
        default: LISTEN,
      })
      .example('$0 dashboard', 'prints the address to open; the proxies that run as units on this host')
      .example('$0 dashboard --listen 127.0.0.1:9480', 'at a port that stays, for ssh -L 9480:127.0.0.1:9480')
      .example(
        '$0 dashboard --listen unix:/run/user/1000/page',
        'for its owner alone, or for ssh -L 9480:PATH',
      ) as never,
  handler: runDashboard,
}

/**
 * What stands behind `dashboard` where that is nothing but its options, each once and with a value. Read so, the page needs
 * no yargs, which with what it leaves behind takes 6 MB of memory until Ctrl-C.
 * @returns undefined: yargs reads it
 */
export function plainArguments(args: readonly string[]): DashboardArguments | undefined {
  const said: { control?: string; listen?: string } = {}
  for (let i = 0; i < args.length; i++) {
    const [, name, , joined] = /^--(control|listen)(=(.*))?$/s.exec(args[i]!) ?? []
    if (name !== 'control' && name !== 'listen') return undefined
    const value = joined ?? args[++i]
    if (value === undefined || value === '' || value.startsWith('-') || said[name] !== undefined) return undefined
    said[name] = value
  }
  return { control: said.control, listen: said.listen ?? LISTEN }
}

/** Serves the page until a signal ends it. @throws ADDRESS, IO, PROTOCOL_VERSION */
export async function runDashboard({ control, listen }: DashboardArguments): Promise<void> {
  const address = parseMetricsAddress(listen, '--listen')
  const sockets = (): readonly string[] => controlSockets(control)
  for (const path of sockets()) await bytesOf(path, 'GET /status') // a mistake is told here, and not in the page alone
  const { Dashboard } = await import('../dashboard/dashboard.ts')
  const proxies = {
    sockets,
    statusOf: (path: string) => bytesOf(path, 'GET /status'),
    historyOf: (path: string) => bytesOf(path, 'GET /history'),
  }
  const dashboard = new Dashboard(address, proxies, fail)
  const asked = new Promise<void>(done => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => done())
  })
  print(`the page is at ${await dashboard.start()}`)
  await asked
  await dashboard.close()
  process.exit() // whatever a proxy that hangs still owes an answer
}
