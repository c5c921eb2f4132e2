/**
 * Every command by the line that help shows of it. What it is made of is loaded when it is called: all of it together
 * takes four times as long to start as one command does.
 */
import type { CommandModule } from 'yargs'

/** A command that is not loaded yet; `command` and `describe` as the module has them. */
export interface CommandEntry {
  readonly command: string
  readonly describe: string
  /** Of a group: its commands. */
  readonly commands?: readonly string[]
  load(): Promise<CommandModule>
}

export const COMMANDS: readonly CommandEntry[] = [
  {
    command: 'source',
    describe: 'Run the proxy beside the source QEMU',
    load: async () => plain((await import('./source-command.ts')).sourceCommand),
  },
  {
    command: 'destination',
    describe: 'Run the proxy beside the destination QEMU',
    load: async () => plain((await import('./destination-command.ts')).destinationCommand),
  },
  {
    command: 'serve',
    describe: 'Run both proxies of a site in one process',
    load: async () => plain((await import('./serve-command.ts')).serveCommand),
  },
  {
    command: 'status',
    describe: 'Tell what running proxies do: sessions, migrations, how far they are',
    load: async () => plain((await import('./status-command.ts')).statusCommand),
  },
  {
    command: 'history',
    describe: 'List the migrations that ended last, how, and what they saved',
    load: async () => plain((await import('./history-command.ts')).historyCommand),
  },
  {
    command: 'dashboard',
    describe: 'Show what running proxies do as a page in the browser, live, until Ctrl-C',
    load: async () => plain((await import('./dashboard-command.ts')).dashboardCommand),
  },
  {
    command: 'rate <peer> <rate>',
    describe: 'Cap what a running proxy sends to a peer, migrations that run too',
    load: async () => plain((await import('./rate-command.ts')).rateCommand),
  },
  {
    command: 'cancel <migration>',
    describe: 'End a migration at the site that its guest leaves: the guest goes on there',
    load: async () => plain((await import('./cancel-command.ts')).cancelCommand),
  },
  {
    command: 'template <command>',
    describe: 'Build, inspect and verify template sets',
    commands: ['build', 'count', 'choose', 'inspect', 'verify'],
    load: async () => (await import('./template-command.ts')).templateCommand,
  },
  {
    command: 'store <command>',
    describe: 'List, clear up, check and share the template sets of stores',
    commands: ['list', 'prune', 'sign', 'verify', 'push', 'pull', 'sync', 'promote', 'rollback', 'show', 'key'],
    load: async () => (await import('./store-command.ts')).storeCommand,
  },
  {
    command: 'encode <input>',
    describe: 'Encode a migration stream to a file that holds what the WAN would carry',
    load: async () => plain((await import('./codec-command.ts')).encodeCommand),
  },
  {
    command: 'decode <input>',
    describe: 'Decode a file that encode made',
    load: async () => plain((await import('./codec-command.ts')).decodeCommand),
  },
  {
    command: 'estimate <inputs..>',
    describe: 'Tell what a migration, or the mirror of a disk, would save, and why',
    load: async () => plain((await import('./codec-command.ts')).estimateCommand),
  },
  {
    command: 'keygen <kind>',
    describe: 'Make the keys or certificates with which two sites prove themselves to each other',
    load: async () => plain((await import('./keygen-command.ts')).keygenCommand),
  },
  {
    command: 'check',
    describe: 'Look whether two sites fit together, and say what mends what does not',
    load: async () => plain((await import('./check-command.ts')).checkCommand),
  },
  {
    command: 'migrate',
    describe: "Move a QEMU's guest through the pair, without libvirt: set, start, watch, cancel",
    load: async () => plain((await import('./migrate-command.ts')).migrateCommand),
  },
  {
    command: 'doctor',
    describe: 'Read the settings of a running QEMU and say, or set, what to change for the pair',
    load: async () => plain((await import('./doctor-command.ts')).doctorCommand),
  },
]

/** yargs hands a module the arguments that its own builder declares. */
function plain<T>(command: CommandModule<object, T>): CommandModule {
  return command as unknown as CommandModule
}

/** The commands for a command line: those whose name is in it loaded, the others as help shows them. */
export function commandsFor(args: readonly string[]): Promise<CommandModule[]> {
  return Promise.all(
    COMMANDS.map(async ({ command, describe, load }) => {
      const [name = ''] = command.split(' ')
      return args.includes(name) ? load() : { command, describe, handler: () => {} }
    }),
  )
}
