// Addresses and counts of one instance, read from the configuration words that layout.ts wrote into the shared memory.
// Instances of several sessions may share a memory: templates and their table belong to all, the rest to one of them.
// The word numbers stand in ../layout.ts (CONFIG, STATE, RESULT); everything that outlives a call is in memory, not here.

export let state: usize = 0
export let scratch: usize = 0
export let templateHash: usize = 0
export let templateValue: usize = 0
export let templateMask: u32 = 0
export let ringTableHash: usize = 0
export let ringTableSlot: usize = 0
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
export let laneMask1: i32 = 0
export let laneMask2: i32 = 0
export let laneMask3: i32 = 0

/** No slot, no place. */
export const NONE: u32 = 0xffffffff

/** Offsets of the STATE words in the state block. */
export const CURSOR: usize = 128
export const USED: usize = 132

/** Offset of the RESULT words in the state block: literal, dense and token bytes, copies, then a count for each kind. */
export const RESULT: usize = 192

export function configure(at: usize, scratchAt: usize): void {
  prime1 = 0x9e3779b1 as i32
  prime2 = 0x85ebca77 as i32
  // 1 in 32; both less 2^31, since comparing signed words costs one operation, unsigned three. Zeros, the commonest
  // content, are never sampled, as 0x5bd1e995 is not below 2^27
  sampleAdd = (0x5bd1e995 - 0x80000000) as i32
  sampleBelow = ((1 << 27) - 0x80000000) as i32
  laneMask1 = 0x000000ff
  laneMask2 = 0x00ff0000
  laneMask3 = 0x0000ffff
  state = at
  scratch = scratchAt
  templateHash = load<u32>(at)
  templateValue = load<u32>(at, 4)
  templateMask = load<u32>(at, 8)
  ringHash = load<u32>(at, 12)
  ringMark = load<u32>(at, 16)
  placeTable = load<u32>(at, 20)
  places = load<u32>(at, 24)
  templatePages = load<u32>(at, 32)
  ringPages = load<u32>(at, 36)
  pageKey = load<u32>(at, 40)
  checksumKey = load<u32>(at, 44)
  longTable = load<u32>(at, 48)
  longShift = load<u32>(at, 52)
  templateMap = load<u32>(at, 56)
  templatesAt = load<u32>(at, 60)
  ringTableHash = load<u32>(at, 64)
  ringTableSlot = load<u32>(at, 68)
  ringTableMask = load<u32>(at, 72)
  ringOrigin = <usize>load<u32>(at, 28) - (<usize>templatePages << 12)
  poolPages = templatePages + ringPages
  poolBytes = poolPages << 12
}

/** Address of a slot's page. Template sets lie where they were loaded: often, but not always, one behind the other. */
// @ts-ignore: decorator
@inline export function slotAddress(slot: u32): usize {
  if (slot >= templatePages) return ringOrigin + (<usize>slot << 12)
  return templatesAt != 0 ? templatesAt + (<usize>slot << 12) : <usize>load<u32>(templateMap + (<usize>slot << 2))
}
