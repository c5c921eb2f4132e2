/** Addresses of what is asked by HTTP: a port of this host, or a Unix socket. */
import { ProxyError } from '../errors.ts'
import { type Address, isRange, parseAddress } from './address.ts'

/**
 * HOST:PORT, or an address as others are written; that it is this host's is seen when it is bound.
 * @param what listens there, for the error
 * @throws ADDRESS
 */
export function parseMetricsAddress(text: string, what = 'metrics'): Address {
  const address = parseAddress(/^(tcp|unix|fd):/.test(text) ? text : `tcp:${text}`)
  if (address.kind !== 'fd' && !isRange(address)) return address
  throw new ProxyError('ADDRESS', `${what} at ${text}`, undefined, 'give 127.0.0.1:PORT, or unix:PATH')
}
