/** `pageferry store`: a host's own store; what it shares with others is in store-share-command.ts. */
import type { Argv, CommandModule } from 'yargs'
import { formatCount, formatSize, parseDuration, parseSize } from '../quantity.ts'
import { print, printLines } from './output.ts'
import { existingStore, storeKeyOf } from './store-key.ts'
import { SHARE_COMMANDS } from './store-share-command.ts'
import { storeOptions, verifySets } from './template-command.ts'

interface StoreArguments {
  readonly store: string
  readonly storeKey: string | undefined
  readonly json: boolean
}

interface PruneArguments extends StoreArguments {
  readonly maxSize: string | undefined
  readonly maxAge: string | undefined
  readonly learned: boolean
  readonly dryRun: boolean
}

const list: CommandModule<object, StoreArguments> = {
  command: 'list',
  describe: 'List the template sets of a store',
  builder: yargs => storeOptions(yargs as never).example('$0 store list --store S', 'what is there') as never,
  handler: async ({ store, storeKey, json }) => {
    const sets = await (await existingStore(store, storeKey)).list()
    if (json) {
      printLines(JSON.stringify(sets, null, 2))
      return
    }
    if (sets.length === 0) {
      print('no template sets in this store')
      return
    }
    const { default: Table } = await import('cli-table3')
    const head = ['digest', 'pages', 'size', 'chosen', 'modified']
    const colAligns: ('left' | 'right')[] = ['left', 'right', 'right', 'left', 'left']
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
      ])
    }
    printLines(table.toString())
  },
}

const prune: CommandModule<object, PruneArguments> = {
  command: 'prune',
  describe: 'Remove old sets, and what killed commands left; running proxies have their sets in memory',
  builder: yargs =>
    (storeOptions(yargs as never) as unknown as Argv<PruneArguments>)
      .option('max-size', { describe: 'Keep the newest sets of so many bytes', type: 'string', requiresArg: true })
      .option('max-age', { describe: 'Remove sets that are older', type: 'string', requiresArg: true })
      .option('learned', { describe: 'Only sets that proxies learned', type: 'boolean', default: false })
      .option('dry-run', { describe: 'Only tell what would go', type: 'boolean', default: false })
      .example('$0 store prune --store S --max-size 2GB --max-age 60d --dry-run', 'what would go') as never,
  handler: runPrune,
}

async function runPrune(args: PruneArguments): Promise<void> {
  const { json, dryRun, learned: learnedOnly } = args
  const maxBytes = args.maxSize === undefined ? undefined : parseSize(args.maxSize, '--max-size')
  const maxAgeMs = args.maxAge === undefined ? undefined : parseDuration(args.maxAge, '--max-age')
  const store = await existingStore(args.store, args.storeKey)
  const { pruneStore } = await import('../store/prune.ts')
  const pruned = await pruneStore(store, { maxBytes, maxAgeMs, learnedOnly, dryRun })
  if (json) {
    printLines(JSON.stringify({ ...pruned, dryRun }, null, 2))
    return
  }
  const verb = dryRun ? 'would remove' : 'removed'
  for (const { digest, fileBytes, modified } of pruned.removed) {
    const date = modified.toISOString().slice(0, 16)
    print(`${verb} ${digest.slice(0, 16)}  ${formatSize(fileBytes)}, ${date}`)
  }
  for (const name of pruned.temporaries) print(`${verb} ${name}, left by a killed command`)
  print(
    `${verb} ${pruned.removed.length} sets, ${formatSize(pruned.removedBytes)}; ` +
      `${pruned.keptSets} stay, ${formatSize(pruned.keptBytes)}`,
  )
}

const verify: CommandModule<object, StoreArguments> = {
  command: 'verify',
  describe: 'Check every page of every set of a store',
  builder: yargs => storeOptions(yargs as never) as never,
  handler: async ({ store, storeKey, json }) => {
    const key = storeKeyOf(storeKey)
    const folder = await existingStore(store, storeKey)
    await verifySets(
      (await folder.digests()).map(digest => folder.pathOf(digest)),
      json,
      key,
      false,
    )
  },
}

/** `store` with its subcommands, for the main program's yargs. Handlers throw ProxyErrors. */
export const storeCommand: CommandModule = {
  command: 'store <command>',
  describe: 'List, clear up, check and share the template sets of stores',
  builder: yargs =>
    yargs
      .command([list, prune, verify, ...SHARE_COMMANDS] as unknown as CommandModule)
      .demandCommand(1)
      .strict(),
  handler: () => {},
}
