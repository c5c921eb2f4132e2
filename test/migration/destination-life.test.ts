/**
 * Every pair of a channel's states and inputs at the destination; then channels between a session and a QEMU that do what
 * they like, which must find each of the faults that are planted below.
 */
import t from 'tap'
import {
  BYTES_GO,
  DESTINATION_TABLE,
  type DestinationInput,
  DestinationLife,
  type DestinationOrder,
  type DestinationRow,
  type DestinationState,
  type DestinationTable as Table,
} from '../../src/migration/destination-life.ts'
import { random } from '../template/makers.ts'

const INPUTS = [
  ...(['begins', 'refused', 'connected', 'fin', 'end', 'sent', 'closed', 'broke'] as const),
  ...(['reset', 'givenUp', 'ended', 'lost', 'overdue'] as const),
]

/** What leads to each state. */
const WAYS: Record<DestinationState, readonly DestinationInput[]> = {
  unread: [],
  awaited: ['begins'],
  said: ['begins', 'fin'],
  open: ['begins', 'connected'],
  ending: ['begins', 'connected', 'end'],
  finished: ['begins', 'connected', 'end', 'sent'],
  leaving: ['begins', 'connected', 'closed'],
  left: ['begins', 'connected', 'closed', 'sent'],
  owed: ['begins', 'connected', 'end', 'sent', 'ended'],
  broken: ['reset'],
  over: ['lost'],
}

/** As docs/protocol.md §3, Closing, has it: bytes, then state and orders by input; '!' is a defect, '=' changes nothing. */
const EXPECTED: Record<DestinationState, string> = {
  unread:
    'keep | awaited dial | broken refuse break reset | ! | broken refuse break reset | ! | ! | ! | ! | broken break reset | broken break reset | ! | over break leave | !',
  awaited:
    'keep | = | broken refuse break reset | open start | said | ! | ! | ! | ! | broken break reset | broken break reset | ! | over break leave | !',
  said: 'keep | ! | broken refuse break reset | open start finish | ! | ! | ! | ! | ! | broken break reset | broken break reset | ! | over break leave | !',
  open: 'write | = | broken refuse break reset | ! | open finish | ending | = | leaving | broken break reset | broken break reset | broken break reset | ! | over break leave | !',
  ending:
    'write | = | broken refuse break reset | ! | ending finish | ! | finished fin | leaving | broken break reset | broken break reset | broken break reset | ! | over break leave | !',
  finished:
    'write | = | broken refuse break reset | ! | finished finish | ! | = | left | broken break reset | broken break reset | broken break reset | owed owe | over break leave | !',
  leaving:
    'take | = | broken refuse break reset | ! | = | ! | left fin | ! | ! | broken break reset | broken break reset | ! | over break leave | !',
  left: 'take | = | broken refuse break reset | ! | = | ! | = | ! | ! | broken break reset | broken break reset | over leave | over break leave | !',
  owed: 'write | = | = | ! | owed finish | ! | = | over settle leave | over settle leave | ! | = | ! | over break settle leave | over break settle leave',
  broken: 'drop | = | = | broken break | = | = | = | = | = | ! | = | over leave | over leave | !',
  over: 'drop | = | = | over break | = | = | = | = | = | ! | = | ! | = | =',
}

/** Pairs of a table that are not as they should be. */
function differences(table: Table): string[] {
  const found: string[] = []
  for (const state of Object.keys(EXPECTED) as DestinationState[]) {
    const cells = EXPECTED[state].split(' | ').slice(1)
    for (const [i, input] of INPUTS.entries()) {
      const step = table[state][input]
      const said = step === null ? '!' : step.length === 1 && step[0] === state ? '=' : step.join(' ')
      if (said !== cells[i]) found.push(`${input} in ${state}: ${said}`)
    }
  }
  return found
}

t.test('every pair', t => {
  t.same(Object.keys(DESTINATION_TABLE), Object.keys(EXPECTED))
  t.same(differences(DESTINATION_TABLE), [])
  for (const state of Object.keys(EXPECTED) as DestinationState[]) {
    t.equal(Object.keys(DESTINATION_TABLE[state]).length, INPUTS.length)
    t.equal(BYTES_GO[state], EXPECTED[state].split(' | ')[0], state)
    for (const input of INPUTS) {
      const life = new DestinationLife()
      for (const way of WAYS[state]) life.on(way)
      t.equal(life.state, state)
      t.equal(life.bytesGo, BYTES_GO[state])
      const step = DESTINATION_TABLE[state][input]
      if (step === null) t.throws(() => life.on(input), { code: 'INTERNAL' }, `${input} in ${state}`)
      else t.same([...life.on(input), life.state], [...step.slice(1), step[0]], `${input} in ${state}`)
    }
  }
  t.end()
})

/** A table with one pair changed. */
function planted(state: DestinationState, input: DestinationInput, step: DestinationRow[DestinationInput]): Table {
  return { ...DESTINATION_TABLE, [state]: { ...DESTINATION_TABLE[state], [input]: step } }
}

t.test('whatever pair is changed, it is seen', t => {
  let changed = 0
  for (const state of Object.keys(EXPECTED) as DestinationState[]) {
    for (const input of INPUTS) {
      const step = DESTINATION_TABLE[state][input]
      const others: DestinationRow[DestinationInput][] =
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
  t.ok(changed > 400, `${changed} changes`)
  t.end()
})

const DISTURBANCES: ReadonlySet<DestinationInput> = new Set(['refused', 'broke', 'reset', 'givenUp', 'lost', 'overdue'])

/** Between a session and a QEMU: carries out orders as the destination's half does, and looks at what they do. */
class World {
  readonly wrong: string[] = []
  readonly life: DestinationLife
  /** Pieces that the source has sent, and whether its last word was said; what of it waits to be expanded. */
  sent = 0
  sourceEnd: '' | 'fin' | 'reset' = ''
  readonly unexpanded: ('piece' | 'fin')[] = []
  readonly early: number[] = []
  expanded = 0
  /** What the session was handed. */
  handedIn: '' | 'fin' | 'reset' = ''
  known = true
  dead = false
  left = 0
  owes = false
  // QEMU
  dial: '' | 'wanted' | 'under way' | 'over' = ''
  connection: '' | 'up' | 'closed' = ''
  started = false
  dialled = false
  finished = false
  written = 0
  /** Words of it, and how many were handed in. */
  words = 0
  wordsSent = 0
  ended = false
  shut = false
  /** None of QEMU's: the source is a stranger's. */
  readonly strange: boolean
  /** Something came between: QEMU need not get all. */
  disturbed = false

  constructor(table: Table, strange: boolean) {
    this.life = new DestinationLife(table)
    this.strange = strange
  }

  on(input: DestinationInput): void {
    this.disturbed ||= DISTURBANCES.has(input) || (input === 'closed' && !this.finished)
    for (const order of this.life.on(input)) this.carryOut(order)
  }

  private must(condition: boolean, what: string): void {
    if (!condition) this.wrong.push(what)
  }

  private carryOut(order: DestinationOrder): void {
    switch (order) {
      case 'dial':
        this.must(this.dial === '' && !this.strange, 'dialled twice, or for a stranger')
        this.dial = 'wanted'
        return
      case 'start':
        this.must(this.connection === 'up', 'no connection to start')
        this.started = true
        for (const piece of this.early.splice(0)) this.write(piece)
        return
      case 'finish':
        this.must(this.written === this.sent, `FIN to QEMU after ${this.written} of ${this.sent}`)
        this.must(this.sourceEnd === 'fin', 'FIN to QEMU that the source did not say')
        this.finished = true
        return
      case 'refuse':
        this.must(this.connection === '' || this.strange, 'refused, and QEMU heard of it')
        return
      case 'break':
        this.early.length = 0
        if (this.dial === 'wanted') this.dial = 'over'
        if (this.connection === 'up') this.connection = 'closed'
        return
      case 'owe':
        this.owes = true
        return
      case 'settle':
        this.must(this.owes, 'settled what is not owed')
        this.owes = false
        return
      case 'fin':
        this.must(this.known && this.handedIn === '', 'FIN behind an end')
        this.must((this.ended || this.shut) && this.wordsSent === this.words, 'FIN before its last word')
        this.handedIn = 'fin'
        this.maybeEnd()
        return
      case 'reset':
        this.must(this.known && this.handedIn !== 'reset', 'RESET twice')
        this.handedIn = 'reset'
        this.maybeEnd()
        return
      case 'leave':
        this.must(!this.owes, 'its migration is over, and something is owed')
        this.must(this.disturbed || this.written === this.sent, `it leaves after ${this.written} of ${this.sent}`)
        this.left++
        return
    }
  }

  /** The session says END as soon as both directions have ended, and from inside the call that ends the second. */
  maybeEnd(): void {
    if (!this.known || this.handedIn === '' || this.sourceEnd === '') return
    this.known = false
    this.on('ended')
  }

  private write(piece: number): void {
    this.must(this.started && !this.finished, 'a write where none may be')
    this.must(piece === this.written, 'out of order')
    this.written++
  }

  expand(): void {
    const next = this.unexpanded.shift()
    if (next === 'fin') {
      this.disturbed ||= this.life.state === 'unread'
      this.on('fin')
    }
    if (next !== 'piece') return
    const piece = this.expanded++
    if (piece === 0 && this.life.bytesGo !== 'drop') this.on(this.strange ? 'refused' : 'begins')
    const { bytesGo } = this.life
    if (bytesGo === 'keep') this.early.push(piece)
    else if (bytesGo === 'write' && this.connection === 'up') this.write(piece)
    else if (bytesGo === 'take') this.must(this.shut || this.finished, 'taken, though QEMU did not say that it has all')
  }

  handIn(): void {
    if (this.life.isOver || !this.started) return
    this.wordsSent = this.words
    this.on('sent')
  }

  closes(input: 'closed' | 'broke'): void {
    this.connection = 'closed'
    this.on(input)
  }

  /** Everything has come to rest. */
  check(): void {
    const { state } = this.life
    this.must(state === 'over', `it ends as ${state}`)
    this.must(this.left === 1, `it left ${this.left} times`)
    this.must(!this.owes, 'something is owed for ever')
    this.must(this.connection !== 'up', 'its connection stands for ever')
    this.must(this.early.length === 0, 'bytes are kept for ever')
    this.must(this.dead || this.handedIn !== '', 'nothing was handed in')
    if (this.disturbed) return
    this.must(this.written === this.sent, `QEMU got ${this.written} of ${this.sent}`)
    this.must(this.finished && this.handedIn === 'fin', 'an end got lost')
  }
}

/** One channel's life. @returns what went wrong */
function simulate(seed: number, table: Table): string {
  const next = random(seed)
  const world = new World(table, next(8) === 0)
  const { life } = world
  /** It closes its direction, and then does nothing more. */
  const hangs = next(8) === 0
  const source = (): void => {
    if (world.sourceEnd !== '' || world.dead) return
    const what = next(16)
    if (what < 12) {
      world.sent++
      world.unexpanded.push('piece')
    } else if (what < 15) {
      world.sourceEnd = 'fin'
      if (world.handedIn !== 'reset') world.unexpanded.push('fin')
      world.maybeEnd()
    } else {
      world.sourceEnd = 'reset'
      if (world.handedIn !== 'reset') world.on('reset')
      world.maybeEnd()
    }
  }
  const dial = (): void => {
    if (world.dial === 'wanted') world.dial = 'under way'
    else if (world.dial === 'under way') {
      world.dial = 'over'
      if (next(8) === 0) world.on('refused')
      else {
        world.connection = 'up'
        world.on('connected')
      }
    }
  }
  const qemu = (calm: boolean): void => {
    if (world.connection !== 'up' || !world.started || (hangs && world.ended)) return
    const what = next(12)
    if (what < 6 && !world.ended) {
      world.words++
      world.shut ||= next(6) === 0
    } else if (what < 9 && !world.ended) {
      world.ended = true
      world.on('end')
      if (world.words === world.wordsSent) world.handIn()
    } else if (what < 10 && !calm) {
      world.closes(world.shut ? 'closed' : 'broke')
      if (world.words === world.wordsSent) world.handIn()
    } else if (world.ended && world.finished) world.closes('closed')
  }
  try {
    for (let step = 0; step < 60; step++) {
      const who = next(12)
      if (who < 3) source()
      else if (who < 6) world.expand()
      else if (who < 8) dial()
      else if (who < 10) qemu(false)
      else if (who < 11) world.handIn()
      else if (next(20) === 0 && !world.dead) world.on('givenUp')
      else if (next(40) === 0 && !world.dead) {
        world.dead = true
        world.unexpanded.length = 0
        if (world.known || world.owes) world.on('lost')
        world.known = false
      }
    }
    // then everybody goes on to the end
    for (let step = 0; step < 1000 && (life.state !== 'over' || world.unexpanded.length > 0); step++) {
      source()
      world.expand()
      dial()
      qemu(true)
      world.handIn()
      if (life.state === 'owed' && hangs) world.on('overdue')
    }
    dial() // one that was under way
    world.check()
  } catch (error) {
    world.wrong.push((error as Error).message)
  }
  return world.wrong[0] ?? ''
}

t.test('whatever happens, everyone gets what is due, and it ends', t => {
  for (let seed = 1; seed <= 3000; seed++) {
    const wrong = simulate(seed, DESTINATION_TABLE)
    if (wrong !== '') t.fail(`seed ${seed}: ${wrong}`)
  }
  t.pass('3000 seeds')
  t.end()
})

const PLANTS: Record<string, Table> = {
  'dials what it does not know': planted('unread', 'fin', ['said', 'dial']),
  'forgets the end that came before its connection': planted('said', 'connected', ['open', 'start']),
  'says FIN before the last word': planted('open', 'end', ['finished', 'fin']),
  'keeps the last FIN for itself': planted('ending', 'sent', ['finished']),
  'cuts off what is owed at END': planted('finished', 'ended', ['over', 'break', 'leave']),
  'owes for ever': planted('owed', 'overdue', ['owed']),
  'leaves a dial that came late': planted('broken', 'connected', ['broken']),
  'takes a break for an end': planted('open', 'broke', ['leaving']),
  'breaks, and does not say so': planted('open', 'broke', ['broken', 'break']),
  'says so, and does not break': planted('open', 'reset', ['broken', 'reset']),
  'hands in RESET behind END': planted('finished', 'ended', ['broken', 'reset', 'leave']),
  'never leaves its migration': planted('broken', 'ended', ['over']),
  'is over before QEMU has what it has coming': planted('finished', 'ended', ['owed', 'owe', 'leave']),
  'leaves it twice': planted('left', 'ended', ['over', 'leave', 'leave']),
  'goes on after its session': planted('awaited', 'lost', ['awaited', 'leave']),
  'holds what came early': planted('awaited', 'reset', ['broken', 'reset']),
}

for (const [name, table] of Object.entries(PLANTS)) {
  t.test(`finds one that ${name}`, t => {
    let wrong = ''
    for (let seed = 1; wrong === '' && seed <= 3000; seed++) wrong = simulate(seed, table)
    t.not(wrong, '', wrong)
    t.end()
  })
}
