/**
 * What a QEMU's migration settings mean for the pair, and what to change: pure, from what query-migrate-capabilities and
 * query-migrate-parameters return. Source: qemu-wire-format 1.5, 1.7, 8; docs/operations.md.
 */

import { ProxyError } from '../errors.ts'

/** Which of the two QEMUs of a migration. */
export type QemuSide = 'source' | 'destination'

/** What was read from one QEMU. */
export interface QemuSettings {
  /** As `7.2.22`. */
  readonly version: string
  readonly side: QemuSide
  readonly capabilities: Readonly<Record<string, boolean>>
  readonly parameters: Readonly<Record<string, unknown>>
  /** What no setting mends. */
  readonly warning?: string
}

/** A setting of one QEMU, and what it is to be. */
export interface Change {
  readonly side: QemuSide
  readonly kind: 'capability' | 'parameter'
  /** As QEMU calls it: `return-path`, `max-bandwidth`. */
  readonly name: string
  readonly value: unknown
}

/** A change, and what was there before. */
export interface Mend extends Change {
  /** undefined: QEMU did not say, so that it cannot be put back. */
  readonly before: unknown
  readonly why: string
}

/** One thing to change. */
export interface Advice {
  readonly side: QemuSide
  /** `matters`: a guest may be lost, or nothing is gained; `better`: it works, and could save more. */
  readonly severity: 'matters' | 'better'
  readonly setting: string
  readonly why: string
  readonly change: Change
  /** The QMP command that changes it, as one JSON line. */
  readonly qmp: string
  /** What `virsh migrate` is given instead, where libvirt runs the guest. */
  readonly virsh: string
}

/** A command of QMP. */
export interface QmpCommand {
  readonly execute: string
  readonly arguments?: Record<string, unknown>
}

/** The commands that set all of this in one QEMU: capabilities first, as parameters of multifd need them. */
export function commandsOf(changes: readonly Change[]): QmpCommand[] {
  const of = (kind: Change['kind']): Change[] => changes.filter(change => change.kind === kind)
  const capabilities = of('capability').map(({ name, value }) => ({ capability: name, state: value }))
  const values = Object.fromEntries(of('parameter').map(({ name, value }) => [name, value]))
  const commands: QmpCommand[] = []
  if (capabilities.length > 0) commands.push({ execute: 'migrate-set-capabilities', arguments: { capabilities } })
  if (Object.keys(values).length > 0) commands.push({ execute: 'migrate-set-parameters', arguments: values })
  return commands
}

const qmpOf = (change: Change): string => JSON.stringify(commandsOf([change])[0])

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
    const add = (severity: Advice['severity'], setting: string, why: string, change: Change, virsh: string): void => {
      advice.push({ side, severity, setting, why, change, qmp: qmpOf(change), virsh })
    }
    const capability = (name: string, value: boolean): Change => ({ side, kind: 'capability', name, value })
    const parameter = (name: string, value: unknown): Change => ({ side, kind: 'parameter', name, value })
    const source = side === 'source'
    const postcopy = caps['postcopy-ram'] === true
    if (caps['return-path'] === false && !postcopy) {
      add(
        'matters',
        'return-path off',
        'without it the source reports success before anything has arrived: a break at the end can lose the guest at both sides',
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
        parameter('tls-creds', ''),
        'leave out --tls',
      )
    }
    const compression = params['multifd-compression']
    if (caps.multifd === true && typeof compression === 'string' && compression !== 'none') {
      add(
        'matters',
        `multifd-compression ${compression}`,
        'compressed pages match nothing: the pair relays them as they are, and saves nothing',
        parameter('multifd-compression', 'none'),
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
        parameter('max-bandwidth', 0),
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
      const change = parameter('avail-switchover-bandwidth', linkBytes ?? 12_500_000)
      add(
        'better',
        'avail-switchover-bandwidth not set',
        `the bandwidth that QEMU sees swings with what matches; a fixed figure near the link's${linkBytes === undefined ? ' (100 Mbit/s here; give --rate)' : ''} keeps its downtime estimate true`,
        change,
        monitor(qmpOf(change)),
      )
    }
    if (caps['x-colo'] === true || caps['x-ignore-shared'] === true) {
      const name = caps['x-colo'] ? 'x-colo' : 'x-ignore-shared'
      add(
        'better',
        `${name} on`,
        `works; what QEMU leaves out or repeats for it is relayed as it is${name === 'x-ignore-shared' ? '. It has to stay on where both QEMUs map the same memory' : ''}`,
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
  const add = (setting: string, why: string, change: Omit<Change, 'side'>): void => {
    const whole: Change = { ...change, side: 'destination' }
    const virsh = 'libvirt sets both sides alike'
    found.push({ side: 'destination', severity: 'matters', setting, why, change: whole, qmp: qmpOf(whole), virsh })
  }
  for (const name of ALIKE) {
    const wanted = source.capabilities[name]
    if (wanted === undefined || destination.capabilities[name] === wanted) continue
    const setting = `${name} ${wanted ? 'off' : 'on'}, unlike the source`
    add(setting, 'both QEMUs must be set alike before the migration starts', {
      kind: 'capability',
      name,
      value: wanted,
    })
  }
  const channels = source.parameters['multifd-channels']
  if (source.capabilities.multifd === true && destination.parameters['multifd-channels'] !== channels) {
    const setting = `multifd-channels ${String(destination.parameters['multifd-channels'])}, unlike the source's ${String(channels)}`
    const why = 'the destination waits for as many channels as it was told, for ever'
    add(setting, why, { kind: 'parameter', name: 'multifd-channels', value: channels })
  }
  return found
}

/** All that is ever set here or by migration-wishes.ts unasked, and so all that can be kept from it. */
export const KEEPABLE: ReadonlySet<string> = new Set([
  ...ALIKE,
  ...['avail-switchover-bandwidth', 'compress', 'events', 'max-bandwidth', 'multifd-channels', 'multifd-compression'],
  ...['pause-before-switchover', 'tls-creds', 'x-colo', 'x-ignore-shared'],
])

/** @throws USAGE for a name that would keep nothing: a slip that shows when the setting has been changed */
export function requireKeepable(names: readonly string[], option: string): void {
  const stray = names.find(name => !KEEPABLE.has(name))
  if (stray === undefined) return
  const hint = `nothing of that name is ever set; what is: ${[...KEEPABLE].sort().join(', ')}`
  throw new ProxyError('USAGE', `${option} ${JSON.stringify(stray)}`, undefined, hint)
}

/** How settings are mended. */
export interface MendOptions {
  /** Bytes a second of the WAN. Without it nothing that depends on it is set: a wrong figure is worse than none. */
  readonly linkBytes?: number | undefined
  /** Settings that stay as they are, by name. */
  readonly keep?: readonly string[]
  /** What the operator wants beside that, or in place of it. */
  readonly wanted?: readonly (Change & { readonly why: string })[]
}

/**
 * Never set here: they say what a migration is for. Without `x-ignore-shared` a destination that maps the same memory as
 * its source would write into a guest that runs.
 */
const MEANT: ReadonlySet<string> = new Set(['x-ignore-shared', 'x-colo'])

/** One piece of advice may bring another: a destination is set as its source is going to be. It ends after two or three. */
const ROUNDS_MAX = 5

/** What to set so that nothing is left to advise, with what was there before: what is already so is not in it. */
export function mend(qemus: readonly QemuSettings[], { linkBytes, keep = [], wanted = [] }: MendOptions): Mend[] {
  let settings = qemus
  const why = new Map<string, Change & { readonly why: string }>()
  const take = (change: Change & { readonly why: string }): void => {
    why.set(`${change.side} ${change.name}`, change)
    settings = settings.map(qemu => (qemu.side === change.side ? changed(qemu, change) : qemu))
  }
  for (const change of wanted) take(change)
  const asked = new Set(wanted.map(({ side, name }) => `${side} ${name}`))
  for (let round = 0; round < ROUNDS_MAX; round++) {
    const advice = adviseOn(settings, linkBytes).filter(
      ({ change: { side, name } }) =>
        !MEANT.has(name) &&
        !keep.includes(name) &&
        !asked.has(`${side} ${name}`) &&
        (linkBytes !== undefined || name !== 'avail-switchover-bandwidth'),
    )
    if (advice.length === 0) break
    for (const { change, why } of advice) take({ ...change, why })
  }
  return [...why.values()].flatMap(change => {
    const qemu = qemus.find(({ side }) => side === change.side)
    if (qemu === undefined) return []
    const before = settingOf(qemu, change)
    return before === change.value ? [] : [{ ...change, before }]
  })
}

function settingOf({ capabilities, parameters }: QemuSettings, { kind, name }: Change): unknown {
  const all: Readonly<Record<string, unknown>> = kind === 'capability' ? capabilities : parameters
  return Object.hasOwn(all, name) ? all[name] : undefined
}

function changed(qemu: QemuSettings, { kind, name, value }: Change): QemuSettings {
  if (kind === 'parameter') return { ...qemu, parameters: { ...qemu.parameters, [name]: value } }
  return { ...qemu, capabilities: { ...qemu.capabilities, [name]: value === true } }
}
