/**
 * The page as one document: its styles and scripts lie in files of their own in page/, and are put into it when it is
 * first asked for. Nothing else is ever loaded, which the browser is told to see to.
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'

/** Each stands behind those that it imports. */
const SCRIPTS = ['text', 'elements', 'series', 'plot', 'memory', 'migrations', 'disks', 'tables', 'main']

/** Of a module that is put together with the others: each name is exported by one of them, and means the same in all. */
const IMPORT = /^import \{[^}]*\} from '\.\/[a-z-]+\.js'\n/gm
const EXPORT = /^export (?=const |class |function )/gm

export interface Page {
  readonly html: string
  /** What the browser lets it do: run this script, use these styles, ask the server that it is from. */
  readonly policy: string
}

export function makePage(): Page {
  const style = read('style.css')
  const script = SCRIPTS.map(name => read(`${name}.js`).replaceAll(IMPORT, '').replaceAll(EXPORT, '')).join('\n')
  const html = read('page.html')
    .replace('/* style.css */', () => style)
    .replace('/* scripts */', () => script)
  const policy = [
    "default-src 'none'",
    `script-src '${hashOf(script)}'`,
    `style-src '${hashOf(style)}'`,
    'img-src data:',
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    // no text from outside becomes markup, by whatever mistake
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ].join('; ')
  return { html, policy }
}

function read(name: string): string {
  return readFileSync(new URL(`page/${name}`, import.meta.url), 'utf8')
}

function hashOf(text: string): string {
  return `sha256-${createHash('sha256').update(text).digest('base64')}`
}
