/** A PNG of a few colours, by node:zlib alone. Source: https://www.w3.org/TR/png-3/, 5 and 11. */
import { crc32, deflateSync } from 'node:zlib'

function chunk(type: string, data: Uint8Array): Buffer {
  const out = Buffer.alloc(12 + data.length)
  out.writeUInt32BE(data.length, 0)
  out.write(type, 4, 'latin1')
  out.set(data, 8)
  out.writeUInt32BE(crc32(out.subarray(4, 8 + data.length)), 8 + data.length)
  return out
}

/**
 * An image of `width` pixels a row, each at most 16 colours' number.
 * @param colours as `#rrggbb`
 */
export function indexedPng(pixels: Uint8Array, width: number, colours: readonly string[]): Buffer {
  const height = Math.ceil(pixels.length / width)
  const head = Buffer.alloc(13)
  head.writeUInt32BE(width, 0)
  head.writeUInt32BE(height, 4)
  head.set([4, 3, 0, 0, 0], 8) // 4 bits a pixel, palette
  const stride = 1 + Math.ceil(width / 2) // a filter byte, 0: none
  const rows = Buffer.alloc(stride * height)
  for (let i = 0; i < pixels.length; i++) {
    const x = i % width
    const at = Math.floor(i / width) * stride + 1 + (x >> 1)
    rows[at] = rows[at]! | (x % 2 === 0 ? pixels[i]! << 4 : pixels[i]!)
  }
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', head),
    chunk('PLTE', Buffer.from(colours.map(colour => colour.slice(1)).join(''), 'hex')),
    chunk('IDAT', deflateSync(rows, { level: 9 })),
    chunk('IEND', new Uint8Array(0)),
  ])
}
