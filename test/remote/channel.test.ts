/** Documents of channels: one form, signatures, and no way back. */
import { execFileSync } from 'node:child_process'
import { createPrivateKey, createPublicKey, type KeyObject } from 'node:crypto'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import {
  type Channel,
  checkFreshness,
  checkSignature,
  decodeChannel,
  encodeChannel,
  keyIdOf,
} from '../../src/remote/channel.ts'
import { makeChannelKey, readSigningKey, readTrustedKeys } from '../../src/remote/channel-keys.ts'
import { isChannelName } from '../../src/remote/remote-store.ts'
import { failure, scratch } from '../template/makers.ts'

/** The first key of RFC 8032, 7.1. */
const SECRET = '9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60'
/** What `xxd -r -p | sha256sum` begins with for its public half. */
const ID = '21fe31dfa154a261'
const PKCS8 = '302e020100300506032b657004220420'

const key = createPrivateKey({ key: Buffer.from(PKCS8 + SECRET, 'hex'), format: 'der', type: 'pkcs8' })
const trusted = createPublicKey(key)
const newKey = (): KeyObject => createPrivateKey(makeChannelKey().privatePem)

const DAY_MS = 86_400_000
const ISSUED_MS = Date.UTC(2026, 10, 29)
const channel: Channel = {
  channel: 'stable',
  expiresMs: ISSUED_MS + 30 * DAY_MS,
  issuedMs: ISSUED_MS,
  notBeforeMs: ISSUED_MS,
  overlapMs: 3_600_000,
  serial: 7,
  sets: [
    { bytes: 8192, digest: 'a'.repeat(64) },
    { bytes: 12_345_678, digest: '0'.repeat(64) },
  ],
}
/** What a second implementation has to write and to sign. */
const SIGNED =
  `{"channel":"stable","expires":"2026-12-29T00:00:00.000Z","issued":"2026-11-29T00:00:00.000Z",` +
  `"notBefore":"2026-11-29T00:00:00.000Z","overlap":3600,"serial":7,"sets":[{"bytes":12345678,"digest":"${'0'.repeat(64)}"},` +
  `{"bytes":8192,"digest":"${'a'.repeat(64)}"}],"version":1}`

t.test('the form, literally', async t => {
  const bytes = encodeChannel(channel, [key])
  const text = Buffer.from(bytes).toString()
  t.equal(keyIdOf(key), ID)
  t.equal(keyIdOf(trusted), ID)
  const signature = /"signature":"([^"]+)"/.exec(text)?.[1]
  t.equal(text, `{"signatures":[{"key":"${ID}","signature":"${signature}"}],"signed":${SIGNED}}\n`)
  const document = decodeChannel(bytes, 'stable')
  t.equal(Buffer.from(document.signed).toString(), `pageferry channel 1\n${SIGNED}`)
  t.same(document.channel, { ...channel, sets: channel.sets.toReversed() })
  t.equal(checkSignature(document, [trusted]), ID)
})

t.test('openssl signs and checks the same', async t => {
  const { folder, put } = scratch(t.teardown)
  const document = decodeChannel(encodeChannel(channel, [key]), 'stable')
  const pem = put('key.pub', Buffer.from(trusted.export({ format: 'pem', type: 'spki' })))
  const text = put('text', document.signed)
  const signature = put('signature', document.signatures[0]!.signature)
  const args = ['pkeyutl', '-verify', '-pubin', '-inkey', pem, '-rawin', '-in', text, '-sigfile', signature]
  t.match(execFileSync('openssl', args).toString(), /Verified Successfully/)
  const made = join(folder, 'made')
  execFileSync('openssl', ['genpkey', '-algorithm', 'ed25519', '-out', made], { stdio: 'ignore' })
  t.equal(readSigningKey(made).asymmetricKeyType, 'ed25519', 'and its keys are taken')
})

t.test('whom this host trusts', async t => {
  const [old, other] = [newKey(), newKey()]
  const twice = decodeChannel(encodeChannel(channel, [old, key]), 'stable')
  t.equal(checkSignature(twice, [trusted]), keyIdOf(key), 'one good signature of several')
  t.equal(checkSignature(twice, [createPublicKey(old)]), keyIdOf(old), 'while a key is replaced')
  t.equal(await failure(() => checkSignature(twice, [createPublicKey(other)])), 'CHANNEL_UNTRUSTED')
  t.equal(await failure(() => checkSignature(twice, [])), 'CHANNEL_UNTRUSTED')
  const unsigned = decodeChannel(encodeChannel(channel, []), 'stable')
  t.equal(await failure(() => checkSignature(unsigned, [trusted])), 'CHANNEL_UNTRUSTED')

  const text = Buffer.from(encodeChannel(channel, [key])).toString()
  const changed = decodeChannel(Buffer.from(text.replace('"serial":7', '"serial":8')), 'stable')
  t.equal(await failure(() => checkSignature(changed, [trusted])), 'CHANNEL_UNTRUSTED', 'changed after it was signed')
  const renamed = Buffer.from(
    Buffer.from(encodeChannel(channel, [other]))
      .toString()
      .replace(keyIdOf(other), keyIdOf(key)),
  )
  t.equal(
    await failure(() => checkSignature(decodeChannel(renamed, 'stable'), [trusted])),
    'CHANNEL_UNTRUSTED',
    "in another key's name",
  )
})

t.test('what is no document', async t => {
  const text = Buffer.from(encodeChannel(channel, [key])).toString()
  const cases: Record<string, string> = {
    nothing: '',
    'no JSON': 'hello',
    'a list': '[]',
    null: 'null',
    'another name': text.replace('"stable"', '"beta"'),
    'a later version': text.replace('"version":1', '"version":2'),
    'a space': text.replace(',"signed"', ', "signed"'),
    'no line end': text.trim(),
    'a field that nobody knows': text.replace('"version"', '"urgent":true,"version"'),
    'a field twice': text.replace('"serial":7', '"serial":6,"serial":7'),
    'a serial of 0': text.replace('"serial":7', '"serial":0'),
    'half a serial': text.replace('"serial":7', '"serial":7.5'),
    'a serial as a power': text.replace('"serial":7', '"serial":7e0'),
    'an overlap of a century': text.replace('"overlap":3600', '"overlap":3155760000'),
    'an overlap before': text.replace('"overlap":3600', '"overlap":-1'),
    'a time of another zone': text.replace('12-29T00:00:00.000Z', '12-29T00:00:00+01:00'),
    'a day that is none': text.replace('12-29T', '12-32T'),
    'a day that another one is': text.replace('2026-12-29', '2026-11-31'),
    'a set twice': text.replace('a'.repeat(64), '0'.repeat(64)),
    'sets in another order': text.replace('0'.repeat(64), 'b'.repeat(64)),
    'a digest in capitals': text.replace('a'.repeat(64), 'A'.repeat(64)),
    'a set of no bytes': text.replace('8192', '0'),
    'a set larger than any': text.replace('8192', '81920000000000'),
    'no sets': text.replace(/"sets":.*\]/, '"sets":{}'),
    'too many sets': text.replace(/"sets":\[.*\]/, `"sets":[${Array(513).fill('{}')}]`),
    'too many signatures': text.replace(/"signatures":\[[^\]]*\]/, `"signatures":[${Array(17).fill('{}')}]`),
    'a short signature': text.replace(/"signature":"..../, '"signature":"'),
    'a signature written otherwise': text.replace(
      /"signature":"([^"]{86})/,
      '"signature":"$1'.replace('$1', '_'.repeat(86)),
    ),
    'too long': text.replace('"serial"', `${' '.repeat(300_000)}"serial"`),
    'half a character': `${text}\xff`,
  }
  for (const [name, changed] of Object.entries(cases)) {
    t.not(changed, text, `${name}: it was changed`)
    t.equal(await failure(() => decodeChannel(Buffer.from(changed, 'latin1'), 'stable')), 'CHANNEL_FORMAT', name)
  }
  t.equal(await failure(() => encodeChannel({ ...channel, serial: 0 }, [key])), 'USAGE')
  t.equal(await failure(() => encodeChannel({ ...channel, overlapMs: 1500 }, [key])), 'USAGE', 'half a second')
})

t.test('any byte that is changed is noticed', async t => {
  const bytes = encodeChannel(channel, [key])
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, by) => {
      const changed = Buffer.from(bytes)
      changed[at]! ^= by
      try {
        checkSignature(decodeChannel(changed, 'stable'), [trusted])
        return false
      } catch (error) {
        return /^CHANNEL_/.test((error as { code: string }).code)
      }
    }),
    { numRuns: 500 },
  )
  t.pass('500 of them')
})

t.test('no way back', async t => {
  const make = (change: Partial<Channel>) => decodeChannel(encodeChannel({ ...channel, ...change }, [key]), 'stable')
  const last = make({})
  const fresh = (change: Partial<Channel>, nowMs = ISSUED_MS + DAY_MS) =>
    failure(() => t.equal(checkFreshness(make(change), last, nowMs), true))
  t.equal(checkFreshness(last, undefined, ISSUED_MS), true, 'the first')
  t.equal(checkFreshness(make({}), last, ISSUED_MS), false, 'the same again is nothing new')
  t.equal(
    checkFreshness(make({}), last, ISSUED_MS + 90 * DAY_MS),
    false,
    'what is in force stays when its time is over',
  )
  t.equal(await fresh({ serial: 8 }), undefined)
  t.equal(await fresh({ serial: 1000 }), undefined, 'some that this host never saw')
  t.equal(await fresh({ serial: 6 }), 'CHANNEL_STALE', 'an older one')
  t.equal(await fresh({ sets: [] }), 'CHANNEL_STALE', 'another one of the same number')
  t.equal(await fresh({ serial: 8 }, channel.expiresMs), 'CHANNEL_STALE', 'expired')
  t.equal(await fresh({ serial: 8 }, channel.expiresMs - 1), undefined)
  t.equal(
    await fresh({ serial: 8, notBeforeMs: ISSUED_MS + 2 * DAY_MS }),
    undefined,
    'for later: sets are fetched ahead',
  )
})

t.test('keys in files', async t => {
  const { put } = scratch(t.teardown)
  const { privatePem, publicPem } = makeChannelKey()
  const secret = put('key', Buffer.from(privatePem))
  t.equal(await failure(() => readSigningKey(secret)), 'USAGE', 'that everyone can read')
  execFileSync('chmod', ['600', secret])
  const pub = put('key.pub', Buffer.from(publicPem))
  t.equal(keyIdOf(readSigningKey(secret)), keyIdOf(readTrustedKeys(pub)[0]!))
  t.equal(await failure(() => readTrustedKeys(secret)), 'USAGE', 'a host is not given the key that signs')
  execFileSync('chmod', ['600', pub])
  t.equal(await failure(() => readSigningKey(pub)), 'USAGE')
  t.equal(await failure(() => readTrustedKeys(put('empty', Buffer.alloc(0)))), 'USAGE')
  t.equal(await failure(() => readTrustedKeys('/nowhere/key.pub')), 'IO')
  t.equal(await failure(() => readTrustedKeys('/')), 'USAGE')
  const more = put('more', Buffer.from(`# ours\n${publicPem}# the next\n${makeChannelKey().publicPem}`))
  t.equal(readTrustedKeys(more).length, 2)
  const other = put(
    'x448',
    execFileSync('openssl', ['genpkey', '-algorithm', 'x25519'], { stdio: ['ignore', 'pipe', 'ignore'] }),
  )
  execFileSync('chmod', ['600', other])
  t.equal(await failure(() => readSigningKey(other)), 'USAGE', 'a key for another purpose')
})

t.test('names', async t => {
  for (const name of ['stable', 'a', 'eu-west-1', '0', 'a'.repeat(64)]) t.equal(isChannelName(name), true, name)
  for (const name of ['', '-a', 'a-', 'A', 'a/b', '..', 'a.b', 'a b', 'a'.repeat(65), 'ä'])
    t.equal(isChannelName(name), false, name)
})
