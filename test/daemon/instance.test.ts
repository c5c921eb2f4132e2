/** What a proxy is called in all of its processes. */
import t from 'tap'
import { instanceOf, PROCESS, thisHost } from '../../src/daemon/instance.ts'

t.setTimeout(590_000) // the machine may be busy

t.test('the same proxy, and no other', t => {
  const name = instanceOf('abc', 'host', ['tcp:127.0.0.1:4444', 'unix:/a'], 'far:9444')
  t.match(name, /^[0-9a-f]{32}$/)
  t.equal(instanceOf('abc', 'host', ['unix:/a', 'tcp:127.0.0.1:4444'], 'far:9444'), name, 'in any order')
  const others = [
    instanceOf('abd', 'host', ['tcp:127.0.0.1:4444', 'unix:/a'], 'far:9444'),
    instanceOf('abc', 'clone', ['tcp:127.0.0.1:4444', 'unix:/a'], 'far:9444'),
    instanceOf('abc', 'host', ['tcp:127.0.0.1:4444'], 'far:9444'),
    instanceOf('abc', 'host', ['tcp:127.0.0.1:4444', 'unix:/a'], 'far:9445'),
  ]
  t.equal(new Set([name, ...others]).size, 5)
  t.equal(instanceOf('', 'host', ['unix:/a'], 'far:9444'), undefined, 'nothing tells this host from others')
  t.equal(instanceOf('abc', 'host', [], 'far:9444'), undefined)
  t.match(PROCESS, /^[0-9a-f]{16}$/)
  t.equal(thisHost().length, 2)
  t.end()
})
