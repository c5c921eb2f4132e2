/** `pageferry migrate`: moves a guest of a QEMU without libvirt, over QMP: settings, start, progress, cancel, end. */
import type { CommandModule } from 'yargs'
import type { PastMigration } from '../daemon/control-api.ts'
import { ProxyError } from '../errors.ts'
import { BY_OPERATOR } from '../migration/outcome.ts'
import { requireKeepable } from '../qmp/advice.ts'
import { type CourseTask, migrationCourse, type Outcome, type PostcopyAfter } from '../qmp/migration-course.ts'
import { runCourse } from '../qmp/migration-run.ts'
import { wishesOf } from '../qmp/migration-wishes.ts'
import { openQmp, parseQmpAddress } from '../qmp/qmp-address.ts'
import type { QmpClient } from '../qmp/qmp-client.ts'
import { parseCap, parseCapOrNone, parseCount, parseDuration } from '../quantity.ts'
import { formatAddress, isLoopback, isRange, parseAddress } from '../relay/address.ts'
import { SignalCount } from '../system/signal-count.ts'
import { type FarQmpArguments, farQmpOf, farQmpOptions } from './far-qmp.ts'
import { MigrateDisplay } from './migrate-display.ts'
import { WanWatch } from './migrate-wan.ts'
import { goOnUnheard } from './output.ts'

interface MigrateArguments extends FarQmpArguments {
  readonly qmp: string
  readonly to: string
  readonly incoming: string | undefined
  readonly rate: string | undefined
  readonly maxBandwidth: string | undefined
  readonly downtimeLimit: string | undefined
  readonly timeout: string | undefined
  readonly postcopyAfter: string | undefined
  readonly autoConverge: boolean
  readonly throttleInitial: string | undefined
  readonly throttleIncrement: string | undefined
  readonly throttleMax: string | undefined
  readonly mirror: readonly string[]
  readonly keep: readonly string[]
  readonly control: string | undefined
  readonly json: boolean
}

/** QEMU's own bounds of a throttle. */
const PERCENT_MAX = 99
/** How often the proxy is asked what it sent. */
const WAN_LOOK_SECONDS = 1

const text = (describe: string) => ({ describe, type: 'string', requiresArg: true }) as const

export const migrateCommand: CommandModule<object, MigrateArguments> = {
  command: 'migrate',
  describe: "Move a QEMU's guest through the pair, without libvirt: set, start, watch, cancel",
  builder: yargs =>
    yargs
      .option('qmp', { ...text('QMP socket of the source QEMU; ssh:HOST:/PATH on another host'), demandOption: true })
      .options(farQmpOptions('The same of the destination QEMU. Without it, that one must be set and listen already'))
      .option('to', {
        ...text('Where the source QEMU connects: a listener of the source proxy, tcp:HOST:PORT or unix:PATH'),
        demandOption: true,
      })
      .option('incoming', text("Where a destination QEMU with -incoming defer shall listen: the other proxy's target"))
      .option('rate', text('The WAN, such as 100Mbit: for avail-switchover-bandwidth'))
      .option('max-bandwidth', {
        ...text('What QEMU may send, before the pair, such as 500MB/s; none: as much as it can'),
        defaultDescription: 'none, where it is what QEMU begins with',
      })
      .option('downtime-limit', text('How long the guest may stand still, by what QEMU reckons, such as 300ms'))
      .option('timeout', text('Cancel where precopy takes longer, such as 30min'))
      .option('postcopy-after', text('Switch to postcopy after so many passes (2), or so long (5min)'))
      .option('mirror', {
        describe:
          'A mirror of a disk of the guest, by its block job at the source: it ends while the guest stands still; several',
        type: 'string',
        array: true,
        requiresArg: true,
        default: [],
      })
      .option('auto-converge', {
        describe: 'Hold the guest back where it writes faster than it moves',
        type: 'boolean',
        default: false,
      })
      .option('throttle-initial', text('By how much at first, in percent'))
      .option('throttle-increment', text('By how much more each time'))
      .option('throttle-max', text('By how much at most'))
      .option('keep', {
        describe: 'A setting of QEMU that is left as it is, by its name; several',
        type: 'string',
        array: true,
        requiresArg: true,
        default: [],
      })
      .option('control', text('Control socket of the source proxy: tells what crosses the WAN, and why it failed'))
      .option('json', { describe: 'Print JSON, an object a line', type: 'boolean', default: false })
      .example(
        '$0 migrate --qmp /run/vm1/qmp.sock --far-qmp ssh:fra:/run/vm1/qmp.sock --to tcp:127.0.0.1:4444 --incoming tcp:127.0.0.1:4444',
        'all of it from the source host',
      )
      .example(
        '$0 migrate --qmp /run/vm1/qmp.sock --to tcp:127.0.0.1:4444 --postcopy-after 2',
        'the destination was set before; postcopy after two passes',
      )
      .epilogue(
        'Ctrl-C cancels, and waits until the guest goes on at the source; in postcopy it cannot. Settings are put back at the end.\n' +
          'Exit status 0: completed; 16: QEMU refuses, nothing began; 17: failed; 18: cancelled; 19: paused in postcopy; ' +
          '8: the source proxy has no session; 10: a QEMU does not answer any more; 130: cancelled by Ctrl-C.',
      ) as never,
  handler: runMigrate,
}

async function runMigrate(args: MigrateArguments): Promise<void> {
  const { task, source: near, destination: far } = read(args)
  const clients: { source?: QmpClient; destination?: QmpClient } = {}
  let signals: SignalCount | undefined
  let heardAgain = (): void => {}
  try {
    let wan: WanWatch | undefined
    const { isTTY, columns } = process.stderr
    const display = new MigrateDisplay({
      json: args.json,
      columns: isTTY ? columns : undefined,
      bytesWan: () => wan?.bytes,
    })
    if (args.control !== undefined)
      wan = await WanWatch.start(args.control, task.to, text => display.told({ event: 'note', text }))
    const source = await openQmp(near)
    clients.source = source
    const destination = far && (await openQmp(far))
    if (destination) clients.destination = destination
    heardAgain = goOnUnheard() // a reader that goes away ends no migration
    signals = new SignalCount() // until here nothing is changed, and a signal ends the command as any other
    const versions = { source: source.version, ...(destination && { destination: destination.version }) }
    let lookedSeconds = 0
    const seen = await runCourse(migrationCourse({ ...task, versions }), { source, destination }, signals, told => {
      display.told(told)
      if (told.event !== 'progress' || told.seconds - lookedSeconds < WAN_LOOK_SECONDS) return
      lookedSeconds = told.seconds
      void wan?.look()
    })
    const isOver = seen.began && seen.result !== 'left' && seen.result !== 'paused'
    const outcome = withReason(seen, isOver ? await wan?.ended() : undefined)
    display.ended(outcome, wan?.bytes)
    if (outcome.error === undefined) return
    if (outcome.result === 'cancelled' || outcome.result === 'left') process.exitCode = signals.status
    throw outcome.error
  } finally {
    clients.source?.close()
    clients.destination?.close()
    signals?.end()
    heardAgain()
  }
}

/** Of a migration that failed QEMU knows that its socket broke; why, the proxy does: it may have been told to cancel it. */
function withReason(outcome: Outcome, past: PastMigration | undefined): Outcome {
  const { error, result } = outcome
  if (error === undefined || result !== 'failed' || past === undefined || past.outcome === 'completed') return outcome
  const { code, what, where, action } = error
  if (past.outcome === 'cancelled' && past.reason === BY_OPERATOR) {
    const cancelled = new ProxyError('MIGRATION_CANCELLED', past.reason, where, action, { cause: error })
    return { ...outcome, result: 'cancelled', error: cancelled }
  }
  const said = `${what}; the source proxy: ${past.reason}`
  return { ...outcome, error: new ProxyError(code, said, where, action, { cause: error }) }
}

/** @throws USAGE, ADDRESS */
function read(args: MigrateArguments) {
  const { autoConverge } = args
  const to = endpoint(args.to, '--to')
  // on its way to a proxy of another host the guest's memory stays encrypted, whatever that costs
  const keep = isLoopback(parseAddress(to)) ? args.keep : [...args.keep, 'tls-creds']
  const far = maybe(farQmpOf(args), one => parseQmpAddress(one, '--far-qmp'))
  requireKeepable(args.keep, '--keep')
  if (args.mirror.length > 0 && args.keep.includes('pause-before-switchover')) {
    const hint = 'it is switched on for --mirror, and put back: leave --keep out'
    throw new ProxyError('USAGE', '--mirror and --keep pause-before-switchover', undefined, hint)
  }
  if (args.incoming !== undefined && far === undefined) {
    const hint = 'give --far-qmp, over which it is told; or have it listen by itself'
    throw new ProxyError('USAGE', '--incoming without --far-qmp', undefined, hint)
  }
  const postcopyAfter = args.postcopyAfter === undefined ? undefined : parsePostcopyAfter(args.postcopyAfter)
  const throttles = [args.throttleInitial, args.throttleIncrement, args.throttleMax]
  if (!autoConverge && throttles.some(one => one !== undefined)) {
    throw new ProxyError('USAGE', '--throttle-... without --auto-converge', undefined, 'give --auto-converge')
  }
  const bandwidth = args.maxBandwidth === undefined ? undefined : parseCapOrNone(args.maxBandwidth, '--max-bandwidth')
  const wishes = wishesOf({
    hasDestination: far !== undefined,
    postcopy: postcopyAfter !== undefined,
    endsMirrors: args.mirror.length > 0,
    autoConverge,
    throttleInitial: parsePercent(args.throttleInitial, '--throttle-initial'),
    throttleIncrement: parsePercent(args.throttleIncrement, '--throttle-increment'),
    throttleMax: parsePercent(args.throttleMax, '--throttle-max'),
    downtimeLimitMs: maybe(args.downtimeLimit, one => parseDuration(one, '--downtime-limit')),
    maxBandwidthBytes: bandwidth === Number.POSITIVE_INFINITY ? 0 : bandwidth,
    keep,
  })
  const task: Omit<CourseTask, 'versions'> = {
    to,
    asksProxy: args.control !== undefined,
    incoming: maybe(args.incoming, one => endpoint(one, '--incoming')),
    wishes,
    keep,
    linkBytes: maybe(args.rate, one => parseCap(one, '--rate')),
    postcopyAfter,
    mirrors: args.mirror,
    timeoutMs: maybe(args.timeout, one => parseDuration(one, '--timeout')),
  }
  return { task, source: parseQmpAddress(args.qmp, '--qmp'), destination: far }
}

const maybe = <T>(value: string | undefined, parse: (value: string) => T): T | undefined =>
  value === undefined ? undefined : parse(value)

function parsePercent(value: string | undefined, option: string): number | undefined {
  if (value === undefined) return undefined
  const percent = parseCount(value.replace(/%$/, ''), option, 1)
  if (percent <= PERCENT_MAX) return percent
  throw new ProxyError('USAGE', `${option} ${value}`, undefined, `give a percentage from 1 to ${PERCENT_MAX}`)
}

/** `2`: passes; `5min`: time. */
function parsePostcopyAfter(value: string): PostcopyAfter {
  if (/^\d+$/.test(value)) return { passes: parseCount(value, '--postcopy-after', 1) }
  return { ms: parseDuration(value, '--postcopy-after') }
}

/** One address of QEMU's, which it may connect to or listen at. @throws ADDRESS */
function endpoint(value: string, option: string): string {
  const address = parseAddress(value)
  if (address.kind !== 'fd' && !isRange(address) && !(address.kind === 'tcp' && address.port === 0))
    return formatAddress(address)
  throw new ProxyError('ADDRESS', `${option} ${value}`, undefined, 'give one address: tcp:HOST:PORT or unix:PATH')
}
