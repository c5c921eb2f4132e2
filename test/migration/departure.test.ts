/** A migration at its source: what its phases mean, what is kept for a recovery, and what is told of it. */
import t from 'tap'
import { sentenceOf, summaryLine } from '../../src/cli/summary-text.ts'
import { MAPPED } from '../../src/codec/memory-map.ts'
import { BatchStats } from '../../src/codec/stats.ts'
import { EXPORT_TOLD_LENGTH_MAX, EXPORTS_TOLD_MAX, RAW_REASONS_TOLD_MAX } from '../../src/limits.ts'
import { ChannelHead } from '../../src/migration/channel-ends.ts'
import type { Departure, DepartureChannel } from '../../src/migration/departure.ts'
import { DiskDeparture } from '../../src/migration/disk-departure.ts'
import { type FlowKind, Gate } from '../../src/migration/gate.ts'
import { MigrationDeparture } from '../../src/migration/migration-departure.ts'
import type { Cause } from '../../src/migration/outcome.ts'
import { PausedMigrations } from '../../src/migration/paused.ts'
import type { ChannelKind } from '../../src/qemu/channel-kind.ts'
import type { ParserMemory } from '../../src/qemu/main-stream.ts'
import type { StreamPhase } from '../../src/qemu/stream-sink.ts'

const SESSION = '0123456789abcdef0123456789abcdef'

class Channel implements DepartureChannel {
  readonly gate: Gate<Channel, Departure<Channel>>
  readonly host = 'host'
  readonly isSilent = false
  readonly isUnanswered = false
  unanswered = 0
  readonly stats = new BatchStats()
  kind: FlowKind
  over = false
  readonly number: number
  readonly place = undefined
  readonly memory: ParserMemory = { blocks: [], blocksComplete: true, sections: [], machineType: 'pc' }

  constructor(gate: Gate<Channel, Departure<Channel>>, kind: FlowKind, number: number) {
    this.gate = gate
    this.kind = kind
    this.number = number
  }
}

/** A migration that has begun with a channel of this kind at 1000 ms, and has further ones. */
function begun(kinds: readonly ChannelKind[], number = 3): MigrationDeparture<Channel> {
  const gate = new Gate<Channel, Departure<Channel>>('web')
  const departure = new MigrationDeparture<Channel>({
    session: SESSION,
    number,
    gate,
    startMs: 1000,
    kind: kinds[0]!,
  })
  for (const [i, kind] of kinds.entries()) {
    const channel = new Channel(gate, kind, i + 1)
    departure.lead ??= channel
    departure.opened(channel, 1000 + i)
  }
  return departure
}

t.test('phases', t => {
  const phases: StreamPhase[] = ['header', 'ram-start', 'switchover', 'ram-end', 'colo', 'snapshot-devices']
  const departure = begun(['main'])
  for (const phase of phases) t.equal(departure.phase(phase), undefined, `nothing follows of ${phase}`)
  t.match(departure, { urgent: false, record: { postcopy: false, answers: false } })
  t.equal(departure.phase('return-path'), undefined)
  t.equal(departure.record.answers, true)
  t.equal(departure.phase('postcopy-advise'), 'advised', 'those silent at its gate may be its preempt channel')
  t.equal(departure.urgent, false, 'no guest waits yet')
  t.equal(departure.phase('postcopy'), 'urgent')
  t.match(departure, { urgent: true, record: { postcopy: true } })
  t.equal(begun(['main']).phase('recovery'), 'urgent')
  t.match(
    begun(['recovery']),
    { urgent: true, record: { postcopy: true } },
    'from its start, whether it can be read or not',
  )
  t.end()
})

t.test('how long the guest stood still: of completed precopy, from the last pass to SHUT', t => {
  const SHUT = Buffer.from([0, 1, 0, 4, 0, 0, 0, 0])
  const ended = (told: { last?: number; whole?: boolean; shut?: number; postcopy?: boolean }): number | undefined => {
    const departure = begun(['main'])
    const { lead, record } = departure
    departure.sent(lead!, 2000, 1)
    if (told.postcopy) departure.phase('postcopy')
    Object.assign(lead!, { isLast: told.last !== undefined })
    if (told.last !== undefined) for (const ms of [told.last, told.last + 50]) departure.sent(lead!, ms, 1)
    if (told.whole) record.main(Buffer.from('7e0000000200', 'hex'), 0, 6)
    if (told.shut !== undefined) {
      record.returnPath().push(SHUT, 0, SHUT.length)
      departure.takenOver(told.shut)
    }
    return departure.summary(4000).pauseSeconds
  }
  t.equal(ended({ last: 3000, shut: 3312 }), 0.312)
  t.equal(ended({ shut: 3312 }), undefined, 'its last pass was not seen')
  t.equal(ended({ last: 3000, shut: 3312, postcopy: true }), undefined)
  t.equal(ended({ last: 3000 }), undefined, 'it did not complete')
  t.equal(ended({ last: 3000, whole: true }), 1, 'without return path: when both have closed')
  t.end()
})

t.test('the map of its memory, once that is known, and in postcopy too', t => {
  const departure = begun(['main'])
  t.notOk('map' in departure.status(2000, 2))
  const name = Buffer.from('pc.ram')
  departure.blocks.declare(name, 0, name.length, 2 * 4096)
  departure.blocks.complete = true
  departure.map.add(0, 1, 1, MAPPED.KNOWN)
  const map = { bytes: 8192, cellBytes: 4096, empty: [0, 0], known: [0, 100], sent: [0, 0] }
  t.same(departure.status(2000, 2).map, map)
  departure.phase('postcopy')
  t.same(departure.status(2000, 2).map, map)
  t.end()
})

t.test('a disk transfer: no migration, and bounded in what is told of it', t => {
  const gate = new Gate<Channel, Departure<Channel>>('web', 'disk')
  const transfer = new DiskDeparture<Channel>({ session: SESSION, number: 4, gate, startMs: 1000 })
  const channels = [1, 2].map(number => new Channel(gate, 'disk', number))
  for (const channel of channels) transfer.opened(channel, 1000)
  t.match(transfer, { urgent: false, lead: undefined })
  const [one, other] = channels as [Channel, Channel]
  t.equal(transfer.exported(one, 'vda', 1000), 'vda')
  t.equal(transfer.exported(other, 'vda', 1000), undefined, 'each is told once')
  t.equal(transfer.exported(new Channel(gate, 'disk', 3), 'x'.repeat(5000), 1)?.length, EXPORT_TOLD_LENGTH_MAX)
  for (let i = 0; i < 100; i++) transfer.exported(new Channel(gate, 'disk', 4 + i), `v${i}`, 1)
  transfer.wrote(one, 0, 300)
  transfer.wrote(other, 300, 200)
  transfer.obscured(other)
  transfer.wrote(other, 500, 200)
  channels[0]!.stats.rawBytes = 1000
  channels[0]!.unanswered = 3
  channels[1]!.unanswered = 4
  channels[0]!.stats.packedBytes = 100
  t.same(transfer.sent(channels[0]!, 9000), {}, 'no forecast, no line of progress')
  const status = transfer.status(3000, 2)
  t.match(status, { transfer: 4, id: '01234567-4', connections: 2, requests: 7, bytes: 1000, bytesWan: 100 })
  t.match(status, { seconds: 2, effort: 2, bytesPerSecond: 500, wanBytesPerSecond: 50 })
  t.same(status.exports[0], { name: 'vda', bytes: 1000, bytesWritten: 500 }, 'what is not understood is not counted')
  t.notOk('owed' in status, 'nothing is answered here')
  Object.assign(one, { owed: { writes: 2, bytes: 8192 } })
  Object.assign(other, { owed: { writes: 1, bytes: 0 } })
  t.same(transfer.status(3000, 2).owed, { writes: 3, bytes: 8192 })
  t.equal(status.exports.length, EXPORTS_TOLD_MAX)
  t.equal(transfer.closed(channels[0]!), false)
  transfer.record.ended({ by: 'source', how: 'broke', text: 'it broke off' })
  t.equal(transfer.closed(channels[1]!), true, 'it ends with its last connection')
  const summary = transfer.summary(5000)
  t.match(summary, { level: 'warn', connections: 2, bytesIn: 1000, bytesWan: 100, ratio: 0.1, endedBy: 'it broke off' })
  let said = 0
  for (let i = 0; i < 1000; i++) if (transfer.saysRaw('disk', `option ${i}`)) said++
  t.equal(said, RAW_REASONS_TOLD_MAX)
  t.end()
})

t.test('what a recovery needs is kept of a main that broke off in postcopy, once', t => {
  const kept = (phases: readonly StreamPhase[]) => {
    const paused = new PausedMigrations()
    const departure = begun(['main', 'preempt'])
    for (const phase of phases) departure.phase(phase)
    departure.remember(paused)
    const memory = paused.take(departure.gate)
    departure.remember(paused)
    t.equal(paused.take(departure.gate), undefined, 'once')
    return memory
  }
  t.equal(kept([]), undefined, 'before the switch the guest goes on at the source')
  t.equal(kept(['postcopy', 'eof']), undefined, 'all of it has passed')
  t.match(kept(['postcopy']), { machineType: 'pc' })
  t.end()
})

t.test('what the other side may know of ends with the session', t => {
  const departure = begun(['main', 'multifd', 'multifd'])
  t.equal(
    departure.isKnown(() => true),
    false,
    'it never heard of any channel',
  )
  t.equal(
    departure.isKnown(flow => flow !== 2),
    true,
    'it may have heard of one',
  )
  departure.taken = true
  t.equal(
    departure.isKnown(() => true),
    true,
  )
  t.end()
})

t.test('what is relayed raw is said once a migration', t => {
  const departure = begun(['main'])
  t.same(
    [
      ['main', 'a'],
      ['main', 'a'],
      ['multifd', 'a'],
      ['main', 'b'],
    ].map(([kind, reason]) => departure.saysRaw(kind as ChannelKind, reason!)),
    [true, false, true, true],
  )
  t.end()
})

t.test('what is told while it runs, and at its end', t => {
  const departure = begun(['main', 'multifd', 'multifd'])
  const [main, first, last] = [...departure.flows]
  Object.assign(main!.stats, { rawBytes: 900_000, packedBytes: 123_000, zeroPages: 7, newPages: 2 })
  Object.assign(first!.stats, { rawBytes: 100_000, packedBytes: 456, densePages: 1 })
  departure.traffic.effortBytes[0.5] = 7
  departure.traffic.bytesBack = 8
  const head = Buffer.concat([
    Buffer.from('5145564d00000003070000000d', 'hex'),
    Buffer.from('pc-q35-8.2'.padEnd(13, '+')),
  ])
  const channelHead = new ChannelHead()
  channelHead.push(head, 0, head.length)
  departure.record.begins(channelHead)
  departure.record.returnPath().push(Buffer.from('0001000400000000', 'hex'), 0, 8)
  t.equal(departure.closed(first!), false)
  const named = { migration: 3, id: '01234567-3', target: 'web', machine: 'pc-q35-8.2+++' }
  t.same(
    departure.status(2500, 4),
    {
      ...named,
      ...{ seconds: 1.5, channels: 2, postcopy: false, effort: 4 },
      ...{ bytes: 1_000_000, bytesBack: 8, bytesWan: 123_456 },
      pages: { zero: 7, same: 0, template: 0, earlier: 0, fill: 0, patched: 0, whole: 3, raw: 0, opaque: 0 },
    },
    'channels that have ended are counted, and those that run',
  )
  t.equal(departure.closed(last!), false)
  t.equal(departure.closed(main!), true, 'the last one')
  const summary = departure.summary(3500)
  t.match(summary, {
    ...named,
    outcome: 'completed',
    level: 'info',
    channels: 'main, 2 multifd',
    seconds: 2.5,
    ratio: 0.1235,
    efforts: { 0.5: 7 },
    pages: { zero: 7, whole: 3 },
  })
  t.equal(
    summaryLine(summary),
    'completed (the destination QEMU has taken over); main, 2 multifd: 1.0 MB from QEMU, 123.5 kB on the WAN (12.3 %), 2.5 s; pages: 7 zero, 3 whole; both sides closed',
  )
  departure.traffic.forecast = {
    atSeconds: 1,
    effort: 3,
    seconds: [2, 3.25],
    bytesIn: [900_000, 950_000],
    bytesWan: [100_000, 200_000],
  }
  const told = departure.summary(3500)
  t.same(told.forecast, departure.traffic.forecast)
  t.match(summaryLine(told), /2\.5 s \(forecast 2\.0 to 3\.3 s, 100\.0 kB to 200\.0 kB\); pages/)
  departure.traffic.firstPass = { seconds: 2.24, bytesIn: 960_000, bytesWan: 120_000 }
  t.match(summaryLine(departure.summary(3500)), /200\.0 kB\); pages/, 'it was nearly all')
  departure.traffic.firstPass = { seconds: 2.24, bytesIn: 500_000, bytesWan: 120_000 }
  t.same(departure.summary(3500).firstPass, departure.traffic.firstPass)
  t.match(summaryLine(departure.summary(3500)), /200\.0 kB; the first pass took 2\.2 s, 120\.0 kB\); pages/)
  t.end()
})

t.test('how it is expected to go on, of what its channels bring', t => {
  const departure = begun(['main', 'multifd', 'multifd'])
  const channels = [...departure.flows]
  departure.blocks.declare(Buffer.from('pc.ram'), 0, 6, 1000 * 4096)
  departure.blocks.complete = true
  let looked: Channel[] = []
  for (const channel of channels) {
    const { stats } = channel
    Object.defineProperty(channel, 'stats', {
      get: () => {
        looked.push(channel)
        return stats
      },
    })
  }
  for (let batch = 1; batch <= 6; batch++) {
    const channel = channels[batch % 3]!
    const { stats } = channel
    stats.newPages += 100
    stats.rawBytes += 410_000
    departure.traffic.encoded(stats, 410_000, 2)
    stats.packedBytes += 100_000
    looked = []
    const { forecast } = departure.sent(channel, 1000 + 100 * batch, 2)
    t.same(new Set(looked), new Set([channel]), 'a batch costs what it brings, however many channels there are')
    if (batch === 5) {
      t.match(forecast, { atSeconds: 0.5, bytesIn: [2_050_000, 4_100_000], bytesWan: [500_000, 1_000_000] })
    } else t.equal(forecast, undefined)
  }
  t.equal(departure.traffic.effortBytes[2], 6 * 410_000)
  const { bytesWan } = departure.status(2000, 2)
  departure.traffic.brought(4112)
  t.equal(departure.status(2000, 2).bytesWan, bytesWan + 4112, 'a page that was asked for')
  t.equal(departure.summary(2000).bytesWan, bytesWan + 4112)
  t.end()
})

t.test('ends as people read them', t => {
  const end = (number: number, cause?: Cause) => {
    const departure = begun(['main'], number)
    if (cause) departure.record.ended(cause)
    const { level, ...fields } = departure.summary(2000)
    const sentence = sentenceOf({
      level,
      event: 'migration ended',
      fields: { ...fields, peer: 'dc2' },
      cause: undefined,
    })
    return { level, outcome: fields.outcome, ...sentence }
  }
  t.match(
    [end(4), end(5, { by: 'source', how: 'closed', text: 'source QEMU closed' })],
    [
      { level: 'warn', text: /^migration 4 ended: cancelled/, fields: { id: '01234567-4', target: 'web' } },
      { level: 'warn', text: /^migration 5 ended: cancelled/, fields: { id: '01234567-5' } },
    ],
  )
  t.match(end(6, { by: 'pair', how: 'broke', text: 'no connection to the peer for 120 s' }), {
    level: 'error',
    outcome: 'failed',
    text: /no connection to the peer for 120 s/,
  })
  t.end()
})
