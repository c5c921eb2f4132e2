/** Inputs whose pages are read again and again, for commands that count or build. */
import { type InputNote, PageInput } from '../capture/pages.ts'
import { ProxyError } from '../errors.ts'
import { discardUnfinished } from '../system/unfinished.ts'
import { type InputArguments, type KernelArguments, openOptions } from './input-options.ts'
import { interruptible } from './interruptible.ts'

export interface PageInputArguments extends InputArguments, KernelArguments {
  readonly inputs: readonly string[]
  readonly partial: boolean
}

/**
 * Opens the inputs, and closes them however the work ends; Ctrl-C ends either.
 *
 * @param notes takes what is to be said of inputs
 * @param left what Ctrl-C leaves, for people
 */
export function withPageInputs<T>(
  args: PageInputArguments,
  notes: InputNote[],
  left: string,
  work: (inputs: readonly PageInput[], signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const inputs: PageInput[] = []
  const close = (): void => {
    for (const input of inputs) input.close() // an image's server would keep the process waiting
  }
  const atLast = (): void => {
    close()
    discardUnfinished()
  }
  return interruptible(atLast, left, async signal => {
    try {
      for (const path of args.inputs) {
        const note = (note: InputNote): void => void notes.push(note)
        const { partial, kernels } = args
        inputs.push(await PageInput.open(path, { ...openOptions(args), partial, kernels, note, signal }))
      }
      refuseTwins(inputs)
      return await work(inputs, signal)
    } finally {
      close()
    }
  })
}

/** The same file twice would make every page of one guest a page of two VMs. */
function refuseTwins(inputs: readonly Pick<PageInput, 'name' | 'identity'>[]): void {
  const seen = new Map<string, string>()
  for (const { name, identity } of inputs) {
    const twin = seen.get(identity)
    if (twin !== undefined) {
      const what = `${name} is the same file as ${twin}`
      throw new ProxyError('USAGE', what, undefined, 'give each VM once: one input is one VM')
    }
    seen.set(identity, name)
  }
}
