import type { ErrorCode } from '../errors.ts'
import { CODE } from './wire.ts'

/** The code of RESET or BYE for an error of this side; what the wire has no name for is INTERNAL. */
export function wireCode(code: ErrorCode): number {
  return (CODE as Record<string, number>)[code] ?? CODE.INTERNAL
}

/** Codes without an error of their name: to the side that hears them the other QEMU is gone. */
const LOST_TO_US: readonly number[] = [CODE.NONE, CODE.SHUTDOWN, CODE.CANCELLED]

/** The error code for a code of RESET or BYE. */
export function errorCodeOf(wire: number): ErrorCode {
  if (LOST_TO_US.includes(wire)) return 'QEMU_LOST'
  for (const [name, value] of Object.entries(CODE)) if (value === wire) return name as ErrorCode
  return 'INTERNAL'
}
