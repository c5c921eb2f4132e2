import { simulate } from './pair.ts'
const [from, runs, threads, disks] = process.argv.slice(2).map(Number)
let bad = 0, completed = 0, attempts = 0
const happened = new Map<string, number>()
for (let seed = from!; seed < from! + runs!; seed++) {
  const o = await simulate(seed, {}, undefined, disks === 1, threads)
  completed += o.completed; attempts += o.attempts
  for (const h of o.happened) happened.set(h, (happened.get(h) ?? 0) + 1)
  if (o.failure) { bad++; if (bad < 15) console.log(`THREADS=${threads} PAIR_SEED=${seed}: ${o.failure.slice(0, 400)}`) }
}
console.log(`threads ${threads} disks ${disks}: ${runs} seeds, ${bad} bad, ${completed}/${attempts}`, happened.get('helper fails'), happened.get('helper hangs'))
