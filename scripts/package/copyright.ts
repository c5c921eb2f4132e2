/**
 * The copyright file of the package, from the licences that npm packages bring:
 * node scripts/package/copyright.ts NODE_MODULES DOC
 *
 * Node's own, which has those of all that is in it, is a file beside it.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'

const [modules, doc] = process.argv.slice(2)
if (modules === undefined || doc === undefined) throw new Error('usage: copyright.ts NODE_MODULES DOC')

const APACHE = 'On Debian systems the Apache License, version 2.0, is in /usr/share/common-licenses/Apache-2.0.'

interface Package {
  readonly name: string
  readonly version: string
  readonly license?: string
  readonly homepage?: string
  readonly author?: string | { readonly name: string }
}

function* folders(): Generator<string> {
  for (const name of readdirSync(modules!).sort()) {
    if (name.startsWith('.') || name === '@types') continue
    if (!name.startsWith('@')) yield join(modules!, name)
    else for (const inner of readdirSync(join(modules!, name)).sort()) yield join(modules!, name, inner)
  }
}

const text = [
  'Pageferry',
  'Copyright: the Pageferry authors',
  'License: Apache-2.0',
  '',
  APACHE,
  '',
  'This package contains the following, as it was published in the npm registry.',
]
for (const folder of folders()) {
  const { name, version, license, homepage, author } = JSON.parse(
    readFileSync(join(folder, 'package.json'), 'utf8'),
  ) as Package
  const file = readdirSync(folder).find(name => /^(licen[cs]e|copying)(\.|-|$)/i.test(name))
  const heading = `${name} ${version}${homepage === undefined ? '' : `, ${homepage}`}`
  text.push('', '='.repeat(78), heading, `License: ${license ?? 'see below'}`, '')
  if (name.startsWith('node-linux-')) {
    text.push(
      'Copyright Node.js contributors, and those of the parts of Node.js:',
      'see LICENSE.node.gz beside this file.',
    )
    writeFileSync(join(doc, 'LICENSE.node.gz'), gzipSync(readFileSync(join(folder, file!)), { level: 9 }))
  } else if (file === undefined) {
    const who = typeof author === 'string' ? author : author?.name
    text.push(`Copyright: ${who ?? 'its authors'}`, `The package says ${license}, and brings no text of it.`)
  } else {
    const said = readFileSync(join(folder, file), 'utf8').replaceAll('\r', '').trim()
    text.push(/Apache License/.test(said) && license === 'Apache-2.0' ? APACHE : said)
  }
}
writeFileSync(join(doc, 'copyright'), `${text.join('\n')}\n`)
if (!existsSync(join(doc, 'LICENSE.node.gz'))) throw new Error('no Node among the packages')
