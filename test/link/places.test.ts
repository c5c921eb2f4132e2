/** Places for those who wait at the door, and the way back of peers that are known. No sockets. */
import t from 'tap'
import { KNOWN_ADDRESSES_PER_IDENTITY_MAX, KNOWN_IDENTITIES_MAX } from '../../src/limits.ts'
import type { Clock } from '../../src/link/api.ts'
import { Door, type DoorOptions } from '../../src/link/door.ts'
import { addressGroup, KnownAddresses } from '../../src/link/known-addresses.ts'
import { WaitingRoom } from '../../src/link/waiting-room.ts'

t.setTimeout(590_000) // the machine may be busy

interface Item {
  readonly name: string
  readonly group: string
}

function item(name: string): Item {
  return { name, group: name[0]! }
}

t.test('who comes in numbers drives out itself', t => {
  const room = new WaitingRoom<Item>(4)
  const enter = (name: string): string | undefined => {
    const one = item(name)
    return room.enter(one, one.group)?.name
  }
  for (const name of ['p1', 'f1', 'f2', 'f3']) t.equal(enter(name), undefined)
  t.equal(enter('f4'), 'f1', 'the oldest of the largest group')
  t.equal(enter('q1'), 'f2', "a newcomer's place is one of theirs")
  t.equal(enter('q2'), 'f3', 'of two groups alike the one that came first')
  t.end()
})

t.test('of groups alike, the oldest goes; whoever left has no place', t => {
  const room = new WaitingRoom<Item>(2)
  const a = item('a')
  const b = item('b')
  room.enter(b, 'b')
  room.enter(a, 'a')
  t.equal(room.enter(item('c'), 'c')?.name, 'b')
  t.notOk(room.leave(b), 'is gone already')
  t.ok(room.leave(a))
  t.equal(room.size, 1)
  t.equal(room.enter(a, 'a'), undefined)
  t.same(
    [...room].map(({ name }) => name),
    ['c', 'a'],
  )
  t.end()
})

t.test('turns go round by group', t => {
  const room = new WaitingRoom<Item>(9)
  for (const name of ['f1', 'f2', 'f3', 'p1', 'q1', 'q2']) room.enter(item(name), name[0]!)
  const order: string[] = []
  for (let next = room.next(); next; next = room.next()) order.push(next.name)
  t.same(order, ['f1', 'p1', 'q1', 'f2', 'q2', 'f3'])
  t.equal(room.size, 0)
  t.end()
})

/** A clock that a test moves. */
class Hands implements Clock {
  private ms = 0
  private readonly due: { atMs: number; run: () => void }[] = []
  now(): number {
    return this.ms
  }
  after(ms: number, run: () => void): () => void {
    const entry = { atMs: this.ms + ms, run }
    this.due.push(entry)
    return () => void this.due.splice(this.due.indexOf(entry), 1)
  }
  advance(ms: number): void {
    const end = this.ms + ms
    for (;;) {
      const next = this.due.filter(({ atMs }) => atMs <= end).sort((a, b) => a.atMs - b.atMs)[0]
      if (!next) break
      this.due.splice(this.due.indexOf(next), 1)
      this.ms = Math.max(this.ms, next.atMs)
      next.run()
    }
    this.ms = end
  }
}

/** A door, its clock, and who began or lost its place there. */
function aDoor(options: Pick<DoorOptions<Item>, 'handshakesMax' | 'perSecond' | 'burst' | 'atOnce'>) {
  const clock = new Hands()
  const begun: string[] = []
  const crowded: string[] = []
  const door = new Door<Item>({
    ...options,
    clock,
    waitingMax: 50,
    begin: ({ name }) => begun.push(name),
    crowdedOut: ({ name }) => crowded.push(name),
  })
  return { clock, begun, crowded, door }
}

t.test('a flood that talks: handshakes at a steady pace, every address has its turn', t => {
  const { clock, begun, crowded, door } = aDoor({ handshakesMax: 20, perSecond: 10, burst: 5, atOnce: false })
  const peer = item('p')
  for (let i = 0; i < 2000; i++) {
    if (i === 1000) {
      door.arrive(peer)
      clock.advance(180)
      door.spoke(peer)
    }
    const one = item(`f${i}`)
    door.arrive(one)
    if (i % 2) door.spoke(one)
    clock.advance(1)
  }
  t.equal(begun.length, 5 + Math.floor(2.179 * 10), 'five at once, then ten a second')
  t.notOk(crowded.includes('p'), 'the peer keeps its place')
  t.ok(begun.indexOf('p') < 5 + 10 + 5, `the peer had its turn as number ${begun.indexOf('p')}`)
  t.equal(crowded.length + door.size, 2001)
  t.ok(door.size <= 50 + 50 + 20)
  const [first] = door
  door.leave(first!)
  t.notOk([...door].includes(first!))
  t.end()
})

t.test('who comes in quiet times begins before it speaks; a silent flood takes no more than half', t => {
  const { clock, begun, door } = aDoor({ handshakesMax: 20, perSecond: 10, burst: 8, atOnce: true })
  const spoken = item('s')
  for (let i = 0; i < 6; i++) door.arrive(item(`f${i}`))
  t.same(begun, ['f0', 'f1', 'f2', 'f3'], 'at once, until half of the burst is left')
  door.arrive(spoken)
  door.spoke(spoken)
  clock.advance(0)
  t.same(begun.slice(4), ['s'], 'who has said something has the other half')

  // a second's handshakes come back every second, and silent ones keep their places
  for (let i = 0; i < 3000; i++) {
    door.arrive(item(`g${i}`))
    clock.advance(1)
  }
  const silent = begun.filter(name => name.startsWith('g'))
  t.ok(silent.length <= 20 / 2, `${silent.length} that say nothing have half of the places at most`)
  const peer = item('p')
  door.arrive(peer)
  t.notOk(begun.includes('p'))
  door.spoke(peer)
  clock.advance(0)
  t.equal(begun.at(-1), 'p', 'and a peer comes in beside them')
  t.end()
})

t.test('one address begins no more than a session has connections before it speaks', t => {
  const { begun, door } = aDoor({ handshakesMax: 100, perSecond: 10, burst: 100, atOnce: true })
  const flood = Array.from({ length: 30 }, (_, i) => item(`f${i}`))
  for (const one of flood) door.arrive(one)
  door.arrive(item('p'))
  t.same(begun.slice(15), ['f15', 'p'], 'others are not in its way')
  door.leave(flood[0]!)
  door.arrive(item('f30'))
  t.equal(begun.at(-1), 'f30', 'places come back')
  t.end()
})

t.test('groups of addresses', t => {
  const cases: [address: string | undefined, group: string][] = [
    ['192.0.2.7', '192.0.2.7'],
    ['::ffff:192.0.2.7', '192.0.2.7'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
    ['2001:db8:1:2::6', '2001:db8:1:2::/64'],
    ['2001:DB8:0001:2::', '2001:db8:1:2::/64'],
    ['2001:db8::1', '2001:db8:0:0::/64'],
    ['::1', '0:0:0:0::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    [undefined, 'unknown'],
  ]
  for (const [address, group] of cases) t.equal(addressGroup(address), group, String(address))
  t.end()
})

t.test('known addresses: bounded for each identity, and as a whole', t => {
  const known = new KnownAddresses()
  known.add('alice', '192.0.2.1')
  for (let i = 0; i < 1000; i++) known.add('mallory', `198.51.100.${i}`)
  t.ok(known.has('192.0.2.1'), 'who moves about takes no place of others')
  t.notOk(known.has('198.51.100.0'))
  t.ok(known.has(`198.51.100.${1000 - KNOWN_ADDRESSES_PER_IDENTITY_MAX}`))
  known.add('bob', '192.0.2.1')
  for (let i = 0; i < KNOWN_IDENTITIES_MAX - 1; i++) {
    if (i % 100 === 0) known.add('alice', '192.0.2.1')
    known.add(`peer ${i}`, '203.0.113.9')
  }
  t.ok(known.has('192.0.2.1'), 'the address is known by another that was here lately')
  t.notOk(known.has('198.51.100.999'), 'the identities that were not here for longest are forgotten')
  for (let i = 0; i < KNOWN_IDENTITIES_MAX; i++) known.add(`other ${i}`, '203.0.113.10')
  t.notOk(known.has('192.0.2.1'))
  t.ok(known.has('203.0.113.10'))
  t.end()
})
