/** Builds a template set: passes over the inputs to count, one more to copy the chosen pages into the store. */
import { Readable, Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { transform } from 'stream-transform'
import { ProxyError } from '../errors.ts'
import { BATCH_PAGES, type PageBatch } from '../template/batch.ts'
import type { ChoiceTable } from '../template/choice-table.ts'
import { type CountTotals, changedInput, PageCounter } from '../template/count.ts'
import { isUniform, PAGE_WORDS, writeDigest } from '../template/digest.ts'
import { encodeMetadata, type SetMetadata, type SetRecords } from '../template/format.ts'
import { type PageTagger, TAG_LENGTH, TAG_WORDS } from '../template/page-tag.ts'
import { DIGEST_LENGTH, PAGE_SIZE, pagesWithin } from '../template/wire.ts'
import type { PutResult, TemplateStore } from './template-store.ts'

/** One VM: something that gives the same pages each time it is asked. */
export interface TemplateInput {
  /** For messages. */
  readonly name: string
  /** How much of it there is to read, in bytes. */
  readonly lengthBytes: number
  /** All its pages in the order of its stream; batches are released by whoever takes them. */
  pages(readBytes: (count: number) => void): AsyncIterable<PageBatch>
}

/** Which pages to choose, and within which memory to count. */
export interface BuildRule {
  readonly minVms: number
  /** Limit of the set's file. */
  readonly maxBytes?: number | undefined
  readonly memoryBytes: number
}

/** How far a build is: one step a pass over the inputs. */
export interface BuildProgress {
  readonly step: 'count' | 'copy'
  /** From 1. */
  readonly pass: number
  readonly input: string
  readonly doneBytes: number
  readonly totalBytes: number
}

export interface BuildOptions {
  readonly progress?: ((progress: BuildProgress) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

/** Chosen pages by the number of VMs that had them. */
export interface VmsRow {
  readonly vms: number
  readonly pages: number
  readonly occurrences: number
}

/** What a build did. */
export interface BuildReport extends PutResult {
  readonly metadata: SetMetadata
  readonly pages: number
  readonly totals: CountTotals
  /** Descending by VMs. */
  readonly byVms: readonly VmsRow[]
}

/** Batches between two stages of the pipeline. They are large, so one is enough to keep both busy. */
const STAGE_BATCHES = 1

/**
 * Counts the pages of all inputs, one input a VM, and puts the chosen ones into the store.
 *
 * @throws USAGE for a rule that cannot choose anything, TEMPLATE_MISSING where no page was chosen, LIMIT_EXCEEDED where
 * the chosen pages exceed the memory, IO, whatever an input throws, the signal's reason
 */
export async function buildSet(
  inputs: readonly TemplateInput[],
  rule: BuildRule,
  store: TemplateStore,
  options: BuildOptions = {},
): Promise<BuildReport> {
  const { minVms, maxBytes, memoryBytes } = rule
  if (minVms > inputs.length) {
    const what = `${inputs.length} input${inputs.length === 1 ? '' : 's'} for pages of at least ${minVms} VMs`
    throw new ProxyError('USAGE', what, undefined, 'one input is one VM: give more inputs, or a smaller --min-vms')
  }
  const metadata: SetMetadata = { maxBytes, minVms, vms: inputs.length }
  const mostPages = maxBytes === undefined ? undefined : pagesWithin(maxBytes, encodeMetadata(metadata).length)
  if (mostPages === 0) {
    throw new ProxyError('USAGE', `--max-size ${maxBytes} holds no page`, undefined, 'give at least 16KiB')
  }

  const counter = new PageCounter({ minVms, mostPages, memoryBytes })
  const reader = new InputReader(inputs, options)
  while (!counter.done) await countPass(counter, reader)
  const chosen = counter.chosen()
  if (chosen.count === 0) {
    const what = `no page is in ${minVms} or more of these ${inputs.length} VMs`
    throw new ProxyError(
      'TEMPLATE_MISSING',
      what,
      undefined,
      'nothing was stored; give inputs that have more in common',
    )
  }
  const put = await store.put(metadata, chosen, () => copyPass(chosen, reader), options.signal)
  return { ...put, metadata, pages: chosen.count, totals: counter.totals, byVms: pagesByVms(chosen) }
}

/** What a build by choice did. */
export interface ChosenReport extends PutResult {
  readonly metadata: SetMetadata
  readonly pages: number
  /** Pages that the choice names and no input has. */
  readonly missing: number
  readonly totals: CountTotals
  readonly byVms: readonly VmsRow[]
}

/**
 * Takes the pages of a choice from inputs and puts them into the store, in order of first appearance in these.
 *
 * @param metadata of the set: what the choice says of itself
 * @throws TEMPLATE_MISSING where no input has any of them, IO, whatever an input throws, the signal's reason
 */
export async function buildChosen(
  inputs: readonly TemplateInput[],
  choice: ChoiceTable,
  tagger: PageTagger,
  metadata: SetMetadata,
  store: TemplateStore,
  options: BuildOptions = {},
): Promise<ChosenReport> {
  const reader = new InputReader(inputs, options)
  const firstsOfVms: number[] = []
  let uniformPages = 0
  let pages = 0
  reader.beginPass('count')
  for (let vm = 0; vm < inputs.length && !choice.complete; vm++) {
    firstsOfVms.push(pages)
    for await (const batch of taggedBatches(reader, vm, tagger)) {
      const { count, digests, tagWords, uniform } = batch
      for (let i = 0; i < count; i++) {
        if (uniform[i] === 1) uniformPages++
        else choice.show(tagWords, i * TAG_WORDS, digests, i * DIGEST_LENGTH, pages + i)
      }
      pages += count
      if (choice.complete) break
    }
  }
  if (choice.count === 0) {
    const action = 'nothing was stored; give the inputs that were counted, and the --key of the count'
    throw new ProxyError('TEMPLATE_MISSING', 'the inputs have no page of the choice', undefined, action)
  }
  const firstPageIn = (place: number, vm: number): number => choice.first(place) - (firstsOfVms[vm] ?? Infinity)
  const chosen: PlacedPages = {
    count: choice.count,
    vms: place => choice.vms(place),
    occurrences: place => choice.occurrences(place),
    copyDigest: (place, into, at) => choice.copyDigest(place, into, at),
    firstPageIn,
  }
  const put = await store.put(metadata, chosen, () => copyPass(chosen, reader), options.signal)
  const totals = { pages, uniformPages, passes: 1 }
  const missing = choice.named - choice.count
  return { ...put, metadata, pages: choice.count, missing, totals, byVms: pagesByVms(chosen) }
}

/** A batch of which every page's tag is known. Valid until the next one is asked for. */
export interface TaggedBatch {
  readonly count: number
  /** 1 where the page repeats one byte: it has no tag. */
  readonly uniform: Uint8Array
  /** SHA-256 of each page. */
  readonly digests: Buffer
  /** TAG_LENGTH bytes a page. */
  readonly tags: Buffer
  /** `tags` as words in the machine's order. */
  readonly tagWords: Uint32Array
}

/** The pages of an input by their tags. */
export async function* taggedBatches(reader: InputReader, vm: number, tagger: PageTagger): AsyncGenerator<TaggedBatch> {
  const memory = new ArrayBuffer(BATCH_PAGES * TAG_LENGTH)
  const tags = Buffer.from(memory)
  const tagWords = new Uint32Array(memory)
  for await (const batch of reader.batches(vm)) {
    const { count, words, pages, digests, marks } = batch
    for (let i = 0; i < count; i++) {
      marks[i] = isUniform(words, i * PAGE_WORDS) ? 1 : 0
      if (marks[i] === 1) continue
      writeDigest(pages[i]!, digests, i * DIGEST_LENGTH)
      tagger.write(digests, i * DIGEST_LENGTH, tags, i * TAG_LENGTH)
    }
    yield { count, uniform: marks, digests, tags, tagWords }
    batch.release()
  }
}

/** Pages of a set to be, by where the inputs show them. */
interface PlacedPages extends SetRecords {
  /** Where VM `vm` shows the page for the first time: place among its pages. Below 0 in VMs after that one. */
  firstPageIn(place: number, vm: number): number
}

/** Reads inputs again and again, telling how far it is. */
export class InputReader {
  readonly inputs: readonly TemplateInput[]
  private readonly options: BuildOptions
  private readonly totalBytes: number
  private step: BuildProgress['step'] = 'count'
  private pass = 0
  private doneBytes = 0

  constructor(inputs: readonly TemplateInput[], options: BuildOptions) {
    this.inputs = inputs
    this.options = options
    this.totalBytes = inputs.reduce((sum, input) => sum + input.lengthBytes, 0)
  }

  beginPass(step: BuildProgress['step']): void {
    this.step = step
    this.pass++
    this.doneBytes = 0
  }

  /** The batches of an input. The consumer releases each. */
  async *batches(vm: number): AsyncGenerator<PageBatch> {
    const { progress, signal } = this.options
    const input = this.inputs[vm]!
    const readBytes = (count: number): void => {
      this.doneBytes += count
      const { step, pass, doneBytes, totalBytes } = this
      progress?.({ step, pass, input: input.name, doneBytes, totalBytes })
    }
    for await (const batch of input.pages(readBytes)) {
      signal?.throwIfAborted()
      yield batch
    }
  }
}

/**
 * One pass of counting. Batches are the records of the pipeline: a record a page would cost more than its digest does
 * in turns of the event loop, a record of 256 pages costs nothing that can be measured (docs/adr).
 */
async function countPass(counter: PageCounter, reader: InputReader): Promise<void> {
  reader.beginPass('count')
  counter.beginPass()
  for (let vm = 0; vm < reader.inputs.length && !counter.spoiled; vm++) {
    counter.beginVm()
    const source = async function* (): AsyncGenerator<PageBatch> {
      for await (const batch of reader.batches(vm)) {
        if (counter.spoiled) return
        yield batch
      }
    }
    const prepare = (batch: PageBatch): PageBatch => {
      counter.prepare(batch)
      return batch
    }
    const count = (batch: PageBatch, _: unknown, done: (error?: Error) => void): void => {
      try {
        counter.count(batch)
      } catch (error) {
        done(error as Error)
        return
      }
      batch.release()
      done()
    }
    await pipeline(
      Readable.from(source(), { highWaterMark: STAGE_BATCHES }),
      // parallel 1 keeps the order, on which the order of the set's pages stands.
      transform({ parallel: 1, highWaterMark: STAGE_BATCHES }, prepare),
      new Writable({ objectMode: true, highWaterMark: STAGE_BATCHES, write: count }),
    )
    counter.endVm()
  }
  counter.endPass()
}

/** The chosen pages in order, in runs of neighbours. A run is valid until the next is asked for. */
async function* copyPass(chosen: PlacedPages, reader: InputReader): AsyncGenerator<Uint8Array> {
  reader.beginPass('copy')
  let place = 0
  for (let vm = 0; vm < reader.inputs.length && place < chosen.count; vm++) {
    for await (const batch of reader.batches(vm)) {
      const wantedAt = (): number => (place < chosen.count ? chosen.firstPageIn(place, vm) - batch.firstPage : Infinity)
      for (let from = wantedAt(); from < batch.count; from = wantedAt()) {
        // A page that should have come earlier did not come: the input is not what was counted.
        if (from < 0) throw changedInput(vm)
        let to = from
        do {
          to++
          place++
        } while (to < batch.count && wantedAt() === to)
        yield batch.bytes.subarray(from * PAGE_SIZE, to * PAGE_SIZE)
      }
      batch.release()
      if (place === chosen.count) return
    }
  }
}

function pagesByVms(chosen: SetRecords): VmsRow[] {
  const rows = new Map<number, { vms: number; pages: number; occurrences: number }>()
  for (let place = 0; place < chosen.count; place++) {
    const vms = chosen.vms(place)
    const row = rows.get(vms) ?? { vms, pages: 0, occurrences: 0 }
    row.pages++
    row.occurrences += chosen.occurrences(place)
    rows.set(vms, row)
  }
  return [...rows.values()].sort((a, b) => b.vms - a.vms)
}
