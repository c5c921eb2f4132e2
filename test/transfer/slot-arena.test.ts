/** Slots of channels: none overlaps another, and the last place is as good as the first. */
import t from 'tap'
import {
  CHANNEL_UNITS,
  CHANNEL_UNITS_KEPT,
  CHANNELS_A_MIGRATION,
  DISK_CONNECTIONS_MAX,
  FLOWS_MAX,
} from '../../src/limits.ts'
import { SLOT_UNIT_BYTES, type Slot, SlotArena } from '../../src/transfer/slot-arena.ts'
import { random } from '../template/makers.ts'

const FULL = 9

t.test('few channels have full slots, many have one each', t => {
  const arena = new SlotArena(4096, 2304, FULL, 1280)
  const slots = Array.from({ length: 1280 }, () => arena.take()!)
  t.equal(slots.filter(({ bytes }) => bytes === FULL * SLOT_UNIT_BYTES).length, 128)
  t.ok(
    slots.slice(0, 128).every(({ bytes }) => bytes === FULL * SLOT_UNIT_BYTES),
    'the first ones',
  )
  t.equal(slots.filter(({ bytes }) => bytes === SLOT_UNIT_BYTES).length, 1152)
  t.equal(arena.take(), undefined, 'no more than that')
  arena.give(slots[5]!)
  t.same(arena.take(), slots[5], 'memory that was used is used again')
  for (const slot of slots) arena.give(slot)
  t.equal(arena.take()!.at, 4096)
  t.throws(() => arena.give(slots[7]!), /nobody has/)
  t.end()
})

t.test('memory that comes behind 128 disks has whole batches', t => {
  const arena = new SlotArena(4096, CHANNEL_UNITS, FULL, FLOWS_MAX)
  const isFull = (slot: Slot | undefined): boolean => slot?.bytes === FULL * SLOT_UNIT_BYTES
  const disks = Array.from({ length: DISK_CONNECTIONS_MAX }, () => arena.take(CHANNEL_UNITS_KEPT)!)
  t.equal(disks.filter(isFull).length, 64)
  const channels = Array.from({ length: CHANNELS_A_MIGRATION }, () => arena.take())
  t.equal(channels.filter(isFull).length, 64)
  t.ok(isFull(channels[0]), 'main is the first')
  for (const slot of [...disks, ...channels]) arena.give(slot!)
  for (let i = 0; i < 64; i++) arena.take()
  t.ok(isFull(arena.take(CHANNEL_UNITS_KEPT)) === false, 'behind many channels a disk has a small one')
  t.ok(isFull(arena.take()), 'which they have not')
  t.end()
})

t.test('whatever comes and goes, a place that is free has a slot, and no two overlap', t => {
  for (let seed = 1; seed <= 50; seed++) {
    const next = random(seed)
    const places = 1 + next(60)
    const units = places + next(300)
    const arena = new SlotArena(0, units, FULL, places)
    const held: Slot[] = []
    for (let step = 0; step < 500; step++) {
      if (held.length < places && next(100) < 55) {
        const slot = arena.take()
        if (!slot) {
          t.fail(`seed ${seed}: ${held.length} of ${places} places, and no slot`)
          break
        }
        held.push(slot)
      } else if (held.length > 0) arena.give(held.splice(next(held.length), 1)[0]!)
      const sorted = held.toSorted((a, b) => a.at - b.at)
      const wrong = sorted.some(
        ({ at, bytes }, i) => at + bytes > (sorted[i + 1]?.at ?? units * SLOT_UNIT_BYTES) || at % SLOT_UNIT_BYTES > 0,
      )
      if (wrong) t.fail(`seed ${seed}, step ${step}: overlapping slots`)
    }
  }
  t.pass('50 seeds')
  t.end()
})
