/** Options that both proxies take, and what is made of them. */
import { totalmem } from 'node:os'
import type { Argv } from 'yargs'
import { loadLz4 } from '../compression/lz4.ts'
import { Events, type SiteLog } from '../daemon/events.ts'
import type { RehearsalOptions } from '../daemon/rehearsal.ts'
import type { Teller } from '../daemon/run-proxy.ts'
import { SetSupply } from '../daemon/set-supply.ts'
import { type CommonSettings, type CommonTexts, DEFAULTS } from '../daemon/settings.ts'
import { EventLog, LEVELS } from '../daemon/text-log.ts'
import { VERSION } from '../daemon/version.ts'
import { ProxyError } from '../errors.ts'
import { FairShares } from '../fair-shares.ts'
import { kernelModule } from '../kernel/kernel.ts'
import { Learning, STATES_MAX } from '../learning/learning.ts'
import { MEMORY_BUDGET_BYTES } from '../limits.ts'
import { kindOf } from '../link/credential-files.ts'
import { Credentials } from '../link/credentials.ts'
import type { Level } from '../log.ts'
import { SetSigners } from '../remote/set-signature.ts'
import type { Role } from '../session/api.ts'
import { TemplateStore } from '../store/template-store.ts'
import { PAGE_SIZE } from '../template/wire.ts'
import { KeptSpace } from '../transfer/cold/kept-space.ts'
import { threadCount } from '../transfer/helpers/thread-count.ts'
import { PLACES, Pools } from '../transfer/pool.ts'
import { RingShares } from '../transfer/ring-shares.ts'
import { SET_MEMORY_OPTION } from './set-memory.ts'
import { openStore, STORE_KEY_OPTION } from './store-key.ts'
import {
  CHANNEL_OPTION,
  SIGNERS_OPTION,
  STORE_INSECURE_OPTION,
  STORE_SIZE_OPTION,
  STORES_OPTION,
  TRUST_OPTION,
} from './store-names.ts'
import { sentenceOf } from './summary-text.ts'
import { THREADS_OPTION } from './threads-option.ts'

export interface ProxyArguments extends CommonTexts {
  readonly peerName: string | undefined
  readonly check: boolean
  readonly json: boolean
}

/** @param poolMemory default of `--pool-memory`, and what it is for */
export function proxyOptions(
  yargs: Argv,
  poolMemory: { readonly describe: string; readonly default: string },
): Argv<ProxyArguments> {
  return yargs
    .option('store', STORES_OPTION)
    .option('store-key', STORE_KEY_OPTION)
    .option('store-insecure', STORE_INSECURE_OPTION)
    .option('store-size', STORE_SIZE_OPTION)
    .option('channel', CHANNEL_OPTION)
    .option('trust', TRUST_OPTION)
    .option('signers', {
      ...SIGNERS_OPTION,
      describe: `${SIGNERS_OPTION.describe}: no other sets are used, and nothing is learned`,
    })
    .option('learn', {
      describe:
        'Template sets made of pages that pass: those of two VMs or more; all, for guests that come back; or none. Both sides must say the same',
      choices: ['off', 'shared', 'all'],
      requiresArg: true,
      defaultDescription: 'shared with --store',
    })
    .option('learn-size', {
      describe: 'Disk space for what is learned: half for sets, half for pages that wait; both sides must say the same',
      type: 'string',
      requiresArg: true,
      default: DEFAULTS.learnSize,
    })
    .option('learn-age', {
      describe: 'Learned sets that are older are removed',
      type: 'string',
      requiresArg: true,
      default: DEFAULTS.learnAge,
    })
    .option('tls-creds', {
      describe: "Directory with certificates or keys.psk, laid out as QEMU's tls-creds; see `pageferry keygen`",
      type: 'string',
      requiresArg: true,
    })
    .option('peer-name', {
      describe: 'Name that the certificate of the other proxy must carry',
      type: 'string',
      requiresArg: true,
    })
    .option('plaintext', {
      describe: 'No TLS on the WAN: only over links that nobody else can touch',
      type: 'boolean',
      default: false,
    })
    .option('pool-memory', {
      ...poolMemory,
      type: 'string',
      requiresArg: true,
    })
    .option('set-memory', SET_MEMORY_OPTION)
    .option('threads', THREADS_OPTION)
    .option('keep-blocks', {
      describe:
        'Disk space, in $TMPDIR or /var/tmp, for blocks of disks (--disks) that have passed, in which the memory behind them is found; not encrypted; 0: none',
      type: 'string',
      requiresArg: true,
      defaultDescription: `${DEFAULTS.keepBlocks}; 0 with --store-key`,
    })
    .option('queue-target', {
      describe: "Time that bytes may wait in the link beyond its round trip: it adds to the guest's downtime",
      type: 'string',
      requiresArg: true,
      default: DEFAULTS.queueTarget,
    })
    .option('patience', {
      describe: 'How long a broken link may stay broken before migrations fail',
      type: 'string',
      requiresArg: true,
      default: DEFAULTS.patience,
    })
    .option('patience-postcopy', {
      describe: 'The same after the switch to postcopy, when the guest stands still meanwhile',
      type: 'string',
      requiresArg: true,
      defaultDescription: 'as --patience',
    })
    .option('rehearsal', {
      describe:
        'How long a start may take at most to move guests that never were through proxies of its own, before it listens: the first guest finds all warm; 0s: not at all',
      type: 'string',
      requiresArg: true,
      default: DEFAULTS.rehearsal,
    })
    .option('control', {
      describe: 'Unix socket (0600) at which `pageferry status`, `history`, `rate` and `cancel` find this proxy',
      type: 'string',
      requiresArg: true,
    })
    .option('metrics', {
      describe: 'HOST:PORT on loopback, or unix:PATH, where Prometheus finds /metrics; the control socket has them too',
      type: 'string',
      requiresArg: true,
    })
    .option('history', {
      describe: 'File of this proxy alone in which the migrations that ended last are kept over restarts',
      type: 'string',
      requiresArg: true,
      defaultDescription: 'none: they are kept in memory',
    })
    .option('log-level', {
      describe: 'What is in the log: all, what is to be looked at, or what is lost',
      choices: LEVELS,
      requiresArg: true,
      default: 'info',
    })
    .option('hook', {
      describe:
        'Program that is run at the start, at half and at the end of each migration, with its facts in variables',
      type: 'string',
      requiresArg: true,
    })
    .option('check', {
      describe: 'Only look whether a start would find anything wrong: every mistake, with a hint; nothing is bound',
      type: 'boolean',
      default: false,
    })
    .option('json', { describe: 'Log JSON, one object a line', type: 'boolean', default: false }) as never
}

/** The memory that all proxies of a process share. */
export interface ProcessMemory {
  readonly pools: Pools
  readonly shares: RingShares
  /** What peers can make it hold beyond what every session has for its own. */
  readonly memory: FairShares
  /** Disk space for blocks of disks; undefined: none. */
  readonly kept: KeptSpace | undefined
  /** Most pages that one session's ring may have. */
  readonly ringPages: number
}

/** What takes of it: rings, sets at most, and disk space for blocks of disks; and how many threads work on it. */
export type MemorySettings = Pick<CommonSettings, 'poolMemoryBytes' | 'setMemoryBytes' | 'keepBlocksBytes' | 'threads'>

/**
 * @param newcomers whether peers come that nobody can count: there is a destination proxy
 * @throws USAGE where it could never be had
 */
export function processMemory(settings: MemorySettings, newcomers: boolean): ProcessMemory {
  const { poolMemoryBytes: bytes, setMemoryBytes: setBytes, keepBlocksBytes, threads } = settings
  // what a container may use is less than its host has; 0 or absurdly much: nobody said
  const allowed = process.constrainedMemory()
  const there = allowed > 0 ? Math.min(allowed, totalmem()) : totalmem()
  if (bytes > there) {
    const mib = (value: number): number => Math.floor(value / 1048576)
    throw new ProxyError(
      'USAGE',
      `pool-memory of ${mib(bytes)} MiB: there are ${mib(there)} MiB of memory`,
      undefined,
      'give less: the memory is taken as pages pass, and a destination proxy shares it among all its sessions',
    )
  }
  // sets beyond one memory's are loaded again for the next, which must not take all that the host has
  const setsBytesMax = Math.min(setBytes, Math.max(there / 2, there - bytes - (1 << 30)))
  return {
    pools: new Pools({ setsBytesMax, threads: threadCount(threads) }),
    shares: new RingShares(bytes, newcomers),
    memory: new FairShares(MEMORY_BUDGET_BYTES),
    kept: keepBlocksBytes > 0 ? new KeptSpace(process.env.TMPDIR ?? '/var/tmp', keepBlocksBytes) : undefined,
    ringPages: Math.floor(bytes / PAGE_SIZE),
  }
}

/** @param json how the log is written; what is less than `level` is not */
export function newTeller(json: boolean, level: Level): Teller {
  const events = new Events()
  const log = new EventLog(json, sentenceOf, 1, level)
  events.subscribe(log.take)
  return { events, log }
}

/**
 * The first line of a log: what runs, and how.
 * @param rates caps of what goes to peers; none: it only receives
 */
export async function tellStart(
  events: Events,
  role: string,
  { tlsCreds, store, learn = 'shared', threads }: CommonSettings,
  rates: Readonly<Record<string, number>> = {},
): Promise<void> {
  const capped = Object.entries(rates).map(([peer, rate]) => [peer, Number.isFinite(rate) ? rate : ('none' as const)])
  const sets = store === undefined ? undefined : await new TemplateStore(store).digests().catch(() => [])
  events.info('started', {
    version: VERSION,
    role,
    tls: tlsCreds === undefined ? 'none' : kindOf(tlsCreds),
    ...(sets !== undefined && { sets: sets.length }),
    learn: store === undefined ? 'off' : learn,
    ...(capped.length > 0 && { rates: Object.fromEntries(capped) }),
    node: process.version,
    lz4: loadLz4().implementation,
    kernel: kernelModule() ? 'simd' : 'twin',
    threads: threadCount(threads),
  })
}

/** What a start rehearses, but for the efforts of source proxies. */
export function rehearsalOf(
  { rehearsalMs: limitMs, tlsCreds }: CommonSettings,
  { pools }: Pick<ProcessMemory, 'pools'>,
): RehearsalOptions {
  return { pools, limitMs, tls: tlsCreds !== undefined }
}

/** Begins to fetch what channels say, where the operator asked for it. */
export function startSupply({ supply: settings }: CommonSettings, events: Events): SetSupply | undefined {
  const supply = settings && new SetSupply(settings, events)
  supply?.start()
  return supply
}

/** Who the other side is. */
export interface PeerNames {
  readonly peerName?: string | undefined
  /** Source only. */
  readonly tlsServerName?: string | undefined
}

/** What a proxy makes of its settings: keys and stores are opened. A process has one memory. @throws USAGE, IO */
export function proxySettings(
  settings: CommonSettings,
  { peerName, tlsServerName }: PeerNames,
  role: Role,
  events: Events,
  memory: ProcessMemory = processMemory(settings, role === 'server'),
) {
  const { tlsCreds: directory } = settings
  const credentials =
    directory === undefined
      ? undefined
      : new Credentials({
          role,
          directory,
          ...(peerName === undefined ? {} : { peerName }),
          ...(tlsServerName === undefined ? {} : { serverName: tlsServerName }),
        })
  const store = settings.store === undefined ? undefined : openStore(settings.store, settings.storeKey)
  return {
    credentials,
    store,
    signers:
      store === undefined || settings.signers === undefined
        ? undefined
        : new SetSigners(store.folder, settings.signers),
    learning: learningOf(settings, store, events.of('learning'), role),
    ...memory,
    places: PLACES,
    queueTargetMs: settings.queueTargetMs,
    patienceMs: settings.patienceMs,
    patiencePostcopyMs: settings.patiencePostcopyMs ?? settings.patienceMs,
    events,
  }
}

function learningOf(
  { learn: mode = 'shared', learnSizeBytes: maxBytes, learnAgeMs: maxAgeMs }: CommonSettings,
  store: TemplateStore | undefined,
  log: SiteLog,
  role: Role,
): Learning | undefined {
  if (store === undefined || mode === 'off') return undefined
  return new Learning({ mode, store, maxBytes, maxAgeMs, log, statesMax: role === 'client' ? 1 : STATES_MAX })
}
