/**
 * Tells a program of the operator's of migrations: at the start, at half and at the end of each. It is run by a process of
 * its own (hook-process.ts), started while this one is small, so that no migration waits for a fork, let alone a program.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { accessSync, constants, statSync } from 'node:fs'
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { printable } from '../bytes/printable.ts'
import { ProxyError } from '../errors.ts'
import { HOOK_MS_MAX, HOOKS_WAITING_MAX } from '../limits.ts'
import { type Events, QEMUS, type SiteEvent, type SiteLog } from './events.ts'
import type { HookCall, HookMessage } from './hook-process.ts'
import { RepeatedFailure } from './repeated-failure.ts'

/** Characters of a variable, before it is escaped: a peer's name may be a whole certificate's. */
const VALUE_LENGTH_MAX = 300

/** What a program is told, by the names of its variables without PAGEFERRY_. */
type Facts = Readonly<Record<string, string | number | undefined>>

type NamedFacts = Facts & { readonly EVENT: 'start' | 'half' | 'end'; readonly MIGRATION: string }

/** A migration's peer by its id, where that is known. */
export type PeerOf = (id: string) => string | undefined

/** That it can be run: else each migration would say so. @returns its whole path. @throws ProxyError USAGE */
export function requireHook(program: string): string {
  const path = resolve(program)
  const wrong = (why: string, hint: string, cause?: unknown): ProxyError =>
    new ProxyError('USAGE', `hook ${program}: ${why}`, undefined, hint, { cause })
  try {
    if (!statSync(path).isFile()) throw wrong('no file', 'give the path of a program; it gets no arguments')
    accessSync(path, constants.X_OK)
    return path
  } catch (error) {
    if (error instanceof ProxyError) throw error
    throw wrong((error as Error).message, 'it must be there and executable for the user of the proxy: chmod 755', error)
  }
}

export class Hook {
  private readonly program: string
  private readonly log: SiteLog
  private readonly peerOf: PeerOf
  private readonly unsubscribe: () => void
  private readonly deaths = new RepeatedFailure()
  private child: ChildProcess | undefined
  /** Handed over, and not said to be over. */
  private running = 0
  private leftOut = 0
  private settled: (() => void) | undefined

  /** @throws ProxyError USAGE */
  constructor(program: string, events: Events, peerOf: PeerOf) {
    this.program = requireHook(program)
    this.log = events.of(QEMUS)
    this.peerOf = peerOf
    this.start()
    this.unsubscribe = events.subscribe(told => this.take(told))
  }

  /** Waits for programs that run, for as long as one may. */
  async close(): Promise<void> {
    this.unsubscribe()
    // what this turn has told is not handed over yet
    await new Promise(setImmediate)
    const { child } = this
    if (child && this.running > 0) {
      await new Promise<void>(done => {
        const timer = setTimeout(done, HOOK_MS_MAX)
        this.settled = () => {
          clearTimeout(timer)
          done()
        }
      })
    }
    this.child = undefined
    if (child?.connected) child.disconnect()
  }

  private take(told: SiteEvent): void {
    const facts = factsOf(told)
    if (!facts) return
    // the status has the migration once this turn is over
    setImmediate(() => this.run(facts))
  }

  private run(facts: NamedFacts): void {
    const { child } = this
    const { EVENT: at, MIGRATION: migration } = facts
    if (!child?.connected || this.running >= HOOKS_WAITING_MAX) {
      if (this.leftOut++ === 0) this.log.warn('hook left out', { at, migration })
      return
    }
    this.running++
    this.leftOut = 0
    // a status of all that runs: not for each migration that a peer begins, who is known
    const PEER = facts.PEER ?? this.peerOf(migration)
    const call: HookCall = { at, migration, environment: environmentOf({ ...facts, PEER }) }
    child.send(call, error => {
      if (error) this.over() // its exit tells
    })
  }

  private over(): void {
    this.running = Math.max(0, this.running - 1)
    if (this.running === 0) this.settled?.()
  }

  private start(): void {
    const file = import.meta.url.endsWith('.ts') ? './hook-process.ts' : './hook-process.js'
    let isOver = false
    let child: ChildProcess | undefined
    const ended = (reason: string): void => {
      if (isOver) return
      isOver = true
      this.running = 0
      this.settled?.()
      if (this.child !== child) return // closed
      this.child = undefined
      const said = this.deaths.failed(reason, performance.now())
      const hint = 'its process is started again'
      if (said) this.log.warn('hook failed', { error: reason, hint, ...said })
      setTimeout(() => this.start(), this.deaths.retryMs).unref()
    }
    // a host that is out of descriptors, processes or memory: the proxy goes on, and with it its migrations
    try {
      child = fork(fileURLToPath(new URL(file, import.meta.url)), [this.program], {
        stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
        // no variables of systemd's, and none that change Node
        env: { PATH: process.env.PATH ?? '/usr/bin:/bin' },
        execArgv: [],
      })
      this.child = child
      child.on('error', error => ended(error.message))
      child.on('exit', (status, signal) => ended(signal ?? `status ${status}`))
      child.on('message', (message: HookMessage) => {
        this.over()
        const { at, migration, error } = message
        if (error === undefined) this.deaths.recovered()
        else this.log.warn('hook failed', { at, migration, error, hint: `run ${this.program} by hand` })
      })
      child.unref()
      child.channel?.unref()
    } catch (error) {
      ended((error as Error).message)
    }
  }
}

/** @returns undefined where it is nothing that a program is told of */
function factsOf(told: SiteEvent): NamedFacts | undefined {
  switch (told.event) {
    case 'migration starts':
      return { EVENT: 'start', DIRECTION: 'out', MIGRATION: told.fields.id, TARGET: told.fields.target }
    case 'migration arrives':
      return {
        EVENT: 'start',
        DIRECTION: 'in',
        MIGRATION: told.fields.id,
        TARGET: told.fields.target,
        PEER: told.cause,
      }
    case 'migration halfway': {
      const { id, seconds, bytesWan } = told.fields
      const [SECONDS_LEAST, SECONDS_MOST] = seconds.map(value => Math.round(value))
      const [BYTES_WAN_LEAST, BYTES_WAN_MOST] = bytesWan.map(Math.round)
      const range = { SECONDS_LEAST, SECONDS_MOST, BYTES_WAN_LEAST, BYTES_WAN_MOST }
      return { EVENT: 'half', DIRECTION: 'out', MIGRATION: id, ...range }
    }
    case 'migration ended': {
      const { fields } = told
      const { id, target, peer, machine, uuid, outcome, reason, seconds } = fields
      const bytes =
        'bytesWan' in fields
          ? { DIRECTION: 'out', BYTES: fields.bytesIn, BYTES_WAN: fields.bytesWan, PAUSE_SECONDS: fields.pauseSeconds }
          : { DIRECTION: 'in', BYTES: fields.bytesOut }
      return {
        ...{ EVENT: 'end', MIGRATION: id, TARGET: target, PEER: peer, MACHINE: machine, UUID: uuid },
        ...{ OUTCOME: outcome, REASON: reason, LEVEL: told.level, SECONDS: Math.round(seconds * 1000) / 1000 },
        ...bytes,
      }
    }
    default:
      return undefined
  }
}

/** Variables as a program gets them: of texts from outside nothing that a terminal or a log obeys. */
function environmentOf(facts: Facts): Record<string, string> {
  return Object.fromEntries(
    Object.entries(facts).flatMap(([name, value]) =>
      value === undefined ? [] : [[`PAGEFERRY_${name}`, printable(String(value).slice(0, VALUE_LENGTH_MAX))]],
    ),
  )
}
