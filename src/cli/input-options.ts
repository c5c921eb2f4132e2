/** What `template build` and `estimate` can be told of their inputs. */
import type { Argv } from 'yargs'
import { UNMARKED, type Unmarked } from '../capture/formats.ts'
import type { InputOptions } from '../capture/input.ts'
import type { KernelInImage } from '../capture/pages.ts'
import { formatCount } from '../quantity.ts'

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

/** What those that take pages can be told in addition. */
export interface KernelArguments {
  readonly kernels: boolean
}

/** --no-kernels: hot sets are held in memory, and some 25 MB of each kernel that an image has may be more than is wanted. */
export function kernelOption<T>(yargs: Argv<T>): Argv<T & KernelArguments> {
  return yargs.option('kernels', {
    describe:
      'Find the Linux kernels within disk images and take the pages of their programs, too; --no-kernels: what is on the disk alone',
    type: 'boolean',
    default: true,
  }) as never
}

/** A line of what was found in an image, for people; '' where nothing was. */
export function kernelsText(kernels: readonly KernelInImage[] | undefined): string {
  if (kernels === undefined || kernels.length === 0) return ''
  const each = kernels.map(
    ({ version, offset, pages }) => `Linux ${version} at byte ${offset} (${formatCount(pages)} pages)`,
  )
  return `; in it ${each.join(', ')}`
}
