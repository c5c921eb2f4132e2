/** Real streams with sections that no QEMU here sends, between those of ram, as Proxmox VE and QEMUs to come do. */
import { StreamEmitter } from '../../scripts/harness/qemu/stream-emitter.ts'
import { simpleMain } from './simple-decoder.ts'

/** Ids that no recorded stream uses. */
const IDS = [0x70, 0x71]

/**
 * The stream with unknown sections: the STARTs of two behind ram's, then PARTs, some of them empty, before many of ram's
 * sections. Their bodies are noise, footers that none are, pieces of the stream itself.
 *
 * @param rand a whole number below its argument
 * @param hostile bodies may hold what leads back to ram, so that a parser takes the wrong way
 */
export function doctored(input: Uint8Array, rand: (below: number) => number, hostile = false): Uint8Array {
  const { elements } = simpleMain(input)
  const out = new StreamEmitter()
  let at = 0
  for (const [i, start] of elements.entries()) {
    if (i === 0) continue
    out.raw(input.subarray(at, start))
    at = start
    if (i === 1) {
      for (const id of IDS)
        out
          .sectionStart(id, `0000:00:0${id}.0/new`)
          .raw(body(input, rand, hostile))
          .footer(id)
      out.sectionStart(0x72, 'pbs-state')
      const state = body(input, rand, true)
      out
        .raw(Buffer.from(state.length.toString(16).padStart(16, '0'), 'hex'))
        .raw(state)
        .footer(0x72)
    } else if (rand(3) > 0) {
      const id = IDS[rand(IDS.length)]!
      out
        .sectionPart(id)
        .raw(rand(4) > 0 ? body(input, rand, hostile) : new Uint8Array(0))
        .footer(id)
    }
  }
  return out.raw(input.subarray(at)).bytes()
}

function body(input: Uint8Array, rand: (below: number) => number, hostile: boolean): Uint8Array {
  const out = new StreamEmitter()
  for (let pieces = rand(6); pieces >= 0; pieces--) {
    const id = IDS[rand(IDS.length)]!
    switch (rand(hostile ? 7 : 5)) {
      case 0:
        out.raw(Uint8Array.from({ length: rand(300) }, () => rand(256)))
        break
      case 1:
        out.footer(id).raw(Uint8Array.of(rand(256)))
        break
      case 2:
        out.footer(id).command(1 + rand(20), new Uint8Array(rand(20)))
        break
      case 3:
        out.footer(id).sectionPart(id)
        break
      case 4:
        out.footer(id).sectionStart(0x73, 'x', 1, 2)
        break
      case 5: {
        const from = rand(input.length)
        out.footer(id).raw(input.subarray(from, from + rand(9000)))
        break
      }
      default: // the stream's own beginning, records included
        out.footer(id).raw(input.subarray(0, rand(20_000)))
    }
  }
  return out.bytes()
}
