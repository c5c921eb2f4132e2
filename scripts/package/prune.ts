/**
 * Leaves of a folder of npm packages what a program needs to run: node scripts/package/prune.ts NODE_MODULES
 *
 * Scripts, data and addons stay; types, maps, documents, tests, sources of addons, headers of Node and licences (which
 * stand in the package's copyright file) go.
 */
import { lstatSync, readdirSync, rmdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const [folder] = process.argv.slice(2)
if (folder === undefined) throw new Error('usage: prune.ts NODE_MODULES')

const STAYS = /\.(js|cjs|mjs|node)$|^package\.json$/
/** Of a package's own folder; deeper, the same names may be parts of its program (yaml/dist/doc). */
const GOES = new Set(['test', 'tests', 'benchmark', 'examples', 'doc', 'docs', 'share', 'include', 'man'])
const GOES_ANYWHERE = new Set(['.bin', 'obj.target', '.deps'])

/** @returns whether nothing is left */
function prune(path: string, within: readonly string[]): boolean {
  for (const name of readdirSync(path)) {
    const entry = join(path, name)
    const { isFolder, isFile } = ((stat = lstatSync(entry)) => ({
      isFolder: stat.isDirectory(),
      isFile: stat.isFile(),
    }))()
    const isOwn = within.length === (within[0]?.startsWith('@') ? 2 : 1)
    if (isFolder && !(isOwn && GOES.has(name)) && !GOES_ANYWHERE.has(name)) {
      if (prune(entry, [...within, name])) rmdirSync(entry)
    } else if (!isFile || !stays(name, within)) rmSync(entry, { recursive: true })
  }
  return readdirSync(path).length === 0
}

function stays(name: string, within: readonly string[]): boolean {
  if (within[0]?.startsWith('node-linux-')) return name === 'package.json' || (name === 'node' && within[1] === 'bin')
  // sources of packages whose built files lie beside them, scripts of a build, and copies for browsers
  if (within.includes('src') && ['zod', 'yargs'].includes(within[0]!)) return false
  if (
    within[0] === 'nan' ||
    name === 'bin.mjs' ||
    /^(gulpfile|karma\.conf|rollup\.config)\./.test(name) ||
    /\.min\.js$/.test(name)
  )
    return false
  return STAYS.test(name) || (/\.json$/.test(name) && within.includes('locales'))
}

prune(folder, [])
