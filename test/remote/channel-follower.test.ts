/** What a host does about a channel, and a thousand of them at once, in virtual time. */
import { createPrivateKey, createPublicKey } from 'node:crypto'
import t from 'tap'
import { Random } from '../../scripts/harness/random.ts'
import { ProxyError } from '../../src/errors.ts'
import { type Channel, type ChannelDocument, decodeChannel, encodeChannel } from '../../src/remote/channel.ts'
import { type Act, ChannelFollower, type FollowerInput } from '../../src/remote/channel-follower.ts'
import { makeChannelKey } from '../../src/remote/channel-keys.ts'
import { failure } from '../template/makers.ts'

const key = createPrivateKey(makeChannelKey().privatePem)
const other = createPrivateKey(makeChannelKey().privatePem)
const trusted = () => [createPublicKey(key)]
const DATE_MS = Date.UTC(2026, 10, 29)

function document(serial: number, digits: string, change: Partial<Channel> = {}, by = key): ChannelDocument {
  const sets = [...digits].map(digit => ({ bytes: 1e9, digest: digit.repeat(64) }))
  const channel: Channel = {
    channel: 'stable',
    expiresMs: DATE_MS + 86_400_000,
    issuedMs: DATE_MS,
    notBeforeMs: DATE_MS,
    overlapMs: 0,
    serial,
    sets,
    ...change,
  }
  return decodeChannel(encodeChannel(channel, [by]), 'stable')
}

function newFollower(): ChannelFollower {
  return new ChannelFollower({ channel: 'stable', trusted, chance: () => 0.5 })
}

const kindOf = (act: Act): string => (act.kind === 'wait' ? `wait ${act.untilMs}` : act.kind)

t.test('a promotion, from the question to its being in force', async t => {
  const follower = newFollower()
  const next = document(2, 'ab')
  const act = (nowMs: number): string => kindOf(follower.act(nowMs, DATE_MS + nowMs))
  t.equal(act(0), 'ask')
  t.equal(follower.answered(document(1, 'c').bytes, document(1, 'c'), 0, DATE_MS), false)
  t.equal(act(10), 'wait 60000')
  t.equal(act(60_000), 'ask')
  t.equal(follower.answered(next.bytes, document(1, 'c'), 60_000, DATE_MS), true)
  t.match(follower.act(60_001, DATE_MS), { kind: 'fetch', set: { digest: 'a'.repeat(64) } })
  follower.fetched('a'.repeat(64))
  t.equal(act(130_000), 'ask', 'a large set takes longer than a minute: it may have been replaced')
  t.equal(follower.answered(next.bytes, document(1, 'c'), 130_000, DATE_MS), true)
  t.match(follower.act(130_001, DATE_MS), { kind: 'fetch', set: { digest: 'b'.repeat(64) } }, 'goes on where it was')
  follower.fetched('b'.repeat(64))
  t.match(follower.act(130_002, DATE_MS), { kind: 'accept', document: { channel: { serial: 2 } } })
  follower.acceptedIt()
  t.equal(act(130_003), 'wait 190000')
})

t.test('replaced while it is fetched', async t => {
  const follower = newFollower()
  follower.act(0, DATE_MS)
  follower.answered(document(2, 'ab').bytes, undefined, 0, DATE_MS)
  follower.act(1, DATE_MS)
  follower.fetched('a'.repeat(64))
  follower.act(60_000, DATE_MS)
  follower.answered(document(3, 'bc').bytes, undefined, 60_000, DATE_MS)
  t.match(follower.act(60_001, DATE_MS), { kind: 'fetch', set: { digest: 'b'.repeat(64) } })
})

t.test('fetched ahead, in force at its time', async t => {
  const follower = newFollower()
  const later = document(2, 'a', { notBeforeMs: DATE_MS + 90_000 })
  follower.act(0, DATE_MS)
  follower.answered(later.bytes, undefined, 0, DATE_MS)
  t.equal(follower.act(1, DATE_MS + 1).kind, 'fetch')
  follower.fetched('a'.repeat(64))
  t.equal(kindOf(follower.act(2, DATE_MS + 2)), 'wait 60000')
  follower.act(60_000, DATE_MS + 60_000)
  follower.answered(later.bytes, undefined, 60_000, DATE_MS + 60_000)
  t.equal(kindOf(follower.act(60_001, DATE_MS + 60_001)), 'wait 90000')
  t.equal(follower.act(90_000, DATE_MS + 90_000).kind, 'accept')
})

t.test('failures take longer and longer, and end', async t => {
  const follower = newFollower()
  const waits: number[] = []
  let nowMs = 0
  for (let i = 0; i < 8; i++) {
    t.equal(follower.act(nowMs, DATE_MS).kind, 'ask')
    follower.failed(nowMs)
    const act = follower.act(nowMs, DATE_MS)
    if (act.kind !== 'wait') throw new Error(act.kind)
    waits.push((act.untilMs - nowMs) / 60_000)
    nowMs = act.untilMs
  }
  t.same(waits, [2, 4, 8, 15, 15, 15, 15, 15], 'minutes')
  follower.act(nowMs, DATE_MS)
  follower.answered(document(1, 'a').bytes, undefined, nowMs, DATE_MS)
  follower.act(nowMs, DATE_MS)
  follower.failed(nowMs)
  t.equal(kindOf(follower.act(nowMs, DATE_MS)), `wait ${nowMs + 60_000}`, 'asked at its pace though fetching fails')
  nowMs += 60_000
  follower.act(nowMs, DATE_MS)
  follower.answered(document(1, 'a').bytes, undefined, nowMs, DATE_MS)
  t.equal(kindOf(follower.act(nowMs, DATE_MS)), `wait ${nowMs + 60_000}`, 'and fetched at its own')
})

t.test('asked for by hand', async t => {
  const follower = newFollower()
  follower.act(0, DATE_MS)
  follower.askNow() // what is under way may have been answered before
  follower.answered(document(1, 'a').bytes, document(1, 'a'), 0, DATE_MS)
  t.equal(follower.act(1, DATE_MS).kind, 'ask')
  follower.answered(document(2, 'a').bytes, document(1, 'a'), 1, DATE_MS)
  follower.act(2, DATE_MS)
  follower.failed(2)
  t.equal(follower.act(3, DATE_MS).kind, 'wait')
  follower.askNow()
  t.equal(follower.act(4, DATE_MS).kind, 'ask')
  follower.answered(document(2, 'a').bytes, document(1, 'a'), 4, DATE_MS)
  t.equal(follower.act(5, DATE_MS).kind, 'fetch')
})

t.test('how often it is asked who signed what is in force', async t => {
  for (const [needsSigners, times] of [
    [false, [0, 3_600_000]],
    [true, Array.from({ length: 70 }, (_, i) => i * 60_000)],
  ] as const) {
    const follower = new ChannelFollower({ channel: 'stable', trusted, needsSigners, chance: () => 0.5 })
    const asked: number[] = []
    for (let nowMs = 0; nowMs < 70 * 60_000; nowMs += 60_000) {
      follower.act(nowMs, DATE_MS)
      follower.answered(document(1, 'a').bytes, document(1, 'a'), nowMs, DATE_MS)
      if (follower.looksForSigners(nowMs)) asked.push(nowMs)
    }
    t.same(asked, times)
    follower.askNow()
    t.ok(follower.looksForSigners(4_200_001), 'by hand: at once')
  }
})

t.test('what is not to be believed changes nothing', async t => {
  const last = document(5, 'a')
  const cases: readonly (readonly [string, Uint8Array | undefined])[] = [
    ['CHANNEL_MISSING', undefined],
    ['CHANNEL_FORMAT', Buffer.from('hello')],
    ['CHANNEL_UNTRUSTED', document(6, 'b', {}, other).bytes],
    ['CHANNEL_STALE', document(4, 'b').bytes],
    ['CHANNEL_STALE', document(5, 'b').bytes],
    ['CHANNEL_STALE', document(6, 'b', { expiresMs: DATE_MS }).bytes],
  ]
  for (const [code, bytes] of cases) {
    const follower = newFollower()
    follower.act(0, DATE_MS)
    t.equal(await failure(() => follower.answered(bytes, last, 0, DATE_MS)), code)
    t.equal(kindOf(follower.act(1, DATE_MS)), 'wait 120000')
  }
  const follower = new ChannelFollower({
    channel: 'stable',
    trusted: () => [createPublicKey(other)],
    chance: () => 0.5,
  })
  follower.act(0, DATE_MS)
  t.equal(follower.answered(last.bytes, last, 0, DATE_MS), false, 'what is in force was believed when it came')
})

t.test('a key that is trusted no more while a document waits', async t => {
  let keys = trusted
  const follower = new ChannelFollower({ channel: 'stable', trusted: () => keys(), chance: () => 0.5 })
  const answer = (nowMs: number): Promise<unknown> =>
    failure(() => follower.answered(document(2, 'a').bytes, undefined, nowMs, DATE_MS))
  /** Up to where it is to be put in force. */
  const wait = async (): Promise<void> => {
    follower.askNow()
    t.equal(follower.act(0, DATE_MS).kind, 'ask')
    t.equal(await answer(0), undefined)
    t.equal(follower.act(0, DATE_MS).kind, 'fetch')
    follower.fetched('a'.repeat(64))
  }
  await wait()
  keys = () => [createPublicKey(other)]
  t.equal(await failure(() => follower.act(0, DATE_MS)), 'CHANNEL_UNTRUSTED', 'though no store was asked meanwhile')
  t.equal(follower.pending, undefined)
  t.equal(kindOf(follower.act(0, DATE_MS)), 'wait 120000')
  keys = trusted
  await wait()
  keys = () => [createPublicKey(other)]
  follower.askNow()
  follower.act(0, DATE_MS)
  t.equal(await answer(0), 'CHANNEL_UNTRUSTED', 'nor is it believed because it was')
  keys = trusted
  await wait()
  keys = () => {
    throw new ProxyError('USAGE', 'no public key', undefined, 'give one')
  }
  t.equal(await failure(() => follower.act(0, DATE_MS)), 'USAGE', 'a file that cannot be read trusts nobody')
  follower.askNow()
  t.equal(follower.act(0, DATE_MS).kind, 'ask')
  t.equal(await answer(0), 'USAGE')
})

t.test('a document that expires while its sets are fetched', async t => {
  const follower = newFollower()
  follower.act(0, DATE_MS)
  follower.answered(document(2, 'a', { expiresMs: DATE_MS + 1000 }).bytes, undefined, 0, DATE_MS)
  t.equal(follower.act(0, DATE_MS + 999).kind, 'fetch')
  follower.fetched('a'.repeat(64))
  t.equal(await failure(() => follower.act(0, DATE_MS + 1000)), 'CHANNEL_STALE')
  t.equal(kindOf(follower.act(0, DATE_MS + 1000)), 'wait 120000')
})

t.test('sets that go before the document is in force', async t => {
  const follower = newFollower()
  follower.act(0, DATE_MS)
  follower.answered(document(2, 'ab').bytes, undefined, 0, DATE_MS)
  const fetch = (digit: string): void => {
    t.match(follower.act(0, DATE_MS), { kind: 'fetch', set: { digest: digit.repeat(64) } })
    follower.fetched(digit.repeat(64))
  }
  fetch('a')
  fetch('b')
  t.equal(follower.act(0, DATE_MS).kind, 'accept')
  t.equal(follower.lost(['a'.repeat(64)], 0), true)
  fetch('a')
  t.equal(follower.act(0, DATE_MS).kind, 'accept')
  t.equal(follower.lost(['b'.repeat(64)], 0), false, 'again: not in a circle without end')
  t.equal(kindOf(follower.act(0, DATE_MS)), 'wait 60000')
})

t.test('every input in every state', async t => {
  const inputs: Record<FollowerInput, (follower: ChannelFollower) => unknown> = {
    answered: follower => follower.answered(document(1, 'a').bytes, undefined, 0, DATE_MS),
    failed: follower => follower.failed(0),
    fetched: follower => follower.fetched('a'.repeat(64)),
    accepted: follower => follower.acceptedIt(),
    lost: follower => follower.lost(['a'.repeat(64)], 0),
  }
  const allowed = {
    resting: [],
    asking: ['answered', 'failed'],
    fetching: ['failed', 'fetched'],
    accepting: ['failed', 'accepted', 'lost'],
  }
  for (const [state, expected] of Object.entries(allowed)) {
    const taken: string[] = []
    for (const [name, input] of Object.entries(inputs)) {
      const follower = newFollower()
      if (state !== 'resting') follower.act(0, DATE_MS)
      if (state === 'fetching' || state === 'accepting') {
        inputs.answered(follower)
        follower.act(1, DATE_MS)
      }
      if (state === 'accepting') {
        inputs.fetched(follower)
        follower.act(2, DATE_MS)
      }
      if (state !== 'resting') t.throws(() => follower.act(3, DATE_MS), RangeError, 'one thing at a time')
      try {
        input(follower)
        taken.push(name)
      } catch (error) {
        if (!(error instanceof RangeError)) throw error
      }
    }
    t.same(taken.sort(), [...expected].sort(), state)
  }
})

/** Bytes a second. */
const STORE_RATE = 1.25e9
const HOST_RATE = 1.25e8

interface Host {
  follower: ChannelFollower
  accepted: ChannelDocument
  readonly there: Set<string>
  /** Bytes of the set that was begun and not ended. */
  readonly partial: Map<string, number>
  doneMs: number | undefined
  /** Counts up when the process is started anew: what was under way for the one before is nobody's. */
  life: number
  /** `service` when it began to receive, and what it receives. */
  transfer: { readonly digest: string; readonly began: number; readonly bytes: number } | undefined
}

interface FleetResult {
  /** When the last host had it in force, after the promotion. */
  readonly lastMs: number
  /** Most questions within a second. */
  readonly questionsPeak: number
  readonly kills: number
  /** Hosts that had a document in force whose sets were not all there, at any moment. */
  readonly torn: number
}

/**
 * Hosts that poll and fetch over the store's link, which those who receive share evenly, none of them faster than its own.
 * `service` is what each that receives has received by now.
 */
function playFleet(seed: number, hostCount: number, options: { faults: boolean; digits: string }): FleetResult {
  const chance = new Random(seed)
  const first = document(1, 'c')
  const next = document(2, options.digits)
  const sets = new Map(next.channel.sets.map(set => [set.digest, set.bytes]))
  const queue: { atMs: number; order: number; run: () => void }[] = []
  let order = 0
  let nowMs = 0
  const at = (atMs: number, run: () => void): void => {
    // a binary heap would be faster; this is fast enough for a thousand hosts
    let low = 0
    let high = queue.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (queue[middle]!.atMs > atMs || (queue[middle]!.atMs === atMs && queue[middle]!.order > order)) low = middle + 1
      else high = middle
    }
    queue.splice(low, 0, { atMs, order: order++, run })
  }

  let service = 0
  let serviceMs = 0
  let round = 0
  const receiving = new Set<Host>()
  const rate = (): number => (receiving.size === 0 ? 0 : Math.min(HOST_RATE, STORE_RATE / receiving.size) / 1000)
  const advance = (): void => {
    service += rate() * (nowMs - serviceMs)
    serviceMs = nowMs
  }
  /** The one that ends next, as things stand. */
  const plan = (): void => {
    const mine = ++round
    let nearest: Host | undefined
    for (const host of receiving) {
      const left = ({ transfer }: Host): number => transfer!.began + transfer!.bytes
      if (nearest === undefined || left(host) < left(nearest)) nearest = host
    }
    if (nearest === undefined) return
    const { began, bytes, digest } = nearest.transfer!
    const ended = nearest
    at(nowMs + Math.max(0, began + bytes - service) / rate(), () => {
      if (mine !== round) return
      advance()
      receiving.delete(ended)
      ended.transfer = undefined
      ended.partial.delete(digest)
      ended.there.add(digest)
      ended.follower.fetched(digest)
      plan()
      step(ended)
    })
  }
  const stopTransfer = (host: Host): void => {
    if (!host.transfer) return
    advance()
    const { digest, began } = host.transfer
    host.partial.set(digest, (host.partial.get(digest) ?? 0) + service - began)
    receiving.delete(host)
    host.transfer = undefined
    plan()
  }

  const promotedMs = 200_000
  const questions = new Map<number, number>()
  let torn = 0
  const step = (host: Host): void => {
    const { life } = host
    const later = (ms: number, run: () => void): void =>
      at(nowMs + ms, () => {
        if (host.life === life) run()
      })
    if (!host.accepted.channel.sets.every(({ digest }) => host.there.has(digest))) torn++
    const act = host.follower.act(nowMs, DATE_MS + nowMs)
    if (act.kind === 'wait') later(act.untilMs - nowMs, () => step(host))
    else if (act.kind === 'ask') {
      const second = Math.floor(nowMs / 1000)
      questions.set(second, (questions.get(second) ?? 0) + 1)
      later(20 + 200 * chance.next(), () => {
        if (options.faults && chance.next() < 0.02) host.follower.failed(nowMs)
        else {
          const { bytes } = nowMs >= promotedMs ? next : first
          host.follower.answered(bytes, host.accepted, nowMs, DATE_MS + nowMs)
        }
        step(host)
      })
    } else if (act.kind === 'fetch') {
      const { digest } = act.set
      if (host.there.has(digest)) {
        host.follower.fetched(digest)
        step(host)
        return
      }
      advance()
      host.transfer = { digest, began: service, bytes: sets.get(digest)! - (host.partial.get(digest) ?? 0) }
      receiving.add(host)
      plan()
      if (options.faults && chance.next() < 0.05) {
        later(chance.next() * 1e6, () => {
          if (!host.transfer) return
          stopTransfer(host)
          host.follower.failed(nowMs)
          step(host)
        })
      }
    } else {
      host.accepted = act.document
      host.follower.acceptedIt()
      host.doneMs = nowMs
      step(host)
    }
  }
  const newLife = (): ChannelFollower =>
    new ChannelFollower({ channel: 'stable', trusted, chance: () => chance.next() })
  const hosts: Host[] = Array.from({ length: hostCount }, () => ({
    follower: newLife(),
    accepted: first,
    there: new Set(['c'.repeat(64)]),
    partial: new Map(),
    doneMs: undefined,
    life: 0,
    transfer: undefined,
  }))
  let kills = 0
  for (const host of hosts) {
    at(0, () => step(host)) // started by one command, all at once
    if (!options.faults || chance.next() >= 0.1) continue
    at(promotedMs + chance.next() * 3_000_000, () => {
      if (host.doneMs !== undefined) return
      kills++
      stopTransfer(host)
      host.life++
      host.follower = newLife()
      at(nowMs + 20_000 * chance.next(), () => step(host))
    })
  }
  while (queue.length > 0 && hosts.some(({ doneMs }) => doneMs === undefined)) {
    const { atMs, run } = queue.pop()!
    nowMs = Math.max(nowMs, atMs)
    if (nowMs > 1e8) break
    run()
  }
  const last = Math.max(...hosts.map(({ doneMs = Number.POSITIVE_INFINITY }) => doneMs))
  const afterStart = [...questions].filter(([second]) => second >= 60).map(([, count]) => count)
  return { lastMs: last - promotedMs, questionsPeak: Math.max(...afterStart), kills, torn }
}

t.test(
  'a thousand hosts: one promotion reaches all within 1.2 times what the transfer takes',
  { timeout: 240_000 },
  async t => {
    const ownMs = (1000 * 4e9 * 1000) / STORE_RATE // 3200 s: 4 GB for each of them
    const { lastMs, questionsPeak, torn } = playFleet(1, 1000, { faults: false, digits: 'abde' })
    t.ok(lastMs <= 1.2 * ownMs, `${lastMs} ms of ${ownMs}`)
    t.ok(lastMs >= ownMs, 'nothing is faster than the link')
    t.ok(questionsPeak < 200, `${questionsPeak} questions a second at most, once they have drifted apart`)
    t.equal(torn, 0)
  },
)

t.test('and with stores that fail, transfers that break and hosts that are killed', { timeout: 240_000 }, async t => {
  const ownMs = (1000 * 4e9 * 1000) / STORE_RATE
  for (const seed of [2, 3]) {
    const { lastMs, kills, torn } = playFleet(seed, 1000, { faults: true, digits: 'abde' })
    t.ok(lastMs <= 1.2 * ownMs, `seed ${seed}: ${lastMs} ms of ${ownMs}`)
    t.ok(kills > 50, `${kills} were killed`)
    t.equal(torn, 0, 'none ever had half of it in force')
  }
})
