/** A store that is not there, for tests of what is done with the sets of one. */
import type { SessionSets } from '../../src/daemon/session-sets.ts'
import type { TemplateStore } from '../../src/store/template-store.ts'

/** One with so many sets of a page, the newest first. */
export function storeOf(count: number): { store: TemplateStore; digests: string[] } {
  const sets = Array.from({ length: count }, (_, i) => ({
    ...{ digest: `${i}`.padStart(64, '0'), path: `/store/${i}`, problem: undefined, fileBytes: 4096, pages: 1 },
    ...{ modified: new Date(1e12 - i), changed: new Date(1e12 - i) },
  }))
  const store = {
    folder: '/store',
    fingerprint: async () => 'as it is',
    list: async () => sets,
    dropTables: () => {},
  } as unknown as TemplateStore
  return { store, digests: sets.map(({ digest }) => digest) }
}

/** What a side offers now. */
export async function floorsOf(sets: SessionSets): Promise<{ hot: readonly string[]; cold: readonly string[] }> {
  const { hot, cold } = await sets.offer()
  return { hot, cold }
}
