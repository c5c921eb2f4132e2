/** What differs between two configurations of `pageferry serve`. */
import type { Configuration } from './configuration.ts'

/**
 * What counts only after a restart: all but caps and shares, and targets where source proxies are listened for.
 * @returns names as in the file
 */
export function needRestart(before: Configuration, after: Configuration): string[] {
  const settings = ({
    caps,
    weights,
    peers,
    targets,
    disks,
    wanListen,
    peerName,
    sessionsMax,
    supply,
    ...rest
  }: Configuration): Map<string, string> =>
    new Map([
      ...Object.entries({
        ...rest,
        remoteStores: supply?.remote,
        storeInsecure: supply?.insecure,
        channels: supply?.channels,
        trust: supply?.trust,
        storeSizeBytes: supply?.maxBytes,
      }).map(([key, value]) => [kebab(key), JSON.stringify(value)] as const),
      ['wan', JSON.stringify([wanListen, peerName, sessionsMax])],
      ...peers.map(({ caps, share, ...peer }) => [`peers.${peer.name}`, JSON.stringify(peer)] as const),
    ])
  const was = settings(before)
  const is = settings(after)
  return [...new Set([...was.keys(), ...is.keys()])].filter(key => was.get(key) !== is.get(key))
}

/** As the file has it: without the unit. */
function kebab(key: string): string {
  return key.replace(/(?:Bytes|Ms)$/, '').replaceAll(/[A-Z]/g, letter => `-${letter.toLowerCase()}`)
}
