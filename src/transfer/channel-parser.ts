/** Which parser follows which kind of channel. */
import type { ChannelParser, FlowEncoder } from '../codec/flow-encoder.ts'
import type { MemoryMap } from '../codec/memory-map.ts'
import { assert } from '../errors.ts'
import type { BlockTable } from '../qemu/block-table.ts'
import type { ChannelKind } from '../qemu/channel-kind.ts'
import { MainStreamParser, type ParserMemory } from '../qemu/main-stream.ts'
import { MultifdParser } from '../qemu/multifd-channel.ts'
import { PreemptParser } from '../qemu/preempt-channel.ts'

/** What the channels of one migration share. */
export interface MigrationMemory {
  /** RAMBlocks, as its main channel names them. */
  readonly blocks?: BlockTable
  /** Which of its memory has passed. */
  readonly map?: MemoryMap
  /** The parser's state of the first connection, for a recovery. */
  readonly recovery?: ParserMemory
}

/** The parser of a channel; undefined where all of it is relayed raw (TLS, unknown protocols). */
export function parserFor(
  kind: ChannelKind,
  flow: FlowEncoder,
  memory: MigrationMemory = {},
): ChannelParser | undefined {
  switch (kind) {
    case 'main':
      return new MainStreamParser(flow, memory.blocks ? { blocks: memory.blocks } : {})
    case 'recovery':
      if (memory.recovery === undefined) return undefined // a migration that began before this proxy was started
      return new MainStreamParser(flow, {
        recovery: memory.recovery,
        ...(memory.blocks ? { blocks: memory.blocks } : {}),
      })
    case 'multifd':
      return new MultifdParser(flow, memory.blocks)
    case 'preempt':
      return memory.blocks ? new PreemptParser(flow, memory.blocks) : undefined
    default:
      assert(kind === 'tls' || kind === 'unknown', 'a channel kind without a decision')
      return undefined
  }
}
