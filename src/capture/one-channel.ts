/** The one channel of an input that `encode` and `estimate` work on. */
import { ProxyError } from '../errors.ts'
import type { ChannelKind } from '../qemu/channel-kind.ts'
import { ChannelReader } from './channels.ts'
import { type ChannelFormat, hasChannels } from './formats.ts'
import { type Input, noMigration } from './input.ts'
import type { Chunks } from './input-file.ts'
import { MendedBytes } from './mended-bytes.ts'
import { CAPTURE_WHOLE, missingText } from './missing.ts'
import { PageInput } from './pages.ts'
import { pagesAsStream } from './pages-as-stream.ts'
import { untilStreamEnd } from './stream-end.ts'

export interface ChannelChoice {
  /** Its number, from 1 in the order in which channels begin; undefined: the main channel, where there is one only. */
  readonly channel?: number | undefined
  /**
   * What counts is what its pages cost, not every byte. So: read on behind bytes that a capture lacks, at the next record;
   * leave out what stands behind a stream's end; take memory and disks at rest for the migration that would carry them;
   * each with a note.
   */
  readonly estimate?: boolean
  /** Told once, behind the last chunk: what else is there. */
  readonly note?: (text: string) => void
  /** Told how many bytes of the file were read. */
  readonly readBytes?: (count: number) => void
}

const BEHIND_THE_END = 'what stands behind the end of the migration is left out'

interface Found {
  readonly kind: ChannelKind
  readonly name: string
  lengthBytes: number
}

/**
 * The bytes of a channel of the input: all of a raw stream; of a capture the channel that was asked for, or its only
 * main channel.
 *
 * @throws IO, CAPTURE_FORMAT (at once where it has no channels); CAPTURE_GAP where bytes of it are missing; USAGE where it has to be chosen, or is not there:
 * then the others are listed
 */
export function readOneChannel(input: Input, choice: ChannelChoice = {}): Chunks {
  const { name, format } = input
  if (hasChannels(format)) return chosenChannel(input, format, choice)
  const { channel, estimate, note, readBytes } = choice
  if (!estimate) throw noMigration(name, input.takenFor)
  if (channel !== undefined) throw notThere(name, channel, [])
  return pagesAsStream(PageInput.of(input, { partial: true, note: ({ text }) => note?.(text) }), readBytes)
}

async function* chosenChannel(input: Input, format: ChannelFormat, choice: ChannelChoice): Chunks {
  const { channel, estimate = false, note, readBytes } = choice
  if (format === 'stream') {
    if (channel !== undefined && channel !== 1) throw notThere(input.name, channel, [])
    const chunks = input.chunks(readBytes)
    yield* estimate ? untilStreamEnd(chunks, () => note?.(BEHIND_THE_END)) : chunks
    return
  }
  const found: Found[] = []
  const ready: Buffer[] = []
  let chosen = -1
  let mended: MendedBytes | undefined
  /** Main channels more than one: the rest is read only to list them. */
  let ambiguous = false
  const reader = new ChannelReader(input.name, format, {
    open: (number, kind, name) => {
      found[number] = { kind, name, lengthBytes: 0 }
      if (channel !== undefined) {
        if (number === channel - 1) chosen = number
      } else if (kind === 'main') {
        if (chosen >= 0) ambiguous = true
        chosen = number
      }
      if (number === chosen) mended = new MendedBytes(kind, bytes => ready.push(bytes))
    },
    bytes: (number, chunk, at, length) => {
      found[number]!.lengthBytes += length
      if (number === chosen && !ambiguous) mended!.push(chunk, at, length)
    },
    gap: (number, _position, lengthBytes, reason) => {
      if (number === chosen) mended!.gap(lengthBytes, reason)
    },
    end: number => {
      if (number === chosen) mended!.end()
    },
  })
  for await (const chunk of input.chunks(readBytes)) {
    reader.push(chunk)
    if (ambiguous) ready.length = 0
    yield* ready.splice(0)
  }
  reader.end()
  if (channel !== undefined && chosen < 0) throw notThere(input.name, channel, found)
  if (ambiguous || chosen < 0) {
    const mains = found.filter(({ kind }) => kind === 'main').length
    const what = mains === 0 ? `no main channel in ${input.name}` : `${mains} migrations in ${input.name}`
    throw new ProxyError('USAGE', what, undefined, `choose a channel: ${listed(found)}`)
  }
  const { missing } = mended!
  if (missing.gaps > 0 && (!estimate || missing.lostAt !== undefined)) {
    const where = { stream: `${input.name}, connection ${found[chosen]!.name}`, offset: missing.firstAt }
    throw new ProxyError('CAPTURE_GAP', missingText(missing), where, CAPTURE_WHOLE)
  }
  yield* ready
  if (missing.gaps > 0) note?.(missingText(missing))
  if (found.length > 1) {
    const others = found.filter((_, number) => number !== chosen)
    note?.(
      `this is channel ${chosen + 1} of ${found.length}, ${found[chosen]!.name}; left out: ${listed(others, found)}`,
    )
  }
}

function notThere(name: string, channel: number, found: readonly Found[]): ProxyError {
  const action = found.length === 0 ? 'it has no other: leave --channel out' : `choose: ${listed(found)}`
  return new ProxyError('USAGE', `--channel ${channel}, which ${name} does not have`, undefined, action)
}

/** Channels that are listed one by one. */
const LISTED_MAX = 8

function listed(some: readonly Found[], all: readonly Found[] = some): string {
  const texts = some.slice(0, LISTED_MAX).map(one => {
    return `--channel ${all.indexOf(one) + 1} (${one.kind}, ${one.lengthBytes} bytes, ${one.name})`
  })
  if (some.length > LISTED_MAX) texts.push(`and ${some.length - LISTED_MAX} more`)
  return texts.join(', ')
}
