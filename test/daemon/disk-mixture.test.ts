/**
 * Disks through both daemons with all that there is for them at once: writes answered beside the source, zeroes as holes, what
 * is read encoded, sessions that are left, and a WAN that is cut. By clients and a server that nobody here wrote.
 */
import t from 'tap'
import type { SiteEvent } from '../../src/daemon/events.ts'
import { FairShares } from '../../src/fair-shares.ts'
import { MEMORY_BUDGET_BYTES } from '../../src/limits.ts'
import { until } from '../helpers/until.ts'
import type { Daemons, DaemonsOptions } from './daemons.ts'
import { DiskPair } from './disk-pair.ts'
import { NBD_SKIP, Nbdkit, nbdsh } from './nbd.ts'

t.setTimeout(590_000) // the machine may be busy

const MIB = 1 << 20
/** Of the disk, which each client has for itself. */
const PART = 3 * MIB

/** Reads, writes and all else in a part of the disk, eight reads under way at a time, against a model of it. */
const client = (part: number, steps: number): string[] => [
  'import random',
  `r = random.Random(${part})`,
  `first, size = ${part * PART}, ${PART}`,
  'model = bytearray(size)',
  'known = [r.randbytes(4096) for i in range(40)]',
  'def place():',
  '    n = r.choice([1, 511, 512, 4096, 8192, 65536, 131072, 300000])',
  '    at = r.choice([r.randrange(size - n), 4096 * r.randrange((size - n) // 4096)])',
  '    return at, n',
  'def data(n):',
  '    kind = r.randrange(4)',
  '    if kind == 0: return r.randbytes(n)',
  '    if kind == 1: return bytes(n)',
  '    return b"".join(r.choice(known) for i in range(n // 4096 + 1))[:n]',
  'def reads():',
  '    wanted = []',
  '    for i in range(8):',
  '        at, n = place()',
  '        into = nbd.Buffer(n)',
  '        wanted.append((at, n, into, h.aio_pread(into, first + at)))',
  '    left = {cookie: (at, n, into) for at, n, into, cookie in wanted}',
  '    while left:',
  '        h.poll(-1)',
  '        for cookie in list(left):',
  '            if h.aio_command_completed(cookie):',
  '                at, n, into = left.pop(cookie)',
  '                assert into.to_bytearray() == model[at:at+n], (at, n)',
  `for i in range(${steps}):`,
  '    at, n = place()',
  '    what = r.randrange(12)',
  '    if what < 5:',
  '        bytes_ = data(n)',
  '        h.pwrite(bytes_, first + at, nbd.CMD_FLAG_FUA if i % 9 == 0 else 0)',
  '        model[at:at+n] = bytes_',
  '    elif what == 5: h.zero(n, first + at, r.choice([0, nbd.CMD_FLAG_NO_HOLE])); model[at:at+n] = bytes(n)',
  '    elif what == 6: h.trim(n, first + at); model[at:at+n] = h.pread(n, first + at)',
  '    elif what == 7: h.flush()',
  '    elif what < 10: assert h.pread(n, first + at) == model[at:at+n], (at, n)',
  '    else: reads()',
  'h.flush()',
  'assert h.pread(size, first) == model',
  'print("well")',
]

interface Mixture {
  readonly name: string
  readonly options: DaemonsOptions
  /** What happens meanwhile, over and over. */
  readonly meanwhile: (daemons: Daemons, turn: number) => void
}

const mixtures: readonly Mixture[] = [
  {
    name: 'early, unmapped, encoded both ways, the WAN is cut and sessions are left',
    options: { diskAnswers: 'early', diskZeroes: 'unmap' },
    meanwhile: ({ source, wan }, turn) => {
      if (turn % 3 === 0) source.renew()
      else wan.cut()
    },
  },
  {
    name: 'the same at effort 1 and a thin link',
    options: { diskAnswers: 'early', diskZeroes: 'unmap', effort: 1, rate: 4 << 20 },
    meanwhile: ({ source }) => source.renew(),
  },
  {
    name: 'answered far away',
    options: { diskAnswers: 'far', diskZeroes: 'unmap' },
    meanwhile: ({ source, wan }, turn) => {
      if (turn % 3 === 0) source.renew()
      else wan.cut()
    },
  },
]

for (const { name, options, meanwhile } of mixtures) {
  t.test(name, { skip: NBD_SKIP }, async t => {
    const memory = new FairShares(MEMORY_BUDGET_BYTES)
    await using kit = await Nbdkit.start('memory', String(8 * PART))
    let told: readonly SiteEvent[]
    {
      await using pair = await DiskPair.start(`unix:${kit.socket}`, {
        ...{ effort: 3, patienceMs: 60_000, memory },
        ...options,
      })
      const { uri, daemons } = pair
      told = pair.told
      let running = 0
      const run = async (part: number): Promise<string> => {
        running++
        return await nbdsh(uri, ...client(part, 30)).finally(() => {
          running--
        })
      }
      const begun = [run(0), run(1), run(2)]
      for (let turn = 0, at = daemons.wan.bytes; turn < 9; turn++) {
        at += MIB
        await until('bytes on the WAN', () => daemons.wan.bytes > at || running === 0)
        if (running === 0) break
        meanwhile(daemons, turn)
        if (turn % 2 === 0) begun.push(run(begun.length))
      }
      t.same(
        await Promise.all(begun),
        begun.map(() => 'well\n'),
      )
      await until('all ends', () => daemons.disksEnded.length > 0 && daemons.destination.running === 0)
      await until('sessions without disks, and left ones to be over', () => {
        const { connections, left, session } = daemons.source.status()
        return left.length === 0 && connections === 0 && (session?.disks ?? []).length === 0
      })
      // before the end of the daemons, which may come while they open the next session
      const dead = told.filter(({ event }) => event === 'link.dead' || event === 'link.defect')
      t.same(dead, [])
    }
    await until('all of the memory to be given back', () => memory.used === 0) // once it is clean
    const wrong = told.filter(
      ({ event, level }) => level === 'error' || event === 'relayed raw' || event === 'early answers were wrong',
    )
    t.same(wrong, [])
  })
}
