/**
 * What may be answered before the far server has, and what has to wait for what (docs/adr/0020-early-answers.md). Each rule
 * by itself, so that a test can break it and see that somebody notices.
 */

import type { NbdExport, NbdRequest } from './sink.ts'
import { COMMAND, COMMAND_FLAG, NBD_ERROR, TRANSMISSION_FLAG } from './wire.ts'
import { overlap, type WrittenRange } from './written-ranges.ts'

/** Flags of a write that say nothing of when it is answered. FAST_ZERO does: its error is an answer that a client counts on. */
const QUIET_FLAGS = COMMAND_FLAG.NO_HOLE

/** A payload that any server takes, where it does not say otherwise (nbd-wire 8). */
const PAYLOAD_BYTES_MAX = 32 << 20

const WRITES: ReadonlySet<number> = new Set([COMMAND.WRITE, COMMAND.WRITE_ZEROES, COMMAND.TRIM])

/** A write that is not settled, as rules see it. */
export interface UnsettledWrite extends WrittenRange {
  readonly request: NbdRequest
  /** Its client has an answer. */
  readonly isEarly: boolean
  /** Requests that wait for it. */
  readonly waiters: number
}

/** It changes what a range of the export is. */
export function isWrite({ type }: NbdRequest): boolean {
  return WRITES.has(type)
}

export const EARLY_RULES = {
  /** Whether writes of a connection may be answered early at all: its client has to be able to ask for what is durable. */
  serves(transmissionFlags: number): boolean {
    const { SEND_FLUSH, READ_ONLY } = TRANSMISSION_FLAG
    return (transmissionFlags & (SEND_FLUSH | READ_ONLY)) === SEND_FLUSH
  },

  /** Whether a request may: a write that this server has said it takes, and of which nothing more was asked. */
  isEarly(request: NbdRequest, exported: NbdExport): boolean {
    const { type, flags, offset, lengthBytes, payloadBytes } = request
    const { transmissionFlags, sizeBytes, minimumBlockBytes, maximumPayloadBytes } = exported
    const quiet = exported.extended ? QUIET_FLAGS | COMMAND_FLAG.PAYLOAD_LEN : QUIET_FLAGS
    if (!isWrite(request) || (flags & ~quiet) !== 0 || lengthBytes === 0) return false
    if (type === COMMAND.TRIM && (transmissionFlags & TRANSMISSION_FLAG.SEND_TRIM) === 0) return false
    if (type === COMMAND.WRITE_ZEROES && (transmissionFlags & TRANSMISSION_FLAG.SEND_WRITE_ZEROES) === 0) return false
    if (type !== COMMAND.WRITE && payloadBytes > 0) return false
    const block = Math.max(1, minimumBlockBytes)
    if (offset % block !== 0 || lengthBytes % block !== 0 || offset + lengthBytes > sizeBytes) return false
    return payloadBytes <= (maximumPayloadBytes || PAYLOAD_BYTES_MAX)
  },

  /**
   * Whether a request waits for all writes before it. FLUSH covers what a server has answered; what a FUA write and DISC say
   * of errors is to hold for all before them; BLOCK_STATUS may tell of what lies behind its range.
   */
  waitsForAll({ type, flags }: NbdRequest): boolean {
    return (
      type === COMMAND.FLUSH ||
      type === COMMAND.DISC ||
      type === COMMAND.BLOCK_STATUS ||
      (flags & COMMAND_FLAG.FUA) !== 0
    )
  },

  /** Whether a request waits for a write before it: a server takes what it has not answered in any order. */
  waitsFor(later: WrittenRange, earlier: UnsettledWrite): boolean {
    return overlap(later, earlier)
  },

  /**
   * Whether a write that is complete stands for one before it that is not on its way: nobody may wait for that but the
   * newer one. TRIM leaves it open what is there, and so stands for nothing.
   */
  supersedes(newer: UnsettledWrite, older: UnsettledWrite): boolean {
    if (!older.isEarly || !newer.isEarly || older.waiters > 1 || newer.request.type === COMMAND.TRIM) return false
    return newer.offset <= older.offset && older.end <= newer.end
  },

  /** The cookie of the `count`th request on the far leg, from 1 on: no two under way have the same, and codecs foresee it. */
  cookie(count: number, _request: NbdRequest): number {
    return count
  },

  /** What a far server's error to a write that was answered early is to its client from then on; 0: forgotten. */
  remembers(error: number): number {
    return error === 0 ? NBD_ERROR.EIO : error
  },

  /** The same, once it has been told. */
  remembersTold(error: number): number {
    return error
  },

  /** Whether bytes that are not understood may go on: what they say must not meet requests whose cookies are others there. */
  relays(unsettled: number): boolean {
    return unsettled === 0
  },

  /** Whether a connection may end in order where its server has closed. */
  endsWell(unsettled: number, error: number): boolean {
    return unsettled === 0 && error === 0
  },
}

export type EarlyRules = typeof EARLY_RULES
