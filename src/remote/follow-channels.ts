/** A host's sets kept as its channels say: once, or for as long as it runs. docs/adr/0012-remote-stores.md. */
import type { KeyObject } from 'node:crypto'
import { mkdir, stat } from 'node:fs/promises'
import { setTimeout as pause } from 'node:timers/promises'
import { isProxyError, ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import type { TemplateStore } from '../store/template-store.ts'
import type { ChannelDocument, ChannelSet } from './channel.ts'
import { ChannelFollower } from './channel-follower.ts'
import { ChannelSource } from './channel-source.ts'
import { fetchSet } from './fetcher.ts'
import { HostChannels } from './host-channels.ts'
import { makeRoom } from './make-room.ts'
import type { RemoteStore } from './remote-store.ts'
import { fetchSignature, type SetSignature, signerOf } from './set-signature.ts'

/** What is told on the way. */
export type FollowEvent =
  | { readonly kind: 'fetched'; readonly channel: string; readonly digest: string; readonly bytes: number }
  | { readonly kind: 'in force'; readonly channel: string; readonly serial: number; readonly sets: number }
  /** Somebody signed a set that was there already. */
  | { readonly kind: 'signed'; readonly channel: string; readonly digest: string }
  /** Made room. */
  | { readonly kind: 'removed'; readonly digest: string }
  | { readonly kind: 'failed'; readonly channel: string; readonly error: ProxyError }

export interface FollowOptions {
  /** In the order in which they are asked. */
  readonly stores: readonly RemoteStore[]
  /** This host's own. */
  readonly into: TemplateStore
  readonly channels: readonly string[]
  /** As things are when it is asked; what it throws fails the check. */
  readonly trusted: () => readonly KeyObject[]
  /** Keys of which one has to have signed a set here, as things are when it is asked; undefined: anybody will do, or nobody. */
  readonly signers?: (() => readonly KeyObject[]) | undefined
  /** Bytes that sets from remote stores may have. */
  readonly maxBytes?: number | undefined
  readonly tell: (event: FollowEvent) => void
  readonly progress?: (digest: string, doneBytes: number, totalBytes: number) => void
  readonly signal?: AbortSignal | undefined
}

/**
 * Brings the host to what its channels say, once.
 * @throws the first failure, after the other channels; the signal's reason
 */
export async function syncChannels(options: FollowOptions): Promise<void> {
  const followers = followersOf(options)
  let first: unknown
  for (const follower of followers) {
    const { channel } = follower
    try {
      while (await follower.step());
    } catch (error) {
      options.signal?.throwIfAborted()
      if (!isProxyError(error)) throw error
      options.tell({ kind: 'failed', channel, error })
      first ??= error
    }
  }
  if (first !== undefined) throw first
}

/** Channels that are followed until the signal ends it. */
export interface Following {
  /** Settles when it has ended. Failures are told, and it goes on; rejects for a defect of ours. */
  readonly ended: Promise<void>
  /** Asks at once, not at its pace. */
  askNow(): void
}

/** Follows the channels, one act of each in turn: a large set of one holds up the others for as long as it takes. */
export function followChannels(options: FollowOptions): Following {
  const followers = followersOf(options)
  let wake: (() => void) | undefined
  const follow = async (): Promise<void> => {
    while (!options.signal?.aborted) {
      let isIdle = true
      for (const follower of followers) {
        try {
          if (await follower.step()) isIdle = false
        } catch (error) {
          if (options.signal?.aborted) return
          if (!isProxyError(error)) throw error
          isIdle = false // whoever asked meanwhile could not wake it
          options.tell({ kind: 'failed', channel: follower.channel, error })
        }
      }
      if (!isIdle) continue
      const untilMs = Math.min(...followers.map(follower => follower.restsUntilMs))
      const woken = new AbortController()
      wake = () => woken.abort()
      options.signal?.addEventListener('abort', wake)
      await pause(Math.max(1, untilMs - performance.now()), undefined, { signal: woken.signal }).catch(() => {})
      options.signal?.removeEventListener('abort', wake)
      wake = undefined
    }
  }
  return {
    ended: follow(),
    askNow: () => {
      for (const follower of followers) follower.askNow()
      wake?.()
    },
  }
}

function followersOf(options: FollowOptions): HostFollower[] {
  const hosts = new HostChannels(options.into.folder)
  const followers: HostFollower[] = []
  const pending = (): ChannelSet[] => followers.flatMap(follower => follower.pending)
  for (const channel of options.channels) followers.push(new HostFollower(channel, hosts, pending, options))
  return followers
}

/** One channel of this host: does what its follower says. */
class HostFollower {
  readonly channel: string
  restsUntilMs = 0
  private readonly follower: ChannelFollower
  private readonly source: ChannelSource
  private readonly hosts: HostChannels
  /** Sets that any channel is about to need. */
  private readonly allPending: () => readonly ChannelSet[]
  private readonly options: FollowOptions

  constructor(channel: string, hosts: HostChannels, allPending: () => readonly ChannelSet[], options: FollowOptions) {
    const { stores, trusted, signers } = options
    this.channel = channel
    this.hosts = hosts
    this.allPending = allPending
    this.options = options
    this.source = new ChannelSource(stores, channel)
    this.follower = new ChannelFollower({ channel, trusted, needsSigners: signers !== undefined, chance: Math.random })
  }

  /** Sets of the document that is not in force yet. */
  get pending(): readonly ChannelSet[] {
    return this.follower.pending?.channel.sets ?? []
  }

  askNow(): void {
    this.follower.askNow()
  }

  /** @returns false where there is nothing to do before `restsUntilMs` @throws what failed; it is tried again by itself */
  async step(): Promise<boolean> {
    const { follower, channel, options } = this
    const act = follower.act(performance.now(), Date.now())
    switch (act.kind) {
      case 'wait':
        this.restsUntilMs = act.untilMs
        return false
      case 'ask': {
        const [bytes, accepted] = await this.orFailed(async () => [
          await this.source.ask(options.signal),
          await this.hosts.accepted(channel),
        ])
        const isNew = follower.answered(bytes, accepted, performance.now(), Date.now())
        if (!isNew && accepted) {
          await this.mend(accepted)
          await this.lookForSigners(accepted)
        }
        return true
      }
      case 'fetch':
        await this.orFailed(() => this.fetch(act.set, act.of))
        follower.fetched(act.set.digest)
        return true
      case 'accept': {
        const { sets } = act.document.channel
        const lost = await this.orFailed(() => this.missingOf(sets))
        if (lost.length > 0) {
          if (follower.lost(lost, performance.now())) return true
          const what = `set ${lost[0]!.slice(0, 12)} is removed again and again before it is in force`
          const action = 'something else removes sets from this store: another --store-size, `pageferry store prune`'
          throw new ProxyError('IO', what, { stream: options.into.folder }, action)
        }
        const { channel: said } = await this.orFailed(() => this.hosts.accept(act.document, options.signal))
        follower.acceptedIt()
        options.tell({ kind: 'in force', channel, serial: said.serial, sets: said.sets.length })
        return true
      }
    }
  }

  private async orFailed<T>(act: () => Promise<T>): Promise<T> {
    try {
      return await act()
    } catch (error) {
      this.follower.failed(performance.now())
      throw error
    }
  }

  /** Somebody removed what is in force. */
  private async mend(accepted: ChannelDocument): Promise<void> {
    for (const set of accepted.channel.sets) {
      if ((await this.lengthOf(set.digest)) === undefined) await this.fetch(set, accepted)
    }
  }

  /** A set may be signed when it is in force already. */
  private async lookForSigners({ channel: { sets } }: ChannelDocument): Promise<void> {
    const { channel, options } = this
    if (!this.follower.looksForSigners(performance.now())) return
    for (const { digest } of sets)
      if (await this.fetchSignature(digest)) options.tell({ kind: 'signed', channel, digest })
  }

  /** @returns whether something was brought */
  private async fetchSignature(digest: string): Promise<boolean> {
    const { stores, into, signers, signal } = this.options
    const isEnough = (here: SetSignature): boolean => signers === undefined || isSignedBy(here, signers)
    return await fetchSignature(stores, into.folder, digest, { signal, isEnough })
  }

  private async fetch(set: ChannelSet, { channel: { sets } }: ChannelDocument): Promise<void> {
    const { hosts, options, channel } = this
    const { into, stores, signal, progress } = options
    const { digest } = set
    const isThere = (await this.lengthOf(digest)) !== undefined
    // verified when it came into force, and again by every session that uses it
    if (isThere && (await hosts.inForce(Date.now())).now.has(digest) && (await into.isWhole(digest))) return
    if (!isThere) {
      await mkdir(into.folder, { recursive: true, mode: 0o700 }).catch(error => {
        throw ioError(error, 'cannot use store', into.folder)
      })
      const keep = new Set([...sets, ...this.allPending()].map(other => other.digest))
      const rule = { maxBytes: options.maxBytes, keep }
      for (const removed of await makeRoom(into, hosts, sets, rule, Date.now())) {
        options.tell({ kind: 'removed', digest: removed })
      }
      await hosts.noteFetched(digest) // before it is there: not used until it is in force
    }
    // before it is there: from then on it may be used
    await this.fetchSignature(digest)
    const fetched = await fetchSet(stores, into, digest, {
      lengthBytes: set.bytes,
      signal,
      progress: (doneBytes, totalBytes) => progress?.(digest, doneBytes, totalBytes),
    })
    if (fetched.existed) return
    await hosts.noteFetched(digest) // another process may have forgotten it, as it was not there yet
    options.tell({ kind: 'fetched', channel, digest, bytes: fetched.fileBytes })
  }

  /** Which are not there, or not whole: whatever made room, or a person, may have removed what was. @throws IO */
  private async missingOf(sets: readonly ChannelSet[]): Promise<string[]> {
    const missing: string[] = []
    for (const { digest } of sets) {
      const isThere = (await this.lengthOf(digest)) !== undefined && (await this.options.into.isWhole(digest))
      if (!isThere) missing.push(digest)
    }
    return missing
  }

  private async lengthOf(digest: string): Promise<number | undefined> {
    const path = this.options.into.pathOf(digest)
    try {
      return (await stat(path)).size
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw ioError(error, 'cannot look at', path)
    }
  }
}

/** Not where nobody can say who is trusted, either: then sessions use no set, which is told by who asks for it. */
function isSignedBy(document: SetSignature, trusted: () => readonly KeyObject[]): boolean {
  try {
    signerOf(document, trusted())
    return true
  } catch (error) {
    if (!isProxyError(error)) throw error
    return false
  }
}
