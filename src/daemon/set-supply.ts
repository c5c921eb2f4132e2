/** Keeps a proxy's store as its channels say, by a process of its own: supply-process.ts. */
import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { readTrustedKeys } from '../remote/channel-keys.ts'
import type { FollowEvent } from '../remote/follow-channels.ts'
import { openRemoteStore } from '../remote/open-store.ts'
import type { Events } from './events.ts'
import { RepeatedFailure } from './repeated-failure.ts'

/** What is to be followed, and into which store: plain data, for another process. */
export interface SupplySettings {
  /** Folder of this host's own store. */
  readonly own: string
  /** File with this host's key. */
  readonly storeKey: string | undefined
  /** Names of remote stores, in the order in which they are asked. */
  readonly remote: readonly string[]
  /** Whether `http://` of other hosts will do. */
  readonly insecure: boolean
  readonly channels: readonly string[]
  /** File with public keys. */
  readonly trust: string
  /** File with public keys of which one has to have signed each set that sessions use; undefined: it is not asked for. */
  readonly signers: string | undefined
  /** Bytes that sets of remote stores may have. */
  readonly maxBytes: number | undefined
}

/**
 * That the settings are right, before a process is told them that is started again and again: mistakes end the start. Asks no
 * store; what is away may come back.
 * @throws USAGE, IO
 */
export async function checkSupply({ remote, insecure, trust }: SupplySettings): Promise<void> {
  readTrustedKeys(trust)
  for (const name of remote) (await openRemoteStore(name, { insecure })).close()
}

/** What the process tells. */
export type SupplyMessage =
  | Exclude<FollowEvent, { kind: 'failed' }>
  | {
      readonly kind: 'failed'
      readonly channel: string
      readonly code: string
      readonly error: string
      readonly hint: string
    }

/** Characters of what a process said before it died unexpectedly. */
const LAST_WORDS_CHARS = 2000

export class SetSupply {
  private readonly settings: SupplySettings
  private readonly events: Events
  private readonly failures = new Map<string, RepeatedFailure>()
  private readonly deaths = new RepeatedFailure()
  private child: ChildProcess | undefined

  constructor(settings: SupplySettings, events: Events) {
    this.settings = settings
    this.events = events
  }

  /** Starts the process, and starts it anew where it dies. It ends with this one, which it does not keep alive. */
  start(): void {
    const file = import.meta.url.endsWith('.ts') ? './supply-process.ts' : './supply-process.js'
    let child: ChildProcess | undefined
    let words = ''
    let isOver = false
    const over = (reason: string): void => {
      if (isOver) return
      isOver = true
      if (this.child === child) this.child = undefined
      this.died(reason, words.trim())
    }
    // a host that is out of descriptors, processes or memory: the proxy goes on, and with it its migrations
    try {
      child = fork(fileURLToPath(new URL(file, import.meta.url)), { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
      this.child = child
      child.on('error', error => over(error.message))
      child.on('exit', (status, signal) => over(signal ?? `status ${status}`))
      if (child.pid === undefined) return // no process and no pipes: its error tells
      child.stderr!.setEncoding('utf8').on('data', (text: string) => (words = (words + text).slice(-LAST_WORDS_CHARS)))
      child.on('message', (message: SupplyMessage) => this.take(message))
      unref(child)
      child.send(this.settings, () => {}) // where it is gone already, its exit tells
    } catch (error) {
      child?.kill('SIGKILL')
      over((error as Error).message)
    }
  }

  /** Asks the stores at once, not at its pace. */
  askNow(): void {
    if (this.child?.connected) this.child.send('ask', () => {})
  }

  private died(reason: string, words: string): void {
    const said = this.deaths.failed(reason, performance.now())
    if (said) {
      const hint = 'migrations go on with the sets that are there; it is started again'
      this.events.warn('sets are not fetched', { error: words === '' ? reason : `${reason}: ${words}`, hint, ...said })
    }
    setTimeout(() => this.start(), this.deaths.retryMs).unref()
  }

  private take(message: SupplyMessage): void {
    const { events } = this
    if (message.kind === 'failed') {
      const { channel, code, error, hint } = message
      const failure = this.failures.get(channel) ?? new RepeatedFailure()
      this.failures.set(channel, failure)
      const said = failure.failed(code, performance.now())
      if (said) events.warn('sets are not fetched', { ...(channel !== '' && { channel }), error, hint, ...said })
      return
    }
    this.deaths.recovered()
    if (message.kind === 'removed') {
      events.info('template set removed: out of force, and its room is needed', { set: message.digest.slice(0, 12) })
      return
    }
    this.failures.get(message.channel)?.recovered()
    const { channel } = message
    if (message.kind === 'fetched') {
      events.info('template set fetched', { channel, set: message.digest.slice(0, 12), bytes: message.bytes })
    } else if (message.kind === 'signed') {
      events.info('template set signed', { channel, set: message.digest.slice(0, 12) })
    } else events.info('template sets in force', { channel, serial: message.serial, sets: message.sets })
  }
}

/** A proxy that has ended does not wait for it. */
function unref(child: ChildProcess): void {
  child.unref()
  child.channel?.unref()
  ;(child.stderr as unknown as { unref?: () => void }).unref?.()
}
