/**
 * The life of a channel at the destination: when its QEMU is dialled, where its bytes go, and how both directions come to
 * their end, whatever comes first. A table, as the source's (src/migration/source-life.ts): null is a defect of ours.
 */
import { assert } from '../errors.ts'

export type DestinationState =
  | 'unread' // the source opened it; its first bytes have not told yet that a channel of QEMU begins so
  | 'awaited' // they have, or it may be silent: its QEMU is dialled when its turn comes
  | 'said' // and the source QEMU closed before the connection stood
  | 'open' // the connection stands
  | 'ending' // its QEMU sends no more: FIN is due once all that it said is handed in
  | 'finished' // FIN was handed in; the source's direction may live on
  | 'leaving' // as ending, and the connection is closed: QEMU has all it needs, what still comes for it is dropped
  | 'left' // as finished, and closed
  | 'owed' // the session knows it no more, by END: QEMU still gets what lies in the pool
  | 'broken' // RESET was handed in, and its END has not come
  | 'over' // nobody wants anything of it

export type DestinationInput =
  | 'begins' // its first bytes are those of a channel of QEMU, or it is one that may be silent
  | 'refused' // they are not, or its target may not be dialled, or does not accept
  | 'connected'
  | 'fin' // the source QEMU closed, and all that it sent is expanded
  | 'reset' // the source side tore it down
  | 'end' // the destination QEMU sends no more
  | 'sent' // all that it said so far is handed in
  | 'closed' // its connection is closed, by FIN both ways or behind SHUT, which says that it has all it needs
  | 'broke' // its connection broke
  | 'givenUp' // the WAN has been gone for too long
  | 'ended' // both directions have ended, and the source will hear of it
  | 'lost' // the session is gone
  | 'overdue' // its QEMU has not read for too long what is owed to it

/** What is to be done, in this order; handing in an end is last, because the session may answer from inside that call. */
export type DestinationOrder =
  | 'dial' // when its turn comes
  | 'start' // the connection: it is given what came before it stood, and read
  | 'finish' // FIN to QEMU, behind all bytes
  | 'refuse' // say that no QEMU heard of it, and why
  | 'break' // end the dial or the connection, drop what waits for it
  | 'owe' // see to it that QEMU gets the rest, but not for ever
  | 'settle' // nothing is owed any more
  | 'fin' // hand it in
  | 'reset' // hand it in
  | 'leave' // its migration has one channel less

/** Where it leads, and what is to be done. */
export type DestinationStep = readonly [DestinationState, ...DestinationOrder[]]
export type DestinationRow = Readonly<Record<DestinationInput, DestinationStep | null>>

const BREAK: DestinationStep = ['broken', 'break', 'reset']
const REFUSE: DestinationStep = ['broken', 'refuse', 'break', 'reset']
const BROKEN: DestinationStep = ['broken']
const OVER: DestinationStep = ['over']
// its migration is not over while QEMU has not got what it is told to have
const PAID: DestinationStep = ['over', 'settle', 'leave']
const UNPAID: DestinationStep = ['over', 'break', 'settle', 'leave']

/** While it lives. */
const LIVES = { reset: BREAK, givenUp: BREAK, lost: ['over', 'break', 'leave'], overdue: null } as const
/** No connection, so nothing of its QEMU; and the session does not end a flow in which this side has ended nothing. */
const UNCONNECTED = { end: null, sent: null, closed: null, broke: null, ended: null } as const

export type DestinationTable = Readonly<Record<DestinationState, DestinationRow>>

export const DESTINATION_TABLE: DestinationTable = {
  unread: {
    begins: ['awaited', 'dial'],
    refused: REFUSE,
    connected: null,
    fin: REFUSE, // it ended before it began
    ...UNCONNECTED,
    ...LIVES,
  },
  awaited: {
    begins: ['awaited'],
    refused: REFUSE,
    connected: ['open', 'start'],
    fin: ['said'],
    ...UNCONNECTED,
    ...LIVES,
  },
  said: { begins: null, refused: REFUSE, connected: ['open', 'start', 'finish'], fin: null, ...UNCONNECTED, ...LIVES },
  open: {
    begins: ['open'],
    refused: REFUSE, // one that was silent may turn out to be none of QEMU's
    connected: null,
    fin: ['open', 'finish'],
    end: ['ending'],
    sent: ['open'],
    closed: ['leaving'],
    broke: BREAK,
    ended: null,
    ...LIVES,
  },
  ending: {
    begins: ['ending'],
    refused: REFUSE,
    connected: null,
    fin: ['ending', 'finish'],
    end: null,
    sent: ['finished', 'fin'],
    closed: ['leaving'],
    broke: BREAK,
    ended: null,
    ...LIVES,
  },
  finished: {
    begins: ['finished'],
    refused: REFUSE,
    connected: null,
    fin: ['finished', 'finish'],
    end: null,
    sent: ['finished'],
    closed: ['left'],
    broke: BREAK,
    ended: ['owed', 'owe'],
    ...LIVES,
  },
  leaving: {
    begins: ['leaving'],
    refused: REFUSE,
    connected: null,
    fin: ['leaving'],
    end: null,
    sent: ['left', 'fin'],
    closed: null,
    broke: null,
    ended: null,
    ...LIVES,
  },
  left: {
    begins: ['left'],
    refused: REFUSE,
    connected: null,
    fin: ['left'],
    end: null,
    sent: ['left'],
    closed: null,
    broke: null,
    ended: ['over', 'leave'],
    ...LIVES,
  },
  owed: {
    begins: ['owed'],
    refused: ['owed'],
    connected: null,
    fin: ['owed', 'finish'], // it waited behind batches that were not expanded
    end: null,
    sent: ['owed'],
    closed: PAID,
    broke: PAID,
    reset: null,
    givenUp: ['owed'],
    ended: null,
    lost: UNPAID,
    overdue: UNPAID,
  },
  // Dials and sockets tell late.
  broken: {
    begins: BROKEN,
    refused: BROKEN,
    connected: ['broken', 'break'],
    fin: BROKEN,
    end: BROKEN,
    sent: BROKEN,
    closed: BROKEN,
    broke: BROKEN,
    reset: null,
    givenUp: BROKEN,
    ended: ['over', 'leave'],
    lost: ['over', 'leave'],
    overdue: null,
  },
  over: {
    begins: OVER,
    refused: OVER,
    connected: ['over', 'break'],
    fin: OVER,
    end: OVER,
    sent: OVER,
    closed: OVER,
    broke: OVER,
    reset: null,
    givenUp: OVER,
    ended: null,
    lost: OVER,
    overdue: OVER,
  },
}

/**
 * - `keep`: until the connection stands
 * - `write`: to QEMU
 * - `take`: QEMU needs them no more; they count as taken
 * - `drop`: nobody gets them
 */
export type BytesGo = 'keep' | 'write' | 'take' | 'drop'

export const BYTES_GO: Readonly<Record<DestinationState, BytesGo>> = {
  unread: 'keep',
  awaited: 'keep',
  said: 'keep',
  open: 'write',
  ending: 'write',
  finished: 'write',
  leaving: 'take',
  left: 'take',
  owed: 'write',
  broken: 'drop',
  over: 'drop',
}

export class DestinationLife {
  private current: DestinationState = 'unread'
  private readonly table: DestinationTable

  /** @param table another one: a test's, which gets something wrong */
  constructor(table = DESTINATION_TABLE) {
    this.table = table
  }

  get state(): DestinationState {
    return this.current
  }

  /** Bytes that were expanded for it, now. */
  get bytesGo(): BytesGo {
    return BYTES_GO[this.current]
  }

  /** The session has it: it may be told what was taken. */
  get isKnown(): boolean {
    return this.current !== 'owed' && this.current !== 'over'
  }

  /** The session knows it no more, and its QEMU has not got all of it. */
  get isOwed(): boolean {
    return this.current === 'owed'
  }

  /** Nobody is to be dialled for it, and nothing handed in. */
  get isOver(): boolean {
    return this.current === 'broken' || !this.isKnown
  }

  /** What is to be done, in order. It is in its next state already: what is done may bring about the next input. */
  on(input: DestinationInput): readonly DestinationOrder[] {
    const step = this.table[this.current][input]
    assert(step, `${input} of a channel that is ${this.current}`)
    this.current = step[0]
    return step.slice(1) as DestinationOrder[]
  }
}
