/** `pageferry history`: the migrations of this host that ended last. */
import type { CommandModule } from 'yargs'
import type { PastMigration } from '../daemon/control-api.ts'
import { formatSize } from '../quantity.ts'
import { CONTROL_OPTION, controlSockets, historyOf, JSON_OPTION } from './control-option.ts'
import { print, printLines } from './output.ts'
import { formatDuration, formatPause } from './status-text.ts'

interface HistoryArguments {
  readonly control: string | undefined
  readonly json: boolean
}

export const historyCommand: CommandModule<object, HistoryArguments> = {
  command: 'history',
  describe: 'List the migrations that ended last, how, and what they saved',
  builder: yargs =>
    yargs
      .option('control', CONTROL_OPTION)
      .option('json', JSON_OPTION)
      .example('$0 history', 'the last thousand, the latest at the end')
      .example('$0 history --json', 'why each ended as it did, too') as never,
  handler: async ({ control, json }) => {
    const all = (await Promise.all(controlSockets(control).map(historyOf))).flat()
    all.sort((a, b) => (a.ended < b.ended ? -1 : 1))
    if (json) printLines(JSON.stringify(all, null, 2))
    else if (all.length === 0) print('no migration has ended')
    else printLines(await tableOf(all))
  },
}

async function tableOf(migrations: readonly PastMigration[]): Promise<string> {
  const { default: Table } = await import('cli-table3')
  const head = ['ended (UTC)', 'migration', 'peer', 'guest', 'outcome', 'QEMU', 'WAN', 'saved', 'time', 'pause']
  const colAligns = head.map((_, i) => (i < 5 ? 'left' : 'right') as 'left' | 'right')
  const table = new Table({ head, colAligns, style: { head: [], border: [] } })
  for (const past of migrations) {
    const { ended, id, direction, peer, target, machine, uuid, outcome, bytes, bytesWan, seconds, pauseSeconds } = past
    const way = direction === 'out' ? `to ${peer}` : `from ${peer}`
    const guest = uuid ?? (machine === undefined ? target : `${target}, ${machine}`)
    const wan = bytesWan === undefined ? ['', ''] : [formatSize(bytesWan), savedText(bytes, bytesWan)]
    const when = ended.slice(0, 19).replace('T', ' ')
    const pause = pauseSeconds === undefined ? '' : formatPause(pauseSeconds)
    table.push([when, id, way, guest, outcome, formatSize(bytes), ...wan, formatDuration(seconds), pause])
  }
  return table.toString()
}

function savedText(bytes: number, bytesWan: number): string {
  return bytes === 0 ? '' : `${Math.round(100 * (1 - bytesWan / bytes))} %`
}
