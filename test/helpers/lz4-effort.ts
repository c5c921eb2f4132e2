import type { Effort } from '../../src/compression/effort.ts'

/** Pages as LZ4 blocks, as peers of before send them: no rung takes it any more, and every one of them is still read. */
export const LZ4: Effort = { level: 0.5, name: 'lz4', longMatch: 0, method: 'lz4' }
