/** `pageferry rate PEER RATE`: a cap on the WAN while migrations run. */
import type { CommandModule } from 'yargs'
import type { RateChange } from '../daemon/site.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { formatRate, parseCapOrNone } from '../quantity.ts'
import { askFirst, CONTROL_OPTION, JSON_OPTION } from './control-option.ts'
import { print } from './output.ts'
import { capText } from './status-text.ts'

interface RateArguments {
  readonly peer: string
  readonly rate: string
  readonly control: string | undefined
  readonly json: boolean
}

/** @throws USAGE */
function requireCap(rate: string): void {
  try {
    parseCapOrNone(rate, 'RATE')
  } catch (error) {
    if (!isProxyError(error)) throw error
    throw new ProxyError('USAGE', error.what, undefined, `${error.action}, none, or schedule`)
  }
}

export const rateCommand: CommandModule<object, RateArguments> = {
  command: 'rate <peer> <rate>',
  describe: 'Cap what a running proxy sends to a peer, migrations that run too',
  builder: yargs =>
    yargs
      .positional('peer', { describe: 'As `pageferry status` calls it, or HOST:PORT', type: 'string' })
      .positional('rate', {
        describe: '200Mbit, 25MB/s; none: no cap; schedule: what the settings say, at once',
        type: 'string',
      })
      .option('control', CONTROL_OPTION)
      .option('json', JSON_OPTION)
      .example('$0 rate dc2 100Mbit', "until its schedule's next change, a reload or the next start")
      .example('$0 rate dc2 schedule', 'what the settings say counts again')
      .example('$0 rate dc2 none', 'as fast as the link is') as never,
  handler: async ({ peer, rate, control, json }) => {
    if (rate !== 'schedule') requireCap(rate)
    const change = (await askFirst(control, 'POST /rate', { peer, rate })) as RateChange
    const was = typeof change.before === 'number' ? formatRate(change.before) : 'no cap'
    print(json ? JSON.stringify(change) : `${change.peer}: ${capText(change.rate, change)}; it was ${was}`)
  },
}
