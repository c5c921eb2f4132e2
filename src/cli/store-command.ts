/** `pageferry store`: a host's own store; what it shares with others is in store-share-command.ts. */

import type { KeyObject } from 'node:crypto'
import type { Argv, CommandModule } from 'yargs'
import { isProxyError, ProxyError } from '../errors.ts'
import { formatCount, formatSize, parseDuration, parseSize } from '../quantity.ts'
import { readSigningKey, readTrustedKeys } from '../remote/channel-keys.ts'
import { HostChannels } from '../remote/host-channels.ts'
import { readSetSignature, type SetSignature, signerOf, signSet, writeSetSignature } from '../remote/set-signature.ts'
import type { PruneRule } from '../store/prune.ts'
import { byGain, readUses, recentBytesAt, type SetUse, type SetUses, usedMs } from '../store/set-uses.ts'
import type { StoredSet, TemplateStore } from '../store/template-store.ts'
import { print, printLines, tell } from './output.ts'
import { existingStore, storeKeyOf } from './store-key.ts'
import { SIGNERS_OPTION } from './store-names.ts'
import { SHARE_COMMANDS } from './store-share-command.ts'
import { storeOptions, verifySets } from './template-command.ts'

/** A set that was put a week ago has been offered to the guests that it was made for. */
const GRACE_DEFAULT = '7d'

interface StoreArguments {
  readonly store: string
  readonly storeKey: string | undefined
  readonly json: boolean
}

interface PruneArguments extends StoreArguments {
  readonly maxSize: string | undefined
  readonly maxAge: string | undefined
  readonly maxUnused: string | undefined
  readonly by: 'gain' | 'age'
  readonly grace: string
  readonly learned: boolean
  readonly dryRun: boolean
}

const list: CommandModule<object, StoreArguments> = {
  command: 'list',
  describe: 'List the template sets of a store, and what they have brought to migrations',
  builder: yargs =>
    storeOptions(yargs as never).example(
      '$0 store list --store S',
      'what is there, and what each set has brought',
    ) as never,
  handler: async ({ store, storeKey, json }) => {
    const folder = await existingStore(store, storeKey)
    const sets = await folder.list()
    const { uses, problem: useless } = await readUses(folder.folder)
    if (useless) tell(`warning: ${useless.what}; ${useless.action}`)
    if (json) {
      const all: object[] = []
      for (const set of sets) all.push({ ...set, use: useOf(uses, set), signedBy: await namesOf(folder, set.digest) })
      printLines(JSON.stringify(all, null, 2))
      return
    }
    if (sets.length === 0) {
      print('no template sets in this store')
      return
    }
    const { default: Table } = await import('cli-table3')
    const signed = new Map(
      await Promise.all(sets.map(async ({ digest }) => [digest, await namesOf(folder, digest)] as const)),
    )
    const isSigned = [...signed.values()].some(names => names.length > 0)
    const head = ['digest', 'pages', 'size', 'chosen', 'modified', 'brought', 'migrations', 'last used']
    if (isSigned) head.push('signed by')
    const colAligns = [...'lrrllrrll'].map(side => (side === 'l' ? 'left' : 'right') as 'left' | 'right')
    const table = new Table({ head, colAligns, style: { head: [], border: [] } })
    for (const { digest, pages, fileBytes, metadata, modified, problem, sealed } of sets) {
      let rule = sealed
        ? 'encrypted, not with this key'
        : `${problem?.code === 'IO' ? '' : 'damaged: '}${problem?.what}`
      if (metadata !== undefined) {
        const { learned, minVms, vms } = metadata
        rule = `${learned === undefined ? 'built' : 'learned'}: in ${minVms} of ${vms} VMs${sealed ? ', encrypted' : ''}`
      }
      table.push([
        digest.slice(0, 16),
        formatCount(pages),
        formatSize(fileBytes),
        rule,
        modified.toISOString().slice(0, 16),
        ...usedColumns(uses.get(digest)),
        ...(isSigned ? [signed.get(digest)!.join(' ')] : []),
      ])
    }
    printLines(table.toString())
  },
}

/** Names of the keys that a set's signature names; whether they are right, `store verify --signers` checks. */
async function namesOf({ folder }: TemplateStore, digest: string): Promise<string[]> {
  try {
    return (await readSetSignature(folder, digest))?.signatures.map(({ key }) => key) ?? []
  } catch (error) {
    if (!isProxyError(error)) throw error
    return []
  }
}

/** As JSON has it. */
function useOf(uses: SetUses, { digest }: StoredSet): object | null {
  const use = uses.get(digest)
  if (use === undefined) return null
  const { firstMs, lastMs, recentBytes, ...counts } = use
  const recent = Math.round(recentBytesAt(use, Date.now()))
  return { ...counts, recentBytes: recent, first: new Date(firstMs), last: new Date(lastMs) }
}

function usedColumns(use: SetUse | undefined): string[] {
  if (use === undefined) return ['nothing', '', '']
  return [formatSize(use.bytes), formatCount(use.migrations), new Date(use.lastMs).toISOString().slice(0, 16)]
}

const prune: CommandModule<object, PruneArguments> = {
  command: 'prune',
  describe: 'Remove sets that bring little or are old, and what killed commands left; running proxies keep theirs open',
  builder: yargs =>
    (storeOptions(yargs as never) as unknown as Argv<PruneArguments>)
      .option('max-size', {
        describe: 'Keep sets of so many bytes: those that bring most, or with --by age the newest',
        type: 'string',
        requiresArg: true,
      })
      .option('by', {
        describe: 'Which stay: by what they brought lately for each byte that they take, or the newest',
        choices: ['gain', 'age'],
        requiresArg: true,
        default: 'gain',
      })
      .option('grace', {
        describe:
          'With --by gain, sets that were put within this time stay before others: nobody knows yet what they bring',
        type: 'string',
        requiresArg: true,
        default: GRACE_DEFAULT,
      })
      .option('max-age', { describe: 'Remove sets that are older', type: 'string', requiresArg: true })
      .option('max-unused', {
        describe: 'Remove sets that brought nothing to a migration of this host for so long',
        type: 'string',
        requiresArg: true,
      })
      .option('learned', { describe: 'Only sets that proxies learned', type: 'boolean', default: false })
      .option('dry-run', { describe: 'Only tell what would go', type: 'boolean', default: false })
      .example('$0 store prune --store S --max-size 2GB --max-age 60d --dry-run', 'what would go')
      .example('$0 store prune --store S --max-unused 90d', 'what no guest has had a page of') as never,
  handler: runPrune,
}

async function runPrune(args: PruneArguments): Promise<void> {
  const { json, dryRun, learned: learnedOnly } = args
  const maxBytes = args.maxSize === undefined ? undefined : parseSize(args.maxSize, '--max-size')
  const maxAgeMs = args.maxAge === undefined ? undefined : parseDuration(args.maxAge, '--max-age')
  const maxUnusedMs = args.maxUnused === undefined ? undefined : parseDuration(args.maxUnused, '--max-unused')
  const graceMs = parseDuration(args.grace, '--grace')
  const store = await existingStore(args.store, args.storeKey)
  const { uses, problem } = await readUses(store.folder)
  if (problem && (maxUnusedMs !== undefined || (args.by === 'gain' && maxBytes !== undefined))) {
    const hint = 'nothing was removed: --by age, without --max-unused, does not need it'
    throw new ProxyError(problem.code, problem.what, problem.where, hint, { cause: problem })
  }
  const nowMs = Date.now()
  const { pruneStore } = await import('../store/prune.ts')
  const rule: PruneRule = {
    ...{ maxBytes, maxAgeMs, learnedOnly, dryRun },
    // what a channel says would only be fetched again
    keep: [...(await new HostChannels(store.folder).inForce(nowMs)).now],
    unused: maxUnusedMs === undefined ? undefined : { maxMs: maxUnusedMs, usedMs: set => usedMs(uses, set) },
    order: args.by === 'gain' ? byGain(uses, graceMs, nowMs) : undefined,
  }
  const pruned = await pruneStore(store, rule, nowMs)
  if (json) {
    const removed = pruned.removed.map(set => ({ ...set, use: useOf(uses, set) }))
    printLines(JSON.stringify({ ...pruned, removed, dryRun }, null, 2))
    return
  }
  const verb = dryRun ? 'would remove' : 'removed'
  for (const { digest, fileBytes, modified } of pruned.removed) {
    const date = modified.toISOString().slice(0, 16)
    const use = uses.get(digest)
    const brought = use ? `brought ${formatSize(use.bytes)}, last ${usedColumns(use)[2]}` : 'brought nothing'
    print(`${verb} ${digest.slice(0, 16)}  ${formatSize(fileBytes)}, ${date}, ${brought}`)
  }
  for (const name of pruned.temporaries) print(`${verb} ${name}, left by a killed command`)
  print(
    `${verb} ${pruned.removed.length} sets, ${formatSize(pruned.removedBytes)}; ` +
      `${pruned.keptSets} stay, ${formatSize(pruned.keptBytes)}`,
  )
}

const verify: CommandModule<object, StoreArguments & { signers: string | undefined }> = {
  command: 'verify',
  describe: 'Check every page of every set of a store, and who signed it',
  builder: yargs =>
    (storeOptions(yargs as never) as unknown as Argv<StoreArguments & { signers: string | undefined }>)
      .option('signers', {
        ...SIGNERS_OPTION,
        describe: `${SIGNERS_OPTION.describe}: each set has to be signed by one of them`,
      })
      .example('$0 store verify --store S', 'no page is damaged')
      .example('$0 store verify --store S --signers set.key.pub', 'and somebody made them whom we know') as never,
  handler: async ({ store, storeKey, signers, json }) => {
    const key = storeKeyOf(storeKey)
    const folder = await existingStore(store, storeKey)
    const signed = signers === undefined ? undefined : await signaturesOf(folder, readTrustedKeys(signers), json)
    const paths = (await folder.digests()).map(digest => folder.pathOf(digest))
    if (paths.length === 0 && !json) print('no template sets in this store')
    try {
      await verifySets(paths, json, key, false, path => signed?.byPath.get(path))
    } catch (error) {
      if (signed?.error === undefined || !isProxyError(error)) throw error
      const { code, what, where, action } = error
      throw new ProxyError(code, `${what}; ${signed.error.what}`, where, action, { cause: error })
    }
    if (signed?.error) throw signed.error
  },
}

/** What is known of who signed a set: a name of a key, or why it does not count. As JSON has it. */
type Signed = { readonly signedBy: string } | { readonly unsigned: string }

/** Looks at the signatures of all sets, whatever is wrong with one. */
async function signaturesOf(
  store: TemplateStore,
  trusted: readonly KeyObject[],
  json: boolean,
): Promise<{ readonly byPath: ReadonlyMap<string, Signed>; readonly error: ProxyError | undefined }> {
  const byPath = new Map<string, Signed>()
  const refused: ProxyError[] = []
  for (const digest of await store.digests()) {
    try {
      const document = await readSetSignature(store.folder, digest)
      const signedBy = signerOf(document ?? { digest, signedMs: 0, signatures: [] }, trusted)
      byPath.set(store.pathOf(digest), { signedBy })
      if (!json) print(`signed   ${digest} by ${signedBy}`)
    } catch (error) {
      if (!isProxyError(error)) throw error
      refused.push(error)
      byPath.set(store.pathOf(digest), { unsigned: error.what })
      if (!json) print(`unsigned ${digest}: ${error.what}`)
    }
  }
  const [first, ...others] = refused
  if (first === undefined || others.length === 0) return { byPath, error: first }
  const what = `${refused.length} of ${byPath.size} template sets are not signed by a trusted key`
  return { byPath, error: new ProxyError('TEMPLATE_UNTRUSTED', what, undefined, first.action) }
}

interface SignArguments extends StoreArguments {
  readonly sets: string[]
  readonly key: string
}

const sign: CommandModule<object, SignArguments> = {
  command: 'sign <sets..>',
  describe: 'Say that you made these sets: a signature beside each, which `store push` takes along',
  builder: yargs =>
    (storeOptions(yargs as never) as unknown as Argv<SignArguments>)
      .positional('sets', { describe: 'Digests, or the first digits', type: 'string', array: true, demandOption: true })
      .option('key', {
        describe: 'File with the key that signs: `store key` makes one',
        type: 'string',
        requiresArg: true,
        demandOption: true,
      })
      .example('$0 store sign 3f9c --key set.key --store S', 'every page of it was checked before') as never,
  handler: async ({ sets, key: keyPath, store: path, storeKey, json }) => {
    const key = readSigningKey(keyPath)
    const store = await existingStore(path, storeKey)
    const signed: SetSignature[] = []
    for (const prefix of sets) {
      const digest = await store.find(prefix)
      if (!(await store.holds(digest))) {
        const where = { stream: store.pathOf(digest) }
        const hint = 'it was not signed; `pageferry store verify` shows the damage'
        throw new ProxyError('TEMPLATE_DAMAGED', `set ${digest.slice(0, 12)} is damaged`, where, hint)
      }
      const document = signSet(digest, key, Date.now(), await soundSignature(store, digest))
      await writeSetSignature(store.folder, document)
      signed.push(document)
      if (!json) print(`signed   ${digest} by ${document.signatures.at(-1)!.key}`)
    }
    if (!json) return
    const told = signed.map(({ digest, signedMs, signatures }) => ({
      ...{ digest, signed: new Date(signedMs), signedBy: signatures.map(signature => signature.key) },
    }))
    printLines(JSON.stringify(told, null, 2))
  },
}

/** What is there is added to; what is none is replaced. */
async function soundSignature(store: TemplateStore, digest: string): Promise<SetSignature | undefined> {
  try {
    return await readSetSignature(store.folder, digest)
  } catch (error) {
    if (isProxyError(error, 'TEMPLATE_UNTRUSTED')) return undefined
    throw error
  }
}

/** `store` with its subcommands, for the main program's yargs. Handlers throw ProxyErrors. */
export const storeCommand: CommandModule = {
  command: 'store <command>',
  describe: 'List, clear up, check and share the template sets of stores',
  builder: yargs =>
    yargs
      .command([list, prune, sign, verify, ...SHARE_COMMANDS] as unknown as CommandModule)
      .demandCommand(1)
      .strict(),
  handler: () => {},
}
