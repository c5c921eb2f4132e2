/** What settings of the file of `pageferry serve` do not go together: each may be right by itself. */
import {
  type Address,
  formatAddress,
  inTheWay,
  isLoopback,
  isRange,
  OTHER_TARGET_HINT,
  OWN_SOCKET_HINT,
} from '../relay/address.ts'
import { isRemoteName } from '../remote/remote-store.ts'
import type { FileSettings } from './configuration-schema.ts'
import { ALL_PEERS, LEARNED_UNSIGNED } from './settings.ts'

/** Tells a mistake. @param path where it stands */
type Tell = (path: readonly PropertyKey[], what: string, hint: string) => void

/** Tells all of them. */
export function checkRules(file: FileSettings, mistake: Tell): void {
  for (const check of [credentials, stores, listeners, disks, peers, wan, sockets]) check(file, mistake)
}

/** How the WAN is protected. */
function credentials(file: FileSettings, mistake: Tell): void {
  if (!file.plaintext && file['tls-creds'] === undefined)
    mistake(['tls-creds'], 'neither tls-creds nor plaintext: true', '`pageferry keygen` makes certificates or keys')
  if (file.plaintext && file['tls-creds'] !== undefined)
    mistake(['plaintext'], 'plaintext and tls-creds', 'give one of them')
}

/** Template sets, and where they come from. */
function stores(file: FileSettings, mistake: Tell): void {
  if (file.store === undefined) {
    for (const key of ['store-key', 'learn', 'learn-size', 'learn-age'] as const)
      if (file[key] !== undefined && file[key] !== 'off')
        mistake([key], `${key} without store`, 'name a folder under store')
  }
  if (file.signers !== undefined) {
    if (file.store === undefined) mistake(['signers'], 'signers without store', 'name a folder under store')
    if (file.learn !== undefined && file.learn !== 'off')
      mistake(['learn'], `signers, and learn: ${file.learn}`, LEARNED_UNSIGNED)
  }
  const remote = file['remote-stores']
  if (remote.length > 0 || file.channels.length > 0 || file.trust !== undefined || file['store-size'] !== undefined) {
    if (file.store === undefined) mistake(['remote-stores'], 'remote stores without store', 'name a folder under store')
    if (remote.length === 0) mistake(['channels'], 'channels without remote-stores', 'list s3://BUCKET/PREFIX, for one')
    if (file.channels.length === 0) mistake(['remote-stores'], 'remote-stores without channels', 'name those to follow')
    if (file.trust === undefined) mistake(['channels'], 'channels without trust', 'name the file with the public keys')
  }
  for (const [i, name] of remote.entries())
    if (!isRemoteName(name))
      mistake(
        ['remote-stores', i],
        `${name} is no remote store`,
        's3://BUCKET/PREFIX, https://HOST/PATH or file:///PATH',
      )
}

/** Where QEMUs and clients of disks connect. */
function listeners(file: FileSettings, mistake: Tell): void {
  if (file.listeners.length === 0 && !file.wan)
    mistake([], 'nothing to do', 'give listeners with peers, or wan with targets')
  for (const [i, listener] of file.listeners.entries()) {
    if (!Object.hasOwn(file.peers, listener.peer))
      mistake(
        ['listeners', i, 'peer'],
        `no peer ${JSON.stringify(listener.peer)}`,
        `peers are: ${Object.keys(file.peers).join(', ') || 'none'}`,
      )
    const { at, text: where } = listener.at
    for (const key of ['mode', 'group'] as const) {
      if (listener[key] !== undefined && at.kind !== 'unix')
        mistake(['listeners', i, key], `${key} of ${where}`, 'only the file of a Unix socket has one')
    }
    if (!isLoopback(at) && at.kind !== 'fd')
      mistake(
        ['listeners', i, 'at'],
        `${where} can be reached from other hosts`,
        'nothing authenticates QEMU: use a loopback address or a Unix socket',
      )
    for (const [name, target] of [...Object.entries(file.targets), ...Object.entries(file.disks)]) {
      if (overlap(at, target.at))
        mistake(
          ['listeners', i, 'at'],
          `${where} is where target ${name} is dialled`,
          'QEMU listens there: use another loopback address, such as 127.0.0.2',
        )
    }
  }
}

/** What is done about disks where there are any. */
function disks(file: FileSettings, mistake: Tell): void {
  if (file['disk-answers'] === 'early' && !file.listeners.some(({ disks }) => disks))
    mistake(['disk-answers'], 'disk-answers: early, and no listener for disks', 'say disks: true at one')
  if (file['disk-zeroes'] === 'unmap' && Object.keys(file.disks).length === 0)
    mistake(['disk-zeroes'], 'disk-zeroes: unmap without disks', 'name the servers of disks under disks')
  for (const [name, { at, text }] of Object.entries(file.disks)) {
    if (Object.values(file.targets).some(target => inTheWay(at, target.at)))
      mistake(['disks', name], `${text} is a target of migrations, too`, OTHER_TARGET_HINT)
  }
}

/** Whom guests go to. */
function peers(file: FileSettings, mistake: Tell): void {
  if (Object.hasOwn(file.peers, ALL_PEERS))
    mistake(['peers', ALL_PEERS], `a peer called ${ALL_PEERS}`, 'the word stands for all of them: choose another name')
  for (const [name] of Object.entries(file.peers)) {
    if (!file.listeners.some(listener => listener.peer === name))
      mistake(
        ['peers', name],
        `no listener leads to peer ${JSON.stringify(name)}`,
        'add a listener with this peer, or remove it',
      )
  }
}

/** Where source proxies connect, and what is dialled for them. */
function wan(file: FileSettings, mistake: Tell): void {
  if (file.wan && Object.keys(file.targets).length === 0)
    mistake(['wan'], 'wan without targets', 'name the destination QEMUs under targets')
  for (const key of ['targets', 'disks'] as const) {
    if (!file.wan && Object.keys(file[key]).length > 0)
      mistake([key], `${key} without wan`, 'say under wan where source proxies connect')
  }
  for (const [i, { at }] of (file.wan?.listen ?? []).entries()) {
    if (at.kind === 'unix' || isRange(at))
      mistake(['wan', 'listen', i], `${formatAddress(at)}`, 'the WAN side listens on one TCP port, or fd:NAME')
    else if (file.plaintext && at.kind === 'tcp' && !isLoopback(at))
      mistake(
        ['wan', 'listen', i],
        `plaintext at ${formatAddress(at)}`,
        'anyone who reaches that port could migrate a guest here',
      )
  }
}

/** No two sockets may be in each other's way. */
function sockets(file: FileSettings, mistake: Tell): void {
  const all = [
    ...file.listeners.map(({ at: { at, text } }, i) => ({ at, text, path: ['listeners', i, 'at'] })),
    ...(file.wan?.listen ?? []).map(({ at, text }, i) => ({ at, text, path: ['wan', 'listen', i] })),
  ]
  for (const [i, { at, text, path }] of all.entries()) {
    if (all.slice(0, i).some(before => inTheWay(at, before.at)))
      mistake(path, `${text} is listened at twice`, OWN_SOCKET_HINT)
  }
}

/** Whether a listener and a target name the same port of the same address. */
function overlap(a: Address, b: Address): boolean {
  if (a.kind === 'unix' && b.kind === 'unix') return a.path === b.path
  if (a.kind !== 'tcp' || b.kind !== 'tcp') return false
  return a.host === b.host && a.port <= b.portTo && b.port <= a.portTo
}
