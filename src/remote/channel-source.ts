/** Where a channel's document comes from: the first of several stores that has it. */
import { isProxyError, type ProxyError } from '../errors.ts'
import { CHANNEL_BYTES_MAX } from '../limits.ts'
import { keyOfChannel, type RemoteStore, type SmallObject } from './remote-store.ts'

export class ChannelSource {
  private readonly stores: readonly RemoteStore[]
  private readonly key: string
  /** What a store gave last: with its tag it need not give it again. */
  private readonly last = new Map<RemoteStore, SmallObject>()

  /** @param stores in the order in which they are asked */
  constructor(stores: readonly RemoteStore[], channel: string) {
    this.stores = stores
    this.key = keyOfChannel(channel)
  }

  /**
   * The document as it is just now.
   * @returns undefined where all stores answered, and none has it
   * @throws what the first store failed with, where no other has it; the signal's reason
   */
  async ask(signal?: AbortSignal): Promise<Uint8Array | undefined> {
    let failure: ProxyError | undefined
    for (const store of this.stores) {
      try {
        const last = this.last.get(store)
        const found = await store.read(this.key, CHANNEL_BYTES_MAX, { unlessTag: last?.tag, signal })
        if (found === 'unchanged') return last!.bytes
        if (found === undefined) continue
        if (found.tag !== undefined) this.last.set(store, found)
        return found.bytes
      } catch (error) {
        if (!isProxyError(error)) throw error
        failure ??= error
      }
    }
    if (failure) throw failure
    return undefined
  }
}
