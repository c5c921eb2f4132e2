/** What the lab captured, and template sets made of it: the measurements of this folder run on the same bytes. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { PageInput } from '../../src/capture/pages.ts'
import { type BuildReport, buildSet } from '../../src/store/build.ts'
import { TemplateStore } from '../../src/store/template-store.ts'

export const root = fileURLToPath(new URL('../..', import.meta.url))

/** Where `make bench-migrate`, this folder's measurements and the report leave and find their JSON. */
export const COMPARE_FOLDER = join(root, '.cache/compare')

/** The guests that templates are made of, as in `make bench-ratio`; never the one that is measured. */
export const TEMPLATE_GUESTS = ['idle', 'nginx', 'redis', 'compiling'] as const

/** Path of a captured stream. @throws Error where `make lab` has not made it */
export function labStream(name: string): string {
  const path = join(root, '.cache/lab/streams', `${name}.stream`)
  if (!existsSync(path)) throw new Error(`there is no stream '${name}': run \`make lab\` first`)
  return path
}

/** A set of the pages that `minVms` or more of the template guests hold, in a store of its own in `folder`. */
export async function labTemplates(
  folder: string,
  rule: { readonly minVms: number; readonly maxBytes?: number },
): Promise<{ readonly store: TemplateStore; readonly report: BuildReport }> {
  const store = new TemplateStore(folder)
  const inputs: PageInput[] = []
  for (const guest of TEMPLATE_GUESTS) inputs.push(await PageInput.open(labStream(guest)))
  return { store, report: await buildSet(inputs, { maxBytes: undefined, memoryBytes: 1 << 30, ...rule }, store) }
}
