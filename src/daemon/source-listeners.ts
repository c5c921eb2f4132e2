/** Where QEMUs connect to a source proxy, for migrations and for disks: the sockets that it listens on, and the gate of each. */
import { Gate, type GateKind, isOpen } from '../migration/gate.ts'
import { type Address, formatAddress, isRange } from '../relay/address.ts'
import { type Accepted, type Listener, listen } from '../relay/listener.ts'
import type { QemuSocket } from '../relay/qemu-socket.ts'
import type { SiteLog } from './events.ts'
import type { SourceGate } from './source-flow.ts'

/** One of them, or a range. */
export interface ListenFor {
  /** Name of the target at the other side. */
  readonly name: string
  readonly address: Address
  /** Of a Unix socket's file: mode, and id of the group that QEMU is in. */
  readonly mode?: number | undefined
  readonly group?: number | undefined
}

export interface SourceListenersOptions {
  readonly listen: readonly ListenFor[]
  /** Where clients of disks connect; names are of targets for disks. */
  readonly disks?: readonly ListenFor[]
  readonly beyondLoopback: boolean
  /** Sockets from systemd, by name. */
  readonly fds?: ReadonlyMap<string, readonly number[]>
}

export class SourceListeners {
  private readonly options: SourceListenersOptions
  private readonly listeners: { readonly at: Listener; readonly name: string; readonly kind: GateKind }[] = []
  /** One for each socket that is listened on: what comes in at one is one guest. */
  private readonly gates = new Map<Accepted, SourceGate>()

  constructor(options: SourceListenersOptions) {
    this.options = options
  }

  /**
   * @param log of this process, and of what QEMUs make us say
   * @throws ADDRESS, IO
   */
  async start(
    accept: (socket: QemuSocket, gate: SourceGate, at: Address) => void,
    log: SiteLog,
    qemuLog: SiteLog,
  ): Promise<void> {
    const { fds, beyondLoopback } = this.options
    for (const { name, address, mode, group, kind } of this.all) {
      // libvirt's ports: the other side dials the same one. systemd may have opened several under one name.
      const hasNumber = isRange(address) || address.kind === 'fd'
      const target = ({ port }: Accepted): string => (hasNumber && port !== undefined ? `${name}:${port}` : name)
      const gateOf = (at: Accepted): SourceGate => this.gateOf(at, target(at), kind)
      const listener = await listen(address, (socket, at) => accept(socket, gateOf(at), at.address), {
        ...{ beyondLoopback, mode, group },
        ...(fds ? { fds } : {}),
        onAcceptError: error => qemuLog.warn('accept failed', { error: error.message }),
        onPortsTaken: (ports, { what, action }) =>
          log.warn('ports are taken: tried again', { ports: ports.join(' '), error: what, hint: action }),
        onPortFree: port => log.info('listening at one port more', { port }),
      })
      this.listeners.push({ at: listener, name, kind })
    }
  }

  private get all(): (ListenFor & { readonly kind: GateKind })[] {
    const { listen, disks = [] } = this.options
    return [
      ...listen.map(at => ({ ...at, kind: 'migration' as const })),
      ...disks.map(at => ({ ...at, kind: 'disk' as const })),
    ]
  }

  private gateOf(at: Accepted, target: string, kind: GateKind): SourceGate {
    const known = this.gates.get(at)
    if (known) return known
    const gate: SourceGate = new Gate(target, kind)
    this.gates.set(at, gate)
    return gate
  }

  /** What is listened on for migrations, once started. */
  get addresses(): readonly Address[] {
    return this.addressesOf('migration')
  }

  /** The same for disks. */
  get diskAddresses(): readonly Address[] {
    return this.addressesOf('disk')
  }

  private addressesOf(of: GateKind): readonly Address[] {
    return this.listeners.filter(({ kind }) => kind === of).flatMap(({ at }) => at.addresses)
  }

  /**
   * Where it was told to listen, the same in all of its processes: as configured, because a port of a range may be taken
   * at one start and free at the next; as bound where only that tells two proxies apart.
   */
  get names(): readonly string[] {
    return this.all.flatMap(({ address }, i) => {
      const isOwn = address.kind === 'unix' || (address.kind === 'tcp' && address.port !== 0)
      return (isOwn ? [address] : (this.listeners[i]?.at.addresses ?? [])).map(formatAddress)
    })
  }

  /** Migrations and disk transfers that run, whatever their session. */
  get running(): number {
    const found = new Set<unknown>()
    for (const { migration } of this.gates.values()) if (migration?.flows.size) found.add(migration)
    return found.size
  }

  /** Takes connections only where a migration runs, which may have further channels: for postcopy hours later. */
  closeIdle(): void {
    const running = [...this.gates.values()].filter(({ migration }) => isOpen(migration))
    const isNeeded = (name: string, kind: GateKind): boolean =>
      running.some(gate => gate.kind === kind && gate.target.split(':')[0] === name)
    for (const { at, name, kind } of this.listeners) if (!isNeeded(name, kind)) void at.close()
  }
}
