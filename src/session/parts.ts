/** The classes that a session is made of, so that a test can hand in one that does its work wrongly. */

import { AnswerRoom } from './answer-room.ts'
import { Inbox } from './inbox.ts'
import { Outbox } from './outbox.ts'
import { Path } from './path.ts'
import { ReceiveWindow } from './receive-window.ts'

export interface SessionParts {
  readonly AnswerRoom: typeof AnswerRoom
  readonly Inbox: typeof Inbox
  readonly Outbox: typeof Outbox
  readonly Path: typeof Path
  readonly ReceiveWindow: typeof ReceiveWindow
}

export const SESSION_PARTS: SessionParts = { AnswerRoom, Inbox, Outbox, Path, ReceiveWindow }
