import { type ErrorCode, isProxyError, ProxyError } from '../errors.ts'

/** What to do about the errors of the system that an operator meets most. */
const ACTION: Record<string, string> = {
  ENOENT: 'check the path',
  ENOTDIR: 'check the path',
  EISDIR: 'give a file, not a folder',
  EACCES: 'check who may read and write it',
  EPERM: 'check who may read and write it',
  EROFS: 'the file system is read-only',
  ENOSPC: 'nothing was stored; make room, or choose fewer pages with --max-size',
  EDQUOT: 'nothing was stored; make room, or choose fewer pages with --max-size',
  EFBIG: 'nothing was stored; the file system does not take files of this size',
  EMFILE: 'allow this process more open files',
}

/** What failed in words, where the system's own word is not one for people. */
const WHAT: Record<string, string> = {
  ENOENT: 'it does not exist',
  ENOSPC: 'no space left on the device',
  EDQUOT: 'the quota is used up',
  EACCES: 'permission denied',
  EIO: 'the device failed',
  ENOTDIR: 'a part of the path is no folder',
}

/** An error of a system call on `path` as a ProxyError; ProxyErrors pass as they are. */
export function ioError(cause: unknown, doing: string, path: string, offset = 0, code: ErrorCode = 'IO'): ProxyError {
  if (isProxyError(cause)) return cause
  const errno = (cause as NodeJS.ErrnoException | undefined)?.code ?? ''
  const why = WHAT[errno] ?? (cause instanceof Error ? cause.message : String(cause))
  const action = ACTION[errno] ?? 'see the cause'
  return new ProxyError(code, `${doing} ${path}: ${why}`, { stream: path, offset }, action, { cause })
}
