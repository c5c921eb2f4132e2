/** `pageferry cancel MIGRATION`: ends one that leaves here. */
import type { CommandModule } from 'yargs'
import { askFirst, CONTROL_OPTION, JSON_OPTION } from './control-option.ts'
import { print } from './output.ts'

interface CancelArguments {
  readonly migration: string
  readonly control: string | undefined
  readonly json: boolean
}

export const cancelCommand: CommandModule<object, CancelArguments> = {
  command: 'cancel <migration>',
  describe: 'End a migration at the site that its guest leaves: the guest goes on there',
  builder: yargs =>
    yargs
      .positional('migration', {
        describe: 'Its id, as `pageferry status` and the log have it; or its number, where no other has it',
        type: 'string',
      })
      .option('control', CONTROL_OPTION)
      .option('json', JSON_OPTION)
      .example('$0 cancel 1a2b3c4d-7', 'refused once the guest may run at the destination')
      .epilogue('Exit status 14: no such migration leaves here, or it may not be ended any more.') as never,
  handler: async ({ migration, control, json }) => {
    const cancelled = await askFirst(control, 'POST /cancel', { migration })
    print(json ? JSON.stringify(cancelled) : `migration ${migration} is cancelled: its guest goes on at the source`)
  },
}
