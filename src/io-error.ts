/** Errors of the system, as people can read them. */
import { isProxyError, ProxyError } from './errors.ts'

/** What to do about the errors of the system that an operator meets most. */
const ACTION: Record<string, string> = {
  ENOENT: 'check the path',
  ENOTDIR: 'check the path',
  EISDIR: 'give a file, not a folder',
  EACCES: 'check who may read and write it',
  EPERM: 'check who may read and write it',
  EROFS: 'the file system is read-only',
  EMFILE: 'allow this process more open files',
}
/** Codes of the system where there is no room for a file. */
export const NO_ROOM: readonly string[] = ['ENOSPC', 'EDQUOT', 'EFBIG']

/** What failed in words, where the system's own word is not one for people. */
const WHAT: Record<string, string> = {
  ENOENT: 'it does not exist',
  EISDIR: 'it is a folder',
  ENXIO: 'it is a socket, or a device that is not there',
  ENOSPC: 'no space left on the device',
  EDQUOT: 'the quota is used up',
  EFBIG: 'the file system does not take files of this size',
  EACCES: 'permission denied',
  EIO: 'the device failed',
  ENOTDIR: 'a part of the path is no folder',
}

/** What to do where nothing can listen at an address. */
const LISTEN_ACTION: Record<string, string> = {
  EADDRINUSE: 'another program listens there: stop it or choose another address',
  EADDRNOTAVAIL: 'no interface of this host has that address',
  EACCES:
    'not allowed: a port below 1024 needs CAP_NET_BIND_SERVICE, a Unix socket a folder that is there and can be written to',
  ENOENT: 'the folder of the socket does not exist',
  ENOTFOUND: 'no such host',
}

/** @param code of the system's error */
export function listenAction(code: string): string {
  return LISTEN_ACTION[code] ?? 'check --listen'
}

/**
 * An error of a system call on `path` as a ProxyError; ProxyErrors pass as they are. Whoever writes removes what it began.
 *
 * @param offset where in the file, where it is about a part of it
 * @param room how to need less of it
 */
export function ioError(cause: unknown, doing: string, path: string, offset?: number, room = ''): ProxyError {
  if (isProxyError(cause)) return cause
  const errno = (cause as NodeJS.ErrnoException | undefined)?.code ?? ''
  const words = WHAT[errno]
  const why = words === undefined ? (cause instanceof Error ? cause.message : String(cause)) : `${words} (${errno})`
  const action = NO_ROOM.includes(errno)
    ? `nothing is left behind; make room${room}`
    : (ACTION[errno] ?? 'see the cause')
  return new ProxyError(
    'IO',
    `${doing} ${path}: ${why}`,
    { stream: path, ...(offset === undefined ? {} : { offset }) },
    action,
    { cause },
  )
}
