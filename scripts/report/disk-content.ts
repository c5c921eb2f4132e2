/** Guests that moved with their disks: past the pair and through it. */
import { DISK_CASES, type DiskCase, type DiskPart, type DiskRun, type Results } from '../measure/compare/results.ts'
import type { Block, TableCell } from './document.ts'
import { spreadOf } from './figures.ts'
import { column } from './names.ts'
import { digits, formatSize, percent, seconds, spread } from './quantities.ts'

const NAMES: Readonly<Record<DiskCase, string>> = {
  direct: 'direct',
  known: 'the pair, golden image known',
  held: 'the pair, golden image known and held in memory',
  unknown: 'the pair, nothing known',
  large: 'the pair, nothing known, the pool as large as the disk',
  memory: 'the pair, nothing known, the memory alone (its disk is shared)',
}

/** None where no disk was moved. */
export function diskBlocks({ disks = [], guests }: Pick<Results, 'disks' | 'guests'>): Block[] {
  const [first] = disks
  if (first === undefined) return []
  const done = (disk: DiskCase): DiskRun[] =>
    disks.filter(run => run.disk === disk && run.outcome === 'completed' && run.memory !== undefined)
  const bytesOf = ({ mirror, memory }: DiskRun): number => (mirror?.wanBytes ?? 0) + memory!.wanBytes
  const direct = spreadOf(done('direct').map(bytesOf))?.median
  const row = (disk: DiskCase): TableCell[] => {
    const runs = done(disk)
    if (runs.length === 0) {
      const failed = disks.find(run => run.disk === disk)
      return [NAMES[disk], { text: failed?.reason ?? 'failed', state: 'failed' }, ...new Array<string>(8).fill('')]
    }
    const of = (value: (run: DiskRun) => number | null | undefined) => spreadOf(runs.map(run => value(run) ?? null))
    const part = (of: (run: DiskRun) => DiskPart | undefined): TableCell[] => [
      spread(spreadOf(runs.map(run => of(run)?.wanBytes ?? null)), formatSize),
      spread(spreadOf(runs.map(run => (of(run) ? of(run)!.seconds * 1000 : null))), seconds),
    ]
    const all = of(bytesOf)!
    const cpu = of(({ mirror, memory }) =>
      [...(mirror?.cpuSeconds ?? []), ...memory!.cpuSeconds].reduce((sum, value) => sum + value, 0),
    )
    return [
      NAMES[disk],
      `${runs.length} of ${disks.filter(run => run.disk === disk).length}`,
      ...part(({ mirror }) => mirror),
      ...part(({ memory }) => memory),
      spread(all, formatSize),
      direct === undefined || disk === 'direct' || disk === 'memory' ? '' : percent(all.median / direct),
      spread(
        of(({ mirror, memory }) => ((mirror?.seconds ?? 0) + memory!.seconds) * 1000),
        seconds,
      ),
      disk === 'direct' ? '' : spread(cpu, digits),
    ]
  }
  const workload = guests.find(({ name }) => name === first.guest)?.workload ?? first.guest
  return [
    { kind: 'heading', level: 2, id: 'disks', text: 'With its disk' },
    {
      kind: 'text',
      text: `A running guest (${first.guest}: ${workload}) over ${first.profile}: its disk is mirrored by QEMU, then its memory follows; behind it both disks are compared, bit by bit. Bytes are those of packets on the link, both ways; seconds of the disk count until the mirror is ready; CPU is that of both proxies.`,
    },
    {
      kind: 'table',
      table: {
        caption: 'A guest and its disk',
        columns: [
          column('Way', false),
          column('Completed', false),
          column('Disk, on the link'),
          column('Disk, time'),
          column('Memory, on the link'),
          column('Memory, time'),
          column('In all, on the link'),
          column('of direct'),
          column('In all, time'),
          column('CPU seconds'),
        ],
        rows: DISK_CASES.filter(disk => disks.some(run => run.disk === disk)).map(row),
      },
    },
  ]
}
