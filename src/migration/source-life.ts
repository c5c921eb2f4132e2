/**
 * The life of a channel at the source: from a connection without a flow to both directions at their end, whatever comes
 * first. A table, as the destination's (src/migration/destination-life.ts): null is a defect of ours.
 */
import { assert } from '../errors.ts'

export type SourceState =
  | 'unopened' // no flow: whatever ends now, the other side never heard of it
  | 'open'
  | 'ending' // its QEMU sends no more: FIN is due once all that came is handed in
  | 'finished' // FIN was handed in; the other direction lives on
  | 'breaking' // it is torn down: RESET is due behind the batches that are encoded already
  | 'broken' // RESET was handed in, and its END has not come
  | 'over' // its session has it no more

export type SourceInput =
  | 'opened' // it has a flow
  | 'eof' // its QEMU sends no more
  | 'closed' // its connection is closed, in order or by us; bytes that are kept of it may wait yet
  | 'broke' // its connection broke
  | 'packed' // nothing of it is under way; bytes may still wait
  | 'emptied' // and none wait
  | 'taken' // the other side has its flow
  | 'fin' // the destination QEMU closed, and all that it sent is handed on
  | 'reset' // the destination side tore it down
  | 'givenUp' // the WAN has been gone for too long
  | 'moved' // the other side never heard of its migration: its connection goes on in another session
  | 'ended' // both directions have ended, and the other side knows
  | 'lost' // the session is gone, and the other side may know of it
  | 'outlives' // the session is gone, and its connection goes on in another

/** What is to be done, in this order; what may hand in an end is last but for leaving. */
export type SourceOrder =
  | 'ungate' // it waits at its gate no more
  | 'settle' // the connection stays: nothing is kept for another session
  | 'finish' // FIN to QEMU, behind all bytes
  | 'break' // end the connection
  | 'detach' // let the connection go, alive
  | 'drain' // what waits goes out, and nothing comes
  | 'drop' // nothing of it is encoded any more
  | 'fin' // hand it in
  | 'reset' // hand it in, with the reason for which it was dropped
  | 'leave' // its migration has one channel less
  | 'free' // give its place back, once its connection writes to it no more

/** Where it leads, and what is to be done. */
export type SourceStep = readonly [SourceState, ...SourceOrder[]]
export type SourceRow = Readonly<Record<SourceInput, SourceStep | null>>
export type SourceTable = Readonly<Record<SourceState, SourceRow>>

const BREAK: SourceStep = ['breaking', 'break', 'drop']
const GONE: SourceStep = ['over', 'ungate', 'leave', 'free']
const LEAVE: SourceStep = ['over', 'leave', 'free']
const BREAKING: SourceStep = ['breaking']
const BROKEN: SourceStep = ['broken']
const OVER: SourceStep = ['over']

/** While both its connection and its flow live. */
const LIVES = {
  opened: null,
  broke: ['breaking', 'drop'],
  reset: BREAK,
  givenUp: BREAK,
  moved: ['breaking', 'detach', 'drop'],
  lost: ['over', 'break', 'leave', 'free'],
  outlives: ['over', 'detach', 'leave', 'free'],
} as const

export const SOURCE_TABLE: SourceTable = {
  unopened: {
    opened: ['open'],
    eof: ['unopened', 'ungate', 'break'], // a probe, or a QEMU that gave up
    closed: GONE,
    broke: GONE,
    packed: null,
    emptied: null,
    taken: null,
    fin: null,
    reset: null,
    givenUp: null,
    moved: ['over', 'detach', 'ungate', 'leave', 'free'],
    ended: null,
    lost: ['over', 'ungate', 'break', 'leave', 'free'],
    outlives: ['over', 'detach', 'ungate', 'leave', 'free'],
  },
  open: {
    eof: ['ending', 'drain'],
    closed: ['open'],
    packed: ['open'],
    emptied: ['open'],
    taken: ['open', 'settle'],
    fin: ['open', 'finish'],
    ended: null, // the session refuses it
    ...LIVES,
  },
  ending: {
    eof: null,
    closed: ['ending'],
    packed: ['ending'],
    emptied: ['finished', 'fin'],
    taken: ['ending', 'settle'],
    fin: ['ending', 'finish'],
    ended: null,
    ...LIVES,
  },
  finished: {
    eof: null,
    closed: ['finished'],
    packed: ['finished'],
    emptied: ['finished'],
    taken: ['finished', 'settle'],
    fin: ['finished', 'finish'],
    ended: LEAVE,
    ...LIVES,
  },
  // Sockets tell late. Its connection is not touched: it is another session's, or ended.
  breaking: {
    opened: null,
    eof: BREAKING,
    closed: BREAKING,
    broke: BREAKING,
    packed: ['broken', 'reset'],
    emptied: ['broken', 'reset'],
    taken: BREAKING,
    fin: BREAKING,
    reset: BREAKING,
    givenUp: BREAKING,
    moved: BREAKING,
    ended: LEAVE,
    lost: LEAVE,
    outlives: LEAVE,
  },
  broken: {
    opened: null,
    eof: BROKEN,
    closed: BROKEN,
    broke: BROKEN,
    packed: BROKEN,
    emptied: BROKEN,
    taken: BROKEN,
    fin: BROKEN,
    reset: BROKEN,
    givenUp: BROKEN,
    moved: BROKEN,
    ended: LEAVE,
    lost: LEAVE,
    outlives: LEAVE,
  },
  over: {
    opened: null,
    eof: OVER,
    closed: ['over', 'free'],
    broke: ['over', 'free'],
    packed: OVER,
    emptied: OVER,
    taken: null,
    fin: null,
    reset: null,
    givenUp: OVER,
    moved: OVER,
    ended: null,
    lost: ['over', 'break'], // a QEMU that does not close
    outlives: ['over', 'break'],
  },
}

export class SourceLife {
  private current: SourceState = 'unopened'
  private readonly table: SourceTable

  /** @param table another one: a test's, which gets something wrong */
  constructor(table = SOURCE_TABLE) {
    this.table = table
  }

  get state(): SourceState {
    return this.current
  }

  /** It has a flow, and is not torn down. */
  get isUp(): boolean {
    return this.current === 'open' || this.current === 'ending' || this.current === 'finished'
  }

  /** Nothing more of its QEMU is for its migration. */
  get isEnding(): boolean {
    return this.current !== 'unopened' && this.current !== 'open'
  }

  /** What is to be done, in order. It is in its next state already: what is done may bring about the next input. */
  on(input: SourceInput): readonly SourceOrder[] {
    const step = this.table[this.current][input]
    assert(step, `${input} of a channel that is ${this.current}`)
    this.current = step[0]
    return step.slice(1) as SourceOrder[]
  }
}
