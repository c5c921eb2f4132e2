/** The course of a migration over QMP, without sockets: what is decided, and that settings are put back whatever happens. */
import t, { type Test } from 'tap'
import { isProxyError } from '../../src/errors.ts'
import type { QemuSide } from '../../src/qmp/advice.ts'
import {
  type Answer,
  type CourseTask,
  decide,
  migrationCourse,
  type Outcome,
  type Situation,
  type Told,
} from '../../src/qmp/migration-course.ts'
import { phaseOf } from '../../src/qmp/migration-info.ts'
import { type MigrationWishes, wishesOf } from '../../src/qmp/migration-wishes.ts'
import { GOES_ON, inet, type ModelOptions, ModelQemu, type Reaction } from './model-qemu.ts'

// --- one decision

const RUNS: Situation = {
  ...{ status: 'active', phase: 'precopy', pass: 1, elapsedMs: 1000, interrupts: 0 },
  ...{ cancelAsked: false, cancelRefused: false, postcopyAsked: false },
}
const decisions: [string, Partial<Situation>, Parameters<typeof decide>[1], ReturnType<typeof decide>][] = [
  ['it goes on', {}, {}, 'wait'],
  ['Ctrl-C', { interrupts: 1 }, {}, 'cancel'],
  ['Ctrl-C, which was done', { interrupts: 1, cancelAsked: true }, {}, 'wait'],
  ['Ctrl-C before its first pass', { status: 'setup', interrupts: 1 }, {}, 'cancel'],
  ['Ctrl-C while the guest is handed over', { status: 'device', phase: 'switching', interrupts: 1 }, {}, 'cancel'],
  ['Ctrl-C in postcopy', { status: 'postcopy-active', phase: 'postcopy', interrupts: 1 }, {}, 'refuse cancel'],
  ['Ctrl-C when the switch is asked for', { postcopyAsked: true, interrupts: 1 }, {}, 'refuse cancel'],
  ['the same, said already', { postcopyAsked: true, interrupts: 1, cancelRefused: true }, {}, 'wait'],
  ['too long', { elapsedMs: 5000 }, { timeoutMs: 5000 }, 'cancel'],
  ['not yet too long', { elapsedMs: 4999 }, { timeoutMs: 5000 }, 'wait'],
  ['too long, in postcopy', { phase: 'postcopy', elapsedMs: 9000 }, { timeoutMs: 5000 }, 'wait'],
  ['too long, when the switch is asked for', { postcopyAsked: true, elapsedMs: 9000 }, { timeoutMs: 5000 }, 'wait'],
  ['too long, while it is handed over', { phase: 'switching', elapsedMs: 9000 }, { timeoutMs: 5000 }, 'wait'],
  ['the second of two passes', { pass: 2 }, { postcopyAfter: { passes: 2 } }, 'wait'],
  ['two passes', { pass: 3 }, { postcopyAfter: { passes: 2 } }, 'start postcopy'],
  ['two passes, asked already', { pass: 3, postcopyAsked: true }, { postcopyAfter: { passes: 2 } }, 'wait'],
  ['two passes, but cancelled', { pass: 3, cancelAsked: true }, { postcopyAfter: { passes: 2 } }, 'wait'],
  ['two passes, but Ctrl-C', { pass: 3, interrupts: 1 }, { postcopyAfter: { passes: 2 } }, 'cancel'],
  ['time for the switch', { elapsedMs: 3000 }, { postcopyAfter: { ms: 3000 } }, 'start postcopy'],
  [
    'time for it, but it is not there yet',
    { status: 'setup', elapsedMs: 3000 },
    { postcopyAfter: { ms: 3000 } },
    'wait',
  ],
  ['cancelling', { status: 'cancelling', phase: 'cancelling' }, { timeoutMs: 1 }, 'wait'],
  ['completed, with a Ctrl-C', { phase: 'completed', interrupts: 1 }, {}, 'end'],
  ['failed', { phase: 'failed' }, {}, 'end'],
  ['cancelled', { phase: 'cancelled', cancelAsked: true }, {}, 'end'],
  ['paused', { phase: 'paused', postcopyAsked: true }, {}, 'end'],
  ['it is not there', { phase: 'none' }, {}, 'end'],
]
t.test('what comes next', t => {
  for (const [name, is, task, expected] of decisions) t.equal(decide({ ...RUNS, ...is }, task), expected, name)
  t.end()
})

t.test('what a status means, also one of a newer QEMU', t => {
  const phases = [
    'none',
    'active',
    'device',
    'failing',
    'postcopy-recover-setup',
    'postcopy-of-later',
    'of-later',
    'toString',
  ]
  t.same(phases.map(phaseOf), [
    ...['none', 'precopy', 'switching', 'switching', 'postcopy', 'postcopy', 'switching', 'switching'],
  ])
  t.end()
})

// --- whole courses

interface Played {
  readonly outcome: Outcome
  readonly told: Told[]
  readonly source: ModelQemu
  readonly destination: ModelQemu
  /** Steps that were asked. */
  readonly asked: readonly string[]
  /** How many of them before the course heard of the last signal. */
  readonly askedBefore: number
  readonly seconds: number
}

interface Play {
  readonly task?: Partial<CourseTask>
  readonly wishes?: Partial<MigrationWishes>
  readonly source?: ModelOptions
  readonly destination?: ModelOptions
  readonly alone?: boolean
  /** Before which steps (from 0, all kinds) a signal comes. */
  readonly signals?: readonly number[]
  /** In place of the answer to the so-manieth question. */
  readonly fault?: { readonly ask: number; readonly answer: Answer; readonly isDone?: boolean }
}

const STEPS_MAX = 20_000

function play({ task, wishes, alone = false, signals = [], fault, ...options }: Play): Played {
  const source = new ModelQemu(options.source)
  const destination = new ModelQemu({ incoming: 'defer', ...options.destination })
  source.destination = destination
  const keep: string[] = []
  const wanted = wishesOf({
    hasDestination: !alone,
    postcopy: task?.postcopyAfter !== undefined,
    autoConverge: false,
    keep,
    ...wishes,
  })
  const course = migrationCourse({
    ...{
      to: 'tcp:127.0.0.1:4444',
      incoming: alone ? undefined : 'tcp:127.0.0.1:5555',
      wishes: wanted,
      keep: wishes?.keep ?? keep,
    },
    versions: { source: source.version, ...(!alone && { destination: destination.version }) },
    ...task,
  })
  const told: Told[] = []
  const asked: string[] = []
  let askedBefore = 0
  const gone = new Set<QemuSide>()
  let [nowMs, interrupts] = [0, 0]
  let next = course.next({ nowMs, interrupts })
  for (let step = 0; !next.done; step++) {
    if (step > STEPS_MAX) throw new Error(`no end: ${asked.slice(-10)}`)
    interrupts += signals.filter(at => at === step).length
    const { value } = next
    let answer: Answer | undefined
    if (value.kind === 'tell') told.push(value.told)
    else if (value.kind === 'wait') nowMs += value.ms
    else {
      nowMs += 1
      answer = { kind: 'lost', why: 'QMP is closed' }
      const isFaulty = fault?.ask === asked.length
      asked.push(`${value.side} ${value.command}`)
      if (!gone.has(value.side) && (!isFaulty || fault.isDone)) {
        const reaction = (value.side === 'source' ? source : destination).answer(value.command, value.args)
        if (typeof reaction === 'string' || 'raw' in reaction) gone.add(value.side)
        else if ('error' in reaction) answer = { kind: 'refused', why: reaction.error }
        else answer = { kind: 'value', value: reaction.return }
      }
      if (isFaulty) {
        ;({ answer } = fault)
        if (answer.kind === 'lost') gone.add(value.side)
      }
    }
    if (signals.includes(step)) askedBefore = asked.length
    const events = source.events.splice(0)
    next = course.next({ nowMs, interrupts, events, ...(answer && { answer }) })
  }
  return { outcome: next.value, told, source, destination, asked, askedBefore, seconds: nowMs / 1000 }
}

const codeOf = ({ error }: Outcome): string => error?.code ?? 'none'
const notes = ({ told }: Played): string => told.flatMap(one => (one.event === 'note' ? [one.text] : [])).join('\n')

/** @returns what is not as it was before, or is told wrongly to be so */
function untrue(t: Test, { outcome, source, destination }: Played, name: string): void {
  for (const [side, qemu] of [
    ['source', source],
    ['destination', destination],
  ] as const) {
    const before = new ModelQemu(qemu.options).settings
    const differs = Object.entries(qemu.settings).flatMap(([key, value]) => (value === before[key] ? [] : [key]))
    const left = outcome.left.filter(one => one.side === side).map(one => one.name)
    t.same(
      differs.filter(key => !left.includes(key)),
      [],
      `${name}: what is left at the ${side} is told`,
    )
  }
}

t.test('one that completes', t => {
  const played = play({})
  const { outcome, source, destination, told } = played
  t.match(outcome, { result: 'completed', began: true, source: 'postmigrate', destination: 'running', left: [] })
  t.equal(codeOf(outcome), 'none')
  t.match(outcome.info, { downtimeMs: 42, pass: 3, status: 'completed' })
  const set = told.flatMap(one => (one.event === 'set' ? [`${one.side} ${one.name} ${one.before} ${one.value}`] : []))
  t.same(set, [
    'destination return-path false true',
    'source events false true',
    'source return-path false true',
    'source max-bandwidth 134217728 0',
  ])
  untrue(t, played, 'after it')
  t.ok(destination.log.includes('migrate-incoming {"uri":"tcp:127.0.0.1:5555"}'))
  t.ok(source.log.includes('migrate {"uri":"tcp:127.0.0.1:4444"}'))
  t.ok(destination.log.indexOf('migrate-incoming {"uri":"tcp:127.0.0.1:5555"}') > 4, 'after it was set')
  t.end()
})

t.test('what QEMU 7.2 does not know is not set; what 10 knows is, where the link is known', t => {
  const rate = { task: { linkBytes: 12_500_000 } }
  t.notMatch(play({ ...rate, source: { version: '7.2.22' } }).source.log.join(), /avail-switchover/)
  t.match(play({ ...rate }).source.log.join(), /"avail-switchover-bandwidth":12500000/)
  t.notMatch(play({}).source.log.join(), /avail-switchover/, 'a wrong figure is worse than none')
  t.end()
})

t.test('a QEMU below 9.0 that runs its guest without KVM: it migrates, with a warning', t => {
  const warned = ({ version = '7.2.22', ...source }: ModelOptions = {}): string => {
    const played = play({ source: { version, ...source } })
    t.equal(played.outcome.result, 'completed')
    return notes(played)
  }
  t.match(warned({ isTcg: true }), /^warning: QEMU 7\.2\.22 without KVM .* loses pages/)
  t.equal(warned(), '', 'with KVM')
  t.equal(warned({ version: '10.0.13', isTcg: true }), '', 'one that is sound')
  const answers: [string, ReturnType<NonNullable<ModelOptions['instead']>>][] = [
    ['refused', { error: 'The command query-kvm has not been found' }],
    ['null', { return: null }],
  ]
  for (const [name, answer] of answers)
    t.equal(warned({ instead: command => (command === 'query-kvm' ? answer : undefined) }), '', name)
  const destination = play({ destination: { version: '7.2.22', isTcg: true } })
  t.equal(notes(destination), '', 'what a guest writes is lost where it runs')
  t.end()
})

t.test('what the operator says is set, and put back', t => {
  const wishes = {
    ...{ autoConverge: true, throttleInitial: 30, throttleIncrement: 15, downtimeLimitMs: 50 },
    ...{ maxBandwidthBytes: 1e9, keep: ['return-path', 'events'] },
  }
  const played = play({ wishes })
  const set = played.told.flatMap(one => (one.event === 'set' ? [`${one.name} ${one.value}`] : []))
  t.same(set.sort(), [
    ...['auto-converge true', 'cpu-throttle-increment 15', 'cpu-throttle-initial 30'],
    ...['downtime-limit 50', 'max-bandwidth 1000000000'],
  ])
  untrue(t, played, 'after it')
  const hard = play({ wishes: { throttleMax: 90 } }) // the model does not tell it, as no QEMU does that lacks it
  t.match(hard.outcome, { result: 'completed', left: [{ name: 'max-cpu-throttle', because: /did not tell/ }] })
  t.end()
})

t.test('advice that brings other advice: a destination is set as its source is going to be', t => {
  const played = play({
    source: { capabilities: { xbzrle: true, multifd: true }, parameters: { 'multifd-channels': 8 } },
  })
  t.equal(played.outcome.result, 'completed')
  const log = played.destination.log.join('\n')
  t.match(log, /"capability":"multifd","state":true/)
  t.match(log, /"multifd-channels":8/)
  t.notMatch(log, /xbzrle/, 'off at the source, so off at the destination')
  untrue(t, played, 'after it')
  t.end()
})

/** What a QEMU says of its guest from its twentieth look at it on: at the end of a migration. */
function laterSays(reaction: Reaction): ModelOptions {
  return { instead: (command, count) => (command === 'query-status' && count >= 20 ? reaction : undefined) }
}

const ends: [string, Play, object][] = [
  [
    'a source that waits for a guest',
    { source: { incoming: 'defer' } },
    { result: 'refused', error: { action: /swapped/ } },
  ],
  [
    'a destination that runs',
    { destination: { incoming: undefined as never } },
    { result: 'refused', error: { code: 'MIGRATION_REFUSED', action: /-incoming defer/ } },
  ],
  [
    'a destination that is not told where to listen',
    { task: { incoming: undefined } },
    { result: 'refused', error: { action: /--incoming/ } },
  ],
  [
    'one that listens already',
    { task: { incoming: undefined }, destination: { incoming: 'listens' } },
    { result: 'completed' },
  ],
  ['the source alone', { alone: true }, { result: 'completed', source: 'postmigrate', destination: undefined }],
  [
    'it fails',
    { source: { course: ['active', { status: 'failed', 'error-desc': 'Unable to write to socket' }] } },
    {
      result: 'failed',
      source: 'running',
      error: { code: 'MIGRATION_FAILED', what: /Unable to write/, action: /running at the source; .*logs.*--control/ },
    },
  ],
  [
    'it fails, and the proxy will be asked',
    { task: { asksProxy: true }, source: { course: ['active', 'failed'] } },
    { result: 'failed', error: { action: /logs tell more$/ } },
  ],
  [
    'nobody listens where it connects',
    { source: { course: [{ status: 'failed', 'error-desc': "Failed to connect to '127.0.0.1:4444': refused" }] } },
    { result: 'failed', error: { action: /no source proxy listens at tcp:127\.0\.0\.1:4444/ } },
  ],
  [
    'somebody else cancels it',
    { source: { course: ['active', 'cancelling', 'cancelled'] } },
    { result: 'cancelled', error: { code: 'MIGRATION_CANCELLED', what: /not by this command/ } },
  ],
  [
    'cancelled, and the destination ends by it, a moment later',
    { source: { course: ['active', 'cancelled'] }, destination: laterSays('close') },
    {
      result: 'cancelled',
      source: 'running',
      error: { code: 'MIGRATION_CANCELLED', action: /running at the source$/ },
    },
  ],
  [
    'cancelled, and the destination has got the guest in spite of it',
    { source: { course: ['active', 'cancelled'] }, destination: laterSays({ return: { status: 'running' } }) },
    {
      ...{ result: 'failed', source: 'running', destination: 'running' },
      error: {
        code: 'MIGRATION_FAILED',
        what: /cancelled.* too late/,
        action: /running at the destination: .* runs once/,
      },
    },
  ],
  [
    'it takes too long',
    { task: { timeoutMs: 5000 }, source: { course: GOES_ON } },
    { result: 'cancelled', source: 'running', error: { code: 'MIGRATION_CANCELLED', what: /after 5 s \(--timeout\)/ } },
  ],
  [
    'it is in postcopy, and the WAN is lost',
    {
      task: { postcopyAfter: { ms: 500 } },
      source: { course: GOES_ON, postcopy: ['postcopy-active', 'postcopy-paused'] },
    },
    {
      result: 'paused',
      error: { code: 'MIGRATION_PAUSED', action: /migrate-recover.*tcp:127\.0\.0\.1:5555.*"resume":true/ },
    },
  ],
  [
    'QEMU forgets its migration',
    { source: { course: [{}] } },
    { result: 'unknown', error: { code: 'QEMU_LOST', what: /knows of no migration/ } },
  ],
  [
    'null in place of what a migration does',
    {
      source: {
        instead: (command, count) => (command === 'query-migrate' && count > 2 ? { return: null } : undefined),
      },
    },
    { result: 'unknown', destination: 'inmigrate', error: { code: 'QEMU_LOST', what: /query-migrate is not QEMU's/ } },
  ],
  [
    'QEMU never has cancelled',
    {
      task: { timeoutMs: 1000 },
      source: { course: GOES_ON, instead: command => (command === 'migrate_cancel' ? { return: {} } : undefined) },
    },
    { result: 'unknown', error: { code: 'QEMU_LOST', what: /still active 300 s after/ } },
  ],
  [
    'the source dies',
    {
      source: {
        course: GOES_ON,
        instead: (command, count) => (command === 'query-migrate' && count > 3 ? 'close' : undefined),
      },
    },
    { result: 'unknown', error: { code: 'QEMU_LOST' } },
  ],
  [
    'the destination dies behind the end',
    { destination: { instead: (command, count) => (command === 'query-status' && count > 0 ? 'close' : undefined) } },
    { result: 'completed', error: { code: 'QEMU_LOST', action: /see that the guest runs there/ } },
  ],
  [
    'the destination never has its guest',
    {
      destination: {
        instead: command => (command === 'query-status' ? { return: { status: 'inmigrate' } } : undefined),
      },
    },
    { result: 'completed', error: { code: 'QEMU_LOST', what: /still waits/ } },
  ],
  [
    'it failed at the source, and completed at the destination',
    {
      source: { course: ['active', 'failed'] },
      destination: {
        instead: (command, count) =>
          command === 'query-status' && count > 0 ? { return: { status: 'running' } } : undefined,
      },
    },
    {
      result: 'failed',
      error: { action: /running at the source, and running at the destination: see that it runs once/ },
    },
  ],
]

t.test('every end, and what is told of it', t => {
  for (const [name, how, expected] of ends) {
    const played = play(how)
    t.match(played.outcome, expected, name)
    untrue(t, played, name)
  }
  t.end()
})

t.test('a destination that listens already: where --incoming says, or elsewhere', t => {
  const at = (incoming: string, ...listensAt: unknown[]): Played =>
    play({ task: { incoming }, destination: { incoming: 'listens', listensAt } })
  const unix = (path: string): object => ({ type: 'unix', path })
  const there: [string, ...unknown[]][] = [
    ['tcp:127.0.0.1:4445', inet('127.0.0.1', 4445)],
    ['tcp:0.0.0.0:4445', inet('127.0.0.1', 4445)],
    ['tcp:127.0.0.1:4445', inet('0.0.0.0', 4445)],
    ['tcp:127.0.0.1:4445', inet('::', 4445)],
    ['tcp:localhost:4445', inet('::1', 4445)],
    ['tcp:127.0.0.1:4445', inet('10.0.0.1', 4445), inet('127.0.0.1', 4445)],
    ['unix:/run/in.sock', unix('/run/in.sock')],
    ['unix:/run/in.sock', unix('in.sock')],
    ['tcp:127.0.0.1:4445', { type: 'vsock', cid: '3', port: '4445' }],
    ['tcp:127.0.0.1:4445', null],
  ]
  for (const [incoming, ...listensAt] of there) {
    const played = at(incoming, ...listensAt)
    t.equal(played.outcome.result, 'completed', `${incoming}: ${JSON.stringify(listensAt)}`)
    t.match(notes(played), /--incoming is not needed/)
  }
  const elsewhere: [string, unknown, string][] = [
    ['tcp:127.0.0.1:4445', inet('127.0.0.1', 4499), 'tcp:127.0.0.1:4499'],
    ['tcp:127.0.0.1:4445', inet('::', 4499), 'tcp:[::]:4499'],
    ['tcp:127.0.0.1:4445', inet('10.0.0.1', 4445), 'tcp:10.0.0.1:4445'],
    ['tcp:127.0.0.1:4445', unix('/run/in.sock'), 'unix:/run/in.sock'],
    ['unix:/run/a.sock', unix('/run/b.sock'), 'unix:/run/b.sock'],
    ['unix:/run/a.sock', inet('127.0.0.1', 4445), 'tcp:127.0.0.1:4445'],
  ]
  for (const [incoming, listensAt, text] of elsewhere) {
    const { outcome, source, destination } = at(incoming, listensAt)
    t.match(outcome, { result: 'refused', began: false, left: [] }, `${incoming}: ${text}`)
    t.equal(outcome.error?.what, `the destination QEMU listens at ${text} already, not at ${incoming}`)
    t.match(outcome.error?.action, `new destination QEMU with \`-incoming defer\`; or give --incoming ${text}`)
    t.notMatch([...source.log, ...destination.log].join(), /set/, 'nothing is changed')
  }
  t.end()
})

t.test('postcopy: after passes, after a time, and where QEMU does not', t => {
  const passes = play({ task: { postcopyAfter: { passes: 1 } }, source: { course: GOES_ON } })
  t.match(passes.outcome, { result: 'completed', destination: 'running' })
  t.match(passes.source.log.join(), /migrate-start-postcopy/)
  for (const { log } of [passes.source, passes.destination]) t.match(log.join(), /"postcopy-ram","state":true/)
  t.notMatch(passes.source.log.join(), /return-path/, 'postcopy has one of its own')
  untrue(t, passes, 'after it')
  const ms = play({ task: { postcopyAfter: { ms: 3000 } }, source: { course: GOES_ON } })
  t.equal(ms.outcome.result, 'completed')
  t.ok(ms.seconds > 3 && ms.seconds < 6, `after ${ms.seconds} s`)
  const instead: ModelOptions['instead'] = command =>
    command === 'migrate-start-postcopy' ? { error: 'no' } : undefined
  const refused = play({ task: { postcopyAfter: { ms: 300 }, timeoutMs: 9000 }, source: { course: GOES_ON, instead } })
  t.match(refused.outcome, { result: 'cancelled', source: 'running' }, 'it goes on in precopy, with its limit in time')
  t.match(notes(refused), /does not switch to postcopy: no/)
  t.equal(refused.source.log.filter(line => line === 'migrate-start-postcopy').length, 1, 'asked once')
  t.end()
})

t.test('a signal in postcopy', t => {
  const postcopy = ['active', ...Array.from({ length: 30 }, () => 'postcopy-active'), 'completed']
  const how = { task: { postcopyAfter: { ms: 0 } }, source: { course: GOES_ON, postcopy } }
  const at = play(how).asked.indexOf('source migrate-start-postcopy')
  const steps = 4 * at // each look is told, and waited for
  const once = play({ ...how, signals: [steps] })
  t.equal(once.outcome.result, 'completed', 'it goes on')
  t.match(notes(once), /not cancelled: in postcopy.*migrate-pause/)
  t.equal(notes(once).match(/not cancelled/g)?.length, 1, 'said once')
  t.notMatch(once.source.log.join(), /migrate_cancel/)
  const twice = play({ ...how, signals: [steps, steps + 2] })
  t.match(twice.outcome, { result: 'left', error: { what: /interrupted twice: the migration is postcopy-active/ } })
  t.match(twice.outcome.left, [{}, {}, {}, {}], 'what is still set is told')
  untrue(t, twice, 'left')
  t.end()
})

t.test('a signal, or two, at any step', t => {
  const how = { source: { course: [...GOES_ON, ...GOES_ON, ...GOES_ON, 'completed'] } }
  const plain = play(how)
  const results = new Map<string, number>()
  let ended = 0
  for (let step = 0; step < STEPS_MAX && ended < 3; step++) {
    const once = play({ ...how, signals: [step] })
    const { result, began, left, source } = once.outcome
    results.set(`${result} ${began}`, (results.get(`${result} ${began}`) ?? 0) + 1)
    untrue(t, once, `step ${step}`)
    t.same(left, [], `step ${step}: all is put back`)
    if (result === 'cancelled') t.equal(once.source.state, 'running', `step ${step}: the guest goes on`)
    if (result === 'cancelled' && began) t.equal(source, 'running', `step ${step}: and that is told`)
    t.equal(
      began,
      once.source.log.some(line => line.startsWith('migrate {')),
      `step ${step}: begun or not`,
    )
    const twice = play({ ...how, signals: [step, step + 1] })
    untrue(t, twice, `steps ${step}, ${step + 1}`)
    t.ok(['left', 'cancelled', 'completed'].includes(twice.outcome.result), `step ${step}: ${twice.outcome.result}`)
    if (once.outcome.result === plain.outcome.result) ended++
  }
  for (const kind of ['cancelled false', 'cancelled true', 'completed true'])
    t.ok((results.get(kind) ?? 0) > 2, `${kind}: ${results.get(kind)}`)
  t.end()
})

t.test('each question refused, lost, or answered by null: it ends, and what is still set is told', t => {
  const { asked } = play({})
  t.ok(asked.length > 20, `${asked.length} questions`)
  const codes = new Set<string>()
  for (const [ask, what] of asked.entries()) {
    const lost: Answer = { kind: 'lost', why: 'QMP closed' }
    const faults: [string, Answer, boolean][] = [
      ['refused', { kind: 'refused', why: 'no' }, false],
      ['lost', lost, false],
      ['lost, and done', lost, true],
      ['null', { kind: 'value', value: null }, what.includes('-set-') || !what.includes('query')],
      ['a list', { kind: 'value', value: [1] }, true],
    ]
    for (const [how, answer, isDone] of faults) {
      const name = `${what} (${ask}) ${how}`
      const played = play({ fault: { ask, answer, isDone } })
      const { outcome } = played
      codes.add(codeOf(outcome))
      untrue(t, played, name)
      if (!outcome.began) {
        t.ok(['refused', 'cancelled'].includes(outcome.result), `${name}: ${outcome.result}`)
        t.equal(played.source.state, 'running', `${name}: the guest goes on`)
        const reachable = outcome.left.filter(({ because }) => !/QMP/.test(because))
        t.same(reachable, [], `${name}: where QEMU answers, all is put back`)
      }
    }
  }
  t.same([...codes].sort(), ['IO', 'MIGRATION_REFUSED', 'QEMU_LOST', 'none'])
  t.end()
})

t.test('what cannot be put back together is put back one by one', t => {
  const instead: ModelOptions['instead'] = (command, count, args) => {
    const some = (args.capabilities ?? []) as { capability: string; state: boolean }[]
    const isBack = command === 'migrate-set-capabilities' && count > 0
    return isBack && some.some(({ capability }) => capability === 'events') ? { error: 'events stay' } : undefined
  }
  const played = play({ source: { instead } })
  t.match(played.outcome.left, [{ name: 'events', because: /events stay/ }])
  t.equal(played.outcome.left.length, 1)
  untrue(t, played, 'after it')
  t.end()
})

t.test('texts of a QEMU are outside texts, and bounded', t => {
  const long = 'x'.repeat(1 << 20)
  const { outcome } = play({ source: { course: ['active', { status: 'failed', 'error-desc': `\x1b${long}` }] } })
  t.ok(isProxyError(outcome.error, 'MIGRATION_FAILED') && outcome.error.what.length < 1100)
  const odd = {
    status: 'active',
    ram: { total: 'x', remaining: -1, mbps: null, 'dirty-sync-count': {} },
    'total-time': 'y',
  }
  const { told } = play({ source: { course: [odd, 'completed'] } })
  t.match(
    told.find(one => one.event === 'progress'),
    { info: { status: 'active', totalBytes: undefined } },
  )
  t.end()
})

// --- mirrors of disks

const WITH_MIRRORS = ['setup', 'active', 'pre-switchover', 'device', 'completed']
const mirrored = (play: Play = {}): Play => ({
  ...play,
  task: { mirrors: ['a', 'b'], ...play.task },
  wishes: { endsMirrors: true, ...play.wishes },
  source: { course: WITH_MIRRORS, mirrors: { a: {}, b: { looks: 3 } }, ...play.source },
})

t.test('mirrors end while the guest stands still, and before it goes on', t => {
  for (const version of ['7.2.22', '10.0.13'] as const) {
    const played = play(mirrored({ source: { course: WITH_MIRRORS, mirrors: { a: {}, b: { looks: 3 } }, version } }))
    const { outcome, source, destination } = played
    t.match(outcome, { result: 'completed', left: [] }, version)
    const told = source.log.filter(command => /block-job-cancel|migrate-continue|pause-before/.test(command))
    t.same(told.slice(1, 4), [
      'block-job-cancel {"device":"a"}',
      'block-job-cancel {"device":"b"}',
      'migrate-continue {"state":"pre-switchover"}',
    ])
    t.match(told[0], /"pause-before-switchover","state":true/)
    t.equal(destination.log.filter(command => command === 'nbd-server-stop').length, 1)
    t.ok(source.log.indexOf('migrate-continue {"state":"pre-switchover"}') > source.log.lastIndexOf('query-block-jobs'))
    t.match(notes(played), /the mirrors have ended in sync/)
    untrue(t, played, 'after it')
  }
  const alone = play(mirrored({ alone: true }))
  t.equal(alone.outcome.result, 'completed')
  t.notOk(alone.destination.log.includes('nbd-server-stop'))
  t.end()
})

t.test('a mirror that is not in sync, or none, begins nothing', t => {
  const wrongs: [string, ModelOptions['mirrors'], RegExp][] = [
    ['not there', { a: {} }, /no block job "b"/],
    ['not ready', { a: {}, b: { isReady: false } }, /mirror b of the source QEMU is not ready/],
  ]
  for (const [name, mirrors, what] of wrongs) {
    const { outcome, source } = play(mirrored({ source: { course: WITH_MIRRORS, mirrors: mirrors! } }))
    t.match(outcome, { result: 'refused', began: false }, name)
    t.match(outcome.error?.message, what)
    t.notOk(source.log.some(command => command.startsWith('migrate ')))
  }
  const instead: ModelOptions['instead'] = command =>
    command === 'query-block-jobs' ? { return: [{ device: 'a', type: 'commit', ready: true }] } : undefined
  t.match(play(mirrored({ source: { instead } })).outcome.error?.message, /a of the source QEMU is no mirror/)
  t.end()
})

t.test('a mirror that does not end well keeps the guest where it is', t => {
  const refuses: ModelOptions['instead'] = command =>
    command === 'block-job-cancel' ? { error: 'it is busy' } : undefined
  const unsaid: ModelOptions['instead'] = (command, count) =>
    command === 'query-block-jobs' && count > 0 ? { return: [] } : undefined
  const stays: ModelOptions['instead'] = (command, count) =>
    command === 'query-block-jobs' && count > 0 ? { return: [{ device: 'a', type: 'mirror', ready: true }] } : undefined
  const isStuck: ModelOptions['instead'] = command =>
    command === 'migrate-continue' ? { error: 'no such state' } : undefined
  const cases: [string, ModelOptions, RegExp][] = [
    ['its job failed', { mirrors: { a: {}, b: { error: 'No space left' } } }, /mirror b did not end in sync: No space/],
    ['QEMU refuses', { instead: refuses }, /mirror a does not end: it is busy/],
    ['it is gone without a word', { instead: unsaid }, /did not end in sync: QEMU did not say how/],
    ['it hangs', { instead: stays }, /mirrors did not end within 30 s/],
    ['QEMU does not go on', { instead: isStuck }, /QEMU does not go on: no such state/],
  ]
  for (const [name, source, what] of cases) {
    const played = play(mirrored({ source: { course: WITH_MIRRORS, mirrors: { a: {}, b: {} }, ...source } }))
    t.match(played.outcome, { result: 'cancelled', source: 'running' }, name)
    t.match(played.outcome.error?.message, what, name)
    t.notOk(name !== 'QEMU does not go on' && played.source.log.some(command => command.startsWith('migrate-continue')))
    untrue(t, played, name)
  }
  const ended = play(mirrored({ source: { course: WITH_MIRRORS, mirrors: { a: {}, b: { error: 'x' } } } }))
  t.match(ended.outcome.error?.message, /its mirrors have ended: begin them anew/)
  t.end()
})

t.test('a signal while mirrors end, at each step', t => {
  const { asked } = play(mirrored())
  for (let step = 0; step < 3 * asked.length; step++) {
    const played = play(mirrored({ signals: [step] }))
    const { result, began } = played.outcome
    t.ok(['cancelled', 'completed'].includes(result), `step ${step}: ${result}`)
    if (result === 'cancelled') t.equal(played.source.state, 'running', `step ${step}, begun: ${began}`)
    untrue(t, played, `step ${step}`)
  }
  t.end()
})

t.test('the destination has no server of disks any more: that is said', t => {
  const instead: ModelOptions['instead'] = command =>
    command === 'nbd-server-stop' ? { error: 'NBD server not running' } : undefined
  const played = play(mirrored({ destination: { instead } }))
  t.equal(played.outcome.result, 'completed')
  t.match(notes(played), /server of disks is not stopped: NBD server not running/)
  t.end()
})

t.test('a signal before mirrors are told to end leaves them', t => {
  const isEnd = (asked: string): boolean => asked.includes('block-job-cancel')
  let cancelled = 0
  for (let step = 0; ; step++) {
    const played = play(mirrored({ signals: [step] }))
    if (played.asked.slice(0, played.askedBefore).some(isEnd)) break
    if (played.outcome.result === 'cancelled') cancelled++
    t.notOk(played.asked.some(isEnd), `step ${step}: ${played.outcome.result}`)
  }
  t.ok(cancelled > 3)
  t.end()
})

t.test('mirrors that nobody wants to end are told of', t => {
  const played = play({ source: { mirrors: { other: { isReady: false } } } })
  t.equal(played.outcome.result, 'completed')
  t.match(notes(played), /go on: other; --mirror ends one/)
  t.notOk(played.source.log.some(command => command.startsWith('block-job-cancel')))
  t.end()
})
