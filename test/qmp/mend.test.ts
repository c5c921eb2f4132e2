/** What is set so that nothing is left to advise; where a QMP socket is. */
import t from 'tap'
import { adviseOn, commandsOf, KEEPABLE, mend, type QemuSettings, requireKeepable } from '../../src/qmp/advice.ts'
import { wishesOf } from '../../src/qmp/migration-wishes.ts'
import { formatQmpAddress, parseQmpAddress } from '../../src/qmp/qmp-address.ts'

const settings = (
  side: QemuSettings['side'],
  on: readonly string[],
  parameters: Readonly<Record<string, unknown>> = {},
): QemuSettings => {
  const names = ['return-path', 'multifd', 'xbzrle', 'compress', 'x-colo', 'x-ignore-shared', 'postcopy-ram']
  const capabilities = Object.fromEntries(names.map(name => [name, on.includes(name)]))
  return { version: '7.2.22', side, capabilities, parameters }
}
const texts = (...of: Parameters<typeof mend>): string[] =>
  mend(...of)
    .map(({ side, name, before, value }) => `${side} ${name} ${before} -> ${value}`)
    .sort()

t.test('what is advised is set, until nothing is advised any more', t => {
  const all = ['multifd', 'xbzrle', 'compress', 'x-colo', 'x-ignore-shared']
  const source = settings('source', all, {
    ...{ 'tls-creds': 'tls0', 'multifd-compression': 'zstd', 'max-bandwidth': 128 << 20, 'multifd-channels': 4 },
    'avail-switchover-bandwidth': 0,
  })
  const destination = settings('destination', ['xbzrle'], { 'multifd-channels': 2, 'tls-creds': '' })
  const both = [source, destination]
  t.same(texts(both, { linkBytes: 1e7 }), [
    ...['destination multifd false -> true', 'destination multifd-channels 2 -> 4'],
    ...['destination return-path false -> true', 'destination xbzrle true -> false'],
    ...['source avail-switchover-bandwidth 0 -> 10000000', 'source compress true -> false'],
    ...['source max-bandwidth 134217728 -> 0', 'source multifd-compression zstd -> none'],
    ...['source return-path false -> true', 'source tls-creds tls0 -> '],
    'source xbzrle true -> false',
  ])
  const after = both.map(qemu => {
    const own = mend(both, { linkBytes: 1e7 }).filter(({ side }) => side === qemu.side)
    const of = (kind: string) =>
      Object.fromEntries(own.filter(one => one.kind === kind).map(one => [one.name, one.value]))
    return {
      ...qemu,
      capabilities: { ...qemu.capabilities, ...(of('capability') as Record<string, boolean>) },
      parameters: { ...qemu.parameters, ...of('parameter') },
    }
  })
  const left = adviseOn(after, 1e7).map(({ setting }) => setting)
  t.same(
    left,
    ['x-colo on'],
    'what a migration is for is left: without x-ignore-shared memory that both map is written',
  )
  t.same(mend(after, { linkBytes: 1e7 }), [], 'and nothing is set twice')
  t.end()
})

t.test('what is kept, what is wished, and what needs a figure that nobody gave', t => {
  const source = settings('source', ['x-colo'], { 'max-bandwidth': 128 << 20, 'avail-switchover-bandwidth': 0 })
  t.same(texts([source], { keep: ['max-bandwidth'] }), ['source return-path false -> true'])
  const wish = { side: 'source', kind: 'parameter', name: 'max-bandwidth', value: 5, why: 'so' } as const
  t.same(texts([source], { wanted: [wish] }), [
    'source max-bandwidth 134217728 -> 5',
    'source return-path false -> true',
  ])
  const postcopy = { side: 'source', kind: 'capability', name: 'postcopy-ram', value: true, why: 'so' } as const
  t.notMatch(texts([source], { wanted: [postcopy] }).join(), /return-path/, 'postcopy has one')
  t.same(texts([source], { wanted: [{ ...wish, side: 'destination' }], keep: ['max-bandwidth', 'return-path'] }), [])
  t.end()
})

t.test('commands: capabilities first, all of a kind together', t => {
  const source = settings('source', ['xbzrle'], { 'max-bandwidth': 128 << 20 })
  t.same(commandsOf(mend([source], {})), [
    {
      execute: 'migrate-set-capabilities',
      arguments: {
        capabilities: [
          { capability: 'return-path', state: true },
          { capability: 'xbzrle', state: false },
        ],
      },
    },
    { execute: 'migrate-set-parameters', arguments: { 'max-bandwidth': 0 } },
  ])
  t.same(commandsOf([]), [])
  t.end()
})

t.test('where a QMP socket is', t => {
  const places: [string, object, string?][] = [
    ['/run/q.sock', { path: '/run/q.sock' }],
    ['unix:/run/q.sock', { path: '/run/q.sock' }, '/run/q.sock'],
    ['q sock,x', { path: 'q sock,x' }],
    ['ssh:fra:/run/q.sock', { host: 'fra', path: '/run/q.sock' }],
    ['ssh:root@fra.example.net:/q', { host: 'root@fra.example.net', path: '/q' }],
    ['ssh:[2001:db8::7]:/q', { host: '2001:db8::7', path: '/q' }],
    ['ssh:root@[::1]:/q', { host: 'root@::1', path: '/q' }],
  ]
  for (const [text, expected, back = text] of places) {
    t.same(parseQmpAddress(text, '--qmp'), expected, text)
    t.equal(formatQmpAddress(parseQmpAddress(text, '--qmp')), back)
  }
  const wrong = [
    ...['ssh:', 'ssh:fra', 'ssh:fra:', 'ssh::/q', 'ssh:fra:q', 'ssh:-oProxyCommand=x:/q', 'ssh:a@-x:/q', 'ssh:a b:/q'],
    ...[
      "ssh:fra:/a'b",
      'ssh:fra:/a b',
      'ssh:fra:/a,exec',
      'ssh:fra:/$(x)',
      'ssh:fra:/a;b',
      'ssh:fra:/a\nb',
      'ssh:fra:22:/q',
    ],
  ]
  for (const text of wrong)
    t.throws(() => parseQmpAddress(text, '--qmp'), { code: 'ADDRESS', action: /ssh/ }, JSON.stringify(text))
  t.end()
})

t.test('whatever is set can be kept, and nothing else is taken for it', t => {
  const all = ['multifd', 'xbzrle', 'compress', 'x-colo', 'x-ignore-shared', 'postcopy-ram']
  const source = settings('source', all, {
    ...{ 'tls-creds': 'tls0', 'multifd-compression': 'zstd', 'max-bandwidth': 128 << 20, 'multifd-channels': 4 },
    'avail-switchover-bandwidth': 0,
  })
  const off = settings('source', [])
  const far = settings('destination', [], { 'multifd-channels': 2 })
  const advised = [
    [source, far],
    [off, far],
    [settings('source', ['multifd']), far],
  ].flatMap(both => adviseOn(both, 1))
  const unasked = wishesOf({ hasDestination: true, postcopy: false, autoConverge: false, keep: [] })
  const names = [...advised.map(({ change }) => change.name), ...unasked.map(({ name }) => name)]
  t.ok(new Set(names).size >= 12, `${new Set(names).size} names`)
  t.same(
    names.filter(name => !KEEPABLE.has(name)),
    [],
  )
  requireKeepable([...KEEPABLE], '--keep')
  t.throws(() => requireKeepable(['max-bandwith'], '--keep'), {
    ...{ code: 'USAGE', what: '--keep "max-bandwith"', action: /max-bandwidth/ },
  })
  t.end()
})
