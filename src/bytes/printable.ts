/** Text from outside (peers, QEMU, QMP, files) made fit for one line of a log or a terminal. */

/**
 * Whatever is not to be seen as itself: control characters (C0 with line feed and ESC, DEL, C1), line and paragraph
 * separators, formatting characters (direction marks, zero widths, tags), halves of surrogate pairs.
 */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu

const SHORT: Readonly<Record<string, string>> = { '\n': '\\n', '\r': '\\r', '\t': '\\t' }

/**
 * The same text on one line, every unprintable character in it spelled as in JSON: `\n`, `\u001b`. Nothing else changes,
 * so that a line of JSON stays JSON of the same meaning. Called by the writers of logs and messages, and by nobody else:
 * a text that passed twice would read as twice escaped.
 */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, found => {
    if (Object.hasOwn(SHORT, found)) return SHORT[found]!
    let escaped = ''
    for (let i = 0; i < found.length; i++) escaped += `\\u${found.charCodeAt(i).toString(16).padStart(4, '0')}`
    return escaped
  })
}
