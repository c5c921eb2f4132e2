/** What an installation says of itself: `--version --json`, and the first line of a log. */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import t from 'tap'
import { sentenceOf } from '../../src/cli/summary-text.ts'
import { loadLz4 } from '../../src/compression/lz4.ts'
import { about } from '../../src/daemon/about.ts'
import type { SiteEvents } from '../../src/daemon/events.ts'
import { kernelBuild } from '../../src/kernel/kernel.ts'
import { PAGEFERRY } from './command.ts'

t.setTimeout(590_000) // the machine may be busy

t.test('--version --json is what runs', async t => {
  const said = JSON.parse(execFileSync(PAGEFERRY, ['--version', '--json'], { encoding: 'utf8' }))
  t.same(said, about(), 'by the command that operators run, whichever Node the tests have')
  t.match(said, {
    protocol: { version: '1.0', features: ['cold-sets', 'disks'] },
    controlApi: 1,
    node: { version: process.versions.node, modules: process.versions.modules },
    platform: `linux-${process.arch}`,
    codecs: { zstd: { implementation: 'node', isFast: true } },
  })
})

t.test('the codec that stands in is told as such', async t => {
  loadLz4('lz4-napi')
  t.same(about().codecs.lz4, { implementation: 'lz4-napi', isFast: false })
})

t.test('the kernel is told by what was built', async t => {
  const { implementation, build, features } = kernelBuild()
  if (implementation === 'twin') return void t.same({ build, features }, { build: undefined, features: [] })
  const [, enabled = ''] = /--enable (\S+)/.exec(readFileSync('scripts/build-kernel.sh', 'utf8')) ?? []
  t.same(features, enabled.split(','), 'what the script enables')
  const [digest = ''] = execFileSync('sha256sum', ['src/kernel/kernel.wasm'], { encoding: 'utf8' }).split(' ')
  t.equal(build, digest.slice(0, 12), 'as sha256sum names it')
})

t.test('the first line of a log says what is slower than it could be, and nothing of what is not', async t => {
  const fields: SiteEvents['started'] = {
    ...{ version: '1.2.3', role: 'source', tls: 'x509', learn: 'off', node: 'v24.0.0' },
    ...{ lz4: 'lz4', kernel: 'simd', threads: 2 },
  }
  const lineOf = (more: Partial<SiteEvents['started']>): string | undefined =>
    sentenceOf({ level: 'info', event: 'started', cause: undefined, fields: { ...fields, ...more } })?.text
  const plain = 'pageferry 1.2.3, source: TLS with certificates, no store, Node 24.0.0'
  t.equal(lineOf({}), plain)
  t.equal(lineOf({ lz4: 'lz4-napi' }), `${plain}, LZ4 by lz4-napi, which is slower`)
  t.equal(lineOf({ kernel: 'twin' }), `${plain}, no WebAssembly kernel, its slow twin`)
  t.equal(lineOf({ sets: 1 }), plain.replace('no store', '1 template set, learning off'))
  t.equal(lineOf({ sets: 2 }), plain.replace('no store', '2 template sets, learning off'))
})
