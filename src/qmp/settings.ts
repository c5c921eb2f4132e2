/** A QEMU's migration settings as QMP tells them. Nothing is believed of an answer before it was looked at. */
import { ProxyError } from '../errors.ts'
import type { Mend, QemuSettings, QemuSide } from './advice.ts'
import type { QmpClient } from './qmp-client.ts'

/** @throws IO where an answer is not QEMU's; QmpError, QmpConnectionError */
export async function readSettings(client: QmpClient, side: QemuSide): Promise<QemuSettings> {
  const capabilities = statesOf(await client.execute('query-migrate-capabilities'))
  const parameters = fieldsOf('query-migrate-parameters', await client.execute('query-migrate-parameters'))
  return { version: client.version, side, capabilities, parameters }
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
