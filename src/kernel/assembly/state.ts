// Addresses and counts of one instance, read from the configuration words that layout.ts wrote into the shared memory.
// Instances of several sessions may share a memory: templates and their table belong to all, the rest to one of them.
// Everything that outlives a call is in memory, not here.
import {
  CONFIG_CHECKSUM_KEY, CONFIG_LONG_SHIFT, CONFIG_LONG_TABLE, CONFIG_PAGE_KEY, CONFIG_PLACES, CONFIG_PLACE_TABLE, CONFIG_RING,
  CONFIG_RING_HASH, CONFIG_RING_MARK, CONFIG_RING_PAGES, CONFIG_RING_TABLE, CONFIG_RING_TABLE_MASK,
  CONFIG_TEMPLATES_AT, CONFIG_TEMPLATE_TABLE, CONFIG_TEMPLATE_MAP, CONFIG_TEMPLATE_MASK,
  CONFIG_TEMPLATE_PAGES, P1, P2, PAGE_BITS, RESULT_WORD, SAMPLE_ADD, SAMPLE_BELOW, SAMPLE_BELOW_SPARSE, STATE_CURSOR, STATE_USED,
} from '../constants'

export let state: usize = 0
export let scratch: usize = 0
export let templateTable: usize = 0
export let templateMask: u32 = 0
export let ringTable: usize = 0
export let ringTableMask: u32 = 0
export let ringHash: usize = 0
export let ringMark: usize = 0
export let placeTable: usize = 0
export let places: u32 = 0
export let templateMap: usize = 0
export let templatesAt: usize = 0
export let templatePages: u32 = 0
/** Address of slot 0, were all slots where the ring is. */
export let ringOrigin: usize = 0
export let ringPages: u32 = 0
export let pageKey: usize = 0
export let checksumKey: usize = 0
export let longTable: usize = 0
export let longShift: u32 = 0
export let poolPages: u32 = 0
export let poolBytes: u32 = 0

// Factors that loops multiply vectors with. Variables that configure sets, not constants: V8 builds a constant vector
// anew in every round, which costs a third of the hash's speed.
export let prime1: i32 = 0
export let prime2: i32 = 0
export let sampleAdd: i32 = 0
export let sampleBelow: i32 = 0
export let sampleBelowSparse: i32 = 0
export let laneMask1: i32 = 0
export let laneMask2: i32 = 0
export let laneMask3: i32 = 0

/** Offsets of the STATE words in the state block. */
export const CURSOR: usize = STATE_CURSOR << 2
export const USED: usize = STATE_USED << 2

/** Offset of the RESULT words in the state block: literal, dense and token bytes, copies, then a count for each kind. */
export const RESULT: usize = RESULT_WORD << 2

/** A word of the configuration. */
function config(word: u32): u32 {
  return load<u32>(state + (<usize>word << 2))
}

export function configure(at: usize, scratchAt: usize): void {
  prime1 = P1
  prime2 = P2
  // all less 2^31, since comparing signed words costs one operation, unsigned three
  sampleAdd = (SAMPLE_ADD - 0x80000000) as i32
  sampleBelow = (SAMPLE_BELOW - 0x80000000) as i32
  sampleBelowSparse = (SAMPLE_BELOW_SPARSE - 0x80000000) as i32
  laneMask1 = 0x000000ff
  laneMask2 = 0x00ff0000
  laneMask3 = 0x0000ffff
  state = at
  scratch = scratchAt
  templateTable = config(CONFIG_TEMPLATE_TABLE)
  templateMask = config(CONFIG_TEMPLATE_MASK)
  ringHash = config(CONFIG_RING_HASH)
  ringMark = config(CONFIG_RING_MARK)
  placeTable = config(CONFIG_PLACE_TABLE)
  places = config(CONFIG_PLACES)
  templatePages = config(CONFIG_TEMPLATE_PAGES)
  ringPages = config(CONFIG_RING_PAGES)
  pageKey = config(CONFIG_PAGE_KEY)
  checksumKey = config(CONFIG_CHECKSUM_KEY)
  longTable = config(CONFIG_LONG_TABLE)
  longShift = config(CONFIG_LONG_SHIFT)
  templateMap = config(CONFIG_TEMPLATE_MAP)
  templatesAt = config(CONFIG_TEMPLATES_AT)
  ringTable = config(CONFIG_RING_TABLE)
  ringTableMask = config(CONFIG_RING_TABLE_MASK)
  ringOrigin = <usize>config(CONFIG_RING) - (<usize>templatePages << PAGE_BITS)
  poolPages = templatePages + ringPages
  poolBytes = poolPages << PAGE_BITS
}

/** Address of a slot's page. Template sets lie where they were loaded: often, but not always, one behind the other. */
// @ts-ignore: decorator
@inline export function slotAddress(slot: u32): usize {
  if (slot >= templatePages) return ringOrigin + (<usize>slot << PAGE_BITS)
  return templatesAt != 0 ? templatesAt + (<usize>slot << PAGE_BITS) : <usize>load<u32>(templateMap + (<usize>slot << 2))
}
