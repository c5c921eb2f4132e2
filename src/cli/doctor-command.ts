/** `pageferry doctor`: reads the settings of running QEMUs and says what to change for the pair. */
import type { CommandModule } from 'yargs'
import { isProxyError, ProxyError } from '../errors.ts'
import { type Advice, adviseOn, type QemuSettings } from '../qmp/advice.ts'
import { QmpClient } from '../qmp/qmp-client.ts'
import { parseCap } from '../quantity.ts'
import { print, printLines } from './output.ts'

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

/** How long each step of a QEMU may take: it answers at once, or is not what we take it for. */
const STEP_MS = 10_000
/** Characters of a line about one setting; a QEMU says less. */
const LINE_CHARS_MAX = 1000

async function read(path: string, side: QemuSettings['side']): Promise<QemuSettings> {
  let client: QmpClient | undefined
  try {
    client = await QmpClient.connect(path, STEP_MS, { keepsEvents: false, answerMs: STEP_MS })
    const capabilities = await client.execute('query-migrate-capabilities')
    const parameters = await client.execute('query-migrate-parameters')
    return { version: client.version, side, capabilities: statesOf(capabilities), parameters: fieldsOf(parameters) }
  } catch (cause) {
    if (isProxyError(cause)) throw cause
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

function notUnderstood(command: string): ProxyError {
  return new ProxyError('IO', `the answer to ${command} is not QEMU's`, undefined, 'give the socket of a QEMU')
}

/** @throws IO */
function statesOf(answer: unknown): Record<string, boolean> {
  if (!Array.isArray(answer)) throw notUnderstood('query-migrate-capabilities')
  const states = answer.map((entry: unknown) => {
    const { capability, state } = (entry ?? {}) as { capability?: unknown; state?: unknown }
    if (typeof capability !== 'string' || typeof state !== 'boolean') throw notUnderstood('query-migrate-capabilities')
    return [capability, state] as const
  })
  return Object.fromEntries(states)
}

/** @throws IO */
function fieldsOf(answer: unknown): Record<string, unknown> {
  if (typeof answer !== 'object' || answer === null || Array.isArray(answer))
    throw notUnderstood('query-migrate-parameters')
  return answer as Record<string, unknown>
}

async function runDoctor(args: DoctorArguments): Promise<void> {
  const qemus = [await read(args.qmp, 'source')]
  if (args.qmpDestination !== undefined) qemus.push(await read(args.qmpDestination, 'destination'))
  const advice = adviseOn(qemus, args.rate === undefined ? undefined : parseCap(args.rate, '--rate'))
  if (advice.some(({ severity }) => severity === 'matters')) process.exitCode = EXIT_MATTERS
  if (args.json) {
    const found = { qemus: qemus.map(({ side, version }) => ({ side, version })), advice }
    printLines(JSON.stringify(found, null, 2))
    return
  }
  for (const { side, version } of qemus) print(`${side}: QEMU ${version}`)
  if (advice.length === 0) print('nothing to change')
  for (const piece of advice) for (const line of render(piece)) print(line)
}

function render({ side, severity, setting, why, qmp, virsh }: Advice): string[] {
  const head = `${severity === 'matters' ? '!' : '-'} ${side}: ${setting}`
  const lines = ['', head, `  ${why}`, `  QMP:   ${qmp}`, `  virsh: ${virsh}`]
  return lines.map(line => line.slice(0, LINE_CHARS_MAX))
}
