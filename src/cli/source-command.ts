/** `pageferry source`: the proxy beside the source QEMU. */
import type { Argv, CommandModule } from 'yargs'
import { parseEffortOrAuto } from '../compression/effort.ts'
import { Control } from '../daemon/control.ts'
import { rehearse } from '../daemon/rehearsal.ts'
import { runProxy, type StatusLine } from '../daemon/run-proxy.ts'
import { checkSupply, type SetSupply } from '../daemon/set-supply.ts'
import { DEFAULTS, DISK_ANSWERS, type DiskAnswers, parseWeights, readCommon } from '../daemon/settings.ts'
import { Site } from '../daemon/site.ts'
import { readSmallFile } from '../daemon/small-file.ts'
import { SourceDaemon } from '../daemon/source-daemon.ts'
import { sourceRingPagesMax } from '../daemon/source-memory.ts'
import { takeListenFds } from '../daemon/systemd.ts'
import { ProxyError } from '../errors.ts'
import { CONNECTIONS_MAX } from '../limits.ts'
import { parseCap, parseCapOrNone, parseCount } from '../quantity.ts'
import { RateSchedule, requireTimeZone } from '../rate-schedule.ts'
import { type Address, formatAddress, parseNamedAddress, parsePeer, requireApart } from '../relay/address.ts'
import { fileMode, groupId } from '../relay/group.ts'
import { threadCount } from '../transfer/helpers/thread-count.ts'
import { PLACES, POOL_MEMORY_DEFAULT } from '../transfer/pool.ts'
import { checkOptions, listenChecks } from './check-settings.ts'
import {
  newTeller,
  type ProcessMemory,
  type ProxyArguments,
  processMemory,
  proxyOptions,
  proxySettings,
  rehearsalOf,
  startSupply,
  tellStart,
} from './proxy-options.ts'

interface SourceArguments extends ProxyArguments {
  readonly listen: string[]
  readonly disks: string[] | undefined
  readonly diskAnswers: DiskAnswers
  readonly peer: string
  readonly socketMode: string
  readonly socketGroup: string | undefined
  readonly listenAnywhere: boolean
  readonly effort: string
  readonly connections: string
  readonly rate: string | undefined
  readonly rateSchedule: string | undefined
  readonly rateFile: string | undefined
  readonly timeZone: string | undefined
  readonly shares: string
  readonly tlsServerName: string | undefined
}

type CapArguments = Pick<SourceArguments, 'rate' | 'rateSchedule' | 'rateFile' | 'timeZone'>

const POOL_MEMORY = {
  describe: 'Memory for pages that have passed; the destination proxy may have less',
  default: POOL_MEMORY_DEFAULT,
}

export const sourceCommand: CommandModule<object, SourceArguments> = {
  command: 'source',
  describe: 'Run the proxy beside the source QEMU',
  builder: yargs =>
    (proxyOptions(yargs, POOL_MEMORY) as Argv<SourceArguments>)
      .option('listen', {
        describe:
          'Where QEMU connects: tcp:HOST:PORT, tcp:HOST:FROM-TO, unix:PATH, fd:NAME (systemd); NAME=ADDRESS for a target of that name',
        type: 'string',
        array: true,
        requiresArg: true,
        default: ['tcp:127.0.0.1:4444'],
      })
      .option('disks', {
        describe:
          'Where clients of disks (NBD) connect, such as `blockdev-mirror` or `virsh migrate --disks-uri`; spelled as --listen',
        type: 'string',
        array: true,
        requiresArg: true,
      })
      .option('disk-answers', {
        describe:
          'Who answers writes of disks: the far side; or this proxy, early, which mirrors need on a long way, and clients that do not flush must not have',
        choices: DISK_ANSWERS,
        requiresArg: true,
        default: DEFAULTS.diskAnswers,
      })
      .option('peer', {
        describe: 'HOST:PORT of the destination proxy',
        type: 'string',
        requiresArg: true,
        demandOption: true,
      })
      .option('socket-mode', {
        describe: 'Mode of the files of --listen and --disks unix:PATH: 0660 lets a group in',
        type: 'string',
        requiresArg: true,
        default: '0600',
      })
      .option('socket-group', {
        describe: 'Group of those files: the one that QEMU runs as, such as libvirt-qemu',
        type: 'string',
        requiresArg: true,
      })
      .option('listen-anywhere', {
        describe: 'Lets --listen and --disks name an address that other hosts reach: nothing authenticates them',
        type: 'boolean',
        default: false,
      })
      .option('tls-server-name', {
        describe: 'Name to send in clear (TLS server name indication), for a gateway in the way that chooses by it',
        type: 'string',
        requiresArg: true,
      })
      .option('effort', {
        describe: 'auto: as hard as the CPU can while the WAN is busy; or a fixed level',
        type: 'string',
        requiresArg: true,
        default: 'auto',
      })
      .option('connections', {
        describe: 'WAN connections to stripe over, where loss or round-trip time holds one back',
        type: 'string',
        requiresArg: true,
        default: '1',
      })
      .option('rate', { describe: 'Cap on the WAN, such as 200Mbit', type: 'string', requiresArg: true })
      .option('rate-schedule', {
        describe:
          'Caps by time: `mon-fri 08:00-18:00 200Mbit, sat,sun none`; the first entry that fits counts, and --rate where none does',
        type: 'string',
        requiresArg: true,
      })
      .option('rate-file', {
        describe: 'File with the cap, `none`, or a schedule; read again on SIGHUP',
        type: 'string',
        requiresArg: true,
        conflicts: ['rate', 'rate-schedule'],
      })
      .option('shares', {
        describe:
          'What each migration and each disk transfer gets of the WAN beside others, by weight: disks=1,memory=3',
        type: 'string',
        requiresArg: true,
        default: 'disks=1,memory=1',
      })
      .option('time-zone', {
        describe: 'Of schedules, such as Europe/Amsterdam',
        type: 'string',
        requiresArg: true,
        defaultDescription: "this host's",
      })
      .example('$0 source --peer 192.0.2.7:9444 --store S --tls-creds keys', 'QEMU migrates to tcp:127.0.0.1:4444')
      .example('$0 source --listen tcp:127.0.0.1:49152-49215 --peer far:9444 ...', "libvirt's ports")
      .example('$0 source --peer far:9444 ... --check', 'before a restart')
      .example(
        '$0 source --disks tcp:127.0.0.1:10809 --peer far:9444 ...',
        'disks, too: a mirror to that port',
      ) as never,
  handler: runSource,
}

/** What a file of --rate-file says, comments (#) left out. @throws USAGE, IO */
function readCaps(path: string, zone: string | undefined): RateSchedule {
  const text = readSmallFile(path, '--rate-file').replaceAll(/#.*/g, '').trim()
  const option = `--rate-file ${path}:`
  if (text.includes(' ') || text.includes('\n')) return RateSchedule.parse(text, Number.POSITIVE_INFINITY, zone, option)
  return RateSchedule.always(parseCapOrNone(text, option))
}

/** @throws USAGE, IO */
function capsOf({ rate, rateSchedule, rateFile, timeZone }: Partial<CapArguments>): RateSchedule {
  const zone = timeZone === undefined ? undefined : requireTimeZone(timeZone, '--time-zone')
  if (rateFile !== undefined) return readCaps(rateFile, zone)
  const otherwise = rate === undefined ? Number.POSITIVE_INFINITY : parseCap(rate, '--rate')
  if (rateSchedule === undefined) return RateSchedule.always(otherwise)
  return RateSchedule.parse(rateSchedule, otherwise, zone, '--rate-schedule')
}

/** What the options say, each by itself. @throws USAGE, ADDRESS, IO from each */
function readersOf(args: SourceArguments) {
  const mode = () => fileMode(args.socketMode, '--socket-mode')
  const group = () => (args.socketGroup === undefined ? undefined : groupId(args.socketGroup))
  return {
    peer: () => parsePeer(args.peer),
    mode,
    group,
    listeners: () => {
      const at = (text: string) => ({ ...parseNamedAddress(text), mode: mode(), group: group() })
      const listen = args.listen.map(at)
      const disks = (args.disks ?? []).map(at)
      requireApart([...listen, ...disks].map(({ address }) => address))
      return { listen, disks }
    },
    answers: () => {
      if (args.diskAnswers !== 'early' || args.disks?.length) return
      throw new ProxyError('USAGE', '--disk-answers early without --disks', undefined, 'say by --disks where they come')
    },
    effort: () => parseEffortOrAuto(args.effort),
    connections: () => connectionCount(args.connections),
    rate: () => capsOf(args),
    weights: () => parseWeights(args.shares, '--shares'),
  }
}

/** @throws USAGE where one session cannot have so many */
function requireRing({ ringPages, pools }: Pick<ProcessMemory, 'ringPages' | 'pools'>, poolMemory: string): void {
  const most = sourceRingPagesMax(PLACES, pools.threads)
  if (ringPages <= most) return
  const mib = Math.floor(most / 256)
  const hint = `give ${mib}MiB at most, and less where template sets are to lie beside it`
  throw new ProxyError('USAGE', `--pool-memory ${poolMemory}: a session can have ${mib} MiB`, undefined, hint)
}

/** `--check`. @throws USAGE */
function checkSource(args: SourceArguments): Promise<void> {
  const { peer, answers, effort, connections, weights, mode, group } = readersOf(args)
  const { peerName, tlsServerName: serverName, listenAnywhere: beyondLoopback } = args
  const { rate, rateSchedule, rateFile, timeZone } = args
  const caps = [{ rate }, { rateSchedule }, { rateFile }, { timeZone }].map(one => () => capsOf(one))
  const addressOf = (text: string): Address => parseNamedAddress(text).address
  return checkOptions({
    json: args.json,
    common: note => readCommon(args, note),
    memory: common => requireRing(processMemory(common, false), args.poolMemory),
    own: [
      ...[peer, answers, effort, connections, ...caps, weights, mode, group],
      ...listenChecks([...args.listen, ...(args.disks ?? [])], addressOf, { beyondLoopback }),
    ],
    role: {
      role: 'client',
      ...(peerName !== undefined && { peerName }),
      ...(serverName !== undefined && { serverName }),
    },
  })
}

async function runSource(args: SourceArguments): Promise<void> {
  if (args.check) return checkSource(args)
  const teller = newTeller(args.json, args.logLevel)
  const { events } = teller
  const common = readCommon(args)
  if (common.supply) await checkSupply(common.supply)
  const settings = proxySettings(common, args, 'client', events)
  requireRing(settings, args.poolMemory)
  const status: StatusLine = { tell: () => {} }
  const read = readersOf(args)
  read.answers()
  const { rateFile } = args
  const daemon = new SourceDaemon({
    ...settings,
    ...read.listeners(),
    beyondLoopback: args.listenAnywhere,
    peer: read.peer(),
    effort: read.effort(),
    diskAnswers: args.diskAnswers,
    connections: read.connections(),
    rate: read.rate(),
    weights: read.weights(),
    fds: takeListenFds(),
    onStatus: text => status.tell(text),
  })
  let supply: SetSupply | undefined
  const started = (): void => {
    const disksAt = daemon.diskAddresses.map(formatAddress).join(' ')
    const told = { at: daemon.addresses.map(formatAddress).join(' '), ...(disksAt !== '' && { disks: disksAt }) }
    events.info('listening for QEMU', told)
    supply = startSupply(common, events)
  }
  const control = new Control(common, new Site([daemon], undefined, undefined, threadCount(common.threads)), events)
  await tellStart(events, 'source', common, { [args.peer]: daemon.caps.bytesPerSecond })
  const reload = (): void => {
    supply?.askNow()
    if (rateFile === undefined) return
    daemon.caps.renew(read.rate())
    events.info('settings read again', { counting: 'cap' })
  }
  const rehearsal = { ...rehearsalOf(common, settings), effort: read.effort() }
  await runProxy(daemon, teller, status, control, started, reload, signal => rehearse(rehearsal, events, signal))
}

function connectionCount(text: string): number {
  const count = parseCount(text, '--connections', 1)
  if (count > CONNECTIONS_MAX)
    throw new ProxyError('USAGE', `--connections ${text}`, undefined, `give 1 to ${CONNECTIONS_MAX}`)
  return count
}
