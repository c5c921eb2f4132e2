/** Groups of this host, by name: QEMU does not run as we do, and a Unix socket is for its group. */
import { spawnSync } from 'node:child_process'
import { ProxyError } from '../errors.ts'

const GETENT_MS = 10_000

/**
 * The id of a group.
 * @param text its name, or its id
 * @throws ProxyError USAGE where there is none of that name, IO where the host cannot be asked
 */
export function groupId(text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text)
  const hint = 'give the group that QEMU runs as, such as libvirt-qemu or kvm, or its number'
  if (!/^[A-Za-z0-9_.@-]{1,64}$/.test(text) || text.startsWith('-'))
    throw new ProxyError('USAGE', `group ${JSON.stringify(text)}`, undefined, hint)
  // Not /etc/group alone: groups come from LDAP, systemd and others too.
  const asked = spawnSync('getent', ['group', text], { encoding: 'utf8', timeout: GETENT_MS })
  if (asked.error)
    throw new ProxyError('IO', `cannot ask for group ${text}: ${asked.error.message}`, undefined, 'give its number')
  const id = asked.stdout.split(':')[2] ?? ''
  if (!/^\d{1,10}$/.test(id)) throw new ProxyError('USAGE', `no group ${text} on this host`, undefined, hint)
  return Number(id)
}

/**
 * A file mode in octal digits: `0660`.
 * @throws ProxyError USAGE
 */
export function fileMode(text: string, option = 'mode'): number {
  if (/^0?[0-7]{3}$/.test(text)) return Number.parseInt(text, 8)
  throw new ProxyError('USAGE', `${option} ${JSON.stringify(text)}`, undefined, 'three octal digits, such as 0660')
}
