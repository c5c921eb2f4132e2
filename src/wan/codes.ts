import type { ErrorCode } from '../errors.ts'
import { CODE } from './wire.ts'

/** The code of RESET or BYE for an error of this side; what the wire has no name for is INTERNAL. */
export function wireCode(code: ErrorCode): number {
  return (CODE as Record<string, number>)[code] ?? CODE.INTERNAL
}

/** The error code for a code of RESET or BYE; SHUTDOWN and NONE are a QEMU_LOST to the side that hears them. */
export function errorCodeOf(wire: number): ErrorCode {
  for (const [name, value] of Object.entries(CODE)) {
    if (value === wire && name !== 'NONE' && name !== 'SHUTDOWN') return name as ErrorCode
  }
  return wire === CODE.NONE || wire === CODE.SHUTDOWN ? 'QEMU_LOST' : 'INTERNAL'
}
