/**
 * Listens where QEMU (or the other proxy) connects: TCP, a range of ports, a Unix socket, or a socket that systemd
 * opened. Connections are handed over in the order in which the kernel accepted them, before a byte of theirs is read.
 */
import { lookup } from 'node:dns/promises'
import {
  accessSync,
  chmodSync,
  chownSync,
  constants,
  existsSync,
  fstatSync,
  lstatSync,
  readFileSync,
  realpathSync,
  unlinkSync,
} from 'node:fs'
import net from 'node:net'
import { basename, dirname, isAbsolute, join, resolve as resolvePath } from 'node:path'
import { ProxyError } from '../errors.ts'
import { listenAction } from '../io-error.ts'
import { type Address, expandRange, formatAddress, isLoopbackIp, isRange, type TcpAddress } from './address.ts'
import { acceptQemuSocket, type QemuSocket, type ReadMode } from './qemu-socket.ts'

/**
 * Connections that the kernel keeps for us: all channels of a migration come within a millisecond, 255 multifd at most.
 */
const BACKLOG = 512

/** How often a port of a range that was taken is tried again: what took it is a connection, or a program that ends. */
const PORT_RETRY_MS = 5000

/** The kernel gives ports from here on to outgoing connections, unless net.ipv4.ip_local_port_range says otherwise. */
const EPHEMERAL_PORT_MIN = 32768

export interface ListenOptions {
  /** Lets others than this host connect; without it such an address is an ADDRESS error. false: an option of `source` would. */
  readonly beyondLoopback?: boolean
  /** Mode of a Unix socket's file; 0o600 unless said otherwise. */
  readonly mode?: number | undefined
  /** Group id of a Unix socket's file; ours unless said otherwise. */
  readonly group?: number | undefined
  /** Sockets from systemd, by name; a name may stand for several. */
  readonly fds?: ReadonlyMap<string, readonly number[]>
  /**
   * An accept that failed (out of descriptors): the listener lives on, and the connection waits in the kernel's queue.
   */
  readonly onAcceptError?: (error: NodeJS.ErrnoException, address: Address) => void
  /**
   * Some ports of a range are taken by others. Given this, the rest is listened on, and these are tried again; without
   * it, or where none is free, it is an IO error.
   */
  readonly onPortsTaken?: (ports: readonly number[], error: ProxyError) => void
  /** How often they are tried: 5 s unless said otherwise. */
  readonly portRetryMs?: number
  /** One of them is listened on now. */
  readonly onPortFree?: (port: number) => void
}

/** Where a connection came in. */
export interface Accepted {
  /** The address that was listened on, as bound: one port of a range, the port that the kernel chose for port 0. */
  readonly address: Address
  /** Its port; undefined for a Unix socket. */
  readonly port: number | undefined
}

/** A listener, possibly over several sockets. */
export class Listener {
  /** What it is bound to, in the order in which it was. */
  readonly addresses: readonly Address[]
  private readonly servers: readonly net.Server[]
  private readonly stopRetrying: () => void

  /** @internal */
  constructor(servers: readonly net.Server[], addresses: readonly Address[], stopRetrying: () => void) {
    this.servers = servers
    this.addresses = addresses
    this.stopRetrying = stopRetrying
  }

  /** Takes no more connections; those that were handed over live on. A Unix socket's file is removed. */
  async close(): Promise<void> {
    // The callback waits for connections too, where they are still net.Sockets: 'not listening any more' is true at
    // once.
    this.stopRetrying()
    for (const server of this.servers) server.close()
  }
}

/** @param range the whole of it, where the address is one of a range */
function failed(address: Address, error: NodeJS.ErrnoException, range: Address = address): ProxyError {
  const code = error.code ?? error.message
  const action = listenAction(code) + (code === 'EADDRINUSE' ? outgoingHint(range) : '')
  return new ProxyError('IO', `cannot listen on ${formatAddress(address)} (${code})`, undefined, action, {
    cause: error,
  })
}

/** A port of those that connections going out get. */
function outgoingHint(address: Address): string {
  if (address.kind !== 'tcp' || address.portTo < EPHEMERAL_PORT_MIN) return ''
  const ports = isRange(address) ? `${address.port}-${address.portTo}` : `${address.port}`
  return `. If it is an outgoing connection: sysctl -w net.ipv4.ip_local_reserved_ports=${ports} keeps them off`
}

function beyond(address: Address, { beyondLoopback }: ListenOptions, unit = false): ProxyError {
  const others = beyondLoopback === false ? ', or let others connect: `source --listen-anywhere`' : ''
  return new ProxyError(
    'ADDRESS',
    `${formatAddress(address)} can be reached from other hosts`,
    undefined,
    `${unit ? 'let the socket unit ' : ''}listen on 127.0.0.1, ::1 or unix:PATH${others}`,
  )
}

/** /proc/net/unix: Num RefCount Protocol Flags Type St Inode Path; St 01 is not connected, which a listener is. */
const UNIX_LINE = /^\S+ \S+ \S+ \S+ \S+ 01 +(\d+) (.+)$/

/** Where a path points to, links in its folders resolved; the file itself is not followed. */
function realFile(path: string): string {
  const full = resolvePath(path)
  try {
    return join(realpathSync(dirname(full)), basename(full))
  } catch {
    return full
  }
}

/**
 * True where a process serves the Unix socket at `path`. Read from the kernel's list: to connect would be the usual
 * test, but if it is a QEMU that waits there, the connection would be the end of it.
 */
export function isServed(path: string, table: string = readFileSync('/proc/self/net/unix', 'utf8')): boolean {
  const wanted = realFile(path)
  for (const line of table.split('\n')) {
    const bound = UNIX_LINE.exec(line)?.[2]
    if (bound === undefined || bound.startsWith('@')) continue
    // Bound by a relative path in a folder that is not known: the same file name counts as served, to be safe.
    if (isAbsolute(bound) ? realFile(bound) === wanted : basename(bound) === basename(wanted)) return true
  }
  return false
}

/** Removes a socket file that nobody serves, so that a proxy that was killed can start again. */
function removeStale(address: Address, path: string): void {
  let isSocket: boolean
  try {
    isSocket = lstatSync(path).isSocket()
  } catch {
    return // nothing there
  }
  if (!isSocket) throw noSocket(path)
  if (isServed(path)) throw failed(address, Object.assign(new Error('served'), { code: 'EADDRINUSE' }))
  unlinkSync(path)
}

/** The IP address to bind. @throws ADDRESS where others could connect and must not, IO where there is no such host */
async function hostFor(address: TcpAddress, options: ListenOptions): Promise<string> {
  let host = address.host === '' ? '::' : address.host
  if (!net.isIP(host)) {
    try {
      host = (await lookup(host, { verbatim: true })).address
    } catch (error) {
      throw failed(address, error as NodeJS.ErrnoException)
    }
  }
  if (!options.beyondLoopback && !isLoopbackIp(host)) throw beyond(address, options)
  return host
}

/**
 * What `listenSockets` would find wrong, as far as that shows without binding; nothing is touched. What a proxy that runs
 * already holds is not wrong: it may be the one that is to be started again. Of `fd:` systemd alone knows.
 * @throws ProxyError ADDRESS, IO
 */
export async function checkListen(address: Address, options: ListenOptions = {}): Promise<void> {
  if (address.kind === 'tcp') await hostFor(address, options)
  if (address.kind !== 'unix') return
  const folder = dirname(resolvePath(address.path))
  if (folder.startsWith('/run/') && !existsSync(folder)) return // one that systemd makes at the start: RuntimeDirectory=
  try {
    accessSync(folder, constants.W_OK | constants.X_OK)
  } catch (error) {
    throw failed(address, error as NodeJS.ErrnoException)
  }
  if (lstatSync(address.path, { throwIfNoEntry: false })?.isSocket() === false) throw noSocket(address.path)
}

function noSocket(path: string): ProxyError {
  return new ProxyError('IO', `${path} exists and is no socket`, undefined, 'move it away or choose another path')
}

/** Gives a Unix socket's file its group, then its mode: the other way round, our own group would be let in for a moment. */
function share(path: string, { mode = 0o600, group }: ListenOptions): void {
  try {
    if (group !== undefined) chownSync(path, -1, group)
    chmodSync(path, mode)
  } catch (error) {
    const what = `cannot give ${path} to group ${group} (${(error as NodeJS.ErrnoException).code})`
    const hint = 'the proxy must be a member of the group, or run as root'
    throw new ProxyError('IO', what, undefined, hint, { cause: error })
  }
}

/** With the file mode decided before the file appears, nobody else gets in between bind and chmod. */
function withUmask<T>(mode: number, run: () => T): T {
  let old: number | undefined
  try {
    old = process.umask(0o777 & ~mode)
  } catch {
    // Not in a worker thread: the chmod that follows has to do.
  }
  try {
    return run()
  } finally {
    if (old !== undefined) process.umask(old)
  }
}

/** Path of a listening Unix socket that somebody else bound; undefined where it has none, or is no such socket. */
function pathOfSocket(fd: number, table: string = readFileSync('/proc/self/net/unix', 'utf8')): string | undefined {
  const inode = String(fstatSync(fd).ino)
  for (const line of table.split('\n')) {
    const [, found, path] = UNIX_LINE.exec(line) ?? []
    if (found === inode) return path
  }
  return undefined
}

/** What a server is bound to; undefined where nothing says it. Node does not for a Unix socket from systemd. */
function boundAddress(server: net.Server, { fd }: BindOptions): Address | undefined {
  const bound = server.address()
  if (typeof bound === 'string') return { kind: 'unix', path: bound }
  const path = bound === null && fd !== undefined ? pathOfSocket(fd) : undefined
  if (path !== undefined) return { kind: 'unix', path }
  return bound ? { kind: 'tcp', host: bound.address, port: bound.port, portTo: bound.port } : undefined
}

/** What net.Server.listen takes; its types know no `fd` here. */
type BindOptions = net.ListenOptions & { fd?: number }

async function bind(server: net.Server, address: Address, where: BindOptions, range: Address): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const onError = (error: NodeJS.ErrnoException): void => reject(failed(address, error, range))
    server.once('error', onError)
    server.once('listening', () => {
      server.off('error', onError)
      resolve()
    })
    const listen = (): void => void server.listen({ ...where, backlog: BACKLOG, exclusive: true })
    if (where.path === undefined) listen()
    else withUmask(0o600, listen) // others get in when the file has its group and mode
  })
}

/**
 * Listens and hands over plain sockets, paused, half-open allowed, without Nagle: for the WAN side. All sockets of an
 * address are bound, or none; but see `onPortsTaken`.
 * @throws ProxyError ADDRESS where others than this host could connect and `beyondLoopback` is not set, or systemd
 * passed no such socket; IO where it cannot be bound
 */
export async function listenSockets(
  address: Address,
  onSocket: (socket: net.Socket, at: Accepted) => void,
  options: ListenOptions = {},
): Promise<Listener> {
  const servers: net.Server[] = []
  const addresses: Address[] = []
  /** Ports of the range that others have. */
  const taken: { readonly single: Address; readonly host: string; readonly port: number }[] = []
  let isClosed = false

  const open = async (asked: Address, where: BindOptions): Promise<void> => {
    const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true })
    servers.push(server)
    // Known only when it is bound, and no connection is handed over before.
    let at: Accepted = { address: asked, port: undefined }
    server.on('connection', socket => onSocket(socket, at))
    try {
      await bind(server, asked, where, address)
    } catch (error) {
      servers.splice(servers.indexOf(server), 1)
      throw error
    }
    if (isClosed) server.close() // meanwhile
    const bound = boundAddress(server, where) ?? asked
    at = { address: bound, port: bound.kind === 'tcp' ? bound.port : undefined }
    addresses.push(bound)
    server.on('error', error => options.onAcceptError?.(error, bound))
    if (bound.kind === 'tcp' && !options.beyondLoopback && !isLoopbackIp(bound.host)) {
      throw beyond(bound, options, asked.kind === 'fd')
    }
  }

  try {
    if (address.kind === 'fd') {
      const fds = options.fds?.get(address.name) ?? []
      if (fds.length === 0) {
        const known = [...(options.fds?.keys() ?? [])].map(name => `fd:${name}`)
        throw new ProxyError(
          'ADDRESS',
          `systemd passed no socket named ${JSON.stringify(address.name)}`,
          undefined,
          known.length
            ? `it passed ${known.join(', ')}`
            : 'start the socket unit, which names it by FileDescriptorName=',
        )
      }
      for (const fd of fds) await open(address, { fd })
    } else if (address.kind === 'unix') {
      removeStale(address, address.path)
      await open(address, { path: address.path })
      share(address.path, options)
    } else {
      // Before it is bound, so that there is no moment in which others can connect.
      let host = await hostFor(address, options)
      let refusal: ProxyError | undefined
      for (const single of expandRange(address)) {
        if (single.kind !== 'tcp') continue
        try {
          await open(single, { host, port: single.port })
        } catch (error) {
          const code = ((error as ProxyError).cause as NodeJS.ErrnoException | undefined)?.code
          if (code === 'EADDRINUSE' && options.onPortsTaken && isRange(address)) {
            taken.push({ single, host, port: single.port })
            refusal ??= error as ProxyError
            continue
          }
          if (address.host !== '' || host !== '::' || (code !== 'EAFNOSUPPORT' && code !== 'EADDRNOTAVAIL')) throw error
          host = '0.0.0.0' // a kernel without IPv6
          await open(single, { host, port: single.port })
        }
      }
      if (refusal && addresses.length === 0) throw refusal
      if (refusal)
        options.onPortsTaken?.(
          taken.map(({ port }) => port),
          refusal,
        )
    }
  } catch (error) {
    for (const server of servers) server.close()
    throw error
  }

  const retry = async (): Promise<void> => {
    for (const entry of taken.splice(0)) {
      try {
        await open(entry.single, { host: entry.host, port: entry.port })
        if (!isClosed) options.onPortFree?.(entry.port)
      } catch {
        taken.push(entry) // still
      }
    }
    if (taken.length === 0) clearInterval(timer)
  }
  const timer =
    taken.length > 0 ? setInterval(() => void retry(), options.portRetryMs ?? PORT_RETRY_MS).unref() : undefined
  return new Listener(servers, addresses, () => {
    isClosed = true
    clearInterval(timer)
  })
}

/**
 * Listens for QEMU: {@link listenSockets}, with each connection as a {@link QemuSocket}, silent until it is started.
 * @throws as listenSockets
 */
export function listen(
  address: Address,
  onAccepted: (socket: QemuSocket, at: Accepted) => void,
  options: ListenOptions & { readonly readMode?: ReadMode } = {},
): Promise<Listener> {
  const readMode = options.readMode ?? 'onread'
  return listenSockets(address, (socket, at) => onAccepted(acceptQemuSocket(socket, readMode), at), options)
}
