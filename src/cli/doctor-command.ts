/** `pageferry doctor`: reads the settings of running QEMUs and says what to change for the pair. */
import type { CommandModule } from 'yargs'
import { ProxyError } from '../errors.ts'
import {
  type Advice,
  adviseOn,
  commandsOf,
  type Mend,
  mend,
  type QemuSettings,
  type QemuSide,
  requireKeepable,
} from '../qmp/advice.ts'
import { noAnswer, openQmp, parseQmpAddress } from '../qmp/qmp-address.ts'
import { type QmpClient, QmpError } from '../qmp/qmp-client.ts'
import { mendText, readSettings } from '../qmp/settings.ts'
import { parseCap } from '../quantity.ts'
import { type FarQmpArguments, farQmpOf, farQmpOptions } from './far-qmp.ts'
import { print, printLines } from './output.ts'

interface DoctorArguments extends FarQmpArguments {
  readonly qmp: string
  readonly rate: string | undefined
  readonly fix: boolean
  readonly keep: readonly string[]
  readonly json: boolean
}

/** Exit status where something that matters should be changed. docs/operations.md has it in its table. */
const EXIT_MATTERS = 11

export const doctorCommand: CommandModule<object, DoctorArguments> = {
  command: 'doctor',
  describe: 'Read the settings of a running QEMU and say, or set, what to change for the pair',
  builder: yargs =>
    yargs
      .option('qmp', {
        describe: 'QMP socket of the source QEMU; ssh:HOST:/PATH on another host',
        type: 'string',
        requiresArg: true,
        demandOption: true,
      })
      .options(farQmpOptions('The same of the destination QEMU'))
      .option('rate', { describe: 'The WAN, such as 100Mbit', type: 'string', requiresArg: true })
      .option('fix', { describe: 'Set it, and say what was set before', type: 'boolean', default: false })
      .option('keep', {
        describe: 'A setting that --fix leaves as it is, by its name; several',
        type: 'string',
        array: true,
        requiresArg: true,
        default: [],
      })
      .option('json', { describe: 'Print JSON', type: 'boolean', default: false })
      .example('$0 doctor --qmp /run/vm1/qmp.sock', 'before a migration; nothing is changed')
      .example('$0 doctor --qmp /run/vm1/qmp.sock --far-qmp ssh:fra:/run/vm1/qmp.sock --fix', 'sets it on both')
      .epilogue('Exit status 0: nothing that matters; 11: something does, with --fix: it could not be set.') as never,
  handler: runDoctor,
}

/** Characters of a line about one setting; a QEMU says less. */
const LINE_CHARS_MAX = 1000

/** One of the QEMUs, and how to reach it. */
interface Asked {
  readonly side: QemuSide
  readonly at: string
}

/** What became of a setting that `--fix` was to set. */
interface Fixed extends Mend {
  /** What QEMU says against it; none: it is set. */
  readonly refused?: string
}

async function runDoctor(args: DoctorArguments): Promise<void> {
  const asked: Asked[] = [{ side: 'source', at: args.qmp }]
  const far = farQmpOf(args)
  if (far !== undefined) asked.push({ side: 'destination', at: far })
  if (args.keep.length > 0 && !args.fix)
    throw new ProxyError('USAGE', '--keep without --fix', undefined, 'without --fix nothing is set')
  requireKeepable(args.keep, '--keep')
  const linkBytes = args.rate === undefined ? undefined : parseCap(args.rate, '--rate')
  let qemus = await readAll(asked)
  if (!args.json) for (const { side, version } of qemus) print(`${side}: QEMU ${version}`)
  let fixed: Fixed[] | undefined
  if (args.fix) {
    fixed = []
    const mends = mend(qemus, { linkBytes, keep: args.keep })
    try {
      for (const one of asked) await fix(one, mends, fixed, args.json ? () => {} : tellFixed)
      qemus = await readAll(asked) // what is left is what QEMU says, not what we think that we did
    } catch (error) {
      // what was set stays set, and nobody else knows what it was before
      if (args.json && fixed.length > 0) printLines(JSON.stringify({ qemus: qemus.map(named), fixed }, null, 2))
      throw error
    }
  }
  const advice = adviseOn(qemus, linkBytes).filter(({ change }) => !args.fix || !args.keep.includes(change.name))
  if (advice.some(({ severity }) => severity === 'matters')) process.exitCode = EXIT_MATTERS
  if (args.json) {
    const found = { qemus: qemus.map(named), ...(fixed && { fixed }), advice }
    printLines(JSON.stringify(found, null, 2))
    return
  }
  for (const { side, warning } of qemus) if (warning !== undefined) print(`${side}: warning: ${warning}`)
  if (advice.length === 0) print(fixed?.length ? 'nothing is left to change' : 'nothing to change')
  for (const piece of advice) for (const line of render(piece)) print(line)
}

async function readAll(asked: readonly Asked[]): Promise<QemuSettings[]> {
  const qemus: QemuSettings[] = []
  for (const { side, at } of asked) qemus.push(await withQmp({ side, at }, client => readSettings(client, side)))
  return qemus
}

function named({ side, version, warning }: QemuSettings): Pick<QemuSettings, 'side' | 'version' | 'warning'> {
  return { side, version, ...(warning !== undefined && { warning }) }
}

function tellFixed(one: Fixed): void {
  const said = one.refused === undefined ? 'set' : 'NOT set'
  print(`${said}: ${one.side}: ${mendText(one)}${one.refused === undefined ? '' : `: ${one.refused}`}`)
}

/**
 * Sets one after the other, so that one which QEMU refuses keeps no other from being set.
 * @param fixed gets each as it is done
 */
async function fix(
  { side, at }: Asked,
  mends: readonly Mend[],
  fixed: Fixed[],
  told: (one: Fixed) => void,
): Promise<void> {
  const own = mends.filter(one => one.side === side)
  if (own.length === 0) return
  await withQmp({ side, at }, async client => {
    for (const one of own) {
      const done = await setOne(client, one)
      fixed.push(done)
      told(done)
    }
  })
}

async function setOne(client: QmpClient, one: Mend): Promise<Fixed> {
  const [command] = commandsOf([one])
  try {
    await client.execute(command!.execute, command!.arguments)
    return one
  } catch (error) {
    if (!(error instanceof QmpError)) throw error
    return { ...one, refused: error.message }
  }
}

/** @throws ProxyError */
async function withQmp<T>({ side, at }: Asked, work: (client: QmpClient) => Promise<T>): Promise<T> {
  const address = parseQmpAddress(at, side === 'source' ? '--qmp' : '--far-qmp')
  const client = await openQmp(address)
  try {
    return await work(client)
  } catch (error) {
    throw noAnswer(at, error)
  } finally {
    client.close()
  }
}

function render({ side, severity, setting, why, qmp, virsh }: Advice): string[] {
  const head = `${severity === 'matters' ? '!' : '-'} ${side}: ${setting}`
  const lines = ['', head, `  ${why}`, `  QMP:   ${qmp}`, `  virsh: ${virsh}`]
  return lines.map(line => line.slice(0, LINE_CHARS_MAX))
}
