/**
 * What page counts know a page by: 16 bytes made of its SHA-256, under a fleet's key where there is one. Counts leave the
 * host, so what they tell has to be bounded: without the key nobody can ask one whether a page is in it.
 */
import { hash } from 'node:crypto'
import { DIGEST_LENGTH } from './wire.ts'

/** Bytes of a tag. 10^10 pages give two that share one with a chance of 1.5e-19, and a set's own digests are whole. */
export const TAG_LENGTH = 16
/** 32-bit words of a tag. */
export const TAG_WORDS = TAG_LENGTH / 4

/** Makes tags. */
export class PageTagger {
  /** Key and digest, one behind the other; undefined without a key. */
  private readonly keyed: Buffer | undefined

  /** @param key DIGEST_LENGTH bytes, or undefined: a tag is then the beginning of the page's SHA-256 */
  constructor(key?: Uint8Array) {
    this.keyed = key === undefined ? undefined : Buffer.concat([key, Buffer.alloc(DIGEST_LENGTH)])
  }

  /** Writes the tag of the page whose SHA-256 stands at `from` of `digests` to `at`. */
  write(digests: Uint8Array, from: number, into: Buffer, at: number): void {
    if (this.keyed === undefined) {
      for (let i = 0; i < TAG_LENGTH; i++) into[at + i] = digests[from + i]!
      return
    }
    // Always 64 bytes and the answer cut in half: there is nothing to extend, so the plain hash is a MAC here.
    for (let i = 0; i < DIGEST_LENGTH; i++) this.keyed[DIGEST_LENGTH + i] = digests[from + i]!
    into.write(hash('sha256', this.keyed, 'binary').slice(0, TAG_LENGTH), at, TAG_LENGTH, 'latin1')
  }
}
