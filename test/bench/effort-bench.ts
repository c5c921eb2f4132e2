/**
 * `node test/bench/effort-bench.ts STREAM [ROUNDS] [LINK,LINK] [EFFORT,EFFORT] [PAIR OPTIONS]`: seconds of a captured
 * migration at each effort and at auto, over links of several rates, interleaved; and without a pair. Shows whether auto
 * is as good as the best fixed effort, and where the pair costs time.
 */

import Table from 'cli-table3'
import { median } from '../../scripts/harness/median.ts'
import { Replay, streamPath } from './replay.ts'

const [
  name = 'nginx-k2',
  rounds = '1',
  rates = '20Mbit 100Mbit 1Gbit none',
  efforts = '0 1 2 3 4 5 auto direct',
  ...args
] = process.argv.slice(2)
const store = args.length > 0 ? args : []
const columns = efforts.split(' ')

const table = new Table({
  head: ['link', ...columns],
  style: { head: [], border: [], compact: true },
})
for (const rate of rates.split(' ')) {
  const seconds = columns.map(() => [] as number[])
  for (let round = 0; round < Number(rounds); round++) {
    for (const [i, effort] of columns.entries()) {
      await using replay = await Replay.start({
        link: rate === 'none' ? undefined : rate,
        direct: effort === 'direct',
        sourceArgs: ['--effort', effort, ...store],
        destinationArgs: store,
      })
      const [got] = await replay.play([streamPath(name)])
      seconds[i]!.push(got!.seconds)
      const { summary } = got!
      const cpu = (side: 'source' | 'destination'): string => replay.use(side).cpuSeconds.toFixed(1)
      process.stderr.write(
        `${rate} ${effort}: ${got!.seconds.toFixed(2)} s${summary ? `, ${(summary.bytesWan / 1e6).toFixed(1)} MB, CPU ${cpu('source')} + ${cpu('destination')} s` : ''}\n`,
      )
    }
  }
  table.push([rate, ...seconds.map(values => median(values).toFixed(2))])
}
console.log(`${name}, ${rounds} rounds, median seconds`)
console.log(table.toString())
