import { NBD_CONTEXTS_MAX } from '../limits.ts'
import { Requests } from './requests.ts'
import type { NbdExport } from './sink.ts'
import { HANDSHAKE_FLAG, OPTION } from './wire.ts'

/** No option waits for the end of its answer. */
export const NO_OPTION = -1

/**
 * What the two directions of a connection know of each other: what the server said it can, which option or requests wait
 * for answers, and what was agreed. One party speaks only when it has heard what it needs, so both proxies see all of this
 * in an order that makes sense, whatever the delay between them.
 */
export class Dialogue {
  /** The server's first words are complete, and its flags. */
  greeted = false
  handshakeFlags = 0
  clientFlags = 0
  /** The option that is to be answered; a server may do that before all of the option's data has come (nbdkit does). */
  pending: number = NO_OPTION
  /** STARTTLS was agreed: nothing from here on can be read. */
  tls = false
  /** What the handshake led to; undefined before transmission. */
  exported: NbdExport | undefined = undefined
  /** Directions that were given up. */
  readonly lost = { client: false, server: false }
  readonly requests = new Requests()

  /** Options that were agreed. */
  structured = false
  extended = false
  contexts: { readonly id: number; readonly name: string }[] = []

  /** What the last option asked for, undefined until all of that is known; and what it was told. */
  private name: string | undefined = undefined
  private sizeBytes = -1
  private transmissionFlags = 0
  private minimumBlockBytes = 0
  private preferredBlockBytes = 0
  private maximumPayloadBytes = 0

  /** Both sides know that an answer to EXPORT_NAME goes without zeroes. */
  get noZeroes(): boolean {
    return (this.handshakeFlags & this.clientFlags & HANDSHAKE_FLAG.NO_ZEROES) !== 0
  }

  /** Options other than EXPORT_NAME are answered. */
  get fixed(): boolean {
    return (this.handshakeFlags & HANDSHAKE_FLAG.FIXED_NEWSTYLE) !== 0
  }

  /** The head of an option has come. */
  asked(option: number): void {
    this.pending = option
    this.name = undefined
    this.sizeBytes = -1
    this.minimumBlockBytes = 0
    this.preferredBlockBytes = 0
    this.maximumPayloadBytes = 0
    if (option === OPTION.SET_META_CONTEXT) this.contexts = []
  }

  /** All of the option has come; `name` is the export that it names, where it does. */
  named(name: string): void {
    this.name = name
  }

  /** The export that is asked for has this size and can do this. */
  describe(sizeBytes: number, transmissionFlags: number): void {
    this.sizeBytes = sizeBytes
    this.transmissionFlags = transmissionFlags
  }

  describeBlocks(minimum: number, preferred: number, payload: number): void {
    this.minimumBlockBytes = minimum
    this.preferredBlockBytes = preferred
    this.maximumPayloadBytes = payload
  }

  /** @returns whether there is room for it */
  addContext(id: number, name: string): boolean {
    if (this.contexts.length === NBD_CONTEXTS_MAX) return false
    this.contexts.push({ id, name })
    return true
  }

  /** The option was answered with ACK. @returns why transmission cannot begin where it would, or '' */
  agreed(): string {
    const option = this.pending
    this.pending = NO_OPTION
    if (option === OPTION.STRUCTURED_REPLY) this.structured = true
    if (option === OPTION.EXTENDED_HEADERS) this.extended = true
    if (option === OPTION.STARTTLS) this.tls = true
    return option === OPTION.GO ? this.begin() : ''
  }

  /** The option was answered with an error. */
  refused(): void {
    if (this.pending === OPTION.SET_META_CONTEXT) this.contexts = []
    this.pending = NO_OPTION
  }

  /** Transmission begins. @returns why not, or '' */
  begin(): string {
    this.pending = NO_OPTION
    if (this.sizeBytes < 0) return 'an export without a size'
    if (this.name === undefined) return 'an export before it was asked for'
    this.exported = {
      name: this.name,
      sizeBytes: this.sizeBytes,
      transmissionFlags: this.transmissionFlags,
      structured: this.structured,
      extended: this.extended,
      minimumBlockBytes: this.minimumBlockBytes,
      preferredBlockBytes: this.preferredBlockBytes,
      maximumPayloadBytes: this.maximumPayloadBytes,
      contexts: this.contexts,
    }
    return ''
  }
}
