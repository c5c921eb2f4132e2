/** The QMP socket of the destination QEMU, by one name in every command. */
import type { Options } from 'yargs'

/** @param describe what the command wants of it */
export function farQmpOptions(describe: string): Readonly<Record<'far-qmp' | 'qmp-destination', Options>> {
  return {
    'far-qmp': { describe, type: 'string', requiresArg: true },
    // as `doctor` called it
    'qmp-destination': { hidden: true, type: 'string', requiresArg: true, conflicts: 'far-qmp' },
  }
}

export interface FarQmpArguments {
  readonly farQmp: string | undefined
  readonly qmpDestination: string | undefined
}

export function farQmpOf({ farQmp, qmpDestination }: FarQmpArguments): string | undefined {
  return farQmp ?? qmpDestination
}
