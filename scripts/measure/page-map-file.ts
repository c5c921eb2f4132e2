/** What page-map.ts writes, and the report reads. */
import { inflateSync } from 'node:zlib'

/** How a page travelled; the place in this list is its number in a map. */
export const PAGE_CLASSES = [
  'not sent',
  'zero',
  'fill',
  'same',
  'template',
  'earlier',
  'parts',
  'whole',
  'incompressible',
] as const
export type PageClass = (typeof PAGE_CLASSES)[number]

/** The pages of one RAMBlock, by one way of encoding. */
export interface MethodMap {
  readonly method: 'paper' | 'pair'
  /** One byte a page, the number of its class the first time it was sent; deflated, base64. */
  readonly classes: string
  /** Pages sent by class, those sent again counted again. */
  readonly sent: Readonly<Record<PageClass, number>>
}

export interface PageMap {
  readonly format: 1
  /** What to type to get such a file again. */
  readonly command: string
  readonly stream: string
  readonly streamBytes: number
  readonly templates: { readonly from: readonly string[]; readonly minVms: number; readonly pages: number }
  readonly block: string
  readonly pages: number
  readonly maps: readonly MethodMap[]
}

/** The class number of each page of a map. */
export function pageClasses(map: MethodMap): Uint8Array {
  return inflateSync(Buffer.from(map.classes, 'base64'))
}
