/** What was wrong with a batch, as it crosses from one thread to another: an error loses its class on the way. */
import { type ErrorCode, isProxyError, ProxyError } from '../../errors.ts'

export interface WrongBatch {
  /** Undefined: a defect of ours. */
  readonly code: ErrorCode | undefined
  readonly what: string
  readonly action: string
  /** Of what caused it; '' where nothing did. */
  readonly cause: string
}

export function wrongBatchOf(error: unknown): WrongBatch {
  if (!isProxyError(error)) return { code: undefined, what: (error as Error).message, action: '', cause: '' }
  const { code, what, action, cause } = error
  return { code, what, action, cause: cause instanceof Error ? cause.message : '' }
}

/** The error that it was. */
export function errorOf({ code, what, action, cause }: WrongBatch): Error {
  if (code === undefined) return new Error(what)
  return new ProxyError(code, what, undefined, action, cause === '' ? {} : { cause: new Error(cause) })
}
