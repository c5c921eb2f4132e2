/** What `template build` and `estimate` can be told of their inputs. */
import type { Argv } from 'yargs'
import { UNMARKED, type Unmarked } from '../capture/formats.ts'
import type { InputOptions } from '../capture/input.ts'

export interface InputArguments {
  readonly as: string | undefined
  readonly snapshot: string | undefined
}

export function inputOptions(yargs: Argv): Argv<InputArguments> {
  return yargs
    .option('as', {
      describe: 'Take every input for flat memory (pmemsave, Firecracker) or a raw disk, whatever its bytes look like',
      choices: Object.keys(UNMARKED),
      requiresArg: true,
    })
    .option('snapshot', {
      describe: 'Take this snapshot within each qcow2 image, by id or name, in place of the disk as it is',
      type: 'string',
      requiresArg: true,
    }) as never
}

/** The same for Input.open. */
export function openOptions({ as, snapshot }: InputArguments): Pick<InputOptions, 'as' | 'snapshot'> {
  return { as: as as Unmarked | undefined, snapshot }
}
