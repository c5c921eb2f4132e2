/**
 * The life of a channel's flow, as the side sees it that sends on it: how it is brought to its end in order, whatever comes
 * first. A table, as the session's own (src/session/states.ts): null is a defect of ours.
 */
import { assert } from '../errors.ts'

export type ChannelState =
  | 'unopened' // no flow: whatever ends now, the other side never heard of it
  | 'open'
  | 'ending' // its QEMU has closed this direction: FIN is due once all that came is handed in
  | 'finished' // FIN was handed in; the other direction lives on
  | 'breaking' // it is torn down: RESET is due behind the batches that are encoded already
  | 'over' // RESET was handed in, both directions have ended, or the session is gone

export type ChannelInput =
  | 'opened'
  | 'eof' // its QEMU sends no more
  | 'broke' // its connection broke, the peer tore it down, it is given up, or it goes on elsewhere
  | 'packed' // nothing of it is under way; bytes may still wait
  | 'emptied' // and none wait
  | 'ended' // the peer knows that both directions have ended, or the session is gone

export const CHANNEL_TABLE: Record<ChannelState, Record<ChannelInput, ChannelState | null>> = {
  unopened: { opened: 'open', eof: 'over', broke: 'over', packed: null, emptied: null, ended: 'over' },
  open: { opened: null, eof: 'ending', broke: 'breaking', packed: 'open', emptied: 'open', ended: 'over' },
  ending: { opened: null, eof: null, broke: 'breaking', packed: 'ending', emptied: 'finished', ended: 'over' },
  finished: { opened: null, eof: null, broke: 'breaking', packed: 'finished', emptied: 'finished', ended: 'over' },
  breaking: { opened: null, eof: 'breaking', broke: 'breaking', packed: 'over', emptied: 'over', ended: 'over' },
  // Sockets tell late.
  over: { opened: null, eof: 'over', broke: 'over', packed: 'over', emptied: 'over', ended: 'over' },
}

/** What is to be handed in now. */
export type ChannelOrder = 'fin' | 'reset'

export class ChannelLife {
  private current: ChannelState

  /** @param state the server's flows are open from their start */
  constructor(state: 'unopened' | 'open') {
    this.current = state
  }

  get state(): ChannelState {
    return this.current
  }

  /** Neither FIN nor RESET may be handed in, nor bytes. */
  get isOver(): boolean {
    return this.current === 'over'
  }

  /** It is torn down, or was. */
  get isBroken(): boolean {
    return this.current === 'breaking' || this.current === 'over'
  }

  on(input: ChannelInput): ChannelOrder | undefined {
    const from = this.current
    const to = CHANNEL_TABLE[from][input]
    assert(to !== null, `${input} of a channel that is ${from}`)
    this.current = to
    if (from === 'ending' && to === 'finished') return 'fin'
    return from === 'breaking' && to === 'over' && input !== 'ended' ? 'reset' : undefined
  }
}
