/** A remote store in a folder, an operator who promotes, and hosts that follow. */
import { createPrivateKey, createPublicKey, type KeyObject } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { makeChannelKey } from '../../src/remote/channel-keys.ts'
import { FolderStore } from '../../src/remote/folder-store.ts'
import { type FollowEvent, type FollowOptions, syncChannels } from '../../src/remote/follow-channels.ts'
import { HostChannels, isUsable } from '../../src/remote/host-channels.ts'
import { type PublishOptions, promote, pushSet, rollback } from '../../src/remote/publish.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { page, putPages, scratch } from '../template/makers.ts'
import type { HostileServer } from './hostile-server.ts'

type Teardown = (end: () => void) => void

/** Whoever builds sets and promotes them. */
export interface Operator {
  readonly remote: FolderStore
  /** Where the remote store stands. */
  readonly folder: string
  readonly key: KeyObject
  readonly trusted: readonly KeyObject[]
  /** Builds a set of so many pages from this number on, and pushes it. */
  readonly push: (first: number, count?: number) => Promise<string>
  readonly promote: (digests: readonly string[], change?: Partial<PublishOptions>) => ReturnType<typeof promote>
  readonly rollback: (toSerial?: number, change?: Partial<PublishOptions>) => ReturnType<typeof rollback>
}

export function operator(teardown: Teardown): Operator {
  const { folder } = scratch(teardown)
  mkdirSync(join(folder, 'remote'))
  const remote = new FolderStore(join(folder, 'remote'))
  const built = new TemplateStore(join(folder, 'built'))
  const key = createPrivateKey(makeChannelKey().privatePem)
  const options = (change: Partial<PublishOptions> = {}): PublishOptions => ({
    remote,
    channel: 'stable',
    keys: [key],
    trusted: [],
    expiresMs: Date.now() + 86_400_000,
    notBeforeMs: 0,
    overlapMs: 0,
    nowMs: Date.now(),
    ...change,
  })
  return {
    remote,
    folder: join(folder, 'remote'),
    key,
    trusted: [createPublicKey(key)],
    push: async (first, count = 50) => {
      const pages = Array.from({ length: count }, (_, i) => page(first + i))
      const digest = await putPages(built, pages)
      await pushSet(built, remote, digest)
      return digest
    },
    promote: (digests, change) => promote(options(change), digests),
    rollback: (toSerial, change) => rollback(options(change), toSerial),
  }
}

export interface Host {
  readonly store: TemplateStore
  readonly channels: HostChannels
  readonly events: FollowEvent[]
  readonly sync: (change?: Partial<FollowOptions>) => Promise<void>
  /** Digests of sets that sessions may use. */
  readonly usable: (nowMs?: number) => Promise<string[]>
  readonly names: () => string[]
}

export function host(teardown: Teardown, { remote, trusted }: Pick<Operator, 'remote' | 'trusted'>): Host {
  const { folder } = scratch(teardown)
  const store = new TemplateStore(join(folder, 'store'))
  const channels = new HostChannels(store.folder)
  const events: FollowEvent[] = []
  return {
    store,
    channels,
    events,
    sync: change =>
      syncChannels({
        stores: [remote],
        into: store,
        channels: ['stable'],
        trusted: () => trusted,
        tell: event => events.push(event),
        ...change,
      }),
    usable: async (nowMs = Date.now()) => {
      const inForce = await channels.inForce(nowMs)
      return (await store.digests()).filter(digest => isUsable(inForce, digest))
    },
    names: () => (existsSync(store.folder) ? readdirSync(store.folder).sort() : []),
  }
}

/** Gives out what stands in the operator's folder. */
export function publish(server: HostileServer, { folder }: Operator): void {
  for (const under of ['sets', 'channels']) {
    for (const name of readdirSync(join(folder, under), { withFileTypes: true })) {
      if (name.isFile()) server.objects.set(`${under}/${name.name}`, readFileSync(join(folder, under, name.name)))
    }
  }
}
