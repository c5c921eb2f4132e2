/** Guests like one that was captured, of which a pool knows nothing when that has passed. */
import { MainStreamParser } from '../../src/qemu/main-stream.ts'
import { PAGE_SIZE } from '../../src/qemu/wire.ts'

/**
 * The same stream of another guest: every byte of its pages is xored with the key, so that they pack as well and match no page
 * of a guest with another key.
 * @returns a copy: `stream` stays as it is, so that keys do not add up
 */
export function otherGuest(stream: Uint8Array, key: number): Uint8Array {
  const made = new Uint8Array(stream) // a Buffer's slice() would be a view
  const nothing = (): void => {}
  const parser = new MainStreamParser({
    ...{ block: nothing, zeroRecord: nothing, opaquePage: nothing, phase: nothing, degraded: nothing },
    pageRecord: (_start, end) => {
      for (let at = end - PAGE_SIZE; at < end; at++) made[at]! ^= key
    },
  })
  parser.push(stream, 0, stream.length)
  return made
}
