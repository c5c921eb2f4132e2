/** A look at certificates and revocation lists now and then: what is valid at the start expires while a proxy runs. */

/** A list of one day is warned of in its last six hours (credential-files.ts). */
const LOOK_MS = 3_600_000
const DAY_MS = 24 * 3_600_000

export class CredentialsWatch {
  private readonly warnings: () => readonly string[]
  private readonly tell: (warning: string) => void
  /** When each text was told last. */
  private readonly toldMs = new Map<string, number>()

  /**
   * @param warnings what there is to say now
   * @param tell is handed each text, once a day at most
   */
  constructor(warnings: () => readonly string[], tell: (warning: string) => void) {
    this.warnings = warnings
    this.tell = tell
  }

  /** Looks now, and every hour from now on. */
  start(): void {
    this.look()
    setInterval(() => this.look(), LOOK_MS).unref()
  }

  /** Other files were read: all that is to be said of them is news. */
  renew(): void {
    this.toldMs.clear()
    this.look()
  }

  private look(): void {
    const nowMs = Date.now()
    for (const [text, atMs] of this.toldMs) if (nowMs - atMs >= DAY_MS) this.toldMs.delete(text)
    for (const text of this.warnings()) {
      if (this.toldMs.has(text)) continue
      this.toldMs.set(text, nowMs)
      this.tell(text)
    }
  }
}
