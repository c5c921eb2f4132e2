// Addresses and counts of one instance, read from the configuration words that layout.ts wrote into the shared memory.
// The word numbers stand in ../layout.ts (CONFIG, STATE, RESULT); everything that outlives a call is in memory, not here.

export let state: usize = 0
export let scratch: usize = 0
export let tableHash: usize = 0
export let tableSlot: usize = 0
export let tableMask: u32 = 0
export let ringHash: usize = 0
export let ringMark: usize = 0
export let placeTable: usize = 0
export let places: u32 = 0
export let pool: usize = 0
export let templatePages: u32 = 0
export let ringPages: u32 = 0
export let pageKey: usize = 0
export let checksumKey: usize = 0
export let longTable: usize = 0
export let longShift: u32 = 0
export let poolPages: u32 = 0
export let poolBytes: usize = 0

/** No slot, no place. */
export const NONE: u32 = 0xffffffff

/** Offsets of the STATE words in the state block. */
export const CURSOR: usize = 128
export const USED: usize = 132

/** Offset of the RESULT words in the state block: literal, dense and token bytes, copies, then a count for each kind. */
export const RESULT: usize = 192

export function configure(at: usize, scratchAt: usize): void {
  state = at
  scratch = scratchAt
  tableHash = load<u32>(at)
  tableSlot = load<u32>(at, 4)
  tableMask = load<u32>(at, 8)
  ringHash = load<u32>(at, 12)
  ringMark = load<u32>(at, 16)
  placeTable = load<u32>(at, 20)
  places = load<u32>(at, 24)
  pool = load<u32>(at, 28)
  templatePages = load<u32>(at, 32)
  ringPages = load<u32>(at, 36)
  pageKey = load<u32>(at, 40)
  checksumKey = load<u32>(at, 44)
  longTable = load<u32>(at, 48)
  longShift = load<u32>(at, 52)
  poolPages = templatePages + ringPages
  poolBytes = <usize>poolPages << 12
}
