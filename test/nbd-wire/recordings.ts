/** What was recorded of clients and servers that nobody here wrote: test/vectors/nbd/streams/ (record-conversations.ts). */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { zstdDecompressSync } from 'node:zlib'
import type { Step } from './harness.ts'
import type { ConversationNote, RecordingNote } from './record-conversations.ts'

const folder = fileURLToPath(new URL('../vectors/nbd/streams/', import.meta.url))
const bytesOf = (file: string) => zstdDecompressSync(readFileSync(folder + file))

function stepsOf({ order, client, server }: ConversationNote): Step[] {
  const bytes = { client: bytesOf(client.file), server: bytesOf(server.file) }
  const at = { client: 0, server: 0 }
  const steps = order.split(' ').map(word => {
    const length = Number(word)
    const from = length > 0 ? ('client' as const) : ('server' as const)
    at[from] += Math.abs(length)
    return { from, bytes: bytes[from].subarray(at[from] - Math.abs(length), at[from]) }
  })
  if (at.client !== client.lengthBytes || at.server !== server.lengthBytes) throw new Error('the order is not whole')
  return steps
}

export interface Recording {
  readonly name: string
  readonly connections: readonly (readonly Step[])[]
}

export const recordings: readonly Recording[] = (
  JSON.parse(readFileSync(`${folder}index.json`, 'utf8')) as RecordingNote[]
).map(({ name, connections }) => ({ name, connections: connections.map(stepsOf) }))
