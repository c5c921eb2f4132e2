/**
 * The course of one migration over QMP: which command comes next, by what QEMU answered. Pure: whoever runs it
 * (`migration-run.ts`) has the sockets, the clock and the signals, and hands in what they gave, so that a test plays any
 * course again. Settings that were changed are put back at every end at which QEMU takes that.
 */
import { isProxyError, ProxyError } from '../errors.ts'
import { type Change, commandsOf, type Mend, mend, type QemuSettings, type QemuSide } from './advice.ts'
import { type MigrationInfo, type MigrationPhase, mayBeAt, readMigrationInfo, readRunState } from './migration-info.ts'
import type { Wish } from './migration-wishes.ts'
import { type BlockJob, jobsOf, MirrorEnds, type QemuEvent } from './mirror-ends.ts'
import { fieldsOf, mayBeTcgThatLoses, statesOf, tcgWarning } from './settings.ts'

/** When to ask for the switch to postcopy: after so many whole passes, or so long after the beginning. */
export type PostcopyAfter = { readonly passes: number } | { readonly ms: number }

/** What is to be done. */
export interface CourseTask {
  /** Where the source QEMU connects: the source proxy's listener, as QEMU spells it. */
  readonly to: string
  /** Of the QEMUs that can be asked: as they greeted. */
  readonly versions: { readonly source: string; readonly destination?: string }
  /** The source proxy will be asked why it failed. */
  readonly asksProxy?: boolean
  /** Where a destination QEMU that waits to be told shall listen: the destination proxy's target. */
  readonly incoming?: string | undefined
  readonly wishes: readonly Wish[]
  /** Settings that stay as they are, by name. */
  readonly keep: readonly string[]
  /** Bytes a second of the WAN. */
  readonly linkBytes?: number | undefined
  readonly postcopyAfter?: PostcopyAfter | undefined
  /** Block jobs of the source that mirror its disks: they end while the guest stands still. */
  readonly mirrors?: readonly string[] | undefined
  /** Precopy that takes longer is cancelled. */
  readonly timeoutMs?: number | undefined
}

/** What happened, for those who watch. */
export type Told =
  | ({ readonly event: 'set' } & Mend)
  | { readonly event: 'listening'; readonly at: string }
  | { readonly event: 'started'; readonly to: string }
  | { readonly event: 'progress'; readonly seconds: number; readonly info: MigrationInfo }
  | { readonly event: 'note'; readonly text: string }
  | ({ readonly event: 'put back' } & Change)

/** What the course wants next. */
export type Step =
  | {
      readonly kind: 'ask'
      readonly side: QemuSide
      readonly command: string
      readonly args?: Record<string, unknown> | undefined
      /** QEMU answers at once, but for while it hands a guest over: its main loop may wait for the WAN. */
      readonly patience: 'short' | 'long'
    }
  /** Less where QEMU or a signal says something. */
  | { readonly kind: 'wait'; readonly ms: number }
  | { readonly kind: 'tell'; readonly told: Told }

export type Answer =
  | { readonly kind: 'value'; readonly value: unknown }
  /** QEMU's words. */
  | { readonly kind: 'refused'; readonly why: string }
  /** The connection ended, or no answer came. */
  | { readonly kind: 'lost'; readonly why: string }

/** What became of a step. */
export interface Reply {
  readonly nowMs: number
  /** How often it was said, all in all, that this is to end. */
  readonly interrupts: number
  /** What the source QEMU said by itself since the last reply. */
  readonly events?: readonly QemuEvent[]
  /** To an `ask`. */
  readonly answer?: Answer
}

/** How it ended. */
export type Result =
  | 'completed'
  | 'cancelled'
  | 'failed'
  /** It never began. */
  | 'refused'
  /** In postcopy, without a connection. */
  | 'paused'
  /** QEMU cannot be asked any more. */
  | 'unknown'
  /** Left running by a second signal. */
  | 'left'

/** A setting that is not as it was before. */
export interface SettingLeft extends Mend {
  readonly because: string
}

export interface Outcome {
  readonly result: Result
  /** None of a migration that completed with all as it should be. */
  readonly error?: ProxyError
  /** The migration began. */
  readonly began: boolean
  /** The last that QEMU told of it. */
  readonly info?: MigrationInfo
  /** Run states at the end, where they could be asked for. */
  readonly source?: string
  readonly destination?: string
  readonly left: readonly SettingLeft[]
}

export type Course = Generator<Step, Outcome, Reply>

/** Between two looks: at first, and while it is being cancelled; later. Events come between. */
const LOOK_SOON_MS = 100
const LOOK_MS = 250
/** How long it is looked often. */
const SOON_MS = 2000
/** A QEMU that was told to cancel and never says that it has, has a defect. */
const CANCEL_MS = 300_000
/** How long a destination that still waits for its guest is looked at when the source has ended. */
const ARRIVAL_MS = 10_000
const AWAITED: ReadonlySet<MigrationPhase> = new Set(['completed', 'cancelled'])
/** Between two looks at mirrors that end: their guest stands still. Events come between. */
const LOOK_MIRRORS_MS = 20
/** A mirror that is ready ends within a round trip or two; longer no guest stands still for it. */
const MIRRORS_END_MS = 30_000

/** What is known when it is decided what comes next. */
export interface Situation {
  readonly status: string
  readonly phase: MigrationPhase
  /** The pass that runs, from 1. */
  readonly pass: number
  readonly elapsedMs: number
  readonly interrupts: number
  /** What was done already. */
  readonly cancelAsked: boolean
  readonly cancelRefused: boolean
  readonly postcopyAsked: boolean
}

export type Decision = 'wait' | 'cancel' | 'refuse cancel' | 'start postcopy' | 'end'

const OVER: ReadonlySet<MigrationPhase> = new Set(['none', 'completed', 'failed', 'cancelled', 'paused'])

/** What to do about a migration that was begun. */
export function decide(is: Situation, task: Pick<CourseTask, 'postcopyAfter' | 'timeoutMs'>): Decision {
  const { phase, elapsedMs } = is
  if (OVER.has(phase)) return 'end'
  // once the switch is asked for it may happen at any moment, and a cancel behind it loses the guest
  const behindSwitch = phase === 'postcopy' || is.postcopyAsked
  if (is.interrupts > 0 && !is.cancelAsked) {
    if (!behindSwitch) return 'cancel'
    if (!is.cancelRefused) return 'refuse cancel'
  }
  if (is.cancelAsked || behindSwitch) return 'wait'
  if (phase === 'precopy' && task.timeoutMs !== undefined && elapsedMs >= task.timeoutMs) return 'cancel'
  const { postcopyAfter: after } = task
  if (after === undefined || is.status !== 'active') return 'wait'
  const isTime = 'passes' in after ? is.pass > after.passes : elapsedMs >= after.ms
  return isTime ? 'start postcopy' : 'wait'
}

/** An end, before settings are put back. */
type End = Omit<Outcome, 'left' | 'began'>

/** Ends the course from within. */
class Stop extends Error {
  readonly end: End
  constructor(end: End) {
    super(end.result)
    this.end = end
  }
}

const json = (command: string, args?: Record<string, unknown>): string =>
  JSON.stringify({ execute: command, ...(args && { arguments: args }) })

/** One migration, from the first question to settings put back. Each is for one run. */
export function migrationCourse(task: CourseTask): Course {
  return new Running(task).run()
}

class Running {
  private readonly task: CourseTask
  private readonly sides: readonly QemuSide[]
  private nowMs = 0
  private interrupts = 0
  /** `migrate` was sent: from then on QEMU may have a migration. */
  private began = false
  /** All that was set, and is not put back. */
  private set: Mend[] = []
  private last: MigrationInfo | undefined
  private readonly mirrors: MirrorEnds
  private readonly gone = new Map<QemuSide, string>()

  constructor(task: CourseTask) {
    this.task = task
    this.mirrors = new MirrorEnds(task.mirrors ?? [])
    this.sides = task.versions.destination === undefined ? ['source'] : ['source', 'destination']
  }

  *run(): Course {
    let end: End
    try {
      yield* this.apply(yield* this.prepare())
      yield* this.begin()
      end = yield* this.follow()
    } catch (error) {
      end = this.endOf(error)
    }
    if (end.result === 'unknown') end = yield* this.withDestination(end)
    const left = yield* this.putBack(end.result)
    return { ...end, ...(this.last && { info: this.last }), began: this.began, left }
  }

  /** @throws what is our own defect */
  private endOf(error: unknown): End {
    if (error instanceof Stop) return error.end
    if (!isProxyError(error, 'IO')) throw error
    // an answer that is none: of a source that migrates, who knows what it does
    return this.began ? this.lost(error.what).end : { result: 'refused', error }
  }

  /** Where the source cannot be asked, the destination may know. */
  private *withDestination(end: End): Generator<Step, End, Reply> {
    try {
      const destination = yield* this.stateOf('destination')
      return destination === undefined ? end : { ...end, destination }
    } catch (error) {
      return this.endOf(error)
    }
  }

  /** Looks at both QEMUs. @returns what to set */
  private *prepare(): Generator<Step, Mend[], Reply> {
    const qemus: QemuSettings[] = []
    let waits = false
    for (const side of this.sides) {
      const state = readRunState(yield* this.ask(side, 'query-status'))
      const info = readMigrationInfo(yield* this.ask(side, 'query-migrate'))
      this.check(side, state, info)
      const capabilities = statesOf(yield* this.ask(side, 'query-migrate-capabilities'))
      const parameters = fieldsOf('query-migrate-parameters', yield* this.ask(side, 'query-migrate-parameters'))
      qemus.push({ version: this.task.versions[side] ?? '', side, capabilities, parameters })
      waits ||= side === 'destination' && info.listensAt.length === 0
      this.mayGoOn()
    }
    yield* this.warnOfTcg()
    yield* this.checkMirrors()
    if (waits && this.task.incoming === undefined) {
      const hint = "give --incoming URI, where it shall listen: the destination proxy's --target"
      throw this.refused('the destination QEMU waits to be told where to listen', hint)
    }
    this.listens = !waits
    const { wishes: wanted, keep, linkBytes } = this.task
    return mend(qemus, { wanted, keep, linkBytes })
  }
  private listens = true

  private *warnOfTcg(): Generator<Step, void, Reply> {
    const { source } = this.task.versions
    if (!mayBeTcgThatLoses(source)) return
    const answer = yield* this.tryAsk('source', 'query-kvm')
    if (answer.kind === 'refused') return // it does not say
    const warning = tcgWarning(source, this.require('source', answer))
    if (warning !== undefined) yield* this.note(`warning: ${warning}`)
  }

  /** Those that are to end have to be in sync; of others it is said that they go on. */
  private *checkMirrors(): Generator<Step, void, Reply> {
    const { mirrors } = this
    const answer = yield* this.tryAsk('source', 'query-block-jobs')
    if (answer.kind === 'refused' && !mirrors.any) return
    const jobs = answer.kind === 'refused' ? [] : jobsOf(this.require('source', answer))
    const wrong = mirrors.missing(jobs)
    if (wrong !== undefined) {
      const hint = '`query-block-jobs` lists them; a mirror is waited for until it is `ready`, or the disk is not whole'
      throw this.refused(wrong, hint)
    }
    const others = mirrors.others(jobs).map(({ name }: BlockJob) => name)
    if (others.length > 0)
      yield* this.note(
        `mirrors of the source's disks that go on: ${others.join(', ')}; --mirror ends one while the guest stands still`,
      )
  }

  /** A QEMU listens at one address for as long as it waits. */
  private checkListens({ listensAt }: MigrationInfo): void {
    const { incoming } = this.task
    const [there] = listensAt
    if (incoming === undefined || there === undefined || listensAt.some(one => mayBeAt(one, incoming))) return
    const hint =
      'it cannot be told another: start a new destination QEMU with `-incoming defer`; ' +
      `or give --incoming ${there}, where the other proxy's --target says so too`
    throw this.refused(`the destination QEMU listens at ${there} already, not at ${incoming}`, hint)
  }

  private check(side: QemuSide, state: string, info: MigrationInfo): void {
    const { phase, status } = info
    if (side === 'destination') {
      if (state === 'inmigrate') {
        this.checkListens(info)
        return
      }
      const hint = 'start it as the source, with `-incoming defer`; or are the two sockets swapped?'
      throw this.refused(`the destination QEMU does not wait for a guest: it is ${state}`, hint)
    }
    if (state === 'inmigrate') {
      const hint = 'are the two sockets swapped?'
      throw this.refused('the source QEMU has no guest: it waits for one itself', hint)
    }
    if (state === 'postmigrate') {
      const hint = '`cont` lets it run here again, where it does not run elsewhere; or `quit`'
      throw this.refused("the source QEMU's guest has left already", hint)
    }
    if (!OVER.has(phase) || phase === 'paused')
      throw this.refused(`the source QEMU migrates already: ${status}`, 'wait for its end, or `migrate_cancel` it')
  }

  private *apply(mends: readonly Mend[]): Generator<Step, void, Reply> {
    // the destination first: what it refuses is not worth changing a running guest's QEMU for
    for (const side of [...this.sides].reverse()) {
      const own = mends.filter(one => one.side === side)
      for (const kind of ['capability', 'parameter'] as const) {
        const some = own.filter(one => one.kind === kind)
        const [command] = commandsOf(some)
        if (command === undefined) continue
        const before = this.set
        this.set = [...before, ...some] // whatever becomes of the answer, QEMU may have done it
        const answer = yield* this.tryAsk(side, command.execute, command.arguments)
        if (answer.kind === 'refused') {
          this.set = before
          const names = some.map(({ name }) => name).join(', ')
          throw this.refused(
            `the ${side} QEMU does not take ${names}: ${answer.why}`,
            'nothing has begun; --keep NAME leaves a setting as it is',
          )
        }
        this.require(side, answer)
        for (const one of some) yield* this.tell({ event: 'set', ...one })
        this.mayGoOn()
      }
    }
  }

  private *begin(): Generator<Step, void, Reply> {
    const { to, incoming } = this.task
    if (!this.listens) {
      const answer = yield* this.tryAsk('destination', 'migrate-incoming', { uri: incoming })
      if (answer.kind === 'refused') {
        const hint = 'nothing has begun; is --incoming an address of its host that is free?'
        throw this.refused(`the destination QEMU does not listen: ${answer.why}`, hint)
      }
      this.require('destination', answer)
      yield* this.tell({ event: 'listening', at: incoming! })
      this.mayGoOn()
    } else if (incoming !== undefined)
      yield* this.note('the destination QEMU listens already: --incoming is not needed')
    this.began = true
    const answer = yield* this.tryAsk('source', 'migrate', { uri: to })
    if (answer.kind === 'refused') {
      this.began = false
      const listens = this.listens ? '' : '; the destination QEMU listens from now on'
      throw this.refused(
        `the source QEMU does not migrate: ${answer.why}`,
        `nothing has begun, the guest goes on${listens}`,
      )
    }
    this.require('source', answer)
    yield* this.tell({ event: 'started', to })
  }

  private *follow(): Generator<Step, End, Reply> {
    const { task } = this
    const startMs = this.nowMs
    let [cancelMs, cancelRefused, postcopyAsked, postcopyRefused] = [Number.POSITIVE_INFINITY, false, false, false]
    let reason = ''
    let wasPostcopy = false
    for (;;) {
      const info = readMigrationInfo(yield* this.ask('source', 'query-migrate', undefined, 'long'))
      this.last = info
      const { status, phase, pass = 0 } = info
      wasPostcopy ||= phase === 'postcopy'
      const elapsedMs = this.nowMs - startMs
      const cancelAsked = cancelMs < Number.POSITIVE_INFINITY
      const { interrupts } = this
      const done = {
        cancelAsked,
        cancelRefused,
        postcopyAsked: postcopyAsked && !postcopyRefused && this.mirrorsFailed === undefined,
      }
      yield* this.tell({ event: 'progress', seconds: elapsedMs / 1000, info })
      const wishes = postcopyRefused ? { timeoutMs: task.timeoutMs } : task
      // who is about to be cancelled keeps its mirrors; once the switch is asked for it is not
      const goesOn = !cancelAsked && (this.interrupts === 0 || done.postcopyAsked)
      if (status === 'pre-switchover' && this.mirrors.areDue && goesOn) {
        const wrong = yield* this.endMirrors()
        if (wrong === undefined) continue
        this.mirrorsFailed = wrong
      }
      let decision = decide({ status, phase, pass, elapsedMs, interrupts, ...done }, wishes)
      if (decision === 'wait' && this.mirrorsFailed !== undefined && !cancelAsked) decision = 'cancel'
      if (decision === 'end') return yield* this.ended(info, reason, wasPostcopy)
      if (decision === 'cancel') {
        cancelMs = this.nowMs
        reason =
          this.mirrorsFailed ??
          (interrupts > 0 ? 'interrupted' : `not done after ${task.timeoutMs! / 1000} s (--timeout)`)
        yield* this.note(`${reason}: cancelling, the guest goes on at the source`)
        const answer = yield* this.tryAsk('source', 'migrate_cancel', undefined, 'long')
        if (answer.kind === 'refused') yield* this.note(`QEMU does not cancel: ${answer.why}`)
        else this.require('source', answer)
      } else if (decision === 'refuse cancel') {
        cancelRefused = true
        yield* this.note(
          'not cancelled: in postcopy the guest is at the destination, with pages that only the source has. To hold it, ' +
            `${json('migrate-pause')} at the source, and recover it later; once more ends this command alone`,
        )
      } else if (decision === 'start postcopy') {
        postcopyAsked = true
        const answer = yield* this.tryAsk('source', 'migrate-start-postcopy', undefined, 'long')
        postcopyRefused = answer.kind === 'refused'
        if (answer.kind === 'refused') yield* this.note(`QEMU does not switch to postcopy: ${answer.why}`)
        else {
          this.require('source', answer)
          yield* this.note('switching to postcopy: from here on it cannot be cancelled')
        }
      }
      if (this.nowMs - cancelMs > CANCEL_MS)
        throw this.lost(`still ${status} ${CANCEL_MS / 1000} s after it was cancelled`)
      yield* this.wait(elapsedMs < SOON_MS || cancelAsked ? LOOK_SOON_MS : LOOK_MS)
    }
  }

  /**
   * The guest stands still: its mirrors end in sync, the destination's disks become its own, and it goes on.
   * @returns what went wrong: the migration is to be cancelled
   */
  private *endMirrors(): Generator<Step, string | undefined, Reply> {
    const { mirrors } = this
    for (const job of mirrors.names) {
      const answer = yield* this.tryAsk('source', 'block-job-cancel', { device: job }, 'long')
      if (answer.kind === 'refused') return `the mirror ${job} does not end: ${answer.why}`
      this.require('source', answer)
    }
    const untilMs = this.nowMs + MIRRORS_END_MS
    while (!mirrors.haveEnded(jobsOf(yield* this.ask('source', 'query-block-jobs', undefined, 'long')))) {
      if (this.interrupts > 0) return 'interrupted'
      if (this.nowMs >= untilMs) return `mirrors did not end within ${MIRRORS_END_MS / 1000} s`
      yield* this.wait(LOOK_MIRRORS_MS)
    }
    const { failed } = mirrors
    if (failed !== undefined) return failed
    mirrors.areDue = false
    yield* this.note('the mirrors have ended in sync')
    if (this.sides.includes('destination')) {
      const answer = yield* this.tryAsk('destination', 'nbd-server-stop', undefined, 'long')
      if (answer.kind === 'refused') yield* this.note(`the destination's server of disks is not stopped: ${answer.why}`)
    }
    const answer = yield* this.tryAsk('source', 'migrate-continue', { state: 'pre-switchover' }, 'long')
    if (answer.kind === 'refused') return `QEMU does not go on: ${answer.why}`
    this.require('source', answer)
    return undefined
  }
  /** Why the guest stays where it is. */
  private mirrorsFailed: string | undefined

  private *ended(info: MigrationInfo, reason: string, wasPostcopy: boolean): Generator<Step, End, Reply> {
    const { to, incoming } = this.task
    if (info.phase === 'none') throw this.lost('it knows of no migration, which it had begun')
    if (info.phase === 'paused') {
      const how = `when the WAN is back: at the destination ${json('migrate-recover', { uri: incoming ?? 'URI' })}, then at the source ${json('migrate', { uri: to, resume: true })}`
      const what = `the migration is paused in postcopy, and the guest with it${because(info.error)}`
      return { result: 'paused', error: new ProxyError('MIGRATION_PAUSED', what, undefined, how) }
    }
    if (info.phase === 'completed' && reason !== '') yield* this.note('it had completed before it was cancelled')
    const states: { source?: string; destination?: string } = {}
    const source = yield* this.stateOf('source')
    if (source !== undefined) states.source = source
    const arriveMs = this.nowMs + ARRIVAL_MS
    for (;;) {
      const destination = yield* this.stateOf('destination')
      if (destination !== undefined) states.destination = destination
      // it gets its guest a moment later than the source says so, or ends a moment after that has cancelled
      if (!AWAITED.has(info.phase) || destination !== 'inmigrate' || this.nowMs >= arriveMs) break
      yield* this.wait(LOOK_SOON_MS)
    }
    return { ...states, ...this.verdict(info, states, reason, wasPostcopy) }
  }

  private verdict(
    { phase, error: why }: MigrationInfo,
    { source, destination }: { readonly source?: string; readonly destination?: string },
    reason: string,
    wasPostcopy: boolean,
  ): Pick<End, 'result' | 'error'> {
    const failure = (code: 'QEMU_LOST' | 'MIGRATION_FAILED' | 'MIGRATION_CANCELLED', what: string, hint: string) =>
      new ProxyError(code, what, undefined, hint)
    const lost = this.gone.get('destination')
    if (phase === 'completed') {
      if (lost !== undefined) {
        const hint =
          'see that the guest runs there. If that QEMU is dead: `cont` at the source lets it go on from where it stood'
        return {
          result: 'completed',
          error: failure('QEMU_LOST', `completed, but the destination QEMU does not answer: ${lost}`, hint),
        }
      }
      if (destination === 'inmigrate') {
        const hint = 'see that the guest runs there before you end the source QEMU'
        return {
          result: 'completed',
          error: failure('QEMU_LOST', 'completed, but the destination QEMU still waits for a guest', hint),
        }
      }
      return { result: 'completed' }
    }
    const anew = this.mirrors.haveBegunToEnd ? '; its mirrors have ended: begin them anew' : ''
    const guest = `the guest is ${source ?? 'not asked for'} at the source${anew}`
    const isCancelled = phase === 'cancelled'
    const cancelled = `cancelled${because(reason || 'not by this command')}`
    const what = isCancelled ? `${cancelled}, and too late` : `the migration failed${because(why)}`
    if (destination !== undefined && destination !== 'inmigrate') {
      const hint = `${guest}, and ${destination} at the destination: see that it runs once, and stop the other`
      return { result: 'failed', error: failure('MIGRATION_FAILED', what, hint) }
    }
    if (isCancelled) return { result: 'cancelled', error: failure('MIGRATION_CANCELLED', cancelled, guest) }
    const hint = wasPostcopy
      ? `${guest}: in postcopy its state was at the destination`
      : `${guest}; ${this.whereMoreIs(why)}`
    return { result: 'failed', error: failure('MIGRATION_FAILED', what, hint) }
  }

  /** @param why QEMU's words */
  private whereMoreIs(why = ''): string {
    const { to, asksProxy } = this.task
    if (why.includes('Failed to connect')) return `no source proxy listens at ${to}: give what its --listen says`
    return `the proxies' logs tell more${asksProxy ? '' : "; with --control this command asks the source proxy's"}`
  }

  /** @returns what could not be put back */
  private *putBack(result: Result): Generator<Step, SettingLeft[], Reply> {
    const left: SettingLeft[] = []
    const leave = (some: readonly Mend[], because: string): void => {
      for (const one of some) left.push({ ...one, because })
    }
    if (result === 'paused' || result === 'unknown' || result === 'left') {
      const why = { paused: 'QEMU takes none while it migrates', unknown: 'QEMU does not answer', left: 'interrupted' }
      leave(this.set, why[result])
      return left
    }
    let rest = [...this.set].reverse()
    const isGone = (side: QemuSide): string | undefined => this.gone.get(side)
    try {
      while (rest.length > 0) {
        // as it was set, in the other order: all of a kind at once
        const [{ side, kind }] = rest as [Mend]
        const some = rest.filter(one => one.side === side && one.kind === kind)
        const told = some.filter(({ before }) => before !== undefined)
        const answer = yield* this.setBack(told)
        if (answer.kind === 'value') {
          for (const one of told) yield* this.tell({ event: 'put back', ...one, value: one.before })
        } else if (answer.kind === 'refused' && told.length > 1) {
          // in the order against which they were set: one may stand on another
          for (const one of told) {
            const alone = yield* this.setBack([one])
            if (alone.kind === 'value') yield* this.tell({ event: 'put back', ...one, value: one.before })
            else leave([one], isGone(side) ?? alone.why)
          }
        } else leave(told, isGone(side) ?? answer.why)
        leave(
          some.filter(one => !told.includes(one)),
          'QEMU did not tell what it was',
        )
        rest = rest.filter(one => !some.includes(one))
      }
    } catch (error) {
      if (!(error instanceof Stop)) throw error
      leave(rest, 'interrupted')
    }
    return left
  }

  private *setBack(some: readonly Mend[]): Generator<Step, Answer, Reply> {
    const [command] = commandsOf(some.map(one => ({ ...one, value: one.before })))
    if (command === undefined) return { kind: 'value', value: {} }
    const { side } = some[0]!
    const why = this.gone.get(side)
    if (why !== undefined) return { kind: 'lost', why }
    return yield* this.tryAsk(side, command.execute, command.arguments)
  }

  /** @returns nothing where that QEMU cannot be asked, or says nothing that is understood */
  private *stateOf(side: QemuSide): Generator<Step, string | undefined, Reply> {
    if (!this.sides.includes(side) || this.gone.has(side)) return undefined
    const answer = yield* this.tryAsk(side, 'query-status')
    if (answer.kind !== 'value') return undefined
    try {
      return readRunState(answer.value)
    } catch {
      return undefined // it ended, and that is told; of its state nothing is
    }
  }

  /** What QEMU returned. */
  private *ask(
    side: QemuSide,
    command: string,
    args?: Record<string, unknown>,
    patience: 'short' | 'long' = 'short',
  ): Generator<Step, unknown, Reply> {
    const answer = yield* this.tryAsk(side, command, args, patience)
    if (answer.kind === 'refused') {
      if (this.began) throw this.lost(`${command}: ${answer.why}`)
      throw this.refused(`the ${side} QEMU does not answer ${command}: ${answer.why}`, 'is it a QEMU of 7.2 or later?')
    }
    return this.require(side, answer)
  }

  private *tryAsk(
    side: QemuSide,
    command: string,
    args?: Record<string, unknown>,
    patience: 'short' | 'long' = 'short',
  ): Generator<Step, Answer, Reply> {
    const reply = yield { kind: 'ask', side, command, args, patience }
    const { answer } = reply
    if (answer!.kind === 'lost') this.gone.set(side, answer!.why)
    this.hear(reply)
    return answer!
  }

  /** What was returned. @throws Stop where the connection is lost */
  private require(side: QemuSide, answer: Answer): unknown {
    if (answer.kind === 'value') return answer.value
    if (this.began) throw this.lost(answer.why)
    const hint = 'nothing has begun; give the socket of -qmp unix:PATH,server=on, which serves one client at a time'
    const what = `the ${side} QEMU does not answer: ${answer.why}`
    throw new Stop({ result: 'refused', error: new ProxyError('IO', what, undefined, hint) })
  }

  private *wait(ms: number): Generator<Step, void, Reply> {
    this.hear(yield { kind: 'wait', ms })
  }

  private *tell(told: Told): Generator<Step, void, Reply> {
    this.hear(yield { kind: 'tell', told })
  }

  private *note(text: string): Generator<Step, void, Reply> {
    yield* this.tell({ event: 'note', text })
  }

  private hear({ nowMs, interrupts, events }: Reply): void {
    for (const event of events ?? []) this.mirrors.hear(event)
    this.nowMs = nowMs
    this.interrupts = interrupts
    if (interrupts < 2) return
    const status = this.last?.status ?? (this.began ? 'begun just now' : 'not begun')
    const hint = this.began
      ? `it goes on without this command: ${json('query-migrate')} tells how it is`
      : 'settings that were changed are listed'
    throw new Stop({
      result: 'left',
      error: new ProxyError('IO', `interrupted twice: the migration is ${status}`, undefined, hint),
    })
  }

  /** Before the migration began. */
  private mayGoOn(): void {
    if (this.interrupts === 0) return
    const hint = 'nothing has begun, the guest is where it was'
    throw new Stop({
      result: 'cancelled',
      error: new ProxyError('MIGRATION_CANCELLED', 'interrupted', undefined, hint),
    })
  }

  private refused(what: string, hint: string): Stop {
    return new Stop({ result: 'refused', error: new ProxyError('MIGRATION_REFUSED', what, undefined, hint) })
  }

  private lost(why: string): Stop {
    const status = this.last?.status ?? 'begun just now'
    const what = `the source QEMU cannot be asked any more: ${why}; the migration was ${status}`
    const hint = `if QEMU lives it goes on without this command: ${json('query-migrate')} tells how it is`
    return new Stop({ result: 'unknown', error: new ProxyError('QEMU_LOST', what, undefined, hint) })
  }
}

function because(why: string | undefined): string {
  return why === undefined || why === '' ? '' : `: ${why}`
}
