/** `pageferry store list|verify`. */
import type { CommandModule } from 'yargs'
import { TemplateStore } from '../store/template-store.ts'
import { formatCount, formatSize } from './quantity.ts'
import { storeOptions, verifySets } from './template-command.ts'

interface StoreArguments {
  readonly store: string
  readonly json: boolean
}

const list: CommandModule<object, StoreArguments> = {
  command: 'list',
  describe: 'List the template sets of a store',
  builder: yargs => storeOptions(yargs as never).example('$0 store list --store S', 'what is there') as never,
  handler: async ({ store, json }) => {
    const sets = await new TemplateStore(store).list()
    if (json) {
      process.stdout.write(`${JSON.stringify(sets, null, 2)}\n`)
      return
    }
    if (sets.length === 0) {
      process.stdout.write('no template sets in this store\n')
      return
    }
    const { default: Table } = await import('cli-table3')
    const head = ['digest', 'pages', 'size', 'chosen', 'modified']
    const colAligns: ('left' | 'right')[] = ['left', 'right', 'right', 'left', 'left']
    const table = new Table({ head, colAligns, style: { head: [], border: [] } })
    for (const { digest, pages, fileBytes, metadata, modified, problem } of sets) {
      const rule = metadata === undefined ? `damaged: ${problem?.what}` : `in ${metadata.minVms} of ${metadata.vms} VMs`
      table.push([
        digest.slice(0, 16),
        formatCount(pages),
        formatSize(fileBytes),
        rule,
        modified.toISOString().slice(0, 16),
      ])
    }
    process.stdout.write(`${table.toString()}\n`)
  },
}

const verify: CommandModule<object, StoreArguments> = {
  command: 'verify',
  describe: 'Check every page of every set of a store',
  builder: yargs => storeOptions(yargs as never) as never,
  handler: async ({ store, json }) => {
    const folder = new TemplateStore(store)
    await verifySets(
      (await folder.digests()).map(digest => folder.pathOf(digest)),
      json,
    )
  },
}

/** `store` with its subcommands, for the main program's yargs. Handlers throw ProxyErrors. */
export const storeCommand: CommandModule = {
  command: 'store <command>',
  describe: 'List and check the template sets of a store',
  builder: yargs =>
    yargs
      .command(list as CommandModule)
      .command(verify as CommandModule)
      .demandCommand(1)
      .strict(),
  handler: () => {},
}
