/**
 * Dials a target. Each call opens at most one connection that the target ever sees: a waiting QEMU takes whatever
 * connects for a channel of its migration, and exits over a connection that brings nothing (wire format, 1.3).
 */
import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { ProxyError } from '../errors.ts'
import { type Address, formatAddress, isRange } from './address.ts'
import { connectQemuSocket, type QemuSocket, type ReadMode } from './qemu-socket.ts'

/**
 * How long a target may take to accept, names included: QEMU accepts from its main loop, which can be busy for seconds.
 */
export const DIAL_TIMEOUT_MS = 10_000

/** Between two tries at a Unix socket whose queue is full. */
const BACKLOG_RETRY_MS = 10

export interface DialOptions {
  readonly timeoutMs?: number
  /** The address of this host to dial from. */
  readonly localAddress?: string
  /** Gives up. */
  readonly signal?: AbortSignal
  readonly readMode?: ReadMode
  /** A server of disks is dialled, not a QEMU that waits for a migration. */
  readonly ofDisks?: boolean
}

/** Nobody there: the target has not seen anything of us, so the next address of the same name may be tried. */
const NOT_THERE = new Set(['ECONNREFUSED', 'ENETUNREACH', 'EHOSTUNREACH', 'EADDRNOTAVAIL', 'EAFNOSUPPORT'])

const HINTS: Record<string, string> = {
  ECONNREFUSED: 'nothing listens there: start QEMU with -incoming first, and check --target',
  ENOENT: 'no such socket: start QEMU with -incoming first, and check --target',
  EACCES: 'the proxy may not open this socket: check owner and mode, and the folders above it',
  ENOTSOCK: 'that is no socket: check --target',
  EPROTOTYPE: 'that is no stream socket: check --target',
  ENOTFOUND: 'no such host: check --target',
  EAI_AGAIN: 'the name server does not answer; a literal address needs none',
}

/** Where they are others for a server of disks. */
const DISK_HINTS: Record<string, string> = {
  ECONNREFUSED: 'nothing listens there: nbd-server-start at the destination QEMU first, and check --disks',
  ENOENT: 'no such socket: nbd-server-start at the destination QEMU first, and check --disks',
}

function hintFor(code: string, ofDisks: boolean): string {
  if (!ofDisks) return HINTS[code] ?? 'check --target and the network'
  return DISK_HINTS[code] ?? HINTS[code]?.replace('--target', '--disks') ?? 'check --disks and the network'
}

function refused(target: Address, what: string, action: string, cause?: Error): ProxyError {
  return new ProxyError('TARGET_REFUSED', `${formatAddress(target)} ${what}`, undefined, action, cause && { cause })
}

type Where = { host: string; port: number; localAddress?: string } | { path: string }

async function places(target: Address, localAddress: string | undefined): Promise<Where[]> {
  if (target.kind === 'unix') return [{ path: target.path }]
  if (target.kind === 'fd' || isRange(target) || target.port === 0) {
    throw new ProxyError(
      'ADDRESS',
      `${formatAddress(target)} cannot be dialled`,
      undefined,
      'a target is one port or path',
    )
  }
  const port = target.port
  const from = localAddress === undefined ? {} : { localAddress }
  const host = target.host === '' ? 'localhost' : target.host
  if (isIP(host)) return [{ host, port, ...from }]
  const found = await lookup(host, { all: true, verbatim: true })
  const family = localAddress === undefined ? 0 : isIP(localAddress)
  return found.filter(a => family === 0 || a.family === family).map(a => ({ host: a.address, port, ...from }))
}

/** One try at one address. */
function connect(where: Where, readMode: ReadMode, signal: AbortSignal): Promise<QemuSocket> {
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      socket.reset()
      reject(signal.reason)
    }
    const socket = connectQemuSocket(
      where,
      () => {
        signal.removeEventListener('abort', abort)
        resolve(socket)
      },
      error => {
        signal.removeEventListener('abort', abort)
        reject(error)
      },
      readMode,
    )
    signal.addEventListener('abort', abort, { once: true })
  })
}

/**
 * Connects to a target. Of a name with several addresses they are tried one after the other, each only when nobody was
 * at the one before.
 * @returns a connection that is silent until it is started
 * @throws ProxyError TARGET_REFUSED: nobody there, no right, or not within the time; ADDRESS: not one port or path
 */
export async function dial(target: Address, options: DialOptions = {}): Promise<QemuSocket> {
  const timeoutMs = options.timeoutMs ?? DIAL_TIMEOUT_MS
  const readMode = options.readMode ?? 'onread'
  const stop = new AbortController()
  const timer = setTimeout(() => stop.abort(new Error('timeout')), timeoutMs)
  const give = (): void => stop.abort(new Error('given up'))
  options.signal?.addEventListener('abort', give, { once: true })
  if (options.signal?.aborted) give()
  // Rejects when the time is up, whatever is awaited: a name server can be slower than our patience.
  const late = new Promise<never>((_, reject) => {
    if (stop.signal.aborted) reject(stop.signal.reason)
    stop.signal.addEventListener('abort', () => reject(stop.signal.reason), { once: true })
  })
  late.catch(() => {})
  let last: NodeJS.ErrnoException = new Error('it has no address')
  try {
    for (const where of await Promise.race([places(target, options.localAddress), late])) {
      for (;;) {
        stop.signal.throwIfAborted()
        try {
          return await connect(where, readMode, stop.signal)
        } catch (error) {
          last = error as NodeJS.ErrnoException
        }
        // The queue of a Unix socket is full: the connection was not made, and the kernel does not wait as with TCP.
        if (last.code !== 'EAGAIN' || stop.signal.aborted) break
        await Promise.race([new Promise(resolve => setTimeout(resolve, BACKLOG_RETRY_MS)), late])
      }
      if (!NOT_THERE.has(last.code ?? '')) break
    }
  } catch (error) {
    if (error instanceof ProxyError) throw error
    last = error as NodeJS.ErrnoException
  } finally {
    clearTimeout(timer)
    options.signal?.removeEventListener('abort', give)
  }
  if (options.signal?.aborted)
    throw refused(target, 'was given up', 'the migration ended before the connection was made', last)
  if (stop.signal.aborted) {
    const action = 'the host is down, a firewall drops packets, or QEMU hangs'
    throw refused(target, `did not accept a connection within ${timeoutMs / 1000} s`, action, last)
  }
  const code = last.code ?? last.message
  throw refused(target, `refused the connection (${code})`, hintFor(code, options.ofDisks === true), last)
}
