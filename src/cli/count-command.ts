/** `pageferry template count|choose`: pages over a fleet of hosts, through files that any host can write and one reads. */
import { hostname } from 'node:os'
import { resolve } from 'node:path'
import type { Argv, CommandModule } from 'yargs'
import type { InputNote, PageInput } from '../capture/pages.ts'
import type { ChooseProgress } from '../counts/choose.ts'
import type { CountInput, CountKey } from '../counts/count.ts'
import { ProxyError } from '../errors.ts'
import { requireOther } from '../file/output-file.ts'
import { VM_NAME_BYTES_MAX } from '../limits.ts'
import { formatCount, formatSize, parseCount, parseSize } from '../quantity.ts'
import type { BuildProgress } from '../store/build.ts'
import { readStoreKey } from '../store/cipher.ts'
import { discardUnfinished } from '../system/unfinished.ts'
import { type InputArguments, inputOptions, type KernelArguments, kernelOption, kernelsText } from './input-options.ts'
import { interruptible } from './interruptible.ts'
import { print, printLines, tell } from './output.ts'
import { withPageInputs } from './page-inputs.ts'
import { chooseStep, newDisplay, passStep, sortStep } from './progress-display.ts'

const MEMORY_DEFAULT = '1GiB'
const MIN_VMS_DEFAULT = '2'

export const KEY_OPTION = {
  describe:
    'File with the key of all counts (32 bytes, or 64 hex digits): others then cannot ask a count for a page that they hold',
  type: 'string',
  requiresArg: true,
} as const

interface CommonArguments {
  readonly output: string
  readonly memory: string
  readonly spill: string | undefined
  readonly json: boolean
}

interface CountArguments extends CommonArguments, InputArguments, KernelArguments {
  readonly inputs: string[]
  readonly vm: string[]
  readonly key: string | undefined
  readonly partial: boolean
}

interface ChooseArguments extends CommonArguments {
  readonly counts: string[]
  readonly minVms: string
  readonly maxSize: string | undefined
  readonly prefer: 'images' | undefined
}

export const count: CommandModule<object, CountArguments> = {
  command: 'count <inputs..>',
  describe: 'Count the pages of guests and disk images into a file, to be put beside those of other hosts',
  builder: yargs =>
    (kernelOption(inputOptions(commonOptions(yargs))) as Argv<CountArguments>)
      .positional('inputs', { describe: 'As of template build', type: 'string', array: true, demandOption: true })
      .option('vm', {
        describe: 'Name of the VM of each input, in order: what has one name is one VM. Without: HOST:PATH',
        type: 'string',
        array: true,
        nargs: 1,
        requiresArg: true,
        default: [],
      })
      .option('key', KEY_OPTION)
      .option('partial', {
        describe: 'Take what there is of inputs that end early or have a gap',
        type: 'boolean',
        default: false,
      })
      .example('$0 template count web1.stream --vm web1 --key fleet.key -o web1.parquet', 'one host, one VM') as never,
  handler: runCount,
}

export const choose: CommandModule<object, ChooseArguments> = {
  command: 'choose <counts..>',
  describe: 'Choose pages over any number of counts, for template build --choice',
  builder: yargs =>
    (commonOptions(yargs) as Argv<ChooseArguments>)
      .positional('counts', {
        describe: 'Files of template count',
        type: 'string',
        array: true,
        demandOption: true,
      })
      .option('min-vms', {
        describe: 'Take pages that are in at least so many VMs',
        type: 'string',
        requiresArg: true,
        default: MIN_VMS_DEFAULT,
      })
      .option('max-size', {
        describe: 'Limit of the set file: the pages in most VMs are kept, then the most frequent',
        type: 'string',
        requiresArg: true,
      })
      .option('prefer', {
        describe: 'Which pages come first where there is a limit: images, those that are on a disk',
        choices: ['images'],
        requiresArg: true,
      })
      .example('$0 template choose counts/*.parquet --max-size 4GiB -o choice.parquet', 'the best 4 GiB') as never,
  handler: runChoose,
}

/** The key of `--key`. @throws USAGE, IO */
export function countKeyOf(path: string | undefined): CountKey | undefined {
  if (path === undefined) return undefined
  const key = readStoreKey(path, '--key')
  return { bytes: key.countKey(), id: key.id.toString('hex') }
}

function commonOptions(yargs: Argv): Argv<CommonArguments> {
  return yargs
    .option('output', {
      alias: 'o',
      describe: 'File to write, parquet',
      type: 'string',
      requiresArg: true,
      demandOption: true,
    })
    .option('memory', {
      describe: 'Memory for sorting; what does not fit goes to --spill',
      type: 'string',
      requiresArg: true,
      default: MEMORY_DEFAULT,
    })
    .option('spill', {
      describe:
        "Folder on a disk with room for what does not fit into memory; without: the system's for temporary files",
      type: 'string',
      requiresArg: true,
    })
    .option('json', { describe: 'Print JSON', type: 'boolean', default: false }) as never
}

async function runCount(args: CountArguments): Promise<void> {
  const memoryBytes = parseSize(args.memory, '--memory')
  const key = countKeyOf(args.key)
  if (args.vm.length > 0 && args.vm.length !== args.inputs.length) {
    const what = `${args.vm.length} --vm for ${args.inputs.length} inputs`
    throw new ProxyError('USAGE', what, undefined, 'give one for each input, in their order, or none')
  }
  for (const vm of args.vm) {
    if (vm !== '' && Buffer.byteLength(vm) <= VM_NAME_BYTES_MAX) continue
    const what = vm === '' ? 'an empty --vm' : `a --vm of ${Buffer.byteLength(vm)} bytes`
    throw new ProxyError('USAGE', what, undefined, `give a name of 1 to ${VM_NAME_BYTES_MAX} bytes`)
  }
  await requireOther(args.output, args.inputs)
  const startMs = Date.now()
  const notes: InputNote[] = []
  const { report, taken } = await withPageInputs(
    args,
    notes,
    'nothing is left behind; start again',
    async (inputs, signal) => {
      const counted = inputs.map((input, i) =>
        countInput(input, args.vm[i] ?? `${hostname()}:${resolve(args.inputs[i]!)}`),
      )
      const { countPages } = await import('../counts/count.ts')
      const display = await newDisplay(args.json)
      const progress = (progress: BuildProgress): void => display.show(passStep(progress))
      const sorting = (pages: number, share: number): void => display.show(sortStep(pages, share))
      const options = { memoryBytes, spill: args.spill, key, progress, signal, sorting }
      try {
        const report = await countPages(counted, args.output, options)
        const taken = inputs.map(({ name, takenFor, lengthBytes, kernels }, i) => {
          return { input: name, takenFor, lengthBytes, kernels, vm: counted[i]!.vm }
        })
        return { report, taken }
      } finally {
        display.end()
      }
    },
  )
  const seconds = (Date.now() - startMs) / 1000
  if (args.json) printLines(JSON.stringify({ ...report, inputs: taken, seconds, notes }, null, 2))
  else {
    for (const { input, takenFor, kernels, vm } of taken) {
      print(`input    ${input}: taken for ${takenFor}${kernelsText(kernels)}, VM ${vm}`)
    }
    print(`pages    ${formatCount(report.pages)}, of these ${formatCount(report.uniformPages)} of one repeated byte`)
    const vms = `${formatCount(report.vms)} VM${report.vms === 1 ? '' : 's'}`
    print(`count    ${formatCount(report.rows)} rows, ${vms}, ${formatSize(report.fileBytes)}, ${seconds.toFixed(1)} s`)
    print(`file     ${report.path}`)
  }
  for (const { input, text } of notes) tell(`note: ${input}: ${text}`)
}

function countInput(input: PageInput, vm: string): CountInput {
  return {
    name: input.name,
    lengthBytes: input.lengthBytes,
    pages: readBytes => input.pages(readBytes),
    vm,
    kind: input.isImage ? 'disk' : 'memory',
  }
}

async function runChoose(args: ChooseArguments): Promise<void> {
  const minVms = parseCount(args.minVms, '--min-vms', 1)
  const maxBytes = args.maxSize === undefined ? undefined : parseSize(args.maxSize, '--max-size')
  const memoryBytes = parseSize(args.memory, '--memory')
  await requireOther(args.output, args.counts)
  const startMs = Date.now()
  const rule = { minVms, maxBytes, preferImages: args.prefer === 'images' }
  const report = await interruptible(discardUnfinished, 'nothing is left behind; start again', async signal => {
    const { choosePages } = await import('../counts/choose.ts')
    const display = await newDisplay(args.json)
    const progress = (progress: ChooseProgress): void => display.show(chooseStep(progress))
    try {
      return await choosePages(args.counts, rule, args.output, { memoryBytes, spill: args.spill, signal, progress })
    } finally {
      display.end()
    }
  })
  const seconds = (Date.now() - startMs) / 1000
  if (args.json) {
    printLines(JSON.stringify({ ...report, seconds }, null, 2))
    return
  }
  const { files, rows, vms, pages, eligiblePages, fileBytes } = report
  print(`counts   ${formatCount(files)} files, ${formatCount(rows)} rows, ${formatCount(vms)} VMs`)
  print(`chosen   ${formatCount(pages)} of ${formatCount(eligiblePages)} pages in ${minVms} or more VMs`)
  print(`file     ${report.path}, ${formatSize(fileBytes)}, ${seconds.toFixed(1)} s`)
}
