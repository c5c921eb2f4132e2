/** What a disk's server says, on its way through the source's half: in its order, whatever of it is to be expanded. */
import t from 'tap'
import { SourceReplies } from '../../src/daemon/source-replies.ts'
import type { InboundChannel } from '../../src/transfer/inbound.ts'
import type { Pool } from '../../src/transfer/pool.ts'

const POOL = { kernel: { layout: { templatePages: 0, ringPages: 64 } } } as unknown as Pool

/** Expands one thing after the other, when it is told to. */
class ByHand {
  private readonly jobs: (() => void)[] = []

  push(channel: InboundChannel, parts: readonly Uint8Array[]): void {
    this.jobs.push(() => channel.expanded(parts[0]!, () => {}))
  }

  mark(then: () => void): void {
    this.jobs.push(then)
  }

  close(): void {}

  next(): void {
    this.jobs.shift()!()
  }
}

function half() {
  const inbound = new ByHand()
  const heard: string[] = []
  const replies = new SourceReplies(POOL, inbound, () => heard.push('nobody'))
  const info = (migration: number) => ({ target: 'default', migration, kind: 'disk' as const, replies: 64 })
  const infos = [info(1), info(2), info(3)]
  return {
    ...{ inbound, heard, replies },
    batch: (flow: number, text: string) =>
      replies.push(flow, infos[flow]!, { expanded: bytes => heard.push(Buffer.from(bytes).toString()) }, [
        Buffer.from(text),
      ]),
    data: (flow: number, text: string) => replies.behind(flow, () => heard.push(text)),
  }
}

t.test('what waits behind a batch of another disk is not overtaken by what comes next of its own', t => {
  const { inbound, heard, batch, data } = half()
  batch(1, 'read')
  batch(2, 'of another')
  data(1, 'first')
  inbound.next() // all of its batches are expanded
  data(1, 'second')
  while (heard.length < 4) inbound.next()
  t.same(heard, ['read', 'of another', 'first', 'second'])
  data(1, 'third')
  t.equal(heard.at(-1), 'third', 'at once where nothing is under way')
  t.end()
})

t.test('a flow whose number was used before waits for nothing of that', t => {
  const { inbound, heard, replies, batch, data } = half()
  batch(1, 'read')
  data(1, 'end')
  replies.forget(1)
  data(1, 'of the next')
  t.same(heard, ['of the next'])
  inbound.next()
  inbound.next()
  t.same(heard, ['of the next', 'read', 'end'])
  t.end()
})
