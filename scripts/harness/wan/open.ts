/** A WAN as this machine can have it: packet by packet between two network namespaces for root, else through a relay. */
import type { ChildProcess } from 'node:child_process'
import { spawnOwned } from '../qemu/cleanup.ts'
import { type Link, parseLink } from './link.ts'
import type { Measurement } from './measure.ts'
import { type LinkKind, PacketLink, packetLinkSupport } from './packet-link.ts'
import { RelayLink } from './relay-link.ts'

export type SiteName = 'source' | 'destination'

/** Bytes on the WAN: of packets, headers included; of payload, where a relay stands for it. */
export interface WanBytes {
  /** To the destination site. */
  readonly forward: number
  readonly back: number
}

/** Two sites and what lies between them. */
export interface Wan extends AsyncDisposable {
  /** How it is made, for a person. */
  readonly kind: string
  /** Network namespace of a site, undefined where both are this machine's. */
  netns(site: SiteName): string | undefined
  /** Where a program of the destination site listens for the WAN. */
  readonly listenHost: string
  /** Where the source site finds what listens there on `port`. */
  reach(port: number): Promise<{ readonly host: string; readonly port: number }>
  /** Starts a program at a site; it ends with this process at the latest. */
  spawn(site: SiteName, command: readonly string[]): ChildProcess
  /** Bytes that passed so far, both ways. */
  bytes(): Promise<number>
}

/** A WAN that this module opened. */
export interface OpenedWan extends Wan {
  readonly linkKind: LinkKind | 'relay'
  /** What passed so far. */
  counters(): Promise<WanBytes>
  /** What it really delivers; fills it for a second or two. */
  measure(): Promise<Measurement>
}

/** Opens what can be had here. */
export async function openWan(description: string): Promise<OpenedWan> {
  const link = parseLink(description)
  const support = await packetLinkSupport()
  return 'skip' in support ? relayed(link, support.skip) : packets(link)
}

async function packets(link: Link): Promise<OpenedWan> {
  const packetLink = await PacketLink.open(link)
  const counters = async (): Promise<WanBytes> => {
    const { sentBytes, backSentBytes } = await packetLink.counters()
    return { forward: sentBytes, back: backSentBytes }
  }
  const how = { netem: 'shaped by netem', tap: 'shaped packet by packet', veth: 'not delayed' }[packetLink.kind]
  return {
    linkKind: packetLink.kind,
    kind: `two network namespaces, ${how}`,
    netns: site => packetLink[site].netns,
    listenHost: packetLink.destination.address,
    reach: async port => ({ host: packetLink.destination.address, port }),
    spawn: (site, command) => packetLink[site].spawn(command, { stdio: ['ignore', 'pipe', 'pipe'] }),
    bytes: async () => total(await counters()),
    counters,
    measure: () => packetLink.measure(),
    [Symbol.asyncDispose]: () => packetLink.close(),
  }
}

function relayed(link: Link, why: string): OpenedWan {
  const relays: RelayLink[] = []
  const counters = async (): Promise<WanBytes> => {
    const counts = relays.map(relay => relay.counters())
    return {
      forward: counts.reduce((sum, { forwardBytes }) => sum + forwardBytes, 0),
      back: counts.reduce((sum, { backBytes }) => sum + backBytes, 0),
    }
  }
  return {
    linkKind: 'relay',
    kind: `a relay on loopback (${why})`,
    netns: () => undefined,
    listenHost: '127.0.0.1',
    reach: async port => {
      const relay = await RelayLink.open(link, { host: '127.0.0.1', port })
      relays.push(relay)
      return { host: relay.host, port: relay.port }
    },
    spawn: (_, command) => spawnOwned(command, { stdio: ['ignore', 'pipe', 'pipe'] }),
    bytes: async () => total(await counters()),
    counters,
    measure: () => RelayLink.measure(link),
    [Symbol.asyncDispose]: async () => {
      for (const relay of relays) await relay.close()
    },
  }
}

const total = ({ forward, back }: WanBytes): number => forward + back
