/** What a source proxy is told to do. */
import type { LinkClientOptions } from '../link/client.ts'
import type { Credentials } from '../link/credentials.ts'
import type { RateSchedule } from '../rate-schedule.ts'
import type { Weights } from '../session/fairness.ts'
import type { CapShare } from '../session/shared-cap.ts'
import type { Events } from './events.ts'
import type { DiskAnswers } from './settings.ts'
import type { SourceListenersOptions } from './source-listeners.ts'
import type { SourceMemoryOptions } from './source-memory.ts'
import type { SourceTermsOptions } from './source-terms.ts'

export interface SourceOptions extends SourceListenersOptions, SourceMemoryOptions, SourceTermsOptions {
  readonly peer: Pick<LinkClientOptions, 'host' | 'port'>
  /** What the peer is called here. Default: HOST:PORT. */
  readonly name?: string
  /** undefined: plain text, because the operator said so. */
  readonly credentials: Credentials | undefined
  readonly connections: number
  /** Bytes a second on the WAN, or Infinity; or which when. `caps` changes it. */
  readonly rate: number | RateSchedule
  /** Its share of a cap on all peers of the process together. */
  readonly shared?: CapShare
  /** What memory and disks get beside each other. Default: the same. */
  readonly weights?: Readonly<Weights>
  readonly queueTargetMs: number
  readonly patienceMs: number
  /** The same after a migration's switch to postcopy. Default: patienceMs. */
  readonly patiencePostcopyMs?: number
  /** Writes of disks are answered beside the source (docs/adr/0020-early-answers.md). */
  readonly diskAnswers?: DiskAnswers
  /** How often an idle session is looked at. */
  readonly renewMs?: number
  /** Where it tells what happens: everything that a test or a log wants to know. */
  readonly events: Events
  /** What to tell systemd and people, when it changes. */
  readonly onStatus?: (status: string) => void
}

/** Who the other proxy is, among those of this process. */
export function peerNameOf({ peer }: SourceOptions): string {
  return `${peer.host}:${peer.port}`
}
