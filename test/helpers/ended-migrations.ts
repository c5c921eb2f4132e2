/** Migrations that have ended, as proxies tell them. */
import type { ArrivalSummary, MigrationSummary } from '../../src/migration/summary.ts'

/** One that left: 1000 bytes of QEMU, 100 on the WAN. */
export function departed(number: number, peer = 'dc2'): Omit<MigrationSummary, 'level'> & { readonly peer: string } {
  return {
    ...{ migration: number, id: `01234567-${number}`, target: 'default', machine: 'pc-q35-8.2', peer },
    ...{ outcome: 'completed', reason: 'taken over', seconds: 12.5, bytesBack: 0, endedBy: '', channels: 'main' },
    ...{ bytesIn: 1000, bytesWan: 100, ratio: 0.1, efforts: {} },
    pages: { zero: 1, same: 2, template: 3, earlier: 4, fill: 5, patched: 6, whole: 7, raw: 9, opaque: 8 },
  }
}

/** One that came, and failed behind 500 bytes. */
export function arrived(number: number): Omit<ArrivalSummary, 'level'> & { readonly peer: string } {
  return {
    ...{ migration: number, id: `89abcdef-${number}`, target: 'web', peer: 'dc1', outcome: 'failed', reason: 'no' },
    ...{ seconds: 1, bytesBack: 0, bytesOut: 500, endedBy: '' },
  }
}
