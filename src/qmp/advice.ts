/**
 * What a QEMU's migration settings mean for the pair, and what to change: pure, from what query-migrate-capabilities and
 * query-migrate-parameters return. Source: qemu-wire-format 1.5, 1.7, 8; docs/operations.md.
 */

/** What was read from one QEMU. */
export interface QemuSettings {
  /** As `7.2.22`. */
  readonly version: string
  readonly side: 'source' | 'destination'
  readonly capabilities: Readonly<Record<string, boolean>>
  readonly parameters: Readonly<Record<string, unknown>>
}

/** One thing to change. */
export interface Advice {
  readonly side: 'source' | 'destination'
  /** `matters`: a guest may be lost, or nothing is gained; `better`: it works, and could save more. */
  readonly severity: 'matters' | 'better'
  readonly setting: string
  readonly why: string
  /** The QMP command that changes it, as one JSON line. */
  readonly qmp: string
  /** What `virsh migrate` is given instead, where libvirt runs the guest. */
  readonly virsh: string
}

function capability(name: string, state: boolean): string {
  return JSON.stringify({
    execute: 'migrate-set-capabilities',
    arguments: { capabilities: [{ capability: name, state }] },
  })
}

function parameters(values: Record<string, unknown>): string {
  return JSON.stringify({ execute: 'migrate-set-parameters', arguments: values })
}

/** The same through libvirt, which sets what it knows itself when the migration starts. */
function monitor(qmp: string): string {
  return `virsh qemu-monitor-command DOMAIN '${qmp}'`
}

/** Bytes a second: QEMU's own default of max-bandwidth. Source: QEMU migration/options.c, MAX_THROTTLE. */
const BANDWIDTH_DEFAULT = 128 << 20

/**
 * What to change, most important first.
 * @param linkBytes bytes a second of the WAN, where known: for avail-switchover-bandwidth
 */
export function adviseOn(qemus: readonly QemuSettings[], linkBytes?: number): Advice[] {
  const advice: Advice[] = []
  for (const { side, capabilities: caps, parameters: params } of qemus) {
    const add = (severity: Advice['severity'], setting: string, why: string, qmp: string, virsh: string): void => {
      advice.push({ side, severity, setting, why, qmp, virsh })
    }
    const source = side === 'source'
    const postcopy = caps['postcopy-ram'] === true
    if (caps['return-path'] === false && !postcopy) {
      add(
        'matters',
        'return-path off',
        'the source reports success before anything has arrived: a break at the end can lose the guest on both sides',
        capability('return-path', true),
        'nothing: libvirt (9.0 at least) turns it on when a migration starts',
      )
    }
    const tls = params['tls-creds']
    if (typeof tls === 'string' && tls !== '') {
      add(
        'matters',
        `tls-creds ${JSON.stringify(tls)}`,
        'QEMU encrypts what the pair should see: everything is relayed as it is. The pair has TLS of its own on the WAN',
        parameters({ 'tls-creds': '' }),
        'leave out --tls',
      )
    }
    const compression = params['multifd-compression']
    if (caps.multifd === true && typeof compression === 'string' && compression !== 'none') {
      add(
        'matters',
        `multifd-compression ${compression}`,
        'compressed pages match nothing: the pair relays them as they are, and saves nothing',
        parameters({ 'multifd-compression': 'none' }),
        'leave out --comp-methods',
      )
    }
    if (caps.compress === true) {
      add(
        'matters',
        'compress on',
        'compressed pages match nothing: the pair relays them as they are, and saves nothing',
        capability('compress', false),
        'leave out --comp-methods',
      )
    }
    if (source && params['max-bandwidth'] === BANDWIDTH_DEFAULT) {
      add(
        'matters',
        'max-bandwidth 128 MiB/s',
        "QEMU's default counts bytes before the pair: however much is saved, the guest takes as long as its memory at 128 MiB/s",
        parameters({ 'max-bandwidth': 0 }),
        'nothing: libvirt sets no limit when a migration starts; leave out --bandwidth',
      )
    }
    if (caps.xbzrle === true) {
      add(
        'better',
        'xbzrle on',
        'deltas are relayed as they are; the pair refers to the previous version of a page by itself, and to more than that',
        capability('xbzrle', false),
        'leave out --comp-methods xbzrle',
      )
    }
    if (source && 'avail-switchover-bandwidth' in params && params['avail-switchover-bandwidth'] === 0) {
      const value = linkBytes ?? 12_500_000
      add(
        'better',
        'avail-switchover-bandwidth not set',
        `the bandwidth that QEMU sees swings with what matches; a fixed figure near the link's${linkBytes === undefined ? ' (100 Mbit/s here; give --rate)' : ''} keeps its downtime estimate true`,
        parameters({ 'avail-switchover-bandwidth': value }),
        monitor(parameters({ 'avail-switchover-bandwidth': value })),
      )
    }
    if (caps['x-colo'] === true || caps['x-ignore-shared'] === true) {
      const name = caps['x-colo'] ? 'x-colo' : 'x-ignore-shared'
      add(
        'better',
        `${name} on`,
        'works; what QEMU leaves out or repeats for it is relayed as it is',
        capability(name, false),
        'not offered by libvirt',
      )
    }
  }
  advice.push(...differences(qemus))
  return advice.sort((a, b) => Number(a.severity === 'better') - Number(b.severity === 'better'))
}

/** Settings that both QEMUs must have alike, or the migration fails at its start. */
const ALIKE = ['multifd', 'postcopy-ram', 'postcopy-preempt', 'return-path', 'dirty-bitmaps', 'xbzrle'] as const

function differences(qemus: readonly QemuSettings[]): Advice[] {
  const [source, destination] = [qemus.find(q => q.side === 'source'), qemus.find(q => q.side === 'destination')]
  if (!source || !destination) return []
  const found: Advice[] = []
  for (const name of ALIKE) {
    const wanted = source.capabilities[name]
    if (wanted === undefined || destination.capabilities[name] === wanted) continue
    found.push({
      side: 'destination',
      severity: 'matters',
      setting: `${name} ${wanted ? 'off' : 'on'}, unlike the source`,
      why: 'both QEMUs must be set alike before the migration starts',
      qmp: capability(name, wanted),
      virsh: 'libvirt sets both sides alike',
    })
  }
  const channels = source.parameters['multifd-channels']
  if (source.capabilities.multifd === true && destination.parameters['multifd-channels'] !== channels) {
    found.push({
      side: 'destination',
      severity: 'matters',
      setting: `multifd-channels ${String(destination.parameters['multifd-channels'])}, unlike the source's ${String(channels)}`,
      why: 'the destination waits for as many channels as it was told, for ever',
      qmp: parameters({ 'multifd-channels': channels }),
      virsh: 'libvirt sets both sides alike',
    })
  }
  return found
}
