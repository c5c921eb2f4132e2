/** The WAN of the demonstration: packet by packet between two network namespaces for root, through a relay otherwise. */
import type { ChildProcess } from 'node:child_process'
import { createServer } from 'node:net'
import { spawnOwned } from '../qemu/cleanup.ts'
import { type Link, parseLink } from '../wan/link.ts'
import { PacketLink, packetLinkSupport } from '../wan/packet-link.ts'
import { RelayLink } from '../wan/relay-link.ts'

export type SiteName = 'source' | 'destination'

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

/** Opens what can be had here. */
export async function openWan(description: string): Promise<Wan> {
  const link = parseLink(description)
  const support = await packetLinkSupport()
  return 'skip' in support ? relayed(link, support.skip) : packets(link)
}

async function packets(link: Link): Promise<Wan> {
  const packetLink = await PacketLink.open(link)
  const how = { netem: 'shaped by netem', tap: 'shaped packet by packet', veth: 'not shaped' }[packetLink.kind]
  return {
    kind: `two network namespaces, ${how}`,
    netns: site => packetLink[site].netns,
    listenHost: packetLink.destination.address,
    reach: async port => ({ host: packetLink.destination.address, port }),
    spawn: (site, command) => packetLink[site].spawn(command, { stdio: ['ignore', 'pipe', 'pipe'] }),
    bytes: async () => {
      const { sentBytes, backSentBytes } = await packetLink.counters()
      return sentBytes + backSentBytes
    },
    [Symbol.asyncDispose]: () => packetLink.close(),
  }
}

function relayed(link: Link, why: string): Wan {
  const relays: RelayLink[] = []
  return {
    kind: `a relay on loopback (${why})`,
    netns: () => undefined,
    listenHost: '127.0.0.1',
    reach: async port => {
      const relay = await RelayLink.open(link, { host: '127.0.0.1', port })
      relays.push(relay)
      return { host: relay.host, port: relay.port }
    },
    spawn: (_, command) => spawnOwned(command, { stdio: ['ignore', 'pipe', 'pipe'] }),
    bytes: async () =>
      relays.reduce((sum, relay) => {
        const { forwardBytes, backBytes } = relay.counters()
        return sum + forwardBytes + backBytes
      }, 0),
    [Symbol.asyncDispose]: async () => {
      for (const relay of relays) await relay.close()
    },
  }
}

/** A port that nobody listens on now. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise<void>(resolve => server.close(() => resolve()))
  return port
}
