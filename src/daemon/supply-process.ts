/**
 * The process that follows channels for a proxy: its own, at the lowest priority, so that no migration waits for a
 * transfer, a check of gigabytes, or a store that stalls. Started by set-supply.ts, and ends when that one does.
 */
import { constants, setPriority } from 'node:os'
import { isProxyError } from '../errors.ts'
import { readTrustedKeys } from '../remote/channel-keys.ts'
import { type FollowEvent, type Following, followChannels } from '../remote/follow-channels.ts'
import { openRemoteStore } from '../remote/open-store.ts'
import { readStoreKey } from '../store/cipher.ts'
import { TemplateStore } from '../store/template-store.ts'
import type { SupplyMessage, SupplySettings } from './set-supply.ts'

/** How long it may take to give back what it holds, once the proxy has ended. */
const END_MS = 2000

function tell(message: SupplyMessage): void {
  if (process.connected) process.send!(message)
}

async function supply(settings: SupplySettings, signal: AbortSignal): Promise<Following> {
  const { own, storeKey, remote, insecure, channels, trust, signers, maxBytes } = settings
  const stores = await Promise.all(remote.map(name => openRemoteStore(name, { insecure })))
  return followChannels({
    stores,
    into: new TemplateStore(own, storeKey === undefined ? undefined : readStoreKey(storeKey)),
    channels,
    trusted: () => readTrustedKeys(trust), // at each check: a key that was removed counts no more
    signers: signers === undefined ? undefined : () => readTrustedKeys(signers),
    maxBytes,
    signal,
    tell: (event: FollowEvent) => {
      if (event.kind !== 'failed') tell(event)
      else {
        const { code, what, action } = event.error
        tell({ kind: 'failed', channel: event.channel, code, error: what, hint: action })
      }
    },
  })
}

// a terminal's Ctrl-C comes to all of its processes: a proxy lets migrations end first
for (const signal of ['SIGINT', 'SIGHUP'] as const) process.on(signal, () => {})
const stop = new AbortController()
let isWorking = false
process.on('disconnect', () => {
  stop.abort(new Error('the proxy has ended'))
  if (!isWorking) process.exit()
  setTimeout(() => process.exit(), END_MS) // a disk or a store that hangs
})
try {
  setPriority(constants.priority.PRIORITY_LOW) // disks' too: the kernel makes one of the other
} catch {
  // forbidden by whatever started the proxy: a transfer is bound by the network anyway
}
process.once('message', (settings: SupplySettings) => {
  isWorking = true
  supply(settings, stop.signal)
    .then(({ ended, askNow }) => {
      process.on('message', askNow)
      return ended
    })
    .then(() => process.exit()) // its locks are given back
    .catch((error: unknown) => {
      if (!isProxyError(error)) throw error
      tell({ kind: 'failed', channel: '', code: error.code, error: error.what, hint: error.action })
      process.exitCode = 1
      isWorking = false
      process.disconnect()
    })
})
