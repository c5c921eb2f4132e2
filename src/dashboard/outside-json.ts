/** JSON of what others named, for the page: names of guests and peers are theirs to choose. */
import { printable } from '../bytes/printable.ts'

/** So much is looked through at once: a text of it is soon forgotten. */
const PART_BYTES = 65536
/** What may have to be made printable: ASCII that escapes nothing but quotes has none of it. */
const DOUBTFUL = /[^ -~\n]|\\(?!")/

/** The same JSON with nothing invisible in its texts. @param bytes of JSON, as it came; returned themselves where nothing is */
export function printableJson(bytes: Buffer): Buffer {
  for (let at = 0; at < bytes.length; at += PART_BYTES)
    if (DOUBTFUL.test(bytes.toString('latin1', at, at + PART_BYTES))) return outsideJson(JSON.parse(bytes.toString()))
  return bytes
}

export function outsideJson(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value, (_, one) => (typeof one === 'string' ? printable(one) : one)))
}
