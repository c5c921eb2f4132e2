/** Every pair of a channel's states and inputs: where it leads, and what is handed in. */
import t from 'tap'
import { CHANNEL_TABLE, type ChannelInput, ChannelLife, type ChannelState } from '../../src/migration/channel-life.ts'
import { random } from '../template/makers.ts'

const INPUTS = ['opened', 'eof', 'broke', 'packed', 'emptied', 'ended'] as const

/** What leads to each state. */
const WAYS: Record<ChannelState, readonly ChannelInput[]> = {
  unopened: [],
  open: ['opened'],
  ending: ['opened', 'eof'],
  finished: ['opened', 'eof', 'emptied'],
  breaking: ['opened', 'broke'],
  over: ['opened', 'ended'],
}

/** As docs/protocol.md §3, Closing, has it: state and order by state and input; '!' is a defect. */
const EXPECTED: Record<ChannelState, readonly string[]> = {
  unopened: ['open', 'over', 'over', '!', '!', 'over'],
  open: ['!', 'ending', 'breaking', 'open', 'open', 'over'],
  ending: ['!', '!', 'breaking', 'ending', 'finished fin', 'over'],
  finished: ['!', '!', 'breaking', 'finished', 'finished', 'over'],
  breaking: ['!', 'breaking', 'breaking', 'over reset', 'over reset', 'over'],
  over: ['!', 'over', 'over', 'over', 'over', 'over'],
}

t.test('every pair', t => {
  t.same(Object.keys(CHANNEL_TABLE), Object.keys(EXPECTED))
  for (const [state, ways] of Object.entries(WAYS)) {
    for (const [i, input] of INPUTS.entries()) {
      const life = new ChannelLife('unopened')
      for (const way of ways) life.on(way)
      t.equal(life.state, state)
      const expected = EXPECTED[state as ChannelState][i]!
      if (expected === '!') t.throws(() => life.on(input), { code: 'INTERNAL' }, `${input} in ${state}`)
      else {
        const order = life.on(input)
        t.equal(order ? `${life.state} ${order}` : life.state, expected, `${input} in ${state}`)
      }
    }
  }
  t.end()
})

t.test('whatever happens, one end is handed in, and it is the last', t => {
  for (let seed = 1; seed <= 500; seed++) {
    const next = random(seed)
    const life = new ChannelLife('open')
    const orders: string[] = []
    for (let step = 0; step < 40; step++) {
      const input = INPUTS[1 + next(INPUTS.length - 1)]!
      if (CHANNEL_TABLE[life.state][input] === null) continue
      const order = life.on(input)
      if (order) orders.push(order)
    }
    const said = orders.join(', ')
    if (!['', 'fin', 'reset', 'fin, reset'].includes(said)) t.fail(`seed ${seed}: ${said}`)
  }
  t.pass('500 seeds')
  t.end()
})
