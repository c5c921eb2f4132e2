/**
 * Which proxy this is, as it tells the other side (protocol.md §2): so that a proxy that was killed and started again is
 * known to be the same, and what its dead process left behind need not be waited for.
 */
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'

/** Of this process, and of no other. */
export const PROCESS = randomBytes(8).toString('hex')

/**
 * A name that one source proxy has in all of its processes, and that no two proxies have at once: two processes of one
 * host cannot hold the same listening addresses, and a proxy holds on to them while it has a migration.
 * @param addresses where this proxy listens (SourceListeners.names)
 * @returns 32 hex digits; undefined where nothing tells this host from others
 */
export function instanceOf(
  machineId: string,
  host: string,
  addresses: readonly string[],
  peer: string,
): string | undefined {
  if (machineId === '' || addresses.length === 0) return undefined
  const hash = createHash('sha256')
  // hashed with a word of ours: the machine id itself is not for strangers. Source: machine-id(5)
  for (const part of ['pageferry instance', machineId, host, peer, ...[...addresses].sort()]) hash.update(`${part}\n`)
  return hash.digest('hex').slice(0, 32)
}

/** This host's part of it. Source: machine-id(5). */
export function thisHost(): readonly [machineId: string, host: string] {
  try {
    return [readFileSync('/etc/machine-id', 'latin1').trim(), hostname()]
  } catch {
    return ['', '']
  }
}
