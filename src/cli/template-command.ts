/**
 * `pageferry template build|count|choose|inspect|verify`. What only some of it needs is imported there: the other commands load this
 * file too, and proxies have to start quickly.
 */
import { readFile, stat, writeFile } from 'node:fs/promises'
import type { Argv, CommandModule } from 'yargs'
import type { InputNote, PageInput } from '../capture/pages.ts'
import { isProxyError, ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { formatCount, formatSize, parseCount, parseSize, plural } from '../quantity.ts'
import type { BuildProgress, BuildReport, BuildRule, ChosenReport, VmsRow } from '../store/build.ts'
import type { StoreKey } from '../store/cipher.ts'
import { DAMAGED_MAX, type DamagedPage, SetFile } from '../store/set-file.ts'
import { COUNT_MEMORY_MIN } from '../template/count.ts'
import { occurrencesOfPage, type SetHead, vmsOfPage } from '../template/format.ts'
import type { SetOverlap } from '../template/summary.ts'
import { PAGE_SIZE, SET_SUFFIX } from '../template/wire.ts'
import { choose, count, countKeyOf, KEY_OPTION } from './count-command.ts'
import { type InputArguments, inputOptions, type KernelArguments, kernelOption, kernelsText } from './input-options.ts'
import { print, printLines, tell } from './output.ts'
import { withPageInputs } from './page-inputs.ts'
import { newDisplay, passStep } from './progress-display.ts'
import { existingStore, openStore, STORE_KEY_OPTION, storeKeyOf } from './store-key.ts'

const MEMORY_DEFAULT = '512MiB'
const MIN_VMS_DEFAULT = 2
/** Damaged pages that are listed one by one. */
const DAMAGED_LISTED_MAX = 20
interface StoreArguments {
  readonly store: string
  readonly storeKey: string | undefined
  readonly json: boolean
}

interface BuildArguments extends StoreArguments, InputArguments, KernelArguments {
  readonly inputs: string[]
  readonly minVms: string | undefined
  readonly maxSize: string | undefined
  readonly memory: string
  readonly partial: boolean
  readonly choice: string | undefined
  readonly key: string | undefined
}

interface InspectArguments extends Partial<StoreArguments> {
  readonly set: string
  readonly summary: string | undefined
  readonly overlap: string | undefined
}

interface VerifyArguments extends Partial<StoreArguments> {
  readonly sets: string[]
}

const build: CommandModule<object, BuildArguments> = {
  command: 'build <inputs..>',
  describe: 'Build a template set from guests and disk images, one input a VM',
  builder: yargs =>
    (kernelOption(inputOptions(storeOptions(yargs))) as Argv<BuildArguments>)
      .positional('inputs', {
        describe:
          'Migration streams, .pcap or .pcapng captures, libvirt save images, ELF cores, kdump and mapped-ram files, disk images, Linux kernels (vmlinuz); as they are or compressed',
        type: 'string',
        array: true,
        demandOption: true,
      })
      .option('min-vms', {
        describe: `Take pages that are in at least so many of the inputs; ${MIN_VMS_DEFAULT}, or 1 of a single disk image, kernels beside it or not`,
        type: 'string',
        requiresArg: true,
      })
      .option('max-size', {
        describe: 'Limit of the set file: the pages in most VMs are kept, then the most frequent',
        type: 'string',
        requiresArg: true,
      })
      .option('memory', {
        describe: 'Memory for counting; larger inputs take more passes, not more memory',
        type: 'string',
        requiresArg: true,
        default: MEMORY_DEFAULT,
      })
      .option('partial', {
        describe: 'Take what there is of inputs that end early or have a gap',
        type: 'boolean',
        default: false,
      })
      .option('choice', {
        describe: 'Take the pages that this file names (template choose), in place of counting',
        type: 'string',
        requiresArg: true,
        conflicts: ['min-vms', 'max-size'],
      })
      .option('key', KEY_OPTION)
      .example('$0 template build --store /var/lib/pageferry web1.stream web2.stream db1.pcapng', 'pages of 2 or more')
      .example('$0 template build --store S golden.qcow2', 'all of a disk image, and the kernels in it')
      .example('$0 template build --store S --max-size 100MB --min-vms 3 *.stream.zst', 'the best 100 MB') as never,
  handler: runBuild,
}

const inspect: CommandModule<object, InspectArguments> = {
  command: 'inspect <set>',
  describe: 'Show what is in a template set',
  builder: yargs =>
    (setOptions(yargs) as Argv<InspectArguments>)
      .positional('set', {
        describe: 'First digits of its digest, or a file',
        type: 'string',
        demandOption: true,
      })
      .option('summary', {
        describe: 'Write a summary of it to this file, for the other site',
        type: 'string',
        requiresArg: true,
      })
      .option('overlap', {
        describe: 'Tell how much of it the set has whose summary this is',
        type: 'string',
        requiresArg: true,
      })
      .example('$0 template inspect --store S 07a2', 'pages by number of VMs')
      .example('$0 template inspect ./copy.pfset --overlap far.json', 'is it worth copying?') as never,
  handler: runInspect,
}

const verify: CommandModule<object, VerifyArguments> = {
  command: 'verify [sets..]',
  describe: 'Check every page of template sets against its digest',
  builder: yargs =>
    (setOptions(yargs) as Argv<VerifyArguments>)
      .positional('sets', {
        describe: 'First digits of their digests, or files; without any, all sets of the store',
        type: 'string',
        array: true,
        default: [],
      })
      .example('$0 template verify --store S', 'all sets of the store') as never,
  handler: runVerify,
}

/** `template` with its subcommands, for the main program's yargs. Handlers throw ProxyErrors. */
export const templateCommand: CommandModule = {
  command: 'template <command>',
  describe: 'Build, inspect and verify template sets',
  builder: yargs =>
    yargs
      .command(build as CommandModule)
      .command(count as CommandModule)
      .command(choose as CommandModule)
      .command(inspect as CommandModule)
      .command(verify as CommandModule)
      .demandCommand(1)
      .strict(),
  handler: () => {},
}

/** --store and --json, for commands that need a store. */
export function storeOptions(yargs: Argv): Argv<StoreArguments> {
  return yargs
    .option('store', {
      describe: 'Folder of template sets',
      type: 'string',
      requiresArg: true,
      demandOption: true,
    })
    .option('store-key', STORE_KEY_OPTION)
    .option('json', { describe: 'Print JSON', type: 'boolean', default: false }) as never
}

/** What verifying a set found. */
export interface VerifyResult {
  readonly path: string
  /** undefined where the head is not sound. */
  readonly digest: string | undefined
  readonly pages: number
  readonly damaged: readonly DamagedPage[]
  readonly problem: ProxyError | undefined
}

/**
 * Verifies the sets and prints a line each, more for damaged ones.
 * @param follow whether paths may be symbolic links, which a store does not follow
 * @param more what else JSON says of one
 * @throws TEMPLATE_DAMAGED where any is not sound
 */
export async function verifySets(
  paths: readonly string[],
  json: boolean,
  key: StoreKey | undefined,
  follow: boolean,
  more: (path: string) => object | undefined = () => undefined,
): Promise<void> {
  const results: VerifyResult[] = []
  for (const path of paths) {
    const result = await verifySet(path, key, follow)
    results.push(result)
    if (!json) printVerified(result)
  }
  if (json)
    printLines(
      JSON.stringify(
        results.map(result => ({ ...result, ...more(result.path) })),
        null,
        2,
      ),
    )
  const unsound = results.filter(({ problem, damaged }) => problem !== undefined || damaged.length > 0)
  if (unsound.length === 0) return
  const [{ problem, path, damaged } = results[0]!] = unsound
  // One set: its own error says it best.
  if (paths.length === 1 && problem !== undefined) throw problem
  const what = `${unsound.length} of ${paths.length} template sets ${unsound.length === 1 ? 'is' : 'are'} damaged`
  const where = { stream: path, offset: problem ? problem.where?.offset : damaged[0]!.offset }
  throw new ProxyError('TEMPLATE_DAMAGED', what, where, 'damaged sets are not used; build or copy them again')
}

async function runBuild(args: BuildArguments): Promise<void> {
  const asked = args.minVms === undefined ? undefined : parseCount(args.minVms, '--min-vms', 1)
  const maxBytes = args.maxSize === undefined ? undefined : parseSize(args.maxSize, '--max-size')
  const memoryBytes = parseSize(args.memory, '--memory')
  if (memoryBytes < COUNT_MEMORY_MIN) {
    throw new ProxyError(
      'USAGE',
      `--memory ${args.memory}`,
      undefined,
      `give at least ${COUNT_MEMORY_MIN / 2 ** 10}KiB`,
    )
  }

  const notes: InputNote[] = []
  await withPageInputs(args, notes, 'nothing was stored; start again', async (inputs, signal) => {
    // What one guest alone has is its own; a golden image is what its guests have in common.
    const isOneImage = inputs.every(input => input.isImage) && inputs.filter(input => !input.isKernel).length <= 1
    const minVms = asked ?? (isOneImage ? 1 : MIN_VMS_DEFAULT)
    if (args.choice === undefined && args.key !== undefined) {
      throw new ProxyError('USAGE', '--key without --choice', undefined, 'give the --choice that was counted with it')
    }
    await buildFrom(inputs, { minVms, maxBytes, memoryBytes }, args, notes, signal)
  })
}

async function buildFrom(
  inputs: readonly PageInput[],
  rule: BuildRule,
  args: BuildArguments,
  notes: readonly InputNote[],
  signal: AbortSignal,
): Promise<void> {
  const startMs = Date.now()
  const display = await newDisplay(args.json)
  let report: BuildReport | ChosenReport
  try {
    const store = openStore(args.store, args.storeKey)
    const progress = (progress: BuildProgress): void => display.show(passStep(progress))
    const options = { progress, signal }
    const { buildSet, buildChosen } = await import('../store/build.ts')
    if (args.choice === undefined) report = await buildSet(inputs, rule, store, options)
    else {
      const { readChoice } = await import('../counts/choose.ts')
      const { PageTagger } = await import('../template/page-tag.ts')
      const key = countKeyOf(args.key)
      const { table, metadata, keyId } = await readChoice(args.choice, { ...rule, signal })
      if (keyId !== (key?.id ?? '')) throw otherKey(args.choice, keyId)
      report = await buildChosen(inputs, table, new PageTagger(key?.bytes), metadata, store, options)
    }
  } finally {
    display.end()
  }
  const seconds = (Date.now() - startMs) / 1000
  const taken = inputs.map(({ name, takenFor, lengthBytes, kernels }) => {
    return { input: name, takenFor, lengthBytes, kernels }
  })
  if (args.json) printLines(JSON.stringify({ ...report, inputs: taken, seconds, notes }, null, 2))
  else await printBuilt(report, inputs, seconds)
  for (const { input, text } of notes) tell(`note: ${input}: ${text}`)
}

async function printBuilt(
  report: BuildReport | ChosenReport,
  inputs: readonly PageInput[],
  seconds: number,
): Promise<void> {
  const { totals, byVms, pages, digest, fileBytes, existed, path } = report
  const bytes = inputs.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)
  for (const { name, takenFor, kernels } of inputs) {
    print(`input    ${name}: taken for ${takenFor}${kernelsText(kernels)}`)
  }
  const missing = 'missing' in report ? report.missing : undefined
  await printRows(byVms, missing === undefined ? inputs.length : report.metadata.vms)
  const passes = totals.passes === 1 ? 'one pass' : `${totals.passes} passes`
  const kernels = inputs.filter(({ isKernel }) => isKernel).length
  const disks = inputs.filter(({ isImage }) => isImage).length - kernels
  const kinds = [plural(inputs.length - disks - kernels, 'VM'), plural(disks, 'disk'), plural(kernels, 'kernel')]
  const counted = kinds.filter(text => !text.startsWith('0'))
  print(
    `inputs   ${counted.join(' and ')}, ${formatSize(bytes)}, ${formatCount(totals.pages)} pages, counted in ${passes}`,
  )
  print(`set      ${formatCount(pages)} pages, ${formatSize(fileBytes)}, ${seconds.toFixed(1)} s`)
  if (missing !== undefined) print(`missing  ${formatCount(missing)} pages of the choice are in none of these inputs`)
  print(`digest   ${digest}`)
  print(`file     ${path}${existed ? ' (was there already)' : ''}`)
}

function otherKey(choice: string, keyId: string): ProxyError {
  const what = keyId === '' ? `${choice} was counted without a key` : `${choice} was counted with the key ${keyId}`
  const action = keyId === '' ? 'leave out --key' : 'give --key with the file that `template count` was given'
  return new ProxyError('USAGE', what, undefined, action)
}

async function printRows(rows: readonly VmsRow[], vms: number): Promise<void> {
  const { default: Table } = await import('cli-table3')
  const colAligns: ('left' | 'right')[] = ['left', 'right', 'right', 'right']
  const table = new Table({ head: ['in', 'pages', 'size', 'occurrences'], colAligns, style: { head: [], border: [] } })
  for (const row of rows) {
    const { pages, occurrences } = row
    table.push([
      `${row.vms} of ${vms} VMs`,
      formatCount(pages),
      formatSize(pages * PAGE_SIZE),
      formatCount(occurrences),
    ])
  }
  printLines(table.toString())
}

async function runInspect(args: InspectArguments): Promise<void> {
  const file = await SetFile.open(await pathOf(args.set, args.store), storeKeyOf(args.storeKey))
  try {
    const { head, path } = file
    const { digest, metadata, pageCount: pages, layout } = head
    const byVms = rowsOf(head)
    const other = args.overlap === undefined ? undefined : await overlapWith(head, args.overlap)
    if (args.summary !== undefined) await writeSummary(args.summary, head)
    if (args.json) {
      print(
        JSON.stringify(
          { digest, path, fileBytes: layout.lengthBytes, sealed: file.sealed, pages, metadata, byVms, overlap: other },
          null,
          2,
        ),
      )
      return
    }
    await printRows(byVms, metadata.vms)
    const limit = metadata.maxBytes === undefined ? '' : `, at most ${formatSize(metadata.maxBytes)}`
    print(`set      ${formatCount(pages)} pages, ${formatSize(layout.lengthBytes)}`)
    print(`chosen   pages in ${metadata.minVms} or more of ${metadata.vms} VMs${limit}`)
    print(`digest   ${digest}`)
    print(`file     ${path}`)
    if (args.summary !== undefined) print(`summary  ${args.summary}`)
    if (other === undefined) return
    const share = pages === 0 ? 0 : (100 * other.pages) / pages
    print(`overlap  about ${share.toFixed(1)} % of its pages are in set ${other.set.slice(0, 12)}…`)
  } finally {
    await file.close()
  }
}

async function runVerify(args: VerifyArguments): Promise<void> {
  const paths: string[] = []
  for (const set of args.sets) paths.push(await pathOf(set, args.store))
  if (args.sets.length === 0) {
    const store = await existingStore(needStore(args.store), undefined)
    for (const digest of await store.digests()) paths.push(store.pathOf(digest))
    if (paths.length === 0 && !args.json) print('no template sets in this store')
  }
  await verifySets(paths, args.json ?? false, storeKeyOf(args.storeKey), args.sets.length > 0)
}

async function verifySet(path: string, key: StoreKey | undefined, follow: boolean): Promise<VerifyResult> {
  let file: SetFile | undefined
  try {
    file = await SetFile.open(path, key, follow)
    const damaged = await file.verify()
    return { path, digest: file.head.digest, pages: file.head.pageCount, damaged, problem: undefined }
  } catch (error) {
    if (!isProxyError(error) || error.code === 'USAGE') throw error // the key says nothing about the set
    return { path, digest: file?.head.digest, pages: file?.head.pageCount ?? 0, damaged: [], problem: error }
  } finally {
    await file?.close()
  }
}

function printVerified({ path, digest, pages, damaged, problem }: VerifyResult): void {
  if (problem !== undefined) {
    const at = problem.where?.offset
    print(`damaged  ${path}: ${problem.what}${at === undefined ? '' : ` (byte ${at})`}`)
    return
  }
  if (damaged.length === 0) {
    print(`sound    ${digest} ${formatCount(pages)} pages`)
    return
  }
  const least = damaged.length === DAMAGED_MAX ? 'at least ' : ''
  print(`damaged  ${path}: ${least}${formatCount(damaged.length)} of ${formatCount(pages)} pages`)
  for (const { index, offset } of damaged.slice(0, DAMAGED_LISTED_MAX)) print(`  page ${index} at byte ${offset}`)
  if (damaged.length > DAMAGED_LISTED_MAX) print(`  and ${formatCount(damaged.length - DAMAGED_LISTED_MAX)} more`)
}

function rowsOf(head: SetHead): VmsRow[] {
  const rows = new Map<number, { vms: number; pages: number; occurrences: number }>()
  for (let page = 0; page < head.pageCount; page++) {
    const vms = vmsOfPage(head, page)
    const row = rows.get(vms) ?? { vms, pages: 0, occurrences: 0 }
    row.pages++
    row.occurrences += occurrencesOfPage(head, page)
    rows.set(vms, row)
  }
  return [...rows.values()].sort((a, b) => b.vms - a.vms)
}

/** A set's path: an argument that looks like a file is one, anything else are digits of a digest. */
async function pathOf(set: string, store: string | undefined): Promise<string> {
  if (set.includes('/')) return set
  const isFile = await stat(set)
    .then(found => found.isFile())
    .catch(() => false)
  if (isFile && (store === undefined || set.endsWith(SET_SUFFIX))) return set
  const folder = await existingStore(needStore(store), undefined)
  return folder.pathOf(await folder.find(set))
}

function needStore(store: string | undefined): string {
  if (store !== undefined) return store
  throw new ProxyError('USAGE', 'no --store', undefined, 'give --store DIR, or the path of a set file')
}

async function overlapWith(head: SetHead, path: string): Promise<SetOverlap> {
  const { overlap, parseSummary, SUMMARY_LENGTH_MAX } = await import('../template/summary.ts')
  try {
    const found = await stat(path)
    if (!found.isFile()) {
      throw new ProxyError('USAGE', `${path} is not a regular file`, undefined, 'give a summary of a template set')
    }
    if (found.size > SUMMARY_LENGTH_MAX) {
      const where = { stream: path, offset: SUMMARY_LENGTH_MAX }
      throw new ProxyError('TEMPLATE_FORMAT', 'too long for a summary', where, 'give a summary of a template set')
    }
    return overlap(head, parseSummary(await readFile(path, 'utf8'), path))
  } catch (error) {
    throw ioError(error, 'cannot read', path)
  }
}

async function writeSummary(path: string, head: SetHead): Promise<void> {
  const { summarize } = await import('../template/summary.ts')
  try {
    await writeFile(path, `${JSON.stringify(summarize(head))}\n`)
  } catch (error) {
    throw ioError(error, 'cannot write', path)
  }
}

function setOptions(yargs: Argv): Argv {
  return yargs
    .option('store', { describe: 'Folder of template sets', type: 'string', requiresArg: true })
    .option('store-key', STORE_KEY_OPTION)
    .option('json', { describe: 'Print JSON', type: 'boolean', default: false })
}
