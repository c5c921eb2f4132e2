/** The plan of `make bench-migrate`: what comes first, since what does not fit into its time is left out; and what methods know. */
import t from 'tap'
import { linkNamed } from '../../scripts/measure/compare/comparison.ts'
import { GUESTS, guestNamed } from '../../scripts/measure/compare/guests.ts'
import {
  ALL_LINKS,
  ALL_METHODS,
  defaultPlan,
  estimateSeconds,
  type Job,
  keysOf,
  planJobs,
  type Step,
  stepKey,
} from '../../scripts/measure/compare/plan.ts'
import type { Method, Results } from '../../scripts/measure/compare/results.ts'
import { knowledgeOf } from '../../scripts/measure/compare/templates.ts'
import { madeUpResults } from '../report/made-up-results.ts'

const MARKS: readonly Method[] = ['direct', 'multifd-zstd', 'pair', 'pair-image']
/** What the lab runs; its second captures of one guest apart. */
const WORKLOADS = ['compiling', 'idle', 'nginx', 'nginx-k2', 'postgres', 'python', 'redis']
const isJob = (step: Step): step is Job => 'method' in step

const plan = defaultPlan(3)
const at = (is: (step: Step) => boolean): number => {
  const found = plan.findIndex(is)
  if (found < 0) throw new Error('not in the plan')
  return found
}

t.test('what the marks ask for comes first, of every guest of the lab, by all of their methods', t => {
  const first = plan.slice(0, WORKLOADS.length * MARKS.length)
  t.ok(first.every(isJob))
  const guests = new Set(first.map(({ guest }) => guest))
  t.same([...guests].sort(), WORKLOADS)
  for (const guest of guests)
    t.same(
      first.filter(isJob).flatMap(job => (job.guest === guest ? [job.method] : [])),
      MARKS,
      guest,
    )
  t.ok(first.every(step => step.profile === 'wan' && (!isJob(step) || step.round === 0)))
  t.end()
})

t.test('then all links, disks, all peers; a second round before the third of anything', t => {
  const links = ALL_LINKS.map(profile => at(step => step.profile === profile))
  const disk = at(step => 'disk' in step)
  const peers = ALL_METHODS.map(method => at(step => isJob(step) && step.method === method))
  const second = at(step => isJob(step) && step.round === 1)
  t.ok(Math.max(...links) < disk, 'links before disks')
  t.ok(disk < Math.max(...peers))
  t.same(
    plan.slice(disk, second).flatMap(step => ('disk' in step ? [step.disk] : [])),
    ['direct', 'known', 'unknown', 'memory'],
  )
  for (const profile of ALL_LINKS)
    for (const method of ['direct', 'multifd-zstd', 'pair'])
      t.ok(
        plan.slice(0, disk).some(step => isJob(step) && step.profile === profile && step.method === method),
        `${method} over ${profile}`,
      )
  t.ok(at(step => 'estimate' in step) < second)
  const third = at(step => isJob(step) && step.round === 2)
  for (const guest of WORKLOADS)
    for (const method of MARKS.slice(1))
      t.ok(
        plan.slice(second, third).some(step => isJob(step) && step.guest === guest && step.method === method),
        `${method} of ${guest} again`,
      )
  t.end()
})

t.test('nothing twice; less with fewer rounds', t => {
  for (const rounds of [1, 2, 3]) {
    const keys = defaultPlan(rounds).map(stepKey)
    t.equal(new Set(keys).size, keys.length, `${rounds} rounds`)
  }
  t.ok(defaultPlan(1).every(step => !('round' in step) || step.round === 0))
  t.end()
})

t.test('a first round of what the marks ask for, all links and disks fit into half an hour', t => {
  const { runs: _, ...rest } = madeUpResults()
  const results: Results = { ...rest, runs: [] }
  const last = plan.findLastIndex(step => 'disk' in step && step.round === 0)
  const seconds = plan
    .slice(0, last + 1)
    .reduce((sum, step) => sum + estimateSeconds(step, results, guestNamed(step.guest), linkNamed(step.profile)), 0)
  t.ok(seconds < 30 * 60, `${Math.round(seconds / 60)} minutes`)
  t.end()
})

t.test('what was made is known again, and how long it took', t => {
  const [guest, profile] = ['nginx', 'wan']
  const part = { qemuBytes: 1, wanBytes: 1, seconds: 100, cpuSeconds: [1, 1] } as const
  const results: Results = {
    ...madeUpResults(),
    disks: [
      { guest, profile, disk: 'direct', round: 0, outcome: 'completed', mirror: part, memory: part, downtimeMs: 1 },
    ],
    estimates: [{ guest, profile, method: 'pair', bytesIn: 1, efforts: [], directSeconds: 1 }],
  }
  const keys = keysOf(results)
  t.equal(keys.size, results.runs.length + 2)
  const steps: Step[] = [
    { guest, profile, method: 'pair', round: 1 },
    { guest, profile, disk: 'direct', round: 0 },
    { guest, profile, estimate: 'pair' },
  ]
  t.ok(steps.every(step => keys.has(stepKey(step))))
  t.notOk(keys.has(stepKey({ guest, profile, disk: 'known', round: 0 })))
  const again: Step = { guest, profile, disk: 'direct', round: 1 }
  t.match(estimateSeconds(again, results, guestNamed(guest), linkNamed(profile)), 230)
  t.end()
})

t.test('a matrix: the first round of everything, then what the marks are about', t => {
  const jobs = planJobs({ guests: ['idle', 'redis'], profiles: ['wan'], methods: ALL_METHODS, rounds: 2 })
  const last = jobs.findLastIndex(({ round }) => round === 0)
  t.equal(
    jobs.findIndex(({ round }) => round === 1),
    last + 1,
    'no second round before every first one',
  )
  const second = jobs.slice(last + 1).map(({ method }) => method)
  t.ok(second.lastIndexOf('pair') < second.indexOf('xbzrle'), 'peers come last')
  t.equal(new Set(jobs.map(stepKey)).size, jobs.length, 'nothing twice')
  t.end()
})

t.test('nobody knows the guest that is migrated', t => {
  for (const guest of GUESTS) {
    t.notOk(guest.templates.includes(guest.name), guest.name)
    t.not(guest.other, guest.name)
    const known = knowledgeOf(guest, 'pair-image')
    if (guest.debian?.kernel === 'k2') t.equal(known, undefined, `${guest.name} has no other of its kernel`)
    else t.same(known, [['golden image'], [guest.other]], guest.name)
    t.notMatch(guest.other ?? '', /-k2/, 'of its kernel')
    t.same(knowledgeOf(guest, 'pair'), [guest.templates])
  }
  t.same(knowledgeOf(guestNamed('nginx-k2'), 'pair-image-alone'), [['golden image'], ['kernel k2']])
  t.same(knowledgeOf(guestNamed('busybox'), 'pair'), [])
  t.equal(knowledgeOf(guestNamed('busybox'), 'pair-image'), undefined)
  t.end()
})
