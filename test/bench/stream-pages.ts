/** The pages of a main stream, one behind the other. */
import { MainStreamParser } from '../../src/qemu/main-stream.ts'

const PAGE = 4096

/** @param count of them, at most */
export function pagesIn(stream: Uint8Array, count: number): Uint8Array {
  const pages = new Uint8Array(count * PAGE)
  let at = 0
  const nothing = (): void => {}
  const sink = { block: nothing, zeroRecord: nothing, opaquePage: nothing, phase: nothing, degraded: nothing }
  const parser = new MainStreamParser({
    ...sink,
    pageRecord: (_start, end) => {
      pages.set(stream.subarray(end - PAGE, end), at)
      at += PAGE
    },
  })
  parser.push(stream, 0, stream.length)
  return pages
}
