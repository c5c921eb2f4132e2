/**
 * A pair of sites in virtual time: guests migrate at several gates, one after the other, while the WAN, the proxies and
 * the QEMUs fail. Everything follows from the seed. A run fails with a text that says what was not kept:
 *
 * - what comes out of a connection is what went in, in order; where it ends with FIN it is all of it
 * - a target QEMU has the channels of one migration, its main first
 * - a migration that nothing happened to comes to its end; one that is refused is refused at its first channel
 * - what breaks at one side ends at the other within the patience
 * - what the proxies tell of a migration is what happened to it
 * - in the end nothing is left: connections, places, memory, pieces, timers
 * - no session ends by a defect of ours, or because the peer broke a rule
 * - no turn and no run is without end
 *
 * Disks may be beside them (disks.ts), which the guests must not notice.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { Random } from '../../scripts/harness/random.ts'
import type { SiteLog } from '../../src/daemon/events.ts'
import type { ProxyError } from '../../src/errors.ts'
import { MAIN_AWAITED_MS } from '../../src/migration/gates.ts'
import type { ArrivalSummary, MigrationSummary } from '../../src/migration/summary.ts'
import { parseAddress } from '../../src/relay/address.ts'
import { type Process, VirtualTime } from '../helpers/virtual-time.ts'
import { freshPools } from './codec.ts'
import { Disks, type DisksWorld } from './disks.ts'
import * as guests from './guests.ts'
import { LocalConnection, type QemuEnd } from './local.ts'
import { DestinationSite, SITE_PARTS, type SiteParts, SourceSite, type World } from './sites.ts'
import { Wan } from './wan.ts'

/** What a run came to. */
export interface Outcome {
  readonly seed: number
  /** What went wrong; '': nothing. */
  readonly failure: string
  readonly completed: number
  readonly attempts: number
  /** The same of disks' clients. */
  readonly disksCompleted: number
  readonly disks: number
  readonly steps: number
  readonly virtualMs: number
  /** What happened, by name. */
  readonly happened: ReadonlySet<string>
}

/** How the run goes on after the last guest, before everything must be gone: what is owed to a QEMU has a minute. */
const AFTERWARDS_MS = 70_000
/** A target reads in this time what its kernel has, and what it is owed. */
const OWED_READ_MS = 5000
/** Beyond the patience: until a dead connection is noticed, and then dialled again. */
const NOTICED_MS = 40_000
/** A helper that does nothing is given up: src/transfer/helpers/helper.ts. */
const HELPER_PATIENCE_MS = 15_000
const STEPS_MAX = 300_000
const END_MS = 3_600_000

class Failure extends Error {}

/** A connection of a source QEMU. */
class Channel {
  readonly attempt: Attempt
  readonly kind: guests.Kind
  readonly bytes: Uint8Array
  readonly number: number
  end: QemuEnd | undefined
  written = 0
  /** Bytes that may be written by now. */
  limit: number
  /** Of what the target answers. */
  heard = 0
  target: TargetChannel | undefined
  /** The source QEMU closed it, or saw it end. */
  endMs = -1
  /** It was closed by its QEMU, with all that it wrote before it. */
  closedInOrder = false
  refused = ''

  constructor(attempt: Attempt, kind: guests.Kind, bytes: Uint8Array, number: number) {
    this.attempt = attempt
    this.kind = kind
    this.bytes = bytes
    this.number = number
    this.limit = bytes.length
  }
}

/** The end of an attempt's migration, as a side told it. */
interface ToldEnd {
  readonly side: 'source' | 'destination'
  readonly id: string
  /** No target heard of it: its source may have sent it again in another session, before that one took it. */
  readonly isUnheard: boolean
}

/** One `migrate` of a guest. */
class Attempt {
  readonly name: string
  readonly gate: number
  readonly target: TargetQemu
  readonly channels: Channel[] = []
  readonly startMs: number
  readonly options: {
    readonly returnPath: boolean
    readonly postcopy: boolean
    readonly preempt: 'none' | 'early' | 'late'
    readonly tls: boolean
    readonly recovery: boolean
  }
  postcopyAt = Number.POSITIVE_INFINITY
  advisedAt = Number.POSITIVE_INFINITY
  /** What happened to it that may make it fail. */
  readonly excuses = new Set<string>()
  shutHeard = false
  over = false
  /** Its operator is done with it: another guest may come to its gate. */
  seenOff = false
  completed = false
  /** The source QEMU closed in the middle, and nobody else had. */
  cancelled = false
  /** Likewise, in postcopy: it pauses. */
  left = false
  readonly told: ToldEnd[] = []

  constructor(name: string, gate: number, target: TargetQemu, startMs: number, options: Attempt['options']) {
    this.name = name
    this.gate = gate
    this.target = target
    this.startMs = startMs
    this.options = options
  }

  get main(): Channel {
    return this.channels[0]!
  }

  /** The guest may run at the destination. */
  get inPostcopy(): boolean {
    return this.options.recovery || this.main.written >= this.postcopyAt
  }
}

/** A destination QEMU. */
class TargetQemu {
  /** Where it listens; '' where it does not. */
  address = ''
  attempt: Attempt | undefined
  readonly channels: TargetChannel[] = []
  tookOver = false
  inPostcopy = false
  /** On its main, behind what says that; -1 before it. */
  postcopyAt = -1
  paused = false
  /** It has gone, well or not. */
  over = false

  /** Its proxy has read that it is in postcopy. */
  get saidPostcopy(): boolean {
    return this.postcopyAt >= 0 && (this.channels[0]?.end.readBytes ?? 0) >= this.postcopyAt
  }
}

/** A connection that it took. */
class TargetChannel {
  readonly qemu: TargetQemu
  readonly end: QemuEnd
  readonly head = new Uint8Array(guests.NAME_BYTES)
  received = 0
  channel: Channel | undefined
  /** All that it answered. */
  answers = Buffer.alloc(0)
  /** Behind SHUT with success; -1 before it. */
  shutAt = -1
  endMs = -1
  closedInOrder = false
  /** It closed by FIN: one that dies perhaps before all of its answers. */
  finished = false
  /** It closed its own direction first, and reads on. */
  halfClosed = false
  private sent = 0

  constructor(qemu: TargetQemu, end: QemuEnd) {
    this.qemu = qemu
    this.end = end
  }

  /** What the kernel has room for. */
  push(): number {
    const count = Math.min(this.end.room, this.answers.length - this.sent)
    if (count > 0) this.end.write(new Uint8Array(this.answers.subarray(this.sent, this.sent + count)))
    this.sent += Math.max(0, count)
    return this.answers.length - this.sent
  }
}

/**
 * Runs one seed to its end.
 * @param hears what happens, line by line
 * @param disks whether there are disks beside the guests
 * @param threads of either proxy, its main one counted: with 2 and more helpers fail, too
 */
export async function simulate(
  seed: number,
  parts: Partial<SiteParts> = {},
  hears?: (line: string) => void,
  disks = false,
  threads = 1,
): Promise<Outcome> {
  const simulation = new Simulation(seed, { ...SITE_PARTS, ...parts }, hears, disks, threads)
  return simulation.run()
}

class Simulation implements World, DisksWorld {
  readonly time = new VirtualTime()
  readonly random: Random
  readonly wan: Wan
  readonly patience
  readonly parts: SiteParts
  readonly memoryBytes: number
  private readonly seed: number
  private readonly happened = new Set<string>()
  private source!: SourceSite
  private destination!: DestinationSite
  readonly gates: number
  readonly hasDisks: boolean
  readonly hasReplies: boolean
  readonly threads: number
  /** Sessions of which a helper has failed. */
  private readonly unhelped = new Set<string>()
  private disks: Disks | undefined
  private readonly targets = new Map<string, TargetQemu>()
  private readonly attempts: Attempt[] = []
  private readonly channels: Channel[] = []
  private readonly byName = new Map<string, Channel>()
  private steps = 0
  private guestsLeft: number
  private faultsLeft: number
  private processes = 0
  private sessions = 0
  /** Sessions that were left to their disks. */
  private readonly left = new Set<string>()
  /** Who have something to do at their gates yet. */
  private operators = 0
  private troubleMs = Number.NEGATIVE_INFINITY
  readonly quiet: boolean
  private failure: string | undefined
  private readonly hears: ((line: string) => void) | undefined

  constructor(
    seed: number,
    parts: SiteParts,
    hears: ((line: string) => void) | undefined,
    disks: boolean,
    threads: number,
  ) {
    this.seed = seed
    this.threads = threads
    this.hasDisks = disks
    this.hears = hears
    this.random = new Random(seed)
    this.parts = parts
    const { random } = this
    this.wan = new Wan(this.time, random)
    const precopyMs = random.pick([20_000, 30_000])
    this.patience = { precopyMs, postcopyMs: precopyMs * random.pick([1, 3]) }
    this.memoryBytes = random.pick([0, 1 << 20, 512 << 20])
    this.gates = random.int(1, random.pick([1, 3, 6]))
    this.guestsLeft = random.int(this.gates, 2 * this.gates + 2)
    this.quiet = random.chance(0.2)
    this.faultsLeft = this.quiet ? 0 : random.int(1, 6)
    this.hasReplies = disks && random.chance(0.7)
  }

  fail(what: string): never {
    throw new Failure(`at ${this.time.nowMs.toFixed(1)} ms: ${what}`)
  }

  sessionOver(process: Process, id: string, error: ProxyError | undefined): void {
    this.note(`${process.name}: session ${id.slice(0, 8)} over: ${error?.what ?? 'in order'}`)
    if (this.unhelped.has(id)) {
      this.excuse('helper') // of those, too, that came to it since
      if (error?.code === 'INTERNAL' && error.what.startsWith('a helping thread')) return
    }
    if (error && error.code !== 'PEER_LOST') this.wrong(`a session of ${process.name} ends: ${error.message}`)
  }

  sessionLeft(id: string): void {
    this.note(`session ${id.slice(0, 8)} is left to its disks`)
    this.happened.add('session left')
    this.left.add(id.slice(0, 8))
  }

  nextSession(): number {
    return ++this.sessions
  }

  /** As fail, told from within what catches errors. */
  wrong(what: string): void {
    this.failure ??= `at ${this.time.nowMs.toFixed(1)} ms: ${what}`
  }

  /** What happens, for who looks for a fault. */
  note(what: string): void {
    this.hears?.(`${this.time.nowMs.toFixed(1)} ${what}`)
  }

  log(side: string): SiteLog {
    const note = (event: string, fields: object = {}): void => {
      this.note(`${side}: ${event} ${JSON.stringify(fields)}`)
      const isStranger = 'peer' in fields && `${fields.peer}`.startsWith('elsewhere')
      if (event === 'migration starts' && isStranger) this.wrong('a stranger begins a migration')
      const isNew = (event === 'migration starts' || event === 'disk transfer starts') && 'id' in fields
      if (isNew && this.left.has(`${fields.id}`.split('-')[0]!)) this.wrong(`${event} in a session that was left`)
    }
    return { info: note, warn: note, error: note }
  }

  async run(): Promise<Outcome> {
    freshPools()
    const uninstall = this.time.install()
    let failure = ''
    try {
      await this.play()
    } catch (error) {
      failure = error instanceof Failure ? error.message : `${(error as Error).stack}`
      if (failure === '') failure = 'an error without a text'
    } finally {
      uninstall()
    }
    const completed = this.attempts.filter(attempt => attempt.completed).length
    const { seed, steps, happened, time, disks } = this
    const ofDisks = { disksCompleted: disks?.completed ?? 0, disks: disks?.attempts ?? 0 }
    const { length: attempts } = this.attempts
    return { seed, failure, completed, attempts, ...ofDisks, steps, virtualMs: time.nowMs, happened }
  }

  private async play(): Promise<void> {
    const { random, time } = this
    this.startDestination()
    this.startSource()
    if (this.hasDisks) this.disks = new Disks(this)
    for (let gate = 0; gate < this.gates; gate++) time.after(random.next() * 500, () => this.migrate(gate))
    for (let i = random.int(0, 6); i > 0; i--) time.after(random.next() * 20_000, () => this.stranger())
    for (let i = 0, at = 0; i < this.faultsLeft; i++) {
      at += random.next() * random.pick([100, 2000, 10_000])
      time.after(at, () => this.fault())
    }
    if (this.hasDisks) {
      for (let i = random.int(0, random.pick([2, 4, 10])), at = 0; i > 0; i--) {
        at += random.next() * random.pick([300, 3000, 10_000])
        const kind = random.pick(['source reloads', 'destination reloads', 'sets change'] as const)
        time.after(at, () => this.renewal(kind))
      }
    }
    await this.until('the guests', () => this.isDone)
    await this.wait(Math.max(AFTERWARDS_MS, this.patience.postcopyMs + NOTICED_MS))
    this.verify()
    this.disks?.verify(this.patience.postcopyMs + NOTICED_MS)
    this.empty([...this.source.leftovers(), ...this.destination.leftovers()])
    this.source.stop()
    await this.until('the end of the source proxy', () => this.source.isOver)
    let stopped = false
    this.destination.stop(() => {
      stopped = true
    })
    await this.until('the end of the destination proxy', () => stopped)
    await this.wait(AFTERWARDS_MS)
    this.empty([...this.source.leftovers(), ...this.destination.leftovers()])
    for (const { process } of [this.source, this.destination]) {
      if (process.timers > 0) this.fail(`${process.timers} timers of ${process.name} are left`)
    }
  }

  private get isDone(): boolean {
    if (this.disks?.isDone === false) return false
    return this.guestsLeft === 0 && this.operators === 0 && this.attempts.every(({ over }) => over)
  }

  private empty(left: readonly string[]): void {
    if (left.length > 0) this.fail(`left behind: ${left.join(', ')}`)
  }

  private async wait(ms: number): Promise<void> {
    let over = false
    this.time.afterAs(undefined, ms, () => {
      over = true
    })
    await this.until('time', () => over)
  }

  private async until(what: string, isSo: () => boolean): Promise<void> {
    const { time } = this
    const settle = (): void => {
      const spins = this.wan.settle()
      if (spins !== '') this.fail(spins)
    }
    settle()
    while (!isSo()) {
      if (++this.steps > STEPS_MAX) this.fail(`no end after ${this.steps} events: ${what}`)
      if (time.nowMs > END_MS) this.fail(`no end after an hour: ${what}: ${this.describe()}`)
      if (!time.step()) this.fail(`nothing goes on: ${what}: ${this.describe()}`)
      settle()
      if (this.failure !== undefined) throw new Failure(this.failure)
      if (!time.promised) continue
      time.promised = false
      await turn()
      settle()
    }
  }

  private describe(): string {
    const open = this.attempts.filter(({ over }) => !over)
    return open
      .map(({ name, channels }) => {
        const said = channels.map(
          ({ kind, written, bytes, target, heard, end }) =>
            `${kind} ${written}/${bytes.length} -> ${target?.received ?? '-'}, back ${heard}/${target?.answers.length ?? '-'}${end ? '' : ' (not connected)'}`,
        )
        return `${name}: ${said.join('; ')}`
      })
      .concat(this.disks?.describe() ?? [])
      .join(' | ')
  }

  // --- proxies

  private startSource(): void {
    this.source = new SourceSite(this, `source ${++this.processes}`, this.gates)
  }

  private startDestination(): void {
    const addresses = Array.from(
      { length: this.gates },
      (_, i) => [`t${i}`, parseAddress(`tcp:127.0.0.1:${4000 + i}`)] as const,
    )
    // a disk's target has the name of a guest's: which of them it is the kind of its flow says
    const disks = this.hasDisks && addresses.map(([name], i) => [name, parseAddress(Disks.address(i))] as const)
    this.destination = new DestinationSite(
      this,
      `destination ${++this.processes}`,
      new Map(addresses),
      disks ? new Map(disks) : undefined,
    )
  }

  told(side: 'source' | 'destination', summary: MigrationSummary | ArrivalSummary): void {
    this.note(`${side} tells ${JSON.stringify(summary)}`)
    const name = summary.machine
    const attempt = name === undefined ? undefined : this.attempts.find(attempt => attempt.name === name)
    if (!attempt) return
    const { outcome, reason, id } = summary
    const isUnheard = outcome === 'failed' && 'bytesOut' in summary && summary.bytesOut === 0
    const isTwice = (told: ToldEnd): boolean => told.side === side && (told.id === id || !(told.isUnheard || isUnheard))
    if (attempt.told.some(isTwice)) this.wrong(`${name}: the ${side} tells its end twice`)
    attempt.told.push({ side, id, isUnheard })
    const { target, options } = attempt
    if (outcome === 'completed') {
      // without a return path nobody says that the target has taken over: all of main has passed
      const { target: main, written, bytes } = attempt.main
      // of one that has closed its direction the source does not know whether it still has some of it coming
      const isUnseen = side === 'source' && main?.halfClosed === true
      const kernel = side === 'destination' && main?.halfClosed ? main.end.unreadBytes : 0 // it has them, though unread
      const whole = (isUnseen ? written : (main?.received ?? 0) + kernel) === bytes.length
      if (options.returnPath ? !target.tookOver : !whole)
        this.wrong(`${name}: completed, says the ${side}: it was not (${reason})`)
    } else if (attempt.shutHeard && side === 'source') {
      this.wrong(`${name}: the source QEMU has heard SHUT, and the source tells: ${outcome}, ${reason}`)
    }
    // the destination does not parse main: it knows of postcopy by a recovery, or by what its QEMU answers
    const unaware = side === 'destination' && attempt.left && !options.recovery && !target.saidPostcopy
    if (outcome === 'cancelled' && !attempt.cancelled && !unaware)
      this.wrong(`${name}: cancelled, says the ${side}: it was not (${reason})`)
  }

  refused(peer: string, reason: string): void {
    const number = Number(peer.split(':')[1])
    if (peer.startsWith('disk:')) this.disks!.refused(number, reason)
    const channel = this.channels[number]
    if (!peer.startsWith('qemu:') || !channel) return
    channel.refused = reason
    this.note(`${channel.attempt.name}: ${channel.kind} refused: ${reason}`)
    const { attempt } = channel
    if (reason === 'no session' || reason === 'stopping') {
      const patientMs = this.time.nowMs - this.troubleMs
      if (patientMs < 2 * this.patience.precopyMs + NOTICED_MS) attempt.excuses.add(reason)
      // a hello that is swallowed costs 10 s: a few of them, and no session was there for as long as the patience
      const unheardMs = this.time.nowMs - this.wan.heardMs
      if (reason === 'no session' && this.wan.helloLostMs > this.wan.heardMs && unheardMs >= this.patience.precopyMs)
        attempt.excuses.add('no hello got through')
    } else if (reason.includes('no room') || reason.includes('may be no room')) {
      attempt.excuses.add('no room')
      if (attempt.channels.some(({ target }) => target))
        this.wrong(`${attempt.name}: no room, in the middle: ${reason}`)
    } else if (attempt.channels.some(({ endMs }) => endMs >= 0)) attempt.excuses.add('late')
  }

  dialled(address: string, process: Process): LocalConnection | string {
    const disk = this.disks?.dialled(address, process)
    if (disk !== undefined) return disk
    const target = this.targets.get(address)
    if (!target || target.over || target.address === '') return `${address} refused the connection`
    this.note(`dialled: ${address} of ${target.attempt?.name}`)
    const local = new LocalConnection(this.time, this.random, process, address)
    const channel = new TargetChannel(target, local.qemu)
    target.channels.push(channel)
    this.time.afterAs(undefined, this.random.next(), () => this.mayTakeOver(target))
    local.qemu.sink = {
      onBytes: bytes => this.atTarget(channel, bytes),
      onFin: () => this.targetFin(channel),
      onReset: () => {
        channel.endMs = this.time.nowMs
        this.targetBreaks(target)
      },
    }
    return local
  }

  // --- disks

  connectDisk(gate: number, peer: string): QemuEnd | undefined {
    const { source } = this
    return source.process.alive && !source.stopping ? source.connectDisk(gate, peer) : undefined
  }

  happens(what: string): void {
    this.happened.add(what)
  }

  // --- the source QEMUs

  private addressOf(gate: number): string {
    return `tcp:127.0.0.1:${4000 + gate}`
  }

  private migrate(gate: number): void {
    const { random, time } = this
    if (this.guestsLeft === 0) return
    if (this.attempts.some(attempt => attempt.gate === gate && !attempt.seenOff)) {
      // a recovery came in here; what it, or a guest behind it, still sends must not meet another target
      time.afterAs(undefined, 200, () => this.migrate(gate))
      return
    }
    this.guestsLeft--
    const target = new TargetQemu()
    const tls = random.chance(0.08)
    const postcopy = !tls && random.chance(0.4)
    const attempt = new Attempt(`pc-guest-${this.attempts.length}`, gate, target, time.nowMs, {
      returnPath: tls || postcopy || random.chance(0.7),
      postcopy,
      preempt: postcopy ? random.pick(['none', 'early', 'late'] as const) : 'none',
      tls,
      recovery: false,
    })
    target.attempt = attempt
    this.listen(target, gate)
    this.attempts.push(attempt)
    this.note(`${attempt.name} begins at gate ${gate}: ${JSON.stringify(attempt.options)}`)
    const size = random.pick([2, 10, 40])
    if (tls) this.channel(attempt, 'tls', guests.tlsScript(random, size * 1000))
    else {
      const script = guests.mainScript(random, attempt.name, { ...attempt.options, pages: size })
      attempt.postcopyAt = script.postcopyAt
      attempt.advisedAt = script.advisedAt
      this.channel(attempt, 'main', script.bytes)
    }
    const multifd = postcopy || tls || random.chance(0.5) ? 0 : random.int(1, random.pick([2, 8]))
    for (let i = 0; i < multifd; i++) {
      this.channel(attempt, 'multifd', guests.multifdScript(random, this.attempts.length, i, size * 3))
    }
    // main waits for all multifd channels before its end (qemu-wire-format 4.4)
    if (multifd > 0) attempt.main.limit -= guests.MAIN_END_BYTES
    if (attempt.options.preempt !== 'none') this.preempt(attempt)
    this.begin(attempt)
    if (!this.quiet && random.chance(0.15))
      time.after(random.next() * random.pick([5, 100, 3000]), () => this.cancel(attempt))
  }

  private listen(target: TargetQemu, gate: number): void {
    const address = this.addressOf(gate)
    const before = this.targets.get(address)
    if (before && before !== target) before.address = ''
    // it waits for its recovery here, and listens no more where it did
    for (const [at, one] of this.targets) if (one === target) this.targets.delete(at)
    target.address = address
    this.targets.set(address, target)
  }

  private channel(attempt: Attempt, kind: guests.Kind, bytes: Uint8Array): Channel {
    const channel = new Channel(attempt, kind, bytes, this.channels.length)
    this.channels.push(channel)
    attempt.channels.push(channel)
    if (bytes.length > 0) this.byName.set(nameOf(bytes), channel)
    return channel
  }

  private preempt(attempt: Attempt): Channel {
    const { random } = this
    let bytes: Uint8Array
    // the first bytes of two pages may be alike, and a target knows a channel by nothing else
    do bytes = guests.preemptScript(random, random.pick([0, 1, 10]))
    while (this.byName.has(nameOf(bytes)))
    const channel = this.channel(attempt, 'preempt', bytes)
    channel.limit = 0 // until pages are asked for
    return channel
  }

  /** Its channels connect, as QEMU's do. */
  private begin(attempt: Attempt): void {
    const { random, time } = this
    for (const channel of attempt.channels) {
      if (channel.kind === 'preempt' && attempt.options.preempt === 'late' && !attempt.options.recovery) continue
      const wait = channel === attempt.main ? 0 : random.next() * random.pick([1, 30, 150])
      time.afterAs(undefined, wait, () => this.connect(channel))
    }
    // what has connected, and said nothing yet, goes on in the next session
    if (this.hasDisks && random.chance(0.2))
      time.afterAs(undefined, random.next() * 20, () => this.renewal('source reloads'))
  }

  private connect(channel: Channel): void {
    const { random, time, source } = this
    const { attempt } = channel
    if (attempt.over || channel.end) return
    if (!source.process.alive || source.stopping) {
      attempt.excuses.add('no proxy')
      this.sourceBreaks(attempt)
      return
    }
    const end = source.connect(attempt.gate, `qemu:${channel.number}`)
    channel.end = end
    end.sink = {
      onBytes: bytes => this.atSource(channel, bytes),
      onFin: () => this.sourceFin(channel),
      onReset: () => {
        if (channel.endMs < 0) channel.endMs = time.nowMs
        // on a channel that it only writes to QEMU sees it when it writes
        if (channel === attempt.main || channel.written < channel.bytes.length) this.sourceBreaks(attempt)
      },
    }
    time.afterAs(undefined, random.next() * random.pick([0.1, 3, 20]), () => this.write(channel))
  }

  private write(channel: Channel): void {
    const { random, time } = this
    const { attempt, end, bytes } = channel
    if (attempt.over || !end) return
    if (channel.endMs >= 0 || end.orphaned) {
      // a write meets its end; main waits for multifd, and may write nothing that would meet its own
      const meets = channel.kind === 'multifd' || end.orphaned
      if (meets && channel.written < bytes.length) this.sourceBreaks(attempt)
      return
    }
    const most = random.pick([8, 100, 5000, 64 * 1024])
    // the first bytes of a channel come at once
    const least = channel.written === 0 ? Math.min(guests.NAME_BYTES, bytes.length) : 0
    const count = Math.min(end.room, channel.limit - channel.written, Math.max(least, random.int(1, most)))
    if (count > 0) {
      end.write(bytes.subarray(channel.written, channel.written + count))
      channel.written += count
      if (channel === attempt.main) this.wrote(attempt)
    }
    if (channel.written < bytes.length) {
      time.afterAs(undefined, random.next() * random.pick([0.2, 2, 20]), () => this.write(channel))
    } else {
      const isWritten = ({ kind, written, bytes }: Channel): boolean => kind !== 'multifd' || written === bytes.length
      if (channel.kind === 'multifd' && attempt.channels.every(isWritten))
        attempt.main.limit = attempt.main.bytes.length
      this.look(attempt)
    }
  }

  private wrote(attempt: Attempt): void {
    const { random, time } = this
    const { options, main, channels } = attempt
    if (options.recovery || options.preempt !== 'late' || main.written < attempt.postcopyAt) return
    const preempt = channels.find(({ kind }) => kind === 'preempt')!
    if (!preempt.end) time.afterAs(undefined, random.next() * 10, () => this.connect(preempt))
  }

  /** Whether the source QEMU has done all. */
  private look(attempt: Attempt): void {
    const { random, time } = this
    if (attempt.over || attempt.options.returnPath) return
    if (attempt.channels.some(({ written, bytes }) => written < bytes.length)) return
    time.afterAs(undefined, random.next() * 5, () => this.finish(attempt))
  }

  /** It ends well, for all that the source QEMU knows. */
  private finish(attempt: Attempt): void {
    if (attempt.over) return
    attempt.completed = true
    this.closeAll(attempt)
  }

  private closeAll(attempt: Attempt): void {
    const { random, time } = this
    if (attempt.over) return
    attempt.over = true
    this.note(`${attempt.name} is over at the source: ${attempt.completed ? 'completed' : 'broken'}`)
    for (const channel of attempt.channels) {
      time.afterAs(undefined, random.next() * random.pick([0.1, 2]), () => this.closeSource(channel))
    }
    this.nextAt(attempt)
  }

  private closeSource(channel: Channel): void {
    const { end } = channel
    if (!end || end.gone || end.broken) return
    channel.closedInOrder = end.unreadBytes === 0
    end.close()
    if (channel.endMs < 0) channel.endMs = this.time.nowMs
  }

  private cancel(attempt: Attempt): void {
    const { random } = this
    if (attempt.over) return
    attempt.excuses.add('cancelled')
    this.happened.add('cancel')
    if (attempt.inPostcopy) attempt.left = true
    else attempt.cancelled = true
    if (random.chance(0.3)) {
      this.happened.add('source connection broke')
      const channel = random.pick(attempt.channels)
      if (channel.end && !channel.end.gone) {
        channel.end.rst()
        channel.endMs = this.time.nowMs
      }
    }
    this.sourceBreaks(attempt)
  }

  /** What the source QEMU does when a connection breaks: it goes on, or pauses. */
  private sourceBreaks(attempt: Attempt): void {
    if (attempt.over) return
    if (attempt.inPostcopy) this.happened.add('source paused')
    this.closeAll(attempt)
  }

  private sourceFin(channel: Channel): void {
    const { attempt, target } = channel
    if (target?.halfClosed && !target.end.gone) return // nobody reads there
    if (channel.endMs < 0) channel.endMs = this.time.nowMs
    const orphaned = channel.end?.orphaned === true
    if (!orphaned && target?.closedInOrder && channel.heard !== target.answers.length)
      this.fail(`${attempt.name}: ${channel.kind} ends with ${channel.heard} of ${target.answers.length} answers`)
    // one that dies may have closed its direction before that
    if (!orphaned && target && !target.finished && !target.halfClosed && target.shutAt < 0)
      this.fail(`${attempt.name}: ${channel.kind} ends in order, and nobody closed it`)
    if (channel !== attempt.main) return // QEMU reads main alone
    if (!attempt.shutHeard && attempt.options.returnPath) this.sourceBreaks(attempt)
    else if (!attempt.options.returnPath && attempt.channels.some(({ written, bytes }) => written < bytes.length))
      this.sourceBreaks(attempt)
  }

  private atSource(channel: Channel, bytes: Uint8Array): void {
    const { attempt, target } = channel
    if (!target) this.fail(`${attempt.name}: answers on a ${channel.kind} that no target has`)
    const expected = target.answers.subarray(channel.heard, channel.heard + bytes.length)
    if (Buffer.compare(bytes, expected) !== 0)
      this.fail(`${attempt.name}: wrong answers on ${channel.kind} at ${channel.heard}`)
    channel.heard += bytes.length
    if (attempt.over) return
    if (attempt.options.recovery && channel === attempt.main) channel.limit = this.recoveryLimit(channel)
    if (target.shutAt >= 0 && channel.heard >= target.shutAt && !attempt.shutHeard) {
      attempt.shutHeard = true
      this.finish(attempt)
    }
  }

  /** A recovery waits for the bitmap. */
  private recoveryLimit(channel: Channel): number {
    return channel.heard > 0 && channel.heard >= channel.target!.answers.length ? channel.bytes.length : channel.limit
  }

  /** What the operator does next at this gate. */
  private nextAt(attempt: Attempt): void {
    const { random, time } = this
    const { target, gate } = attempt
    const wait = 300 + random.next() * random.pick([50, 2000, 20_000])
    const overMs = time.nowMs
    const go = (): void => {
      const mayPause = !attempt.completed && attempt.inPostcopy && target.inPostcopy
      if (mayPause && !target.tookOver && !target.over) {
        // one in haste does not look whether both proxies are through; a recovery that never reached it is tried again
        const hasty = target.paused && random.chance(0.02)
        const mayGoOn = hasty || ((target.paused || target.channels.length === 0) && this.isIdle(gate))
        if (mayGoOn && !this.isTaken(gate, target)) {
          this.operators--
          attempt.seenOff = true
          this.recover(attempt, hasty)
        } else time.afterAs(undefined, 100, go) // the other QEMU has not noticed
      } else if (
        !target.tookOver &&
        (!this.isIdle(gate) || (attempt.completed && time.nowMs - overMs < OWED_READ_MS))
      ) {
        // what has failed may still be on its way, and whoever listens there would get it
        if (time.nowMs - overMs > this.patience.postcopyMs + NOTICED_MS + MAIN_AWAITED_MS)
          this.fail(`${attempt.name} does not end`)
        time.afterAs(undefined, 100, go)
      } else {
        this.operators--
        attempt.seenOff = true
        this.quit(target)
        this.migrate(gate)
      }
    }
    this.operators++
    time.afterAs(undefined, wait, go)
  }

  /** Neither proxy has anything of a migration at this gate. */
  private isIdle(gate: number): boolean {
    const { source, destination } = this
    const at = source.gates[gate]!
    const { target, migration, turns } = at
    if (migration || turns.length > 0 || source.hasWaiting(at)) return false
    // no proxy sees an end that lies behind more than it reads ahead: the next main would be given such a channel
    const isUnseen = ({ end, written }: Channel): boolean => {
      if (!end || end.orphaned) return false
      return end.outboxBytes > 0 || (end.readBytes < written && !end.broken) // in its kernel, or held by its socket
    }
    if (this.channels.some(channel => channel.attempt.gate === gate && isUnseen(channel))) return false
    for (const { session } of destination.members.values()) {
      if (session.status().migrations.some(migration => migration.target === target)) return false
    }
    return !source.session?.status().some(migration => migration.target === target)
  }

  /** Another guest has come to this gate, and its target listens. */
  private isTaken(gate: number, target: TargetQemu): boolean {
    const there = this.targets.get(this.addressOf(gate))
    return there !== undefined && there !== target && there.address !== ''
  }

  private recover(before: Attempt, hasty: boolean): void {
    const { random, time } = this
    const { target } = before
    // at the same gate, or at one that is free
    const free = Array.from({ length: this.gates }, (_, i) => i).filter(
      i => i === before.gate || (!this.targets.get(this.addressOf(i))?.attempt && this.isIdle(i)),
    )
    const gate = random.pick(free)
    if (gate !== before.gate) this.happened.add('recovery at another gate')
    this.happened.add('recovery')
    const preempt = before.options.preempt !== 'none'
    const attempt = new Attempt(`pc-recovery-${this.attempts.length}`, gate, target, time.nowMs, {
      ...before.options,
      recovery: true,
    })
    if (hasty) {
      attempt.excuses.add('hasty')
      this.happened.add('recovery in haste')
    }
    target.attempt = attempt
    target.paused = false
    target.channels.length = 0
    this.listen(target, gate)
    this.attempts.push(attempt)
    const script = guests.recoveryScript(random, `r${this.attempts.length}`, random.pick([2, 20]))
    this.channel(attempt, 'recovery', script.bytes).limit = guests.NAME_BYTES
    if (preempt) this.preempt(attempt)
    this.begin(attempt)
  }

  // --- the target QEMUs

  private atTarget(channel: TargetChannel, bytes: Uint8Array): void {
    const { qemu, head } = channel
    const at = channel.received
    channel.received += bytes.length
    if (at < head.length) head.set(bytes.subarray(0, head.length - at), at)
    if (!channel.channel) {
      if (channel.received < head.length) return
      const known = this.byName.get(nameOf(head))
      if (!known) this.fail(`bytes of nobody at a target: ${Buffer.from(head).toString('hex')}`)
      if (known.target) this.fail(`${known.attempt.name}: its ${known.kind} comes twice`)
      channel.channel = known
      known.target = channel
      this.identified(channel, known)
      this.compare(channel, head.subarray(0, Math.min(at, head.length)), 0)
    }
    this.compare(channel, bytes, at)
    if (!qemu.over) this.react(channel)
  }

  private compare({ channel }: TargetChannel, bytes: Uint8Array, at: number): void {
    const { attempt, kind, written } = channel!
    if (at + bytes.length > written) this.fail(`${attempt.name}: more than was written on ${kind}`)
    if (Buffer.compare(bytes, channel!.bytes.subarray(at, at + bytes.length)) !== 0)
      this.fail(`${attempt.name}: wrong bytes on ${kind} at ${at}`)
  }

  private identified(tc: TargetChannel, { attempt, kind }: Channel): void {
    const { qemu } = tc
    if (!attempt.options.returnPath && this.random.chance(0.3)) {
      this.happened.add('target closes its direction first')
      tc.halfClosed = true
      tc.end.shutdown()
      tc.end.pause(this.random.next() * this.random.pick([10, 1000]))
    }
    if (qemu.attempt?.excuses.has('hasty')) return
    if (attempt !== qemu.attempt)
      this.fail(`${kind} of ${attempt.name} at the target of ${qemu.attempt?.name} (${[...attempt.excuses]})`)
    const isFirst = qemu.channels[0] === tc
    const leads = kind === 'main' || kind === 'recovery' || kind === 'tls'
    if (isFirst !== leads) this.fail(`${attempt.name}: ${kind} is ${isFirst ? '' : 'not '}the first at its target`)
  }

  private react(tc: TargetChannel): void {
    const { random, time } = this
    const { qemu, channel } = tc
    const attempt = channel!.attempt
    const { options } = attempt
    if (channel === attempt.main && options.returnPath && !options.tls) {
      if (tc.answers.length === 0 && options.recovery) this.answer(tc, guests.bitmap(random.pick([1, 5000, 200_000])))
      else if (tc.answers.length === 0) this.answer(tc, guests.pong(1))
      if (!options.recovery && !qemu.inPostcopy && tc.received >= attempt.postcopyAt) {
        qemu.inPostcopy = true
        this.answer(tc, guests.pong(3))
        qemu.postcopyAt = tc.answers.length
        this.askForPages(tc)
        if (!this.quiet && random.chance(0.3)) {
          time.afterAs(undefined, random.next() * random.pick([1, 50]), () => this.breakInPostcopy(attempt))
        }
      } else if (options.recovery && channel.limit === channel.bytes.length) this.askForPages(tc)
    }
    if (random.chance(0.01)) {
      tc.end.pause(random.next() * random.pick([5, 500]))
      this.happened.add('target reads slowly')
    }
    this.mayTakeOver(qemu)
  }

  private mayTakeOver(qemu: TargetQemu): void {
    const { attempt } = qemu
    if (!attempt || !this.isWhole(qemu, attempt)) return
    this.time.afterAs(undefined, this.random.next() * 5, () => this.takeOver(qemu, attempt))
  }

  private asked = new WeakSet<TargetChannel>()

  private askForPages(tc: TargetChannel): void {
    const { random, time } = this
    if (this.asked.has(tc)) return
    this.asked.add(tc)
    const { attempt } = tc.channel!
    const preempt = attempt.channels.find(({ kind }) => kind === 'preempt')
    for (let i = random.int(0, 5); i > 0; i--) {
      time.afterAs(undefined, random.next() * 200, () => {
        if (!tc.qemu.over && !tc.qemu.paused && !tc.qemu.tookOver) this.answer(tc, guests.requestPage(i))
      })
    }
    if (!preempt) return
    // when the source QEMU has it, its pages go out on the preempt channel
    time.afterAs(undefined, random.next() * 300, () => {
      preempt.limit = preempt.bytes.length
    })
  }

  private answer(tc: TargetChannel, bytes: Uint8Array): void {
    tc.answers = Buffer.concat([tc.answers, bytes])
    this.pushAnswers(tc)
  }

  private pushAnswers(tc: TargetChannel): void {
    if (tc.end.gone || tc.end.broken) return
    if (tc.push() > 0) this.time.afterAs(undefined, 1 + this.random.next(), () => this.pushAnswers(tc))
  }

  private isWhole(qemu: TargetQemu, attempt: Attempt): boolean {
    if (qemu.tookOver || qemu.over || qemu.paused || qemu.attempt !== attempt) return false
    // a preempt channel that stays silent is awaited too
    if (attempt.options.preempt !== 'none' && qemu.channels.length < attempt.channels.length) return false
    return attempt.channels.every(({ target, bytes, kind }) => {
      if (kind === 'preempt' && bytes.length === 0) return true
      return target !== undefined && target.qemu === qemu && target.received === bytes.length
    })
  }

  private takeOver(qemu: TargetQemu, attempt: Attempt): void {
    if (!this.isWhole(qemu, attempt)) return
    const { random, time } = this
    qemu.tookOver = true
    const main = attempt.main.target!
    if (attempt.options.returnPath) {
      this.answer(main, guests.shut(0))
      main.shutAt = main.answers.length
    }
    const go = (): void => {
      // answers before it go into the kernel first
      if (main.push() > 0 && !main.end.broken && !main.end.gone) time.afterAs(undefined, 5, go)
      else this.quit(qemu)
    }
    time.afterAs(undefined, random.next() * random.pick([1, 50]), go)
  }

  private targetFin(tc: TargetChannel): void {
    const { channel, qemu } = tc
    if (tc.endMs < 0) tc.endMs = this.time.nowMs
    if (channel && !tc.end.orphaned) {
      if (!channel.closedInOrder)
        this.fail(`${channel.attempt.name}: ${channel.kind} ends in order, and nobody closed it`)
      if (channel.written !== tc.received)
        this.fail(`${channel.attempt.name}: ${channel.kind} ends with ${tc.received} of ${channel.written} bytes`)
      if (channel.written === channel.bytes.length) {
        // it has all; the others go on, but for one that never came
        const { preempt } = channel.attempt.options
        if (preempt !== 'none' && channel === channel.attempt.main && !this.isWhole(qemu, channel.attempt))
          this.targetBreaks(qemu)
        this.time.afterAs(undefined, this.random.next(), () => this.closeTarget(tc))
        return
      }
    }
    this.targetBreaks(qemu)
  }

  /** What a target QEMU does when a connection breaks: it exits, or pauses. */
  private targetBreaks(qemu: TargetQemu): void {
    if (qemu.over || qemu.paused || qemu.tookOver) return
    if (qemu.inPostcopy) {
      qemu.paused = true
      qemu.address = ''
      this.happened.add('target paused')
      for (const channel of qemu.channels) this.closeTarget(channel)
    } else this.quit(qemu)
  }

  private quit(qemu: TargetQemu): void {
    if (qemu.over) return
    qemu.over = true
    this.note(`the target of ${qemu.attempt?.name} is over${qemu.tookOver ? ': it runs' : ''}`)
    if (this.targets.get(qemu.address) === qemu) this.targets.delete(qemu.address)
    qemu.address = ''
    for (const channel of qemu.channels) this.closeTarget(channel)
  }

  private closeTarget(tc: TargetChannel): void {
    const { end } = tc
    if (end.gone || end.broken) return
    tc.finished = end.unreadBytes === 0
    tc.closedInOrder = tc.finished && tc.push() === 0
    end.close()
    if (tc.endMs < 0) tc.endMs = this.time.nowMs
  }

  // --- what happens

  /** Nobody's connection: a probe, a monitor. */
  private stranger(): void {
    const { random, time, source } = this
    if (!source.process.alive || source.stopping) return
    this.happened.add('stranger')
    const end = source.connect(random.int(0, this.gates - 1), `elsewhere:${random.int(1, 60_000)}`)
    const said = random.pick(['', 'GET / HTTP/1.1\r\n', 'Q', 'QEVM', '\0'])
    if (said !== '') time.afterAs(undefined, random.next() * 20, () => end.write(Buffer.from(said, 'latin1')))
    if (random.chance(0.7)) time.afterAs(undefined, random.next() * random.pick([1, 50, 8000]), () => end.close())
  }

  private excuse(why: string): void {
    this.troubleMs = this.time.nowMs
    this.disks?.excuse(why)
    for (const attempt of this.attempts) if (!attempt.over) attempt.excuses.add(why)
  }

  /** The path, or a connection of one of its QEMUs. */
  private breakInPostcopy(attempt: Attempt): void {
    const { random } = this
    if (attempt.over || attempt.target.over) return
    const kind = random.pick(['source connection', 'target connection', 'outage', 'long outage'] as const)
    this.note(`=== in postcopy: ${kind}`)
    this.disks?.trouble()
    this.happened.add(`${kind} in postcopy`)
    if (kind === 'outage') this.wan.away(random.next() * 3000)
    else if (kind === 'long outage') this.longOutage()
    else if (kind === 'source connection') {
      attempt.excuses.add(kind)
      attempt.main.end!.rst()
      attempt.main.endMs = this.time.nowMs
      this.sourceBreaks(attempt)
    } else {
      attempt.excuses.add(kind)
      attempt.main.target!.end.rst()
      attempt.main.target!.endMs = this.time.nowMs
      this.targetBreaks(attempt.target)
    }
  }

  /** What an operator does in any week: no guest and no disk is to notice. */
  private renewal(kind: 'source reloads' | 'destination reloads' | 'sets change'): void {
    const { source, destination } = this
    this.note(`=== ${kind}`)
    this.happened.add(kind)
    if (kind !== 'sets change') {
      this.troubleMs = this.time.nowMs // what comes while a guest migrates waits for that
      this.disks?.trouble()
    }
    if (kind === 'destination reloads') {
      if (destination.process.alive) destination.drain()
    } else if (!source.process.alive) return
    else if (kind === 'source reloads') source.reload()
    else source.setsChange()
  }

  private longOutage(): void {
    const { random, time } = this
    const ms = this.patience.precopyMs + random.next() * (this.patience.postcopyMs + NOTICED_MS)
    this.wan.away(ms)
    this.excuse('long outage')
    // and those that begin meanwhile
    for (let at = 1000; at < ms + NOTICED_MS; at += 1000) time.afterAs(undefined, at, () => this.excuse('long outage'))
  }

  private fault(): void {
    const { random, time, wan } = this
    const kind = random.pick([
      ...['cut', 'cut', 'cut', 'swallow', 'stall', 'outage', 'outage', 'long outage', 'drain', 'drain'],
      ...[
        'source dies',
        'destination dies',
        'destination stops',
        'source QEMU dies',
        'target QEMU dies',
        'target breaks',
      ],
      ...(this.threads > 1 ? ['helper fails', 'helper hangs'] : []),
    ])
    const wires = [...wan.wires]
    const open = this.attempts.filter(({ over }) => !over)
    this.happened.add(kind)
    this.note(`=== ${kind}`)
    this.disks?.trouble()
    if (kind === 'cut') {
      if (wires.length === 0) return
      const wire = random.pick(wires)
      wire.cutOff = random.chance(0.5)
      wan.close(wire, random.pick(['client', 'server', 'path'] as const))
    } else if (kind === 'swallow') {
      if (wires.length > 0) random.pick(wires).swallows = true
    } else if (kind === 'stall') {
      if (wires.length === 0) return
      const { up, down } = random.pick(wires)
      random.pick([up, down]).stalledUntilMs = time.nowMs + random.next() * random.pick([100, 3000])
    } else if (kind === 'outage') wan.away(random.next() * 3000)
    else if (kind === 'long outage') this.longOutage()
    else if (kind === 'drain') {
      this.troubleMs = time.nowMs
      if (this.destination.process.alive) this.destination.drain()
    } else if (kind === 'source dies') {
      this.excuse(kind)
      const { source } = this
      if (!source.process.alive) return
      source.kill(random.chance(0.3))
      time.afterAs(undefined, random.next() * 3000, () => this.startSource())
    } else if (kind === 'destination dies') {
      this.excuse(kind)
      const { destination } = this
      if (!destination.process.alive) return
      destination.kill(random.chance(0.3))
      time.afterAs(undefined, random.next() * 3000, () => {
        this.excuse(kind)
        this.startDestination()
      })
    } else if (kind === 'destination stops') {
      const { destination } = this
      if (!destination.process.alive || destination.stopping) return
      this.troubleMs = time.nowMs
      destination.stop(() => {
        destination.process.alive = false
        this.troubleMs = time.nowMs
        this.startDestination()
      })
    } else if (kind === 'helper fails' || kind === 'helper hangs') {
      this.excuse(kind)
      this.troubleMs = time.nowMs
      const site = random.pick([this.source, this.destination])
      if (!site.process.alive) return
      const id = site.helperFails(kind === 'helper hangs' ? HELPER_PATIENCE_MS : 0, () => this.excuse(kind))
      if (id !== undefined) this.unhelped.add(id)
    } else if (open.length > 0) {
      const attempt = random.pick(open)
      attempt.excuses.add(kind)
      if (kind === 'source QEMU dies') {
        attempt.cancelled = true
        this.closeAll(attempt)
      } else if (kind === 'target QEMU dies') this.quit(attempt.target)
      else {
        const { channels } = attempt.target
        if (channels.length > 0) {
          const channel = random.pick(channels)
          channel.end.rst()
          channel.endMs = time.nowMs
          this.targetBreaks(attempt.target)
        }
      }
    }
  }

  // --- the end

  private verify(): void {
    const latestMs = this.patience.postcopyMs + NOTICED_MS
    for (const attempt of this.attempts) {
      const { name, channels, excuses, completed, target } = attempt
      if (!completed && excuses.size === 0) {
        const refused = channels.map(({ refused }) => refused).find(reason => reason !== '')
        this.fail(`${name} did not come to its end, and nothing had happened to it${refused ? `: ${refused}` : ''}`)
      }
      // without a return path what came behind the source's close may have been lost on its way
      if (completed && (attempt.options.returnPath || this.quiet) && !target.tookOver) this.fail(`${name} is nowhere`)
      for (const { kind, end, endMs, target: tc, refused } of channels) {
        if (!end) continue
        if (endMs < 0) this.fail(`${name}: its ${kind} has not ended at the source`)
        if (!tc) continue
        if (refused !== '' && refused !== 'no session')
          this.fail(`${name}: its ${kind} was refused, and taken: ${refused}`)
        if (tc.endMs < 0) this.fail(`${name}: its ${kind} has not ended at the target`)
        if (Math.abs(endMs - tc.endMs) > latestMs)
          this.fail(`${name}: its ${kind} ended ${((tc.endMs - endMs) / 1000).toFixed(1)} s later at the target`)
      }
    }
  }
}

function nameOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.subarray(0, guests.NAME_BYTES)).toString('latin1')
}
