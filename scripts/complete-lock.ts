/**
 * Completes package-lock.json after an `npm install` from a registry that lacks some packages for other platforms: npm
 * leaves those out, and `npm ci` then refuses the file. Adds them with what their names tell, without a checksum, which
 * a machine of another platform gets from its own registry. Changes nothing where nothing is missing.
 *
 *   node scripts/complete-lock.ts [FILE]
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

interface LockEntry {
  version?: string
  dev?: boolean
  optional?: boolean
  os?: string[]
  cpu?: string[]
  libc?: string[]
  optionalDependencies?: Record<string, string>
}

const SYSTEMS = ['aix', 'android', 'darwin', 'freebsd', 'linux', 'netbsd', 'openbsd', 'openharmony', 'sunos', 'win32']
const PROCESSORS = ['arm64', 'arm', 'ia32', 'loong64', 'mips64el', 'ppc64', 'riscv64', 's390x', 'wasm32', 'x64']

const file = process.argv[2] ?? fileURLToPath(new URL('../package-lock.json', import.meta.url))
const lock = JSON.parse(readFileSync(file, 'utf8')) as { packages: Record<string, LockEntry> }
let added = 0
for (const { optionalDependencies = {}, dev } of Object.values(lock.packages)) {
  for (const [name, version] of Object.entries(optionalDependencies)) {
    const key = `node_modules/${name}`
    const words = name.split(/[-/]/)
    const os = SYSTEMS.find(system => words.includes(system))
    if (lock.packages[key] || !os || !/^\d/.test(version)) continue // not of a platform, or a range: npm must find it
    const cpu = PROCESSORS.find(processor => words.includes(processor))
    const libc = words.includes('musl') ? 'musl' : words.includes('gnu') ? 'glibc' : undefined
    lock.packages[key] = {
      version,
      ...(cpu ? { cpu: [cpu] } : {}),
      ...(dev ? { dev } : {}),
      ...(libc ? { libc: [libc] } : {}),
      optional: true,
      os: [os],
    }
    added++
  }
}
if (added > 0) {
  const [[root, top], ...rest] = Object.entries(lock.packages) as [[string, LockEntry], ...[string, LockEntry][]]
  rest.sort(([a], [b]) => a.localeCompare(b, 'en'))
  lock.packages = Object.fromEntries([[root, top], ...rest])
  writeFileSync(file, `${JSON.stringify(lock, null, 2)}\n`)
}
console.log(`${added} packages added to ${file}`)
