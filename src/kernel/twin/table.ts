/** The exact tables, of templates and of the ring: as assembly/table.ts. The hash at hand is the last one of hash.ts. */
import { NONE, PAGE_BYTES } from '../constants.ts'
import type { Hash } from './hash.ts'
import type { TwinMemory } from './memory.ts'
import type { PageQuestions } from './page.ts'

export interface Tables {
  find(at: number): number
  findTemplate(at: number): number
  addTemplate(slot: number, address: number): void
  add(slot: number): void
  remove(hashLo: number, hashHi: number, slot: number): void
}

export function makeTables(
  { layout, words, ringOrigin }: TwinMemory,
  { last }: Hash,
  { samePage }: PageQuestions,
): Tables {
  const templateTable = layout.templateTable >>> 2
  const templateMask = Math.max(0, layout.templateEntries - 1)
  const ringTable = layout.ringTable >>> 2
  const ringTableMask = Math.max(0, layout.ringTableEntries - 1)

  /** Slot of the page at `at`, whose hash is the last one; NONE. */
  function find(at: number): number {
    const slot = findTemplate(at)
    return slot !== NONE ? slot : findRing(at)
  }

  function findTemplate(at: number): number {
    for (let e = last.lo & templateMask; ; e = (e + 1) & templateMask) {
      const l = words[templateTable + 4 * e]!
      const h = words[templateTable + 4 * e + 1]!
      if ((l | h) === 0) return NONE
      if (l === last.lo && h === last.hi && samePage(at, words[templateTable + 4 * e + 3]! >>> 0))
        return words[templateTable + 4 * e + 2]! >>> 0
    }
  }

  function findRing(at: number): number {
    for (let e = last.lo & ringTableMask; ; e = (e + 1) & ringTableMask) {
      const l = words[ringTable + 4 * e]!
      const h = words[ringTable + 4 * e + 1]!
      if ((l | h) === 0) return NONE
      if (l === last.lo && h === last.hi) {
        const slot = words[ringTable + 4 * e + 2]! >>> 0
        if (samePage(at, ringOrigin + slot * PAGE_BYTES)) return slot
      }
    }
  }

  function addTemplate(slot: number, address: number): void {
    let e = last.lo & templateMask
    while ((words[templateTable + 4 * e]! | words[templateTable + 4 * e + 1]!) !== 0) e = (e + 1) & templateMask
    words[templateTable + 4 * e] = last.lo
    words[templateTable + 4 * e + 1] = last.hi
    words[templateTable + 4 * e + 2] = slot
    words[templateTable + 4 * e + 3] = address
  }

  function add(slot: number): void {
    let e = last.lo & ringTableMask
    while ((words[ringTable + 4 * e]! | words[ringTable + 4 * e + 1]!) !== 0) e = (e + 1) & ringTableMask
    words[ringTable + 4 * e] = last.lo
    words[ringTable + 4 * e + 1] = last.hi
    words[ringTable + 4 * e + 2] = slot
  }

  function remove(hashLo: number, hashHi: number, slot: number): void {
    let hole = hashLo & ringTableMask
    for (; ; hole = (hole + 1) & ringTableMask) {
      const l = words[ringTable + 4 * hole]!
      const h = words[ringTable + 4 * hole + 1]!
      if ((l | h) === 0) return
      if (l === hashLo && h === hashHi && words[ringTable + 4 * hole + 2]! >>> 0 === slot) break
    }
    for (let e = (hole + 1) & ringTableMask; ; e = (e + 1) & ringTableMask) {
      const l = words[ringTable + 4 * e]!
      const h = words[ringTable + 4 * e + 1]!
      if ((l | h) === 0) break
      // an entry may move back to the hole unless its home lies after the hole
      if (((e - l) & ringTableMask) >= ((e - hole) & ringTableMask)) {
        words[ringTable + 4 * hole] = l
        words[ringTable + 4 * hole + 1] = h
        words[ringTable + 4 * hole + 2] = words[ringTable + 4 * e + 2]!
        hole = e
      }
    }
    words[ringTable + 4 * hole] = 0
    words[ringTable + 4 * hole + 1] = 0
    words[ringTable + 4 * hole + 2] = 0
  }

  return { find, findTemplate, addTemplate, add, remove }
}
