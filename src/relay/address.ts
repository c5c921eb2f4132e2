/**
 * Addresses as QEMU spells them, plus `fd:NAME` for sockets that systemd opened. Text in, value out: nothing is
 * resolved or opened here.
 */
import { isIP, isIPv4 } from 'node:net'
import { ProxyError } from '../errors.ts'

/** A TCP endpoint, or a range of them: QEMU's `tcp:HOST:PORT`, ours `tcp:HOST:FROM-TO`. */
export interface TcpAddress {
  readonly kind: 'tcp'
  /** A name or a literal without brackets; empty means every local address to a listener and this host to a dialler. */
  readonly host: string
  /** First port; 0 lets the kernel choose (listeners only, never in a range). */
  readonly port: number
  /** Last port, equal to `port` where it is no range. */
  readonly portTo: number
}

/** A Unix socket by its path. */
export interface UnixAddress {
  readonly kind: 'unix'
  readonly path: string
}

/** A listening socket that systemd opened and named (FileDescriptorName= of a socket unit). */
export interface FdAddress {
  readonly kind: 'fd'
  readonly name: string
}

export type Address = TcpAddress | UnixAddress | FdAddress

/** An address under the name by which the other side may ask for it: `--target NAME=ADDRESS`. */
export interface NamedAddress {
  readonly name: string
  readonly address: Address
}

/** The name of a target that was given none. */
export const DEFAULT_TARGET = 'default'

/**
 * Ports in one range: each costs a descriptor, and 1024 is the usual soft limit of a process. libvirt's own range has
 * 64.
 */
export const RANGE_PORTS_MAX = 1000

/** Bytes in a Unix socket's path: sun_path of Linux holds 108 with its final NUL. */
export const UNIX_PATH_BYTES_MAX = 107

const SPELLINGS = 'write tcp:HOST:PORT, tcp:[V6]:PORT, tcp:HOST:FROM-TO, unix:PATH or, to listen, fd:NAME'
const NAME = /^[A-Za-z0-9_.-]{1,64}$/

/** Spellings that people bring along from elsewhere, each with what to do instead. */
const FOREIGN: readonly [RegExp, string][] = [
  [/^(tcp|unix):\/\//, 'drop the slashes: QEMU writes tcp:HOST:PORT and unix:PATH'],
  [/^(exec|file|rdma|vsock|x-rdma):/, 'only tcp: and unix: pass through the pair'],
  [/^\//, 'a path is written unix:PATH'],
  [/^[^:]*:\d+$/, 'put tcp: in front'],
]

function wrong(text: string, what: string, action = SPELLINGS): ProxyError {
  return new ProxyError('ADDRESS', `${JSON.stringify(text.slice(0, 200))}: ${what}`, undefined, action)
}

function parsePort(text: string, digits: string): number {
  if (!/^\d{1,5}$/.test(digits))
    throw wrong(text, `${JSON.stringify(digits)} is no port`, 'a port is a number, 1 to 65535')
  const port = Number(digits)
  if (port > 65535) throw wrong(text, `port ${port} does not exist`, 'the last port is 65535')
  return port
}

function parseTcp(text: string): TcpAddress {
  const rest = text.slice(4)
  if (rest.includes(',')) {
    throw wrong(text, 'options behind a comma are not understood', 'leave them out; TCP_NODELAY is always on')
  }
  const match = /^(?:\[([^\]]*)\]|([^:[\]]*)):([^:]*)$/.exec(rest)
  if (!match) {
    const bare = isIP(rest.slice(0, rest.lastIndexOf(':'))) === 6
    throw wrong(text, 'no host and port', bare ? 'an IPv6 address stands in brackets: tcp:[V6]:PORT' : SPELLINGS)
  }
  const [, v6, plain, ports = ''] = match
  const host = v6 ?? plain ?? ''
  // A zone (%eth0) belongs to a link-local address; isIP accepts it.
  if (v6 !== undefined && isIP(v6) !== 6) throw wrong(text, `[${v6}] is no IPv6 address`)
  if (/[\s/%\0]/.test(plain ?? '')) throw wrong(text, `${JSON.stringify(plain)} is no host`)
  if (/^[\d.]+$/.test(plain ?? '') && !isIPv4(plain ?? '')) throw wrong(text, `${plain} is no IPv4 address`)
  const dash = ports.indexOf('-')
  if (dash < 0) {
    const port = parsePort(text, ports)
    return { kind: 'tcp', host, port, portTo: port }
  }
  const port = parsePort(text, ports.slice(0, dash))
  const portTo = parsePort(text, ports.slice(dash + 1))
  if (port === 0 || portTo < port) {
    throw wrong(text, `${ports} is no range of ports`, 'the lower port comes first, and port 0 is not in a range')
  }
  if (portTo - port >= RANGE_PORTS_MAX) {
    throw wrong(text, `a range of ${portTo - port + 1} ports`, `${RANGE_PORTS_MAX} at most; libvirt uses 49152-49215`)
  }
  return { kind: 'tcp', host, port, portTo }
}

/**
 * The address that a text spells.
 * @throws ProxyError ADDRESS, with a hint that fits the mistake
 */
export function parseAddress(text: string): Address {
  if (text.startsWith('tcp:') && !text.startsWith('tcp://')) return parseTcp(text)
  if (text.startsWith('unix:') && !text.startsWith('unix://')) {
    const path = text.slice(5)
    if (path === '') throw wrong(text, 'no path')
    if (path.includes('\0'))
      throw wrong(text, 'a NUL in the path', 'sockets in the abstract namespace are not supported')
    if (Buffer.byteLength(path) > UNIX_PATH_BYTES_MAX) {
      throw wrong(
        text,
        `the path has ${Buffer.byteLength(path)} bytes`,
        `the kernel takes ${UNIX_PATH_BYTES_MAX} at most`,
      )
    }
    return { kind: 'unix', path }
  }
  if (text.startsWith('fd:')) {
    const name = text.slice(3)
    // systemd.socket(5): FileDescriptorName= may hold any printable ASCII but ':', 255 at most.
    if (!/^[!-9;-~]{1,255}$/.test(name)) {
      throw wrong(text, 'no name of a socket', 'name it as FileDescriptorName= of the socket unit does')
    }
    return { kind: 'fd', name }
  }
  for (const [pattern, action] of FOREIGN) if (pattern.test(text)) throw wrong(text, 'not an address', action)
  throw wrong(text, 'not an address')
}

/**
 * An address with a name in front, `NAME=ADDRESS`; without one the name is {@link DEFAULT_TARGET}.
 * @throws ProxyError ADDRESS
 */
export function parseNamedAddress(text: string): NamedAddress {
  const equals = text.indexOf('=')
  const colon = text.indexOf(':')
  // An equals sign behind the first colon belongs to the path of a Unix socket.
  if (equals < 0 || (colon >= 0 && colon < equals)) return { name: DEFAULT_TARGET, address: parseAddress(text) }
  const name = text.slice(0, equals)
  if (!NAME.test(name)) {
    throw wrong(text, `${JSON.stringify(name)} is no name`, 'a name has letters, digits, "_", "-" and ".", 64 at most')
  }
  return { name, address: parseAddress(text.slice(equals + 1)) }
}

/** The text that {@link parseAddress} reads back as the same address. */
export function formatAddress(address: Address): string {
  switch (address.kind) {
    case 'tcp': {
      const host = address.host.includes(':') ? `[${address.host}]` : address.host
      return `tcp:${host}:${address.port}${address.portTo === address.port ? '' : `-${address.portTo}`}`
    }
    case 'unix':
      return `unix:${address.path}`
    case 'fd':
      return `fd:${address.name}`
  }
}

/** True for a TCP address of more than one port. */
export function isRange(address: Address): boolean {
  return address.kind === 'tcp' && address.portTo > address.port
}

/** Each single address of a range, in port order; any other address by itself, alone. */
export function expandRange(address: Address): Address[] {
  if (address.kind !== 'tcp') return [address]
  const single: Address[] = []
  for (let port = address.port; port <= address.portTo; port++) single.push({ ...address, port, portTo: port })
  return single
}

/**
 * Where to dial for a connection that came in at `port` of the other side: a range maps each port to the same port
 * here, anything else is itself.
 * @param port port at the source proxy, undefined where it listens on a Unix socket
 * @throws ProxyError TARGET_REFUSED where a range does not hold that port
 */
export function targetAtPort(target: Address, port: number | undefined): Address {
  if (target.kind !== 'tcp' || !isRange(target)) return target
  if (port === undefined || !Number.isInteger(port) || port < target.port || port > target.portTo) {
    throw new ProxyError(
      'TARGET_REFUSED',
      port === undefined ? `${formatAddress(target)} needs a port` : `port ${port} is not in ${formatAddress(target)}`,
      undefined,
      'give --listen of the source and --target of the destination the same range of ports',
    )
  }
  return { ...target, port, portTo: port }
}

/**
 * What a flow's target is here.
 * @param name 'NAME', or 'NAME:PORT' where the source proxy listens on several
 * @param targets what may be dialled, by name
 * @param option by which the destination proxy is given them
 * @throws ProxyError TARGET_REFUSED where there is none, or it has no such port
 */
export function targetOf(name: string, targets: ReadonlyMap<string, Address>, option = '--target'): Address {
  const colon = name.lastIndexOf(':')
  const known = colon < 0 ? name : name.slice(0, colon)
  const target = targets.get(known)
  if (target === undefined) {
    const what = `no target ${JSON.stringify(name)}${option === '--target' ? '' : ' for disks'} here`
    throw new ProxyError('TARGET_REFUSED', what, undefined, `give the destination proxy ${option} ${known}=ADDRESS`)
  }
  return targetAtPort(target, colon < 0 ? undefined : Number(name.slice(colon + 1)))
}

/**
 * Where the other proxy listens: `HOST:PORT` or `[V6]:PORT`, `tcp:` in front or not.
 * @throws ProxyError ADDRESS
 */
export function parsePeer(text: string): { readonly host: string; readonly port: number } {
  const found = /^(?:tcp:)?(?:\[([^\]]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(text)
  const [, v6, plain, digits] = found ?? []
  const port = Number(digits)
  if (!found || port < 1 || port > 65535 || (v6 !== undefined && isIP(v6) !== 6))
    throw wrong(text, 'not where a proxy listens', 'write HOST:PORT or [V6]:PORT')
  return { host: v6 ?? plain!, port }
}

const ANY_HOST = new Set(['', '::'])

/** Whether one socket would be in the way of the other: the same path, or a port of the same address. */
export function inTheWay(a: Address, b: Address): boolean {
  if (a.kind === 'unix' && b.kind === 'unix') return a.path === b.path
  if (a.kind !== 'tcp' || b.kind !== 'tcp') return false
  if (a.port === 0 || b.port === 0 || a.port > b.portTo || b.port > a.portTo) return false
  if (a.host === b.host || ANY_HOST.has(a.host) || ANY_HOST.has(b.host)) return true
  const [one, other] = [a.host, b.host].sort() // 0.0.0.0 sorts before every other address of IPv4
  return one === '0.0.0.0' && isIPv4(other!)
}

/** What to do about sockets that are in each other's way. */
export const OWN_SOCKET_HINT = 'give each an address or a port of its own'

/** @throws ProxyError ADDRESS where one of them is in the way of another: the system would name another program */
export function requireApart(addresses: readonly Address[]): void {
  const twice = addresses.find((at, i) => addresses.slice(0, i).some(before => inTheWay(at, before)))
  if (twice === undefined) return
  throw new ProxyError('ADDRESS', `${formatAddress(twice)} is listened at twice`, undefined, OWN_SOCKET_HINT)
}

/** What to do where a target of disks is one of migrations. */
export const OTHER_TARGET_HINT =
  'a QEMU that waits for a migration exits over a connection for its disk: give each a port of its own'

/**
 * @throws ProxyError ADDRESS where what is dialled for disks may be dialled for migrations: a QEMU that waits for one exits
 *   over any other connection
 */
export function requireOthers(targets: ReadonlyMap<string, Address>, disks: ReadonlyMap<string, Address>): void {
  for (const disk of disks.values()) {
    if (![...targets.values()].some(target => inTheWay(target, disk))) continue
    throw new ProxyError(
      'ADDRESS',
      `${formatAddress(disk)} is a target of migrations, too`,
      undefined,
      OTHER_TARGET_HINT,
    )
  }
}

/** True for an IP literal that never leaves this host: 127.0.0.0/8, ::1, and the former as IPv6. */
export function isLoopbackIp(ip: string): boolean {
  if (isIPv4(ip)) return ip.startsWith('127.')
  if (isIP(ip) !== 6) return false
  // The URL parser writes every spelling of an IPv6 address in the one canonical form.
  const canonical = new URL(`http://[${ip.replace(/%.*$/, '')}]`).hostname
  return canonical === '[::1]' || /^\[::ffff:7f[0-9a-f]{2}:/.test(canonical)
}

/**
 * True where nothing outside this host can reach the address: loopback, `localhost`, Unix sockets. False for other
 * names and for `fd:`, which only the socket itself can tell (see {@link isLoopbackIp} and `listenSockets`).
 */
export function isLoopback(address: Address): boolean {
  if (address.kind === 'unix') return true
  if (address.kind === 'fd') return false
  return address.host.toLowerCase() === 'localhost' || isLoopbackIp(address.host)
}
