/**
 * What being watched costs a migration: CPU time, memory and seconds of a source proxy whose metrics are scraped a thousand
 * times a minute and whose status is asked every second, of one whose page is open (`pageferry dashboard`), and of one that
 * offers neither. By turns.
 *
 *   node test/daemon/control-bench.ts [ROUNDS] [MEGABYTES]
 *   node test/daemon/control-bench.ts scrapes [COUNT]     CPU time for each scrape of a proxy that does nothing else
 */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import http from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { askProxy } from '../../src/system/control-client.ts'
import { PAGEFERRY } from '../cli/command.ts'
import { migration } from '../template/makers.ts'
import { RunningPair } from './running.ts'

/** A thousand a minute. */
const SCRAPE_MS = 60
/** As the page does it while a migration runs. */
const PAGE_MS = 1000
/** The kernel's, in which /proc counts. */
const TICKS_PER_SECOND = 100

/** CPU seconds of a process, and its memory in MB. */
function used(pid: number): { readonly cpu: number; readonly rss: number } {
  const fields = readFileSync(`/proc/${pid}/stat`, 'latin1')
    .replace(/^.*\) /, '')
    .split(' ')
  return { cpu: (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND, rss: (Number(fields[21]) * 4096) / 1e6 }
}

function scrape(socketPath: string): Promise<number> {
  return new Promise((done, failed) => {
    http
      .get({ socketPath, path: '/metrics', agent: false }, response => {
        let bytes = 0
        response.on('data', chunk => {
          bytes += chunk.length
        })
        response.on('end', () => done(bytes))
      })
      .on('error', failed)
  })
}

/** @param looks called at the first look @returns how often it was looked, once told to end */
async function watch(control: string, isOver: () => boolean, looks: () => void): Promise<string> {
  looks()
  let scrapes = 0
  for (let next = performance.now(); !isOver(); next += SCRAPE_MS) {
    await scrape(control)
    if (++scrapes % 17 === 0) await askProxy(control, 'GET /status')
    await sleep(Math.max(0, next + SCRAPE_MS - performance.now()))
  }
  return `${scrapes} scrapes`
}

async function openPage(control: string, isOver: () => boolean, looks: () => void): Promise<string> {
  const command = spawn(PAGEFERRY, ['dashboard', '--control', control], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [line] = (await once(createInterface({ input: command.stdout }), 'line')) as [string]
  const address = /http\S+/.exec(line)![0]
  let count = 0
  for (; !isOver(); count++) {
    await (await fetch(`${address}data`)).text()
    looks()
    await sleep(PAGE_MS)
  }
  command.kill()
  await once(command, 'exit')
  return `${count} looks of the page`
}

async function measure(how: typeof watch | undefined, stream: Buffer): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-bench-'))
  const control = join(folder, 'control')
  const near = ['--rate', '12Mbit', ...(how ? ['--control', control, '--history', join(folder, 'history')] : [])]
  await using pair = await RunningPair.start(folder, { near, far: [] })
  await pair.near.said('session open')
  const pid = pair.near.child.pid!
  let isOver = false
  let watching: Promise<string> | undefined
  if (how)
    await new Promise<void>(looks => {
      watching = how(control, () => isOver, looks)
    })
  const before = used(pid)
  await pair.migrate(stream)
  const { seconds } = await pair.near.said('migration ended')
  isOver = true
  const looked = await watching
  const after = used(pid)
  console.log(
    [
      looked ?? 'alone',
      `${seconds} s`,
      `${(after.cpu - before.cpu).toFixed(2)} s of CPU`,
      `${after.rss.toFixed(0)} MB, ${before.rss.toFixed(0)} before`,
    ].join(', '),
  )
  rmSync(folder, { recursive: true, force: true })
}

/** Milliseconds of CPU time of all threads that a process has, as the scheduler counts them. */
function cpuMs(pid: number): number {
  const times = readdirSync(`/proc/${pid}/task`).map(task =>
    Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'latin1').split(' ')[0]),
  )
  return times.reduce((sum, ns) => sum + ns / 1e6, 0)
}

/** At a thousand a minute and one after the other, less what the proxy takes while nobody asks. */
async function scrapes(count: number): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'pageferry-bench-'))
  const control = join(folder, 'control')
  await using pair = await RunningPair.start(folder, { near: ['--control', control], far: [] })
  await pair.near.said('session open')
  const pid = pair.near.child.pid!
  /** Of CPU time and of time, while `work` runs. */
  const spent = async (work: () => Promise<unknown>) => {
    const [beforeCpu, beforeMs] = [cpuMs(pid), performance.now()]
    await work()
    return { cpu: cpuMs(pid) - beforeCpu, ms: performance.now() - beforeMs }
  }
  const idle = await spent(() => sleep(5000))
  for (const paceMs of [SCRAPE_MS, 0]) {
    const each: string[] = []
    for (let part = 0; part < 5; part++) {
      const { cpu, ms } = await spent(async () => {
        for (let i = 0; i < count / 5; i++) {
          await scrape(control)
          if (paceMs > 0) await sleep(paceMs)
        }
      })
      each.push(((cpu - (ms * idle.cpu) / idle.ms) / (count / 5)).toFixed(2))
    }
    console.log(
      `${paceMs > 0 ? 'a thousand a minute' : 'one after the other'}: ${each.join(', ')} ms of CPU time a scrape`,
    )
  }
  rmSync(folder, { recursive: true, force: true })
}

if (process.argv[2] === 'scrapes') await scrapes(Number(process.argv[3] ?? 500))
else {
  const [rounds = 3, megabytes = 15] = process.argv.slice(2).map(Number)
  const stream = migration(Array.from({ length: megabytes * 256 }, () => randomBytes(4096)))
  for (let round = 0; round < rounds; round++)
    for (const how of [undefined, watch, openPage]) await measure(how, stream)
}
