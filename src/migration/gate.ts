/** A place where connections come in, and what is known of each; which belongs to which, Gates and DiskGates say. Pure. */
import type { ChannelKind } from '../qemu/channel-kind.ts'
import { KIND_DISK } from '../wan/wire.ts'

/**
 * A disk's client waits for the server's greeting in the middle of a command, and a QEMU's guest stands still meanwhile:
 * rather an error.
 */
export const GREETING_AWAITED_MS = 10_000

/** What a connection is: a channel of QEMU's migration, or a disk's. */
export type FlowKind = ChannelKind | typeof KIND_DISK

/** A connection of QEMU, perhaps. */
export interface GateChannel {
  readonly gate: Gate
  /** Where it comes from. */
  readonly host: string
  /** As its first bytes tell; of one that was silent 'preempt' once it is opened; at a gate of disks known beforehand. */
  kind: FlowKind
  /** Not a byte has come. */
  readonly isSilent: boolean
  /** QEMU has ended it, or it is torn down. */
  readonly over: boolean
  /** Not a byte of the other side has come for it. */
  readonly isUnanswered: boolean
}

/** All channels of one `migrate`, or connections of one disk transfer. */
export interface GateTransfer {
  readonly gate: Gate
  /** Main, or what came first where that cannot be told. A disk transfer has none. */
  readonly lead: GateChannel | undefined
  /** Channels that have not ended. */
  readonly flows: ReadonlySet<GateChannel>
  /** Its connections went to another session. */
  readonly moved: boolean
}

/** All channels of one `migrate`. */
export interface GateMigration extends GateTransfer {
  lead: GateChannel | undefined
  /** When its last channel came. */
  readonly lastMs: number
  postcopyAdvised: boolean
}

/** What comes in at a gate: channels of migrations, or connections of NBD and nothing else. */
export type GateKind = 'migration' | 'disk'

/** What gates of a kind differ by, but for who decides there: Gates, DiskGates. */
interface GateTraits {
  /** Who connects, as people read it. */
  readonly client: string
  /** What a connection is before it has said a word. */
  readonly first: FlowKind
  /** How long one waits for a session, at most. */
  readonly waitsMs: number
}

const TRAITS: Readonly<Record<GateKind, GateTraits>> = {
  migration: { client: 'source QEMU', first: 'unknown', waitsMs: Number.POSITIVE_INFINITY },
  // what it waits for is its server's greeting
  disk: { client: "disk's client", first: KIND_DISK, waitsMs: GREETING_AWAITED_MS },
}

/** Where connections come in: one listening port. What it has belongs to one migration, or disk transfer, at a time. Outlives sessions. */
export class Gate<C extends GateChannel = GateChannel, M extends GateTransfer = GateTransfer> {
  /** Name of the target at the other side: 'default', 'NAME', with ':PORT' for one port of a range. */
  readonly target: string
  readonly kind: GateKind
  /** What runs here. */
  migration: M | undefined
  /** Migrations that begin here once there is room for their channels, in their order. */
  readonly turns: Turn<C>[] = []
  /** Channels whose kind is known, waiting for their main to come. */
  readonly waiting: C[] = []
  /** Channels whose kind is not known: silent, or begun. */
  readonly silent = new Set<C>()

  constructor(target: string, kind: GateKind = 'migration') {
    this.target = target
    this.kind = kind
  }

  get traits(): GateTraits {
    return TRAITS[this.kind]
  }

  /** That of the last main which waits for room. */
  get lastTurn(): Turn<C> | undefined {
    return this.turns.findLast(({ main }) => main)
  }
}

/** A migration that waits for room. */
export interface Turn<C> {
  /** undefined: it is gone, and what came behind it is to be refused, not taken for another's. */
  main: C | undefined
  /** Those that came since, and before the next main. */
  readonly channels: C[]
}

/** What is to be done. */
export interface GateOrders<C extends GateChannel, M extends GateTransfer> {
  /** A migration begins with this channel: makes it. */
  begin(channel: C): M
  /** Opens its flow. Where that cannot be, the connection is refused, or the whole migration moved. */
  open(channel: C, migration: M): void
  /** No destination QEMU is to hear of it: break it, and say why. */
  refuse(channel: C, reason: string, hint?: string): void
}

/** Whether channels that come now belong to it. One that QEMU has given up may still have bytes to deliver. */
export function isOpen<M extends GateTransfer>(migration: M | undefined): migration is M {
  return migration !== undefined && migration.flows.size > 0 && migration.lead?.over !== true
}
