// The layers of src/: imports only point down (any lower level will do), and never round in a circle. Parsed by swc:
// dependency-cruiser reads TypeScript through a JavaScript API that TypeScript 7 does not have.
const LEVELS = [
  ['errors.ts', 'fair-shares.ts', 'io-error.ts', 'limits.ts', 'log.ts', 'quantity.ts', 'rate-schedule.ts', 'bytes/'],
  ['qemu/', 'nbd/', 'template/', 'wan/'],
  ['kernel/', 'codec/'],
  ['compression/', 'session/', 'migration/'],
  ['store/', 'remote/', 'capture/', 'counts/', 'transfer/', 'file/', 'relay/', 'link/', 'learning/', 'qmp/', 'system/'],
  ['daemon/'],
  ['dashboard/'],
  ['cli/'],
]

/** Exceptions: what a folder may import from its own level, and where less than every lower level is allowed. */
const BESIDE = {
  'codec/': ['kernel/'],
  'transfer/': ['store/'],
  'capture/': ['system/'],
  'counts/': ['store/', 'system/'],
  'file/': ['store/', 'system/', 'transfer/'],
  'learning/': ['store/'],
  'remote/': ['store/'],
}
const ONLY = { 'kernel/': LEVELS[0] }

const pathOf = name => `^src/${name.replace('.', '\\.')}${name.endsWith('/') ? '' : '$'}`

const layers = LEVELS.flatMap((names, level) =>
  names.map(name => {
    const below = ONLY[name] ?? LEVELS.slice(0, level).flat()
    const itself = level === 0 ? names : [name]
    return {
      name: `down-from-${name.replace(/\/|\.ts/, '')}`,
      comment: `src/${name} is on level ${level}`,
      severity: 'error',
      from: { path: pathOf(name) },
      to: { path: '^src/', pathNot: [...itself, ...below, ...(BESIDE[name] ?? [])].map(pathOf) },
    }
  }),
)

/** Sockets and timers: the proxies' ... */
const WAITING = ['relay/', 'link/', 'remote/', 'daemon/']
/** ... and the commands', which no proxy runs. Globals (setTimeout): biome.json. */
const WAITING_COMMANDS = ['system/', 'qmp/']

/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
  forbidden: [
    ...layers,
    {
      name: 'has-a-level',
      comment: 'every folder of src/ has a level in .dependency-cruiser.cjs',
      severity: 'error',
      from: { path: '^src/', pathNot: LEVELS.flat().map(pathOf) },
      to: {},
    },
    {
      name: 'sockets-and-timers',
      comment: 'what decides is told the time and handed the bytes, so that a test can play it again',
      severity: 'error',
      from: { path: '^src/', pathNot: [...WAITING, ...WAITING_COMMANDS].map(pathOf) },
      to: { dependencyTypes: ['core'], path: '^(?:node:)?(?:net|tls|dgram|http|https|http2|timers)(?:/|$)' },
    },
    {
      name: 'no-proxy-waits-for-commands',
      comment: 'sockets and timers of commands stay out of what runs for months',
      severity: 'error',
      from: { path: WAITING.map(pathOf) },
      to: { path: [...WAITING_COMMANDS, 'capture/', 'file/'].map(pathOf) },
    },
    {
      name: 'disk-and-threads',
      comment: 'up to level 3 bytes, times and seeds come in as arguments; the exceptions are in docs/architecture.md',
      severity: 'error',
      from: {
        path: LEVELS.slice(0, 4).flat().map(pathOf),
        pathNot: ['^src/kernel/kernel\\.ts$', '^src/compression/(?:column-packer|lz4-worker|zstd-stream)\\.ts$'],
      },
      to: { dependencyTypes: ['core'], path: '^(?:node:)?(?:fs|os|dns|child_process|worker_threads|cluster)(?:/|$)' },
    },
    { name: 'no-cycle', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'not-out-of-src',
      comment: 'what ships does not need tests or scripts',
      severity: 'error',
      from: { path: '^src/' },
      to: { path: '^(?:test|scripts)/' },
    },
    {
      name: 'not-to-dev-packages',
      comment: 'what ships needs dependencies and optionalDependencies only',
      severity: 'error',
      from: { path: '^src/' },
      to: {
        dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown'],
        dependencyTypesNot: ['npm', 'npm-optional', 'npm-peer'],
      },
    },
    { name: 'resolves', severity: 'error', from: {}, to: { couldNotResolve: true } },
  ],
  options: {
    parser: 'swc',
    doNotFollow: { path: ['node_modules', '^(?:test|scripts)/'] },
    exclude: { path: '^src/kernel/assembly/' },
    enhancedResolveOptions: {
      extensions: ['.ts', '.js', '.json'],
      exportsFields: ['exports'],
      conditionNames: ['node', 'import', 'require', 'default', 'types'],
    },
  },
}
