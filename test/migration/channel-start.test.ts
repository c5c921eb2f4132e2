/** What a connection's first bytes tell at a source, cut anywhere: QEMU's own TLS from that of another proxy. */
import t, { type Test } from 'tap'
import { CREDIT_INITIAL_BYTES } from '../../src/limits.ts'
import { ChannelStart } from '../../src/migration/channel-start.ts'
import { encodeClientHello } from '../../src/wan/hello.ts'
import { MARK_BYTES_MAX } from '../../src/wan/own-hello.ts'
import { clientHello, clientHelloOf } from '../helpers/client-hello.ts'
import { credentials, makeCredentials } from '../link/harness.ts'

/** What is said of these bytes in these pieces; `undefined`: nothing yet. */
function told(bytes: Uint8Array, cuts: readonly number[]): string | undefined {
  const start = new ChannelStart()
  let at = 0
  for (const end of [...cuts, bytes.length]) {
    while (at < end) {
      const { room } = start
      if (room === undefined) return 'no room'
      const take = Math.min(room.length, end - at)
      room.set(bytes.subarray(at, at + take))
      at += take
      const kind = start.filled(take)
      if (kind === undefined) continue
      if (Buffer.compare(start.bytes, bytes.subarray(0, at)) !== 0) return 'other bytes'
      if (at >= 8 && start.room !== undefined) return 'takes more than it needs'
      return kind
    }
  }
  return undefined
}

function everywhere(t: Test, what: string, bytes: Uint8Array, kind: string): void {
  const each = Array.from(bytes.keys())
  const wrong = each.filter(cut => told(bytes, [cut]) !== kind)
  t.same(wrong, [], `${what}: ${kind}, cut at every byte`)
  t.equal(told(bytes, each), kind, `${what}: byte by byte`)
}

/** A ClientHello with these bytes behind its random: by hand, where no client sends it. */
function helloWith(...rest: readonly number[]): Uint8Array {
  const length = 34 + rest.length
  const heads = [0x16, 3, 1, (length + 4) >> 8, (length + 4) & 0xff, 1, 0, length >> 8, length & 0xff, 3, 3]
  return Uint8Array.from([...heads, ...Buffer.alloc(32, 0xa5), ...rest])
}

const SUITES = [0, 0, 2, 0x13, 1, 1, 0] // no session id, one cipher suite, no compression
const ALPN = [0, 16, 0, 14, 0, 12, 11, ...Buffer.from('pageferry/1')]

t.test('a link, whatever its credentials', async t => {
  for (const kind of ['x509', 'psk'] as const) {
    const directory = await makeCredentials(kind, t, ['near', 'far'])
    for (const serverName of [undefined, `${'a.'.repeat(126)}b`]) {
      const near = credentials(`${directory}/near`, { role: 'client', ...(serverName !== undefined && { serverName }) })
      const hello = await clientHelloOf(wire => void near.connect(wire, 'far').catch(() => {}))
      everywhere(t, `${kind}${serverName ? ' behind a long server name' : ''}`, hello, 'proxy')
    }
  }
  const clear = encodeClientHello({
    ...{ agent: 'a', session: '0'.repeat(32), connection: 0, connections: 1, token: null },
    ...{ received: 0, credit: CREDIT_INITIAL_BYTES, sets: [], ring: 0, places: 0, seed: '0'.repeat(16) },
  })
  everywhere(t, 'in clear', clear, 'proxy')
})

t.test("others' TLS, and what only begins like a link", async t => {
  everywhere(t, 'no ALPN', await clientHello({}), 'tls')
  everywhere(t, 'TLS 1.2', await clientHello({ maxVersion: 'TLSv1.2' }), 'tls')
  everywhere(t, 'another ALPN', await clientHello({ ALPNProtocols: ['h2', 'http/1.1'] }), 'tls')
  everywhere(t, 'alike', await clientHello({ ALPNProtocols: ['pageferry', 'xpageferry/1'] }), 'tls')
  everywhere(t, 'a later version', await clientHello({ ALPNProtocols: ['h2', 'pageferry/27'] }), 'proxy')
  for (const text of ['POST / HTTP/1.1\r\n', 'PGFY\n\x1a\n...', 'GET /']) {
    everywhere(t, text, Buffer.from(text, 'latin1'), 'unknown')
  }
})

t.test('a ClientHello that is short, long, or lies', t => {
  everywhere(t, 'no extensions', helloWith(...SUITES), 'tls')
  everywhere(t, 'its mark alone', helloWith(...SUITES, 0, ALPN.length, ...ALPN), 'proxy')
  everywhere(t, 'extensions of no length', helloWith(...SUITES, 0, 0), 'tls')
  everywhere(t, 'a session id beyond its end', helloWith(255, ...SUITES), 'tls')
  everywhere(t, 'suites beyond its end', helloWith(0, 255, 255, ...SUITES), 'tls')
  everywhere(t, 'an extension beyond its end', helloWith(...SUITES, 0, 9, 0, 5, 255, 255, 1), 'tls')
  everywhere(t, 'ALPN beyond its end', helloWith(...SUITES, 0, 18, ...ALPN.slice(0, -1)), 'tls')
  everywhere(t, 'an empty ALPN', helloWith(...SUITES, 0, 4, 0, 16, 0, 0), 'tls')
  const padding = (length: number) => [0, 21, length >> 8, length & 0xff, ...Buffer.alloc(length)]
  const room = MARK_BYTES_MAX - helloWith(...SUITES).length - 2 - ALPN.length - 4
  everywhere(t, 'the mark at the last place', helloWith(...SUITES, 4, 0, ...padding(room), ...ALPN), 'proxy')
  everywhere(t, 'behind it', helloWith(...SUITES, 4, 0, ...padding(room + 1), ...ALPN), 'tls')
  const long = helloWith(...SUITES, 0x20, 0, ...padding(8000))
  t.equal(told(long.subarray(0, MARK_BYTES_MAX), []), 'tls', 'nothing is waited for behind that')
  t.equal(told(helloWith(...SUITES).subarray(0, 48), []), undefined, 'what is not whole is waited for')
  t.end()
})
