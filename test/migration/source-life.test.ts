/**
 * A channel's life at the source: every pair of state and input, then connections in a world of a session, a peer and a QEMU
 * that do what they like, which must find each of the faults that are planted below.
 */
import t from 'tap'
import {
  SOURCE_TABLE,
  type SourceInput,
  SourceLife,
  type SourceOrder,
  type SourceRow,
  type SourceState,
  type SourceTable as Table,
} from '../../src/migration/source-life.ts'
import { random } from '../template/makers.ts'

const INPUTS = [
  ...(['opened', 'eof', 'closed', 'broke', 'packed', 'emptied', 'taken'] as const),
  ...(['fin', 'reset', 'givenUp', 'moved', 'ended', 'lost', 'outlives'] as const),
]

/** What leads to each state. */
const WAYS: Record<SourceState, readonly SourceInput[]> = {
  unopened: [],
  open: ['opened'],
  ending: ['opened', 'eof'],
  finished: ['opened', 'eof', 'emptied'],
  breaking: ['opened', 'broke'],
  broken: ['opened', 'broke', 'packed'],
  over: ['opened', 'lost'],
}

/** As docs/protocol.md §3, Closing, has it: state and orders by input; '!' is a defect, '=' changes nothing. */
const EXPECTED: Record<SourceState, string> = {
  unopened:
    'open | unopened ungate break | over ungate leave free | over ungate leave free | ! | ! | ! | ! | ! | ! | over detach ungate leave free | ! | over ungate break leave free | over detach ungate leave free',
  open: '! | ending drain | = | breaking drop | = | = | open settle | open finish | breaking break drop | breaking break drop | breaking detach drop | ! | over break leave free | over detach leave free',
  ending:
    '! | ! | = | breaking drop | = | finished fin | ending settle | ending finish | breaking break drop | breaking break drop | breaking detach drop | ! | over break leave free | over detach leave free',
  finished:
    '! | ! | = | breaking drop | = | = | finished settle | finished finish | breaking break drop | breaking break drop | breaking detach drop | over leave free | over break leave free | over detach leave free',
  breaking:
    '! | = | = | = | broken reset | broken reset | = | = | = | = | = | over leave free | over leave free | over leave free',
  broken: '! | = | = | = | = | = | = | = | = | = | = | over leave free | over leave free | over leave free',
  over: '! | = | over free | over free | = | = | ! | ! | ! | = | = | ! | over break | over break',
}

/** Pairs of a table that are not as they should be. */
function differences(table: Table): string[] {
  const found: string[] = []
  for (const state of Object.keys(EXPECTED) as SourceState[]) {
    const cells = EXPECTED[state].split(' | ')
    for (const [i, input] of INPUTS.entries()) {
      const step = table[state][input]
      const said = step === null ? '!' : step.length === 1 && step[0] === state ? '=' : step.join(' ')
      if (said !== cells[i]) found.push(`${input} in ${state}: ${said}`)
    }
  }
  return found
}

t.test('every pair', t => {
  t.same(Object.keys(SOURCE_TABLE), Object.keys(EXPECTED))
  t.same(differences(SOURCE_TABLE), [])
  for (const state of Object.keys(EXPECTED) as SourceState[]) {
    t.equal(Object.keys(SOURCE_TABLE[state]).length, INPUTS.length)
    for (const input of INPUTS) {
      const life = new SourceLife()
      for (const way of WAYS[state]) life.on(way)
      t.equal(life.state, state)
      t.equal(life.isUp, ['open', 'ending', 'finished'].includes(state))
      t.equal(life.isEnding, !['unopened', 'open'].includes(state))
      const step = SOURCE_TABLE[state][input]
      if (step === null) t.throws(() => life.on(input), { code: 'INTERNAL' }, `${input} in ${state}`)
      else t.same([...life.on(input), life.state], [...step.slice(1), step[0]], `${input} in ${state}`)
    }
  }
  t.end()
})

/** A table with one pair changed. */
function planted(state: SourceState, input: SourceInput, step: SourceRow[SourceInput]): Table {
  return { ...SOURCE_TABLE, [state]: { ...SOURCE_TABLE[state], [input]: step } }
}

t.test('whatever pair is changed, it is seen', t => {
  let changed = 0
  for (const state of Object.keys(EXPECTED) as SourceState[]) {
    for (const input of INPUTS) {
      const step = SOURCE_TABLE[state][input]
      const others: SourceRow[SourceInput][] =
        step === null
          ? [[state]]
          : [null, [step[0] === 'over' ? 'broken' : 'over', ...step.slice(1)] as typeof step, [...step, 'settle']]
      if (step && step.length > 1) others.push([step[0]], step.slice(0, -1) as unknown as typeof step)
      for (const other of others) {
        changed++
        if (differences(planted(state, input, other)).length !== 1) t.fail(`${input} in ${state}: ${other}`)
      }
    }
  }
  t.ok(changed > 300, `${changed} changes`)
  t.end()
})

/** Between a QEMU and a session: carries out orders as the source's half does, and looks at what they do. */
class World {
  readonly wrong: string[] = []
  readonly life: SourceLife
  // QEMU
  connection: 'up' | 'broken off' | 'closed' | 'elsewhere' = 'up'
  eof = false
  finished = false
  settled = false
  // the gate, and the session
  waits = true
  opened = false
  lost = false
  ended = false
  handedIn: '' | 'fin' | 'reset' = ''
  peerEnd: '' | 'fin' | 'reset' = ''
  /** The other side has its flow: it stays with its session. */
  taken = false
  /** Pieces that wait, and that are under way. */
  waiting = 0
  underWay = 0
  came = 0
  sent = 0
  draining = false
  dropped = false
  left = 0
  freed = 0

  constructor(table: Table) {
    this.life = new SourceLife(table)
  }

  on(input: SourceInput): void {
    for (const order of this.life.on(input)) this.carryOut(order)
  }

  must(condition: boolean, what: string): void {
    if (!condition) this.wrong.push(what)
  }

  private carryOut(order: SourceOrder): void {
    switch (order) {
      case 'ungate':
        this.waits = false
        return
      case 'settle':
        this.must(this.connection !== 'elsewhere', 'keeps what another session has')
        this.settled = true
        return
      case 'finish':
        this.must(this.peerEnd === 'fin', 'FIN to QEMU that the peer did not say')
        this.must(this.connection !== 'elsewhere', 'FIN to the QEMU of another session')
        this.finished = true
        return
      case 'break':
        this.must(this.connection !== 'elsewhere', 'breaks the connection of another session')
        if (this.connection === 'up') this.connection = 'broken off'
        return
      case 'detach':
        this.must(!this.settled, 'gives away what the other side has taken')
        if (this.connection !== 'closed') this.connection = 'elsewhere'
        return
      case 'drain':
        this.must(this.eof, 'an end that its QEMU did not say')
        this.draining = true
        this.settle()
        return
      case 'drop':
        this.dropped = true
        this.settle()
        return
      case 'fin':
        this.must(this.draining && this.sent === this.came, `FIN after ${this.sent} of ${this.came}`)
        this.must(this.handedIn === '' && this.isKnown, 'FIN behind an end')
        this.handedIn = 'fin'
        return
      case 'reset':
        this.must(this.underWay === 0, 'RESET before what is under way')
        this.must(this.handedIn !== 'reset' && this.isKnown, 'RESET twice, or behind END')
        this.must(this.connection !== 'up', 'RESET, and its QEMU does not hear of it')
        this.handedIn = 'reset'
        return
      case 'leave':
        this.left++
        return
      case 'free':
        if (this.connection === 'closed' || this.connection === 'elsewhere') this.freed++
        return
    }
  }

  private get isKnown(): boolean {
    return this.opened && !this.ended && !this.lost
  }

  settle(): void {
    if (this.underWay === 0) this.on(this.waiting === 0 ? 'emptied' : 'packed')
  }

  moves(): void {
    const { connection } = this
    this.on('moved')
    this.must(connection !== 'up' || this.connection === 'elsewhere', 'moved, and not given away')
  }

  /** Everything has come to rest. */
  check(): void {
    const { state } = this.life
    this.must(state === 'over', `it ends as ${state}`)
    this.must(!this.waits, 'it waits at its gate for ever')
    this.must(this.left === 1, `it left ${this.left} times`)
    this.must(this.connection === 'closed' || this.connection === 'elsewhere', 'its connection stands for ever')
    this.must(this.freed > 0, 'its place is never free')
    this.must(!this.opened || this.lost || this.handedIn !== '', 'nothing was handed in')
  }
}

/** One channel's life. @returns what went wrong */
function simulate(seed: number, table: Table): string {
  const next = random(seed)
  const world = new World(table)
  const { life } = world
  const qemu = (calm: boolean): void => {
    if (world.connection === 'broken off') {
      world.connection = 'closed'
      world.on('closed')
    }
    if (world.connection !== 'up') return
    const what = next(12)
    if (what < 7 && !world.eof) {
      if (!world.opened) return
      world.came++
      world.waiting++
    } else if (what < 9 && !world.eof) {
      world.eof = true
      world.on('eof')
    } else if (what < 10 && !calm) {
      world.connection = 'closed'
      world.on('broke')
    } else if (world.eof && world.finished) {
      world.connection = 'closed'
      world.on('closed')
    }
  }
  const codec = (): void => {
    if (world.underWay > 0 && next(2) === 0) {
      world.sent += world.underWay
      world.underWay = 0
      world.settle()
    } else if (world.opened && !world.dropped && !world.lost && world.underWay === 0 && world.waiting > 0) {
      world.underWay = world.waiting
      world.waiting = 0
    }
  }
  const session = (calm: boolean): void => {
    if (world.lost) return
    if (!world.opened) {
      // what a gate opens waits there
      if (life.state === 'unopened' && world.connection === 'up' && world.waits && (calm || next(3) === 0)) {
        world.must(!world.eof, 'opened for a QEMU that has gone')
        world.waits = false
        world.opened = true
        world.on('opened')
      } else if (life.state === 'unopened' && next(12) === 0) world.moves()
      return
    }
    if (world.ended) return
    if (world.handedIn !== '' && world.peerEnd !== '') {
      world.ended = true
      world.on('ended')
      return
    }
    if (world.peerEnd === 'reset') return
    const what = next(16)
    if (what < 6) {
      world.taken = true
      world.on('taken')
    } else if (what < 8 && world.peerEnd === '' && world.taken) {
      world.peerEnd = 'fin'
      world.on('fin')
    } else if (calm ? world.handedIn === 'reset' : what < 9) {
      world.peerEnd = 'reset'
      world.on('reset')
    } else if (what < 10 && !world.taken && !calm) world.moves()
    else if (what < 11 && !calm && next(4) === 0) world.on('givenUp')
  }
  const dies = (): void => {
    if (world.lost || life.state === 'over') return
    world.lost = true
    world.on(world.taken || next(2) === 0 ? 'lost' : 'outlives')
  }
  try {
    for (let step = 0; step < 60; step++) {
      const who = next(12)
      if (who < 4) qemu(false)
      else if (who < 7) codec()
      else if (who < 11) session(false)
      else if (next(12) === 0) dies()
    }
    for (let step = 0; step < 1000; step++) {
      qemu(true)
      codec()
      session(true)
    }
    world.check()
  } catch (error) {
    world.wrong.push((error as Error).message)
  }
  return world.wrong[0] ?? ''
}

t.test('whatever happens, everyone gets what is due, and it ends', t => {
  for (let seed = 1; seed <= 3000; seed++) {
    const wrong = simulate(seed, SOURCE_TABLE)
    if (wrong !== '') t.fail(`seed ${seed}: ${wrong}`)
  }
  t.pass('3000 seeds')
  t.end()
})

const PLANTS: Record<string, Table> = {
  'says FIN before the last byte': planted('ending', 'packed', ['finished', 'fin']),
  'keeps the end of its QEMU for itself': planted('ending', 'emptied', ['finished']),
  'takes a break for nothing': planted('open', 'broke', ['open']),
  'breaks, and does not say so': planted('breaking', 'packed', ['broken']),
  'says so, and does not break': planted('open', 'reset', ['breaking', 'drop']),
  'stays at its gate': planted('unopened', 'broke', ['over', 'leave', 'free']),
  'leaves a probe alone': planted('unopened', 'eof', ['unopened']),
  'touches what another session has': planted('breaking', 'fin', ['breaking', 'finish']),
  'keeps what another session has': planted('breaking', 'taken', ['breaking', 'settle']),
  'breaks what goes on elsewhere': planted('unopened', 'moved', ['over', 'ungate', 'break', 'leave']),
  'never gives its place back': planted('over', 'closed', ['over']),
  'forgets a connection that has gone': planted('unopened', 'broke', ['over', 'ungate', 'leave']),
  'never leaves its migration': planted('broken', 'ended', ['over', 'free']),
  'leaves it twice': planted('finished', 'ended', ['over', 'leave', 'leave', 'free']),
  'hands in RESET behind END': planted('finished', 'ended', ['breaking', 'drop', 'leave', 'free']),
  'goes on after its session': planted('open', 'lost', ['open', 'leave']),
}

for (const [name, table] of Object.entries(PLANTS)) {
  t.test(`finds one that ${name}`, t => {
    let wrong = ''
    for (let seed = 1; wrong === '' && seed <= 3000; seed++) wrong = simulate(seed, table)
    t.not(wrong, '', wrong)
    t.end()
  })
}
