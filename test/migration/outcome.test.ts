/** How a migration's end is judged, from every combination of what a side may have seen. */
import { readdirSync, readFileSync } from 'node:fs'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { ChannelHead, ChannelTail } from '../../src/migration/channel-ends.ts'
import { MigrationRecord } from '../../src/migration/migration-record.ts'
import { type Cause, type EndFacts, judge, type Outcome } from '../../src/migration/outcome.ts'
import { random } from '../template/makers.ts'

const source: Cause = { by: 'source', how: 'closed', text: 'source QEMU closed' }
const sourceBroke: Cause = { by: 'source', how: 'broke', text: 'source QEMU broke off' }
const destination: Cause = { by: 'destination', how: 'closed', text: 'destination QEMU closed' }
const destinationBroke: Cause = { by: 'destination', how: 'broke', text: 'destination QEMU broke off' }
const pair: Cause = { by: 'pair', how: 'broke', text: 'no connection to the peer for 120 s' }
const operator: Cause = { by: 'operator', how: 'broke', text: 'cancelled by the operator of the source proxy' }
const CAUSES = [undefined, source, sourceBroke, destination, destinationBroke, pair, operator]

/** A precopy migration with a return path, in the middle. */
const middle: EndFacts = {
  shut: undefined,
  answers: true,
  whole: false,
  postcopy: false,
  readable: true,
  cause: undefined,
}

t.test('what happens to migrations', t => {
  const cases: [what: string, facts: Partial<EndFacts>, outcome: Outcome, level: string, reason: RegExp][] = [
    ['SHUT', { shut: 0, whole: true, cause: destination }, 'completed', 'info', /has taken over/],
    ['SHUT, and an RST behind it', { shut: 0, whole: true, cause: sourceBroke }, 'completed', 'info', /taken over/],
    ['SHUT, and the WAN is gone', { shut: 0, whole: true, cause: pair, unheard: 'lost' }, 'completed', 'error', /once/],
    ['SHUT after postcopy', { shut: 0, whole: true, postcopy: true, cause: source }, 'completed', 'info', /taken over/],
    ['an error in SHUT', { shut: 1, cause: destination }, 'failed', 'error', /reports error 1/],
    ['a cancel, answered by an error', { shut: 1, cause: source }, 'cancelled', 'warn', /middle/],
    ['a cancel', { cause: source }, 'cancelled', 'warn', /middle/],
    ['a cancel, no return path', { answers: false, cause: source }, 'cancelled', 'warn', /middle/],
    ['a cancel by the operator', { cause: operator }, 'cancelled', 'warn', /^cancelled by the operator/],
    ['the same, answered by an error', { shut: 1, cause: operator }, 'cancelled', 'warn', /operator/],
    ['a source that dies', { cause: sourceBroke }, 'failed', 'error', /source QEMU broke off, before the end/],
    ['a destination that dies', { cause: destination }, 'failed', 'error', /destination QEMU closed, before the end/],
    ['the same, seen as RST', { cause: destinationBroke }, 'failed', 'error', /broke off, before the end/],
    ['a WAN that stays away', { cause: pair }, 'failed', 'error', /^no connection to the peer for 120 s$/],
    ['whole, no return path', { answers: false, whole: true, cause: source }, 'completed', 'info', /no QEMU confirms/],
    ['the same', { answers: false, whole: true, cause: destination }, 'completed', 'info', /no QEMU confirms/],
    ['load fails', { answers: false, whole: true, cause: destinationBroke }, 'failed', 'error', /after the whole/],
    [
      'lost behind it',
      { answers: false, whole: true, cause: source, broke: pair },
      'failed',
      'error',
      /120 s, after the whole/,
    ],
    [
      'load fails behind it',
      { answers: false, whole: true, cause: source, broke: destinationBroke },
      'failed',
      'error',
      /after/,
    ],
    ['a cancel, and the WAN', { cause: source, broke: pair }, 'cancelled', 'warn', /middle/],
    [
      'load fails, return path',
      { whole: true, cause: destination },
      'failed',
      'error',
      /never said that it had taken over$/,
    ],
    [
      'a cancel too late',
      { whole: true, cause: source },
      'failed',
      'error',
      /closed, and the .* never said.*runs once/,
    ],
    ['the same, told over the WAN', { whole: true, cause: operator }, 'failed', 'error', /never said.*runs once/],
    ['the same, and it did', { shut: 0, whole: true, cause: source, unheard: 'closed' }, 'completed', 'error', /once/],
    ['a break in postcopy', { postcopy: true, cause: sourceBroke }, 'failed', 'error', /in postcopy.*migrate-recover/],
    ['migrate-pause', { postcopy: true, cause: source }, 'failed', 'error', /in postcopy.*resume/],
    ['the WAN in postcopy', { postcopy: true, cause: pair }, 'failed', 'error', /120 s, in postcopy/],
    ['TLS', { readable: false, answers: false, cause: source }, 'unknown', 'warn', /hides/],
    ['TLS, and the WAN', { readable: false, answers: false, cause: pair }, 'failed', 'error', /120 s/],
  ]
  for (const [what, facts, outcome, level, reason] of cases) {
    t.match(judge({ ...middle, ...facts }), { outcome, level, reason }, what)
  }
  t.end()
})

t.test('every combination has one answer, and no failure is called otherwise', t => {
  let count = 0
  for (const shut of [undefined, 0, 1])
    for (const answers of [true, false])
      for (const whole of [true, false])
        for (const postcopy of [true, false])
          for (const readable of [true, false])
            for (const cause of CAUSES)
              for (const [unheard, broke] of [[], ['lost'], [undefined, pair], ['lost', destinationBroke]] as const) {
                count++
                const facts = { shut, answers, whole, postcopy, readable, cause, broke, unheard }
                const { outcome, reason, level } = judge(facts)
                const said = JSON.stringify(facts)
                if (reason === '') t.fail(`no reason: ${said}`)
                if (outcome === 'failed' && level !== 'error') t.fail(`a failure nobody hears of: ${said}`)
                if (outcome === 'completed' && shut !== 0 && !(whole && !answers && !postcopy && readable))
                  t.fail(`completed without a word: ${said}`)
                if (shut === 0 && outcome !== 'completed') t.fail(`SHUT counts above all: ${said}`)
                if (outcome === 'completed' && shut !== 0 && broke) t.fail(`completed, and it broke: ${said}`)
                if (outcome === 'cancelled' && (postcopy || whole)) t.fail(`cancelled, but the guest: ${said}`)
              }
  t.equal(count, 3 * 2 * 2 * 2 * 2 * 7 * 4)
  t.end()
})

/** What QEMU sent on main channels, recorded; cut ones by their names. */
function recorded(): { readonly name: string; readonly bytes: Buffer; readonly back: Buffer | undefined }[] {
  const folder = new URL('../vectors/qemu/streams/', import.meta.url)
  const read = (name: string): Buffer => zstdDecompressSync(readFileSync(new URL(`${name}.zst`, folder)))
  const names = readdirSync(folder).flatMap(file => (file.endsWith('.zst') ? file.slice(0, -4) : []))
  return names
    .filter(name => /-(main|recovery)$/.test(name))
    .map(name => {
      const back = name.replace(/-(main|recovery)$/, '-return')
      return { name, bytes: read(name), back: names.includes(back) ? read(back) : undefined }
    })
}

t.test('recorded streams: who it is, and that it came to its end', t => {
  const all = recorded()
  t.ok(all.length > 10, `${all.length} recordings`)
  const next = random(7)
  for (const { name, bytes, back } of all) {
    const paused = /recovery.*\.0-main$/.test(name)
    const kind = name.endsWith('recovery') ? 'recovery' : 'main'
    const record = new MigrationRecord('00', 1)
    const head = new ChannelHead()
    record.leads(kind)
    for (let at = 0; at < bytes.length; ) {
      const take = Math.min(bytes.length - at, 1 + next(20_000))
      head.push(bytes, at, take)
      record.main(bytes, at, take)
      at += take
    }
    record.begins(head)
    t.equal(record.answers, back !== undefined && kind === 'main', `${name}: whether it wants answers`)
    if (back) record.returnPath().push(back, 0, back.length)
    record.ended(paused ? sourceBroke : source)
    const { outcome } = record.verdict()
    t.equal(outcome, paused ? 'failed' : 'completed', `${name}: ${outcome}`)
    const machine = /no-footers/.test(name) || kind === 'recovery' ? undefined : /^pc-i440fx-/
    if (machine) t.match(record.guest.machine, machine, name)
    else t.equal(record.guest.machine, undefined, name)
    if (/uuid/.test(name)) t.match(record.guest.uuid, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/, name)

    let looksWhole = 0
    for (let i = 0; i < 200; i++) {
      const end = next(bytes.length - 1)
      const tail = new ChannelTail()
      tail.push(bytes, 0, end)
      if (tail.isWhole) looksWhole++
    }
    t.ok(looksWhole <= 4, `${name}: cut anywhere it seldom looks whole: ${looksWhole} of 200`)
  }
  t.end()
})

t.test('a head that is not as it should be names nobody', t => {
  const cases: [string, string, object][] = [
    ['nothing', '', {}],
    ['no configuration', '5145564d000000030100', {}],
    ['a name without end', '5145564d0000000307ffffffff', {}],
    ['a name that is cut', '5145564d0000000307000000097063', {}],
    ['a machine', '5145564d0000000307000000027063', { machine: 'pc' }],
    ['a subsection without end', '5145564d00000003070000000270630514', { machine: 'pc' }],
    ['multifd', `1122334400000001${'00'.repeat(16)}`, {}],
    [
      'multifd with a UUID',
      '112233440000000100112233445566778899aabbccddeeff',
      { uuid: '00112233-4455-6677-8899-aabbccddeeff' },
    ],
    ['noise', 'ff'.repeat(100), {}],
  ]
  for (const [what, hex, guest] of cases) {
    const bytes = Buffer.from(hex, 'hex')
    const head = new ChannelHead()
    for (let i = 0; i < bytes.length; i++) head.push(bytes, i, 1)
    t.same(head.guest(), guest, what)
  }
  t.end()
})
