/** Texts from outside on one line. */
import t from 'tap'
import { printable } from '../../src/bytes/printable.ts'

const cases: readonly [name: string, text: string, expected: string][] = [
  ['nothing to do', 'web-1, "ü", 家, 👩, \\n, é', 'web-1, "ü", 家, 👩, \\n, é'],
  ['a forged line', 'a\nerror: b\r\n', 'a\\nerror: b\\r\\n'],
  ['ESC', '\x1b[2J\x1b]0;title\x07', '\\u001b[2J\\u001b]0;title\\u0007'],
  ['NUL, tab, DEL', '\0\t\x7f', '\\u0000\\t\\u007f'],
  ['C1: CSI and NEL', '\x9b31m\x85', '\\u009b31m\\u0085'],
  ['separators of lines and paragraphs', 'a\u2028b\u2029c', 'a\\u2028b\\u2029c'],
  [
    'direction marks',
    '\u202etxt.exe\u202c \u2066\u2069\u200e\u200f\u061c',
    '\\u202etxt.exe\\u202c \\u2066\\u2069\\u200e\\u200f\\u061c',
  ],
  ['zero widths and tags', 'a\u200bb\ufeffc\u{e0041}', 'a\\u200bb\\ufeffc\\udb40\\udc41'],
  ['half a pair', 'a\ud800b', 'a\\ud800b'],
]
for (const [name, text, expected] of cases) t.equal(printable(text), expected, name)

t.test('JSON stays JSON, of the same meaning', async t => {
  for (const [name, text] of cases) t.same(JSON.parse(printable(JSON.stringify({ text }))), { text }, name)
})

t.test('every character of the first three planes: one line, and nothing that a terminal obeys', async t => {
  for (let code = 0; code < 0x30000; code++) {
    const shown = printable(String.fromCodePoint(code))
    if (/[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u.test(shown)) t.fail(code.toString(16))
  }
})
