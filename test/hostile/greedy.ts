/** Hostile senders of batches, and the QEMU of theirs that takes all that comes out. */
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { OP } from '../../src/codec/wire.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../src/limits.ts'
import { FRAME } from '../../src/wan/wire.ts'
import { op, packed } from '../codec/costly-batches.ts'
import type { Peer } from './peer.ts'

const MORE = 1

/** A destination QEMU that takes everything, and its name among the targets. */
export async function greedyTarget(): Promise<{ address: string; [Symbol.asyncDispose](): Promise<void> }> {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-greedy-'))
  const server = net.createServer(socket => socket.on('error', () => {}).resume())
  const path = join(folder, 'qemu.sock')
  server.listen(path)
  await once(server, 'listening')
  return {
    address: `unix:${path}`,
    async [Symbol.asyncDispose]() {
      server.close()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** Sends a batch in its frames. */
export function sendBatch(peer: Peer, flow: number, batch: Uint8Array): void {
  for (let at = 0; at < batch.length; at += FRAME_PAYLOAD_BYTES_MAX) {
    const part = batch.subarray(at, at + FRAME_PAYLOAD_BYTES_MAX)
    peer.send(FRAME.BATCH, part, flow, at + part.length < batch.length ? MORE : 0)
  }
}

/** How a main channel begins: nothing else is passed on to a QEMU. */
export const CHANNEL_START = Buffer.from('5145564d00000003', 'hex')

/** A batch that gives these few bytes. */
export function plainBatch(bytes: Uint8Array): Buffer {
  return packed({ rawLength: bytes.length, columns: { 0: op(OP.OTHER, bytes.length), 2: bytes } }, bytes)
}

/** Credit of a peer's flows, as the other side grants it, and what was used of it. */
export class Credit {
  private readonly peer: Peer
  private readonly allowed = new Map<number, number>()
  private readonly used = new Map<number, number>()
  private wake = (): void => {}

  constructor(peer: Peer) {
    this.peer = peer
    peer.onFrame = ({ type, flow, payload }) => {
      if (type === FRAME.CREDIT) this.allowed.set(flow, Number(Buffer.from(payload).readBigUInt64BE()))
      this.wake()
    }
    peer.socket.on('close', () => this.wake())
  }

  /** Sends a batch of so many raw bytes where the flow has credit for them; the channel's start before the first. */
  send(flow: number, rawLength: number, batch: Uint8Array): boolean {
    if (!this.used.has(flow)) {
      if (!this.take(flow, CHANNEL_START.length)) return false
      sendBatch(this.peer, flow, plainBatch(CHANNEL_START))
    }
    if (!this.take(flow, rawLength)) return false
    sendBatch(this.peer, flow, batch)
    return true
  }

  /** Bytes that may be sent on a flow, in all. */
  of(flow: number): number {
    return this.allowed.get(flow) ?? 0
  }

  private take(flow: number, bytes: number): boolean {
    const used = (this.used.get(flow) ?? 0) + bytes
    if (used > this.of(flow)) return false
    this.used.set(flow, used)
    return true
  }

  /** Resolves with the next frame, when the peer is gone, or then (Infinity: never). */
  changed(untilMs: number): Promise<void> {
    if (this.peer.isClosed) return Promise.resolve()
    return new Promise(resolve => {
      const waitMs = Math.max(0, untilMs - performance.now())
      const timer = Number.isFinite(untilMs) ? setTimeout(resolve, waitMs) : undefined
      this.wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }
}

/**
 * A session whose flow 1 was taken. One without a flow is asked to go (DRAIN) within five seconds where rings can be shared
 * better, and takes no new migration then: who wants to keep it begins one at once, and dials again where the two crossed.
 * @throws what `dial` throws
 */
export async function begun(dial: () => Promise<Peer>, target: string): Promise<{ peer: Peer; credit: Credit }> {
  for (;;) {
    const peer = await dial()
    const credit = new Credit(peer)
    peer.open(1, target)
    while (!peer.isClosed && !peer.counts.has(FRAME.CREDIT) && !peer.counts.has(FRAME.RESET))
      await credit.changed(Number.POSITIVE_INFINITY)
    if (peer.counts.has(FRAME.CREDIT)) return { peer, credit }
    const closed = peer.isClosed || once(peer.socket, 'close')
    peer.send(FRAME.BYE, Buffer.alloc(2))
    await closed
  }
}
