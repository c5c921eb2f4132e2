/**
 * How a migration ended, from what its stream and return path said and from who closed first. Each side judges by what
 * it saw itself: the proxies tell each other nothing about it.
 */

/**
 * - `completed`: the guest is at the destination, as far as anyone told
 * - `cancelled`: the source ended it in the middle, as on `migrate_cancel`, or the operator of its proxy; the guest is at
 *   the source
 * - `failed`: something broke; `reason` says what, and where the guest is
 * - `unknown`: QEMU encrypts its stream, or relays what nobody can read: it ended, and no more can be told
 */
export type Outcome = 'completed' | 'cancelled' | 'failed' | 'unknown'

/** Who ended a migration, and how: the first that did counts. */
export interface Cause {
  /**
   * A QEMU; the pair itself: the WAN, the other proxy, a target that is refused, a bound; or who runs the source proxy,
   * while the guest was certainly there.
   */
  readonly by: 'source' | 'destination' | 'pair' | 'operator'
  /** `closed`: FIN, with all bytes before it. `broke`: RST, an error, or the pair's own decision. */
  readonly how: 'closed' | 'broke'
  /** For the log: 'source QEMU broke off (ECONNRESET)'. */
  readonly text: string
}

/** By which its history says that the source proxy's operator cancelled it: as stable as an event's name. */
export const BY_OPERATOR = 'cancelled by the operator of the source proxy'

/** What a side saw of a migration by its end. */
export interface EndFacts {
  /** Status of SHUT, the destination QEMU's last word; undefined where it was not heard. */
  readonly shut: number | undefined
  /** The destination QEMU answers: the stream asked it to, or it did. Then it ends with SHUT. */
  readonly answers: boolean
  /** Main came to the end that QEMU gives it, end mark or device description. */
  readonly whole: boolean
  /** The guest may run at the destination already, on pages that have not come: PACKAGED, or a recovery. */
  readonly postcopy: boolean
  /** Main can be read: neither TLS nor anything else that hides it. */
  readonly readable: boolean
  readonly cause: Cause | undefined
  /** The first break, where `cause` is none: it came behind a close in order. */
  readonly broke?: Cause | undefined
  /** Destination: the session was lost while SHUT was on its way; why. */
  readonly unheard?: string | undefined
}

export interface Verdict {
  readonly outcome: Outcome
  /** One sentence; the cause's own words are in it where they matter. */
  readonly reason: string
  /**
   * For alerting: `info` where all is well, `warn` where somebody meant it or it cannot be told, `error` where somebody
   * should look.
   */
  readonly level: 'info' | 'warn' | 'error'
}

const CLOSED: Cause = { by: 'source', how: 'closed', text: 'both sides closed' }

/** Judges; every combination of facts has one answer. */
export function judge(facts: EndFacts): Verdict {
  const { shut, answers, whole, postcopy, readable, unheard } = facts
  const cause = facts.cause ?? CLOSED
  if (shut === 0) {
    const reason = 'the destination QEMU has taken over'
    if (unheard === undefined) return { outcome: 'completed', reason, level: 'info' }
    // qemu-wire-format 1.6: a source that does not hear of SHUT lets its guest go on
    const unsure = `${reason}, but the source may not have heard of it (${unheard}): see that the guest runs once`
    return { outcome: 'completed', reason: unsure, level: 'error' }
  }
  // where the source gave up first, the destination's error is only the answer to that
  if (shut !== undefined && cause.by !== 'source' && cause.by !== 'operator')
    return failed(`the destination QEMU reports error ${shut}`)
  if (!readable) {
    if (cause.how === 'broke') return failed(cause.text)
    return { outcome: 'unknown', reason: `${cause.text}; QEMU's own encryption hides how it ended`, level: 'warn' }
  }
  if (postcopy) {
    return failed(`${cause.text}, in postcopy: both QEMUs pause; migrate-recover there, then migrate with resume here`)
  }
  if (cause.by === 'pair') return failed(cause.text)
  if (whole && !answers) {
    // a source that awaits no answer closes at once: what it wrote may still be lost on its way
    const broke = cause.how === 'broke' ? cause : facts.broke
    if (broke) return failed(`${broke.text}, after the whole stream: see whether the guest runs there`)
    const reason = 'all of it has passed; without return-path no QEMU confirms it'
    return { outcome: 'completed', reason, level: 'info' }
  }
  if (whole) {
    // a cancel comes too late, or a QEMU died: the destination QEMU may run the guest without having said so
    const unsure = cause.by === 'destination' ? '' : '; see that the guest runs once'
    return failed(`${cause.text}, and the destination QEMU never said that it had taken over${unsure}`)
  }
  if (cause.by === 'operator') return { outcome: 'cancelled', reason: cause.text, level: 'warn' }
  if (cause.by === 'source' && cause.how === 'closed') {
    const reason = 'the source QEMU closed in the middle of its stream: cancelled there, or that QEMU is gone'
    return { outcome: 'cancelled', reason, level: 'warn' }
  }
  return failed(`${cause.text}, before the end of the stream`)
}

function failed(reason: string): Verdict {
  return { outcome: 'failed', reason, level: 'error' }
}
