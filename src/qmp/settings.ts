/** A QEMU's migration settings as QMP tells them. Nothing is believed of an answer before it was looked at. */
import { ProxyError } from '../errors.ts'
import type { Mend, QemuSettings, QemuSide } from './advice.ts'
import { type QmpClient, QmpError } from './qmp-client.ts'

/** @throws IO where an answer is not QEMU's; QmpError, QmpConnectionError */
export async function readSettings(client: QmpClient, side: QemuSide): Promise<QemuSettings> {
  const capabilities = statesOf(await client.execute('query-migrate-capabilities'))
  const parameters = fieldsOf('query-migrate-parameters', await client.execute('query-migrate-parameters'))
  const warning = side === 'source' ? await readTcgWarning(client) : undefined
  return { version: client.version, side, capabilities, parameters, ...(warning !== undefined && { warning }) }
}

async function readTcgWarning(client: QmpClient): Promise<string | undefined> {
  if (!mayBeTcgThatLoses(client.version)) return undefined
  try {
    return tcgWarning(client.version, await client.execute('query-kvm'))
  } catch (error) {
    if (error instanceof QmpError) return undefined // it does not say
    throw error
  }
}

/** The first version whose TCG sends all that its guest writes. */
const TCG_SOUND_MAJOR = 9

/** Whether such a QEMU would lose pages of its guest, if it runs it without KVM. docs/qemu-wire-format.md 9.26. */
export function mayBeTcgThatLoses(version: string): boolean {
  return Number.parseInt(version, 10) < TCG_SOUND_MAJOR
}

/** @param answer what query-kvm returned @returns nothing where the guest runs under KVM, or that is not told */
export function tcgWarning(version: string, answer: unknown): string | undefined {
  const { enabled } = (answer ?? {}) as { enabled?: unknown }
  if (enabled !== false) return undefined
  return (
    `QEMU ${version} without KVM (-accel tcg) loses pages that a running guest writes, with and without the pair: ` +
    'after a migration its memory may be corrupt. QEMU 9.0 and later do not; of a guest that was stopped (`stop`) nothing is lost'
  )
}

/** What is thrown where an answer has not the shape that QEMU's has. */
export function notUnderstood(command: string): ProxyError {
  return new ProxyError('IO', `the answer to ${command} is not QEMU's`, undefined, 'give the socket of a QEMU')
}

/** What query-migrate-capabilities returned. @throws IO */
export function statesOf(answer: unknown): Record<string, boolean> {
  const command = 'query-migrate-capabilities'
  if (!Array.isArray(answer)) throw notUnderstood(command)
  const states = answer.map((entry: unknown) => {
    const { capability, state } = (entry ?? {}) as { capability?: unknown; state?: unknown }
    if (typeof capability !== 'string' || typeof state !== 'boolean') throw notUnderstood(command)
    return [capability, state] as const
  })
  return Object.fromEntries(states)
}

/** What a command returned, as an object of which nothing else is known. @throws IO */
export function fieldsOf(command: string, answer: unknown): Record<string, unknown> {
  if (typeof answer !== 'object' || answer === null || Array.isArray(answer)) throw notUnderstood(command)
  return answer as Record<string, unknown>
}

/** 'max-bandwidth: 134217728 -> 0' */
export function mendText({ name, before, value }: Pick<Mend, 'name' | 'before' | 'value'>): string {
  return `${name}: ${valueText(before)} -> ${valueText(value)}`
}

/** A value of a setting, as people read it. */
export function valueText(value: unknown): string {
  if (typeof value === 'boolean') return value ? 'on' : 'off'
  return value === undefined ? 'not told' : (JSON.stringify(value) ?? 'not told')
}
