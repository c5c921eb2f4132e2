/** `pageferry store push|pull|sync|promote|rollback|show|key`: what has to do with stores that hosts share. */
import { rmSync, writeFileSync } from 'node:fs'
import type { Argv, CommandModule } from 'yargs'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { CHANNEL_BYTES_MAX } from '../limits.ts'
import { formatSize, parseCount, parseDuration, parseSize } from '../quantity.ts'
import { type Channel, checkSignature, decodeChannel, keyIdOf, requireChannelName } from '../remote/channel.ts'
import { makeChannelKey, readSigningKey, readTrustedKeys } from '../remote/channel-keys.ts'
import { fetchSet } from '../remote/fetcher.ts'
import { type FollowEvent, syncChannels } from '../remote/follow-channels.ts'
import { HostChannels } from '../remote/host-channels.ts'
import { storeNames } from '../remote/open-store.ts'
import { findRemoteSet, type PublishOptions, promote, pushSet, rollback } from '../remote/publish.ts'
import { keyOfChannel } from '../remote/remote-store.ts'
import { fetchSignature } from '../remote/set-signature.ts'
import { interruptible } from './interruptible.ts'
import { print, printLines } from './output.ts'
import { newDisplay, transferStep } from './progress-display.ts'
import { openStore, STORE_KEY_OPTION } from './store-key.ts'
import {
  CHANNEL_OPTION,
  openRemotes,
  openWritable,
  requireOwn,
  STORE_INSECURE_OPTION,
  STORE_SIZE_OPTION,
  STORES_OPTION,
  TRUST_OPTION,
} from './store-names.ts'

/** How long a document is accepted: hosts that are set up later than that need a new one. */
const EXPIRES_DEFAULT = '90d'
/** How long hosts go on using what was in force before: longer than any of them takes to fetch. */
const OVERLAP_DEFAULT = '1d'

interface Arguments {
  readonly store: string[]
  readonly storeInsecure: boolean
  readonly json: boolean
}

interface HostArguments extends Arguments {
  readonly storeKey: string | undefined
}

function shareOptions(yargs: Argv): Argv<Arguments> {
  return yargs
    .option('store', { ...STORES_OPTION, demandOption: true })
    .option('store-insecure', STORE_INSECURE_OPTION)
    .option('json', { describe: 'Print JSON', type: 'boolean', default: false }) as never
}

function hostOptions(yargs: Argv): Argv<HostArguments> {
  return shareOptions(yargs).option('store-key', STORE_KEY_OPTION) as never
}

const push: CommandModule<object, HostArguments & { sets: string[]; all: boolean }> = {
  command: 'push [sets..]',
  describe: "Put sets of this host's store into a remote one, every page checked before",
  builder: yargs =>
    hostOptions(yargs as never)
      .positional('sets', { describe: 'Digests, or the first digits of them', type: 'string', array: true })
      .option('all', { describe: 'All sets of the store', type: 'boolean', default: false })
      .example('$0 store push 3f9c --store /var/lib/pageferry --store s3://sets/eu', 'one set')
      .example('$0 store push --all --store /var/lib/pageferry --store file:///mnt/sets', 'all of them') as never,
  handler: async ({ sets = [], all, store: names, storeKey, storeInsecure, json }) => {
    if (all === sets.length > 0) {
      throw new ProxyError('USAGE', all ? 'sets and --all' : 'no sets', undefined, 'give digests, or --all')
    }
    const stores = storeNames(names)
    const own = openStore(requireOwn(stores), storeKey)
    await own.requireThere()
    const remote = await openWritable(stores, storeInsecure)
    const display = await newDisplay(json)
    await interruptible(
      () => display.end(),
      'what was put whole stays there',
      async signal => {
        const pushed: object[] = []
        for (const digest of all ? await own.digests() : await Promise.all(sets.map(prefix => own.find(prefix)))) {
          const progress = (doneBytes: number, totalBytes: number): void =>
            display.show(transferStep('sending', digest, doneBytes, totalBytes))
          const result = await pushSet(own, remote, digest, progress, signal).finally(() => display.end())
          pushed.push(result)
          const what = result.existed ? 'is there already' : 'put'
          if (!json) print(`${digest.slice(0, 16)}  ${formatSize(result.lengthBytes)}, ${what}: ${remote.name}`)
        }
        if (json) printLines(JSON.stringify(pushed, null, 2))
      },
    )
    remote.close()
  },
}

const pull: CommandModule<object, HostArguments & { sets: string[] }> = {
  command: 'pull <sets..>',
  describe: "Fetch sets into this host's store, verified; what was begun before is gone on with",
  builder: yargs =>
    hostOptions(yargs as never)
      .positional('sets', {
        describe: 'Digests; the first digits of them where the store can be listed',
        type: 'string',
        array: true,
        demandOption: true,
      })
      .example('$0 store pull 3f9c --store /var/lib/pageferry --store s3://sets/eu', 'one set, to stay here') as never,
  handler: async ({ sets, store: names, storeKey, storeInsecure, json }) => {
    const stores = storeNames(names)
    const own = openStore(requireOwn(stores), storeKey)
    const remotes = await openRemotes(stores, storeInsecure)
    const lister = remotes.find(({ writer }) => writer !== undefined) ?? remotes[0]!
    const display = await newDisplay(json)
    await interruptible(
      () => display.end(),
      'what was fetched is gone on with the next time',
      async signal => {
        const pulled: object[] = []
        for (const prefix of sets) {
          const digest = await findRemoteSet(lister, prefix)
          const progress = (doneBytes: number, totalBytes: number): void =>
            display.show(transferStep('fetching', digest, doneBytes, totalBytes))
          await fetchSignature(remotes, own.folder, digest, { signal, isEnough: () => false }) // asked for by hand
          const result = await fetchSet(remotes, own, digest, { signal, progress }).finally(() => display.end())
          await new HostChannels(own.folder).forgetFetched(digest) // a channel's set stays too from now on
          pulled.push(result)
          const what = result.existed ? 'is there already' : `fetched, ${formatSize(result.receivedBytes)} received`
          if (!json) print(`${digest.slice(0, 16)}  ${formatSize(result.fileBytes)}, ${what}`)
        }
        if (json) printLines(JSON.stringify(pulled, null, 2))
      },
    )
    for (const remote of remotes) remote.close()
  },
}

interface SyncArguments extends HostArguments {
  readonly channel: string[]
  readonly trust: string
  readonly storeSize: string | undefined
}

const sync: CommandModule<object, SyncArguments> = {
  command: 'sync',
  describe: "Bring this host's store to what its channels say, once; proxies with --channel do so by themselves",
  builder: yargs =>
    (hostOptions(yargs as never) as unknown as Argv<SyncArguments>)
      .option('channel', { ...CHANNEL_OPTION, demandOption: true })
      .option('trust', { ...TRUST_OPTION, demandOption: true })
      .option('store-size', STORE_SIZE_OPTION)
      .example(
        '$0 store sync --channel stable --trust channel.pub --store /var/lib/pageferry --store s3://sets/eu',
        'before the first migration',
      ) as never,
  handler: async args => {
    const { json, channel: channels } = args
    for (const name of channels) requireChannelName(name)
    const stores = storeNames(args.store)
    const into = openStore(requireOwn(stores), args.storeKey)
    const trusted = readTrustedKeys(args.trust)
    const maxBytes = args.storeSize === undefined ? undefined : parseSize(args.storeSize, '--store-size')
    const remotes = await openRemotes(stores, args.storeInsecure)
    const events: FollowEvent[] = []
    const display = await newDisplay(json)
    const tellEvent = (event: FollowEvent): void => {
      events.push(event)
      display.end()
      if (!json) for (const line of linesOf(event)) print(line)
    }
    const progress = (digest: string, doneBytes: number, totalBytes: number): void =>
      display.show(transferStep('fetching', digest, doneBytes, totalBytes))
    try {
      await interruptible(
        () => display.end(),
        'what is in force stays; what was fetched is gone on with the next time',
        signal =>
          syncChannels({
            stores: remotes,
            into,
            channels,
            trusted: () => trusted,
            maxBytes,
            tell: tellEvent,
            progress,
            signal,
          }),
      )
    } finally {
      display.end()
      if (json) printLines(JSON.stringify(events, null, 2))
      for (const remote of remotes) remote.close()
    }
    if (!json && events.length === 0) print('nothing new')
  },
}

interface PublishArguments extends Arguments {
  readonly channel: string
  readonly key: string[]
  readonly trust: string | undefined
  readonly expires: string
  readonly overlap: string
  readonly at: string | undefined
  readonly serial: string | undefined
}

function publishOptions(yargs: Argv, overlap: string): Argv<PublishArguments> {
  return (shareOptions(yargs) as unknown as Argv<PublishArguments>)
    .positional('channel', { describe: 'Its name: small letters, digits and "-"', type: 'string', demandOption: true })
    .option('key', {
      describe: 'File with the key that signs (`store key` makes one); twice while hosts learn to trust another',
      type: 'string',
      array: true,
      nargs: 1,
      requiresArg: true,
      demandOption: true,
    })
    .option('trust', { ...TRUST_OPTION, describe: 'Public keys that may have signed what is in force, beside --key' })
    .option('expires', {
      describe: 'Hosts accept the document for so long; what they have accepted stays in force',
      type: 'string',
      requiresArg: true,
      default: EXPIRES_DEFAULT,
    })
    .option('overlap', {
      describe: 'Hosts go on using the sets of before for so long, beside the new ones: others have no new ones yet',
      type: 'string',
      requiresArg: true,
      default: overlap,
    })
    .option('at', {
      describe: 'When hosts switch, such as 2027-01-31T03:00Z; they fetch ahead',
      type: 'string',
      requiresArg: true,
      defaultDescription: 'as soon as they have the sets',
    })
    .option('serial', {
      describe: 'Number of the document, where the one that is there cannot be counted on from',
      type: 'string',
      requiresArg: true,
    }) as never
}

const promoteCommand: CommandModule<object, PublishArguments & { sets: string[] }> = {
  command: 'promote <channel> <sets..>',
  describe: 'Say which sets are in force: every host of the channel fetches them, and switches when it has all',
  builder: yargs =>
    publishOptions(yargs as never, OVERLAP_DEFAULT)
      .positional('sets', { describe: 'Digests, or the first digits', type: 'string', array: true, demandOption: true })
      .example('$0 store promote stable 3f9c 77ab --key channel.key --store s3://sets/eu', 'two sets') as never,
  handler: async args => {
    const options = await readPublish(args)
    const { remote } = options
    const digests: string[] = []
    for (const prefix of args.sets) digests.push(await findRemoteSet(remote, prefix))
    const said = await promote(options, digests)
    printChannel(said, args.json, `channel ${said.channel} of ${remote.name}: serial ${said.serial}`)
    remote.close()
  },
}

const rollbackCommand: CommandModule<object, PublishArguments & { to: string | undefined }> = {
  command: 'rollback <channel>',
  describe: 'Put the sets of before in force again, in place of those that are now',
  builder: yargs =>
    publishOptions(yargs as never, '0s')
      .option('to', {
        describe: 'Serial of the document whose sets come back',
        type: 'string',
        requiresArg: true,
        defaultDescription: 'the last one with other sets',
      })
      .example(
        '$0 store rollback stable --key channel.key --store s3://sets/eu',
        'the promotion was a mistake',
      ) as never,
  handler: async args => {
    const options = await readPublish(args)
    const { remote } = options
    const said = await rollback(options, args.to === undefined ? undefined : parseCount(args.to, '--to', 1))
    const head = `channel ${said.channel} of ${remote.name}: serial ${said.serial}, with the sets of ${said.from}`
    printChannel(said, args.json, head)
    remote.close()
  },
}

const show: CommandModule<object, Arguments & { channel: string; trust: string | undefined }> = {
  command: 'show <channel>',
  describe: 'Show what a remote store says is in force',
  builder: yargs =>
    (shareOptions(yargs as never) as unknown as Argv<Arguments & { channel: string; trust: string | undefined }>)
      .positional('channel', { describe: 'Its name', type: 'string', demandOption: true })
      .option('trust', TRUST_OPTION)
      .example(
        '$0 store show stable --trust channel.pub --store https://sets.example.net',
        'and who signed it',
      ) as never,
  handler: async ({ channel: name, store: names, storeInsecure, trust, json }) => {
    requireChannelName(name)
    const trusted = trust === undefined ? undefined : readTrustedKeys(trust)
    for (const remote of await openRemotes(storeNames(names), storeInsecure)) {
      const found = await remote.read(keyOfChannel(name), CHANNEL_BYTES_MAX)
      remote.close()
      if (found === undefined || found === 'unchanged') {
        const what = `no channel of sets ${name} in ${remote.name}`
        throw new ProxyError('CHANNEL_MISSING', what, undefined, '`pageferry store promote` makes it')
      }
      const document = decodeChannel(found.bytes, name)
      const signer = trusted === undefined ? undefined : checkSignature(document, trusted)
      const by = document.signatures.map(({ key }) => key).join(', ') || 'nobody'
      const checked = signer === undefined ? 'not checked: --trust checks it' : `trusted: ${signer}`
      const { channel } = document
      printChannel(
        channel,
        json,
        `${remote.name}: channel ${name}, serial ${channel.serial}, signed by ${by} (${checked})`,
      )
    }
  },
}

const key: CommandModule<object, { file: string; json: boolean }> = {
  command: 'key <file>',
  describe: 'Make a key that signs channels or sets: FILE for whoever does so, FILE.pub for every host',
  builder: yargs =>
    yargs
      .positional('file', { describe: 'Where to write it', type: 'string', demandOption: true })
      .option('json', { describe: 'Print JSON', type: 'boolean', default: false })
      .example('$0 store key channel.key', 'channel.key, and channel.key.pub') as never,
  handler: async ({ file, json }) => {
    const { privatePem, publicPem } = makeChannelKey()
    const pub = `${file}.pub`
    try {
      writeFileSync(file, privatePem, { flag: 'wx', mode: 0o600 })
      try {
        writeFileSync(pub, publicPem, { flag: 'wx', mode: 0o644 })
      } catch (error) {
        rmSync(file, { force: true })
        throw error
      }
    } catch (error) {
      throw ioError(error, 'cannot write key', file)
    }
    const id = keyIdOf(readSigningKey(file))
    if (json) printLines(JSON.stringify({ key: id, private: file, public: pub }, null, 2))
    else {
      print(`key ${id}`)
      print(`${file}  signs: whoever has it decides what all hosts of a channel use`)
      print(`${pub}  is for every host: --trust ${pub}`)
    }
  },
}

/** Commands of `store`, beside those that look after a host's own. */
export const SHARE_COMMANDS = [
  push,
  pull,
  sync,
  promoteCommand,
  rollbackCommand,
  show,
  key,
] as readonly unknown[] as readonly CommandModule[]

async function readPublish(args: PublishArguments): Promise<PublishOptions> {
  requireChannelName(args.channel)
  const nowMs = Date.now()
  const remote = await openWritable(storeNames(args.store), args.storeInsecure)
  const expiresMs = nowMs + parseDuration(args.expires, '--expires')
  const notBeforeMs = args.at === undefined ? nowMs : parseDate(args.at, '--at')
  if (notBeforeMs >= expiresMs) {
    throw new ProxyError('USAGE', `--at ${args.at}: it has expired by then`, undefined, 'give a longer --expires')
  }
  return {
    remote,
    channel: args.channel,
    keys: args.key.map(readSigningKey),
    trusted: args.trust === undefined ? [] : readTrustedKeys(args.trust),
    expiresMs,
    notBeforeMs,
    overlapMs: Math.round(parseDuration(args.overlap, '--overlap') / 1000) * 1000,
    serial: args.serial === undefined ? undefined : parseCount(args.serial, '--serial', 1),
    nowMs,
  }
}

/** With its zone, as a fleet has several. @throws USAGE */
function parseDate(text: string, option: string): number {
  const isWhole = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)$/.test(text)
  const ms = isWhole ? Date.parse(text) : Number.NaN
  if (Number.isNaN(ms)) throw new ProxyError('USAGE', `${option} ${text}`, undefined, 'a time like 2027-01-31T03:00Z')
  return ms
}

function printChannel(said: Channel, json: boolean, head: string): void {
  const date = (ms: number): string => new Date(ms).toISOString().slice(0, 16)
  if (json) {
    const { expiresMs, issuedMs, notBeforeMs, overlapMs, ...rest } = said
    const times = { expires: new Date(expiresMs), issued: new Date(issuedMs), notBefore: new Date(notBeforeMs) }
    printLines(JSON.stringify({ ...rest, ...times, overlapSeconds: overlapMs / 1000 }, null, 2))
    return
  }
  print(head)
  print(`issued ${date(said.issuedMs)}, from ${date(said.notBeforeMs)}, accepted until ${date(said.expiresMs)}`)
  for (const { digest, bytes } of said.sets) print(`${digest}  ${formatSize(bytes)}`)
  if (said.sets.length === 0) print('no sets')
}

function linesOf(event: FollowEvent): string[] {
  switch (event.kind) {
    case 'fetched':
      return [`${event.digest.slice(0, 16)}  ${formatSize(event.bytes)}, fetched`]
    case 'signed':
      return [`${event.digest.slice(0, 16)}  signed meanwhile`]
    case 'in force':
      return [`channel ${event.channel}: serial ${event.serial} is in force, ${event.sets} sets`]
    case 'removed':
      return [`${event.digest.slice(0, 16)}  removed: out of force, and its room is needed`]
    case 'failed':
      return [] // thrown in the end
  }
}
