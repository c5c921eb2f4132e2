/** Where peers that proved themselves came from lately: strangers cannot take the places that are kept for them. Pure. */
import { isIPv4, isIPv6 } from 'node:net'
import { KNOWN_ADDRESSES_PER_IDENTITY_MAX, KNOWN_IDENTITIES_MAX } from '../limits.ts'

/**
 * Who shares a fate with an address: itself, and with IPv6 its /64, which one subscriber has for its own.
 * @param address as net.Socket gives it; IPv4 mapped into IPv6 is the IPv4 address
 */
export function addressGroup(address: string | undefined): string {
  if (address === undefined) return 'unknown'
  const plain = address.replace(/%.*$/, '')
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(plain)?.[1]
  if (mapped !== undefined) return mapped
  if (isIPv4(plain) || !isIPv6(plain)) return plain
  const [head = '', tail] = plain.split('::') as [string, string?]
  const front = head === '' ? [] : head.split(':')
  const back = tail === undefined || tail === '' ? [] : tail.split(':')
  const groups =
    tail === undefined ? front : [...front, ...Array<string>(8 - front.length - back.length).fill('0'), ...back]
  return `${groups
    .slice(0, 4)
    .map(digits => Number.parseInt(digits, 16).toString(16))
    .join(':')}::/64`
}

/** Groups of addresses, by the identity that came from them; the least recent go first. */
export class KnownAddresses {
  readonly #identities = new Map<string, Set<string>>()
  /** How many identities came from a group. */
  readonly #counts = new Map<string, number>()

  /** An identity has proven itself from there just now. */
  add(identity: string, group: string): void {
    const groups = this.#identities.get(identity) ?? new Set<string>()
    this.#identities.delete(identity)
    this.#identities.set(identity, groups)
    if (groups.delete(group)) {
      groups.add(group)
      return
    }
    groups.add(group)
    this.#counts.set(group, (this.#counts.get(group) ?? 0) + 1)
    if (groups.size > KNOWN_ADDRESSES_PER_IDENTITY_MAX) this.#forget(groups, first(groups))
    if (this.#identities.size > KNOWN_IDENTITIES_MAX) {
      const [oldest, its] = this.#identities.entries().next().value!
      for (const one of its) this.#forget(its, one)
      this.#identities.delete(oldest)
    }
  }

  has(group: string): boolean {
    return this.#counts.has(group)
  }

  #forget(groups: Set<string>, group: string): void {
    groups.delete(group)
    const left = this.#counts.get(group)! - 1
    if (left === 0) this.#counts.delete(group)
    else this.#counts.set(group, left)
  }
}

function first(groups: ReadonlySet<string>): string {
  return groups.values().next().value!
}
