/**
 * The kernel in plain TypeScript: what assembly/ does, said a second time, file by file. Reference for the differential
 * tests, and fallback, so it is written to be reasonably fast: whole words, Math.imul, native copies and compares.
 */
import type { KernelFunctions } from '../functions.ts'
import type { SessionLayout } from '../layout.ts'
import { makeExpander } from './expand.ts'
import { makeHash } from './hash.ts'
import { makeLongMatches } from './long.ts'
import { makeMatcher } from './match.ts'
import { twinMemory } from './memory.ts'
import { makePageQuestions } from './page.ts'
import { makeRing } from './ring.ts'
import { makeTables } from './table.ts'
import { makeNumbers } from './words.ts'

/** The functions of the kernel over a buffer that writeConfig has prepared. Keeps views of it; allocates nothing later. Has scratch of its own. */
export function makeTwin(buffer: ArrayBufferLike, layout: SessionLayout): KernelFunctions {
  const memory = twinMemory(buffer, layout)
  const hash = makeHash(memory)
  const pages = makePageQuestions(memory)
  const tables = makeTables(memory, hash, pages)
  const ring = makeRing(memory, hash, tables)
  const numbers = makeNumbers(memory)
  const { samePage, fillOf, isDense } = pages
  const { hashPages, checksum } = hash
  const { insertPage } = ring
  const { joinWords } = numbers
  return {
    ...makeMatcher(memory, hash, pages, tables, ring, makeLongMatches(memory, ring), numbers),
    ...makeExpander(memory, ring),
    hashPages,
    checksum,
    samePage,
    fillOf,
    isDense,
    insertPage,
    joinWords,
  }
}
