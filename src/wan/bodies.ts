/** Payloads of the frames that are no bytes of a channel (protocol.md §3), both ways. */

import { readU16, readU64, TWO_32, writeU16, writeU64 } from '../bytes/big-endian.ts'
import { PAGE_SIZE } from '../bytes/page-size.ts'
import { LABEL_LENGTH_MAX, REPLIES_RING_PAGES_MAX, TARGET_LENGTH_MAX, TEXT_BYTES_MAX } from '../limits.ts'
import { KIND_DISK } from './wire.ts'

/** What OPEN says of a flow. */
export interface FlowInfo {
  /** Name of the target that the server is to dial, from the server's own configuration. */
  readonly target: string
  /** Number of the migration that this flow belongs to, 1..2^32-1: flows of one migration share its part of the WAN. */
  readonly migration: number
  /** What the client takes the channel for ('main', 'multifd', ...); for logs and statistics. */
  readonly kind: string
  /** Of a disk: pages of ring that the client keeps for the server's batches; left out: it takes none. */
  readonly replies?: number | undefined
}

const ENCODER = new TextEncoder()

export function encodeOpen({ target, migration, kind, replies }: FlowInfo): Uint8Array {
  return ENCODER.encode(JSON.stringify({ target, migration, kind, replies }))
}

/** @returns null where it is no OPEN, or breaks a bound */
export function parseOpen(payload: Uint8Array): FlowInfo | null {
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(payload))
  } catch {
    return null
  }
  if (typeof value !== 'object' || value === null) return null
  const { target, migration, kind, replies } = value as Record<string, unknown>
  if (typeof target !== 'string' || target.length < 1 || target.length > TARGET_LENGTH_MAX) return null
  if (typeof kind !== 'string' || kind.length > LABEL_LENGTH_MAX) return null
  if (typeof migration !== 'number' || !Number.isInteger(migration) || migration < 1 || migration >= TWO_32) return null
  if (replies === undefined) return { target, migration, kind }
  if (kind !== KIND_DISK || typeof replies !== 'number' || !Number.isInteger(replies)) return null
  if (replies < 0 || replies > REPLIES_RING_PAGES_MAX) return null
  return { target, migration, kind, replies }
}

/** RESET and BYE: a code, and a text that is cut at TEXT_BYTES_MAX bytes, never within a character. */
export function encodeReason(code: number, text: string): Uint8Array {
  const tail = encodeText(text)
  const payload = new Uint8Array(2 + tail.length)
  writeU16(payload, 0, code)
  payload.set(tail, 2)
  return payload
}

export function reasonCode(payload: Uint8Array): number {
  return readU16(payload, 0)
}

/** The peer's words as they are: whoever writes them anywhere makes them printable. */
export function reasonText(payload: Uint8Array): string {
  return new TextDecoder().decode(payload.subarray(2))
}

function encodeText(text: string): Uint8Array {
  if (text.length * 3 <= TEXT_BYTES_MAX) return ENCODER.encode(text)
  const bytes = new Uint8Array(TEXT_BYTES_MAX)
  return bytes.slice(0, ENCODER.encodeInto(text, bytes).written)
}

/** Of WANT, for each page. */
export const WANTED_BYTES = 8

/** WANT: numbers of cold pages. */
export function encodeWant(numbers: readonly number[]): Uint8Array {
  const payload = new Uint8Array(WANTED_BYTES * numbers.length)
  for (const [i, number] of numbers.entries()) writeU64(payload, WANTED_BYTES * i, number)
  return payload
}

/** @returns undefined where the payload is none; a number beyond 2^53 is -1 */
export function parseWant(payload: Uint8Array): number[] | undefined {
  if (payload.length === 0 || payload.length % WANTED_BYTES !== 0) return undefined
  return Array.from({ length: payload.length / WANTED_BYTES }, (_, i) => readU64(payload, WANTED_BYTES * i))
}

/** PAGE: a cold page's number, and the page; undefined: it cannot be had. */
export function encodePage(number: number, page: Uint8Array | undefined): Uint8Array {
  const payload = new Uint8Array(8 + (page?.length ?? 0))
  writeU64(payload, 0, number)
  if (page) payload.set(page, 8)
  return payload
}

/** @returns undefined where the payload is none */
export function parsePage(payload: Uint8Array): { number: number; page: Uint8Array | undefined } | undefined {
  if (payload.length !== 8 && payload.length !== 8 + PAGE_SIZE) return undefined
  return { number: readU64(payload, 0), page: payload.length > 8 ? payload.subarray(8) : undefined }
}

/** One number (CREDIT, PING) or two (ACK). */
export function encodeNumbers(first: number, second?: number): Uint8Array {
  const payload = new Uint8Array(second === undefined ? 8 : 16)
  writeU64(payload, 0, first)
  if (second !== undefined) writeU64(payload, 8, second)
  return payload
}
