/** `pageferry destination`: the proxy beside the destination QEMU. */
import type { Argv, CommandModule } from 'yargs'
import { Control } from '../daemon/control.ts'
import { DestinationDaemon } from '../daemon/destination-daemon.ts'
import { rehearse } from '../daemon/rehearsal.ts'
import { runProxy, type StatusLine } from '../daemon/run-proxy.ts'
import { checkSupply, type SetSupply } from '../daemon/set-supply.ts'
import { DEFAULTS, DISK_ZEROES, type DiskZeroes, readCommon } from '../daemon/settings.ts'
import { Site } from '../daemon/site.ts'
import { takeListenFds } from '../daemon/systemd.ts'
import { ProxyError } from '../errors.ts'
import { SESSIONS_CEILING, SESSIONS_MAX } from '../limits.ts'
import type { ListenAt } from '../link/server.ts'
import { parseCount } from '../quantity.ts'
import {
  type Address,
  isLoopback,
  parseAddress,
  parseNamedAddress,
  requireApart,
  requireOthers,
} from '../relay/address.ts'
import { threadCount } from '../transfer/helpers/thread-count.ts'
import { checkOptions, listenChecks } from './check-settings.ts'
import {
  newTeller,
  type ProxyArguments,
  processMemory,
  proxyOptions,
  proxySettings,
  rehearsalOf,
  startSupply,
  tellStart,
} from './proxy-options.ts'

interface DestinationArguments extends ProxyArguments {
  readonly listen: string[]
  readonly target: string[]
  readonly disks: string[] | undefined
  readonly diskZeroes: DiskZeroes
  readonly plaintextAnywhere: boolean
  readonly sessionsMax: string
}

const POOL_MEMORY = {
  describe:
    'Memory for pages that have passed, of all source proxies together; one alone gets half at most, and no more than its own --pool-memory',
  default: DEFAULTS.poolMemoryOfAll,
}

export const destinationCommand: CommandModule<object, DestinationArguments> = {
  command: 'destination',
  describe: 'Run the proxy beside the destination QEMU',
  builder: yargs =>
    (proxyOptions(yargs, POOL_MEMORY) as Argv<DestinationArguments>)
      .option('listen', {
        describe: 'Where source proxies connect: tcp:HOST:PORT, fd:NAME (systemd)',
        type: 'string',
        array: true,
        requiresArg: true,
        demandOption: true,
      })
      .option('target', {
        describe:
          'The destination QEMU: tcp:HOST:PORT, tcp:HOST:FROM-TO (same port as at the source), unix:PATH; NAME=ADDRESS',
        type: 'string',
        array: true,
        requiresArg: true,
        demandOption: true,
      })
      .option('disks', {
        describe: 'The server of disks (NBD), such as `nbd-server-start` of the destination QEMU; spelled as --target',
        type: 'string',
        array: true,
        requiresArg: true,
      })
      .option('disk-zeroes', {
        describe:
          'What becomes of zeroes that are written to disks: what the client said; or holes, where the server can, so that a thin disk stays thin',
        choices: DISK_ZEROES,
        requiresArg: true,
        default: DEFAULTS.diskZeroes,
      })
      .option('sessions-max', {
        describe: 'Source proxies at once; one identity may have as many as are still free',
        type: 'string',
        requiresArg: true,
        default: String(SESSIONS_MAX),
      })
      .option('plaintext-anywhere', {
        describe:
          'Lets --plaintext listen beyond loopback: whoever reaches the port can migrate a guest to the targets',
        type: 'boolean',
        default: false,
      })
      .example(
        '$0 destination --listen tcp:0.0.0.0:9444 --target tcp:127.0.0.1:4444 --store S --tls-creds keys',
        'one QEMU',
      )
      .example(
        '$0 destination --listen tcp:0.0.0.0:9444 --target tcp:127.0.0.1:49152-49215 ...',
        "libvirt's ports",
      ) as never,
  handler: runDestination,
}

/** @throws ADDRESS, USAGE */
export function listenAt(
  text: string,
  plaintext: boolean,
  anywhere: boolean,
  fds: ReadonlyMap<string, readonly number[]>,
): ListenAt[] {
  const address = parseAddress(text)
  if (address.kind === 'fd') {
    const passed = fds.get(address.name)
    if (passed) return passed.map(fd => ({ fd }))
    throw new ProxyError(
      'ADDRESS',
      `--listen ${text}: systemd passed no socket of that name`,
      undefined,
      'start it by its socket unit, with FileDescriptorName=',
    )
  }
  if (address.kind !== 'tcp' || address.port !== address.portTo) {
    throw new ProxyError(
      'ADDRESS',
      `--listen ${text}`,
      undefined,
      'the WAN side listens on one TCP port: tcp:HOST:PORT',
    )
  }
  if (plaintext && !anywhere && !isLoopback(address)) {
    throw new ProxyError(
      'USAGE',
      `--plaintext at ${text}`,
      undefined,
      'anyone who reaches that port could migrate a guest here: use --tls-creds, a loopback address, or say --plaintext-anywhere',
    )
  }
  return [{ host: address.host, port: address.port }]
}

/** @throws USAGE */
function sessionCount(text: string): number {
  const count = parseCount(text, '--sessions-max', 2)
  if (count > SESSIONS_CEILING)
    throw new ProxyError('USAGE', `--sessions-max ${text}`, undefined, `give 2 to ${SESSIONS_CEILING}`)
  return count
}

/** @throws ADDRESS, USAGE */
function targetsOf(texts: readonly string[], option: string): Map<string, Address> {
  const targets = new Map<string, Address>()
  for (const text of texts) {
    const { name, address } = parseNamedAddress(text)
    if (targets.has(name))
      throw new ProxyError('USAGE', `${option} ${text}`, undefined, `a second target ${name}: write NAME=ADDRESS`)
    targets.set(name, address)
  }
  return targets
}

/** @throws ADDRESS, USAGE */
function serversOf(args: DestinationArguments) {
  const targets = targetsOf(args.target, '--target')
  const disks = targetsOf(args.disks ?? [], '--disks')
  requireOthers(targets, disks)
  if (args.diskZeroes === 'unmap' && disks.size === 0)
    throw new ProxyError('USAGE', '--disk-zeroes unmap without --disks', undefined, 'say by --disks where disks go')
  return { targets, disks }
}

/** Stands for whatever systemd passes: that is seen at a start alone. */
const ANY_FDS = { get: () => [] } as unknown as ReadonlyMap<string, readonly number[]>

/** `--check`. @throws USAGE */
function checkDestination(args: DestinationArguments): Promise<void> {
  const { plaintext, plaintextAnywhere, peerName } = args
  const addressOf = (text: string): Address => {
    listenAt(text, plaintext, plaintextAnywhere, ANY_FDS)
    return parseAddress(text)
  }
  return checkOptions({
    json: args.json,
    common: note => readCommon(args, note),
    memory: common => processMemory(common, true),
    own: [
      () => serversOf(args),
      () => sessionCount(args.sessionsMax),
      ...listenChecks(args.listen, addressOf, { beyondLoopback: true }),
    ],
    role: { role: 'server', ...(peerName !== undefined && { peerName }) },
  })
}

async function runDestination(args: DestinationArguments): Promise<void> {
  if (args.check) return checkDestination(args)
  const teller = newTeller(args.json, args.logLevel)
  const common = readCommon(args)
  if (common.supply) await checkSupply(common.supply)
  const settings = proxySettings(common, args, 'server', teller.events)
  const fds = takeListenFds()
  const status: StatusLine = { tell: () => {} }
  const { targets, disks } = serversOf(args)
  requireApart(args.listen.map(parseAddress))
  const daemon = new DestinationDaemon({
    ...settings,
    listen: args.listen.flatMap(text => listenAt(text, args.plaintext, args.plaintextAnywhere, fds)),
    targets,
    disks,
    diskZeroes: args.diskZeroes,
    ringPagesMax: settings.ringPages,
    placesMax: settings.places,
    sessionsMax: sessionCount(args.sessionsMax),
    onStatus: text => status.tell(text),
  })
  let supply: SetSupply | undefined
  const started = (): void => {
    teller.events.info('listening for source proxies', {
      at: daemon.addresses.map(({ address, port }) => `${address}:${port}`).join(' '),
    })
    supply = startSupply(common, teller.events)
  }
  const { events } = teller
  const control = new Control(common, new Site([], daemon, undefined, threadCount(common.threads)), events)
  await tellStart(events, 'destination', common)
  const rehearsal = rehearsalOf(common, settings)
  const reload = (): void => supply?.askNow()
  await runProxy(daemon, teller, status, control, started, reload, signal => rehearse(rehearsal, events, signal))
}
