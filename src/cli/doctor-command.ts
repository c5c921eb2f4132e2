/** `pageferry doctor`: reads the settings of running QEMUs and says what to change for the pair. */
import type { CommandModule } from 'yargs'
import { ProxyError } from '../errors.ts'
import { type Advice, adviseOn, type QemuSettings } from '../qmp/advice.ts'
import { QmpClient } from '../qmp/qmp-client.ts'
import { parseRate } from './quantity.ts'

interface DoctorArguments {
  readonly qmp: string
  readonly qmpDestination: string | undefined
  readonly rate: string | undefined
  readonly json: boolean
}

/** Exit status where something that matters should be changed. docs/operations.md has it in its table. */
const EXIT_MATTERS = 11

export const doctorCommand: CommandModule<object, DoctorArguments> = {
  command: 'doctor',
  describe: 'Read the settings of a running QEMU and say what to change for the pair',
  builder: yargs =>
    yargs
      .option('qmp', {
        describe: 'QMP socket of the source QEMU',
        type: 'string',
        requiresArg: true,
        demandOption: true,
      })
      .option('qmp-destination', { describe: 'QMP socket of the destination QEMU', type: 'string', requiresArg: true })
      .option('rate', { describe: 'The WAN, such as 100Mbit', type: 'string', requiresArg: true })
      .option('json', { describe: 'Print JSON', type: 'boolean', default: false })
      .example('$0 doctor --qmp /run/vm1/qmp.sock', 'before a migration; nothing is changed')
      .epilogue('Exit status 0: nothing that matters; 11: something does.') as never,
  handler: runDoctor,
}

async function read(path: string, side: QemuSettings['side']): Promise<QemuSettings> {
  let client: QmpClient | undefined
  try {
    client = await QmpClient.connect(path)
    const states = await client.execute<{ capability: string; state: boolean }[]>('query-migrate-capabilities')
    return {
      version: client.version,
      side,
      capabilities: Object.fromEntries(states.map(({ capability, state }) => [capability, state])),
      parameters: await client.execute<Record<string, unknown>>('query-migrate-parameters'),
    }
  } catch (cause) {
    throw new ProxyError(
      'IO',
      `no answer from QEMU at ${path}: ${(cause as Error).message}`,
      undefined,
      'give the socket of -qmp unix:PATH,server=on; it serves one client at a time, so stop what else is connected',
      { cause },
    )
  } finally {
    client?.close()
  }
}

async function runDoctor(args: DoctorArguments): Promise<void> {
  const qemus = [await read(args.qmp, 'source')]
  if (args.qmpDestination !== undefined) qemus.push(await read(args.qmpDestination, 'destination'))
  const advice = adviseOn(qemus, args.rate === undefined ? undefined : parseRate(args.rate, '--rate'))
  if (advice.some(({ severity }) => severity === 'matters')) process.exitCode = EXIT_MATTERS
  if (args.json) {
    process.stdout.write(
      `${JSON.stringify({ qemus: qemus.map(({ side, version }) => ({ side, version })), advice }, null, 2)}\n`,
    )
    return
  }
  for (const { side, version } of qemus) process.stdout.write(`${side}: QEMU ${version}\n`)
  if (advice.length === 0) process.stdout.write('nothing to change\n')
  for (const piece of advice) process.stdout.write(render(piece))
}

function render({ side, severity, setting, why, qmp, virsh }: Advice): string {
  return `\n${severity === 'matters' ? '!' : '-'} ${side}: ${setting}\n  ${why}\n  QMP:   ${qmp}\n  virsh: ${virsh}\n`
}
