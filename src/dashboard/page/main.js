/** Looks at the proxies again and again, while somebody looks at the page. */
import { runningDisksOf, showDisks } from './disks.js'
import { byId, element, keep, setText } from './elements.js'
import { runningOf, showMigrations } from './migrations.js'
import { savedBy, showHistory, showTables } from './tables.js'
import { formatRate, formatSaved, formatSize } from './text.js'

/** @typedef {import('../dashboard-api.ts').Look} Look */
/** @typedef {import('../dashboard-api.ts').PastLook} PastLook */
/** @typedef {import('../../daemon/control-api.ts').PastMigration} PastMigration */
/** @typedef {import('../dashboard-api.ts').Failure} Failure */

const RUNNING_MS = 1000
const IDLE_MS = 2000
/** A proxy of before does not say that migrations have ended. */
const HISTORY_MS = 60_000
/** A proxy that hangs is waited for 30 s by the one whom we ask. */
const ANSWER_MS = 40_000

let paused = false
let showsAll = false
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer
let isLooking = false
/** Migrations that have ended, the latest first. @type {readonly PastMigration[]} */
let past = []
/** Marks of those that they are from. */
let pastMarks = ''
/** Migrations and disk transfers that ran when it was looked last, by key, with what they are called. @type {Map<string, string>} */
let ran = new Map()

/** @param {string} name @returns {Promise<any>} */
async function ask(name) {
  const answer = await fetch(name, { cache: 'no-store', signal: AbortSignal.timeout(ANSWER_MS) })
  if (!answer.ok) throw new Error(`it answers ${answer.status}`)
  return await answer.json()
}

/** @param {readonly Failure[]} failures */
function alarm(failures) {
  keep(
    byId('alarms'),
    failures,
    ({ what }) => what,
    ({ what, action }) => ({
      node: element('p', { class: 'alarm' }, element('strong', {}, what), element('br'), `What to do: ${action}`),
    }),
    () => {},
  )
}

/** @param {readonly [string, string, string][]} tiles */
function showTiles(tiles) {
  keep(
    byId('tiles'),
    tiles,
    ([name]) => name,
    ([name]) => {
      const [value, note] = [element('dd'), element('dd', { class: 'note' })]
      return { node: element('div', {}, element('dt', {}, name), value, note), value, note }
    },
    (parts, [, value, note]) => {
      setText(parts.value, value)
      setText(parts.note, note)
    },
  )
}

/** @param {Look} look */
function show({ at, sites, failure }) {
  const failures = [...(failure ? [failure] : []), ...sites.flatMap(one => (one.failure ? [one.failure] : []))]
  alarm(failures)
  const running = runningOf(sites)
  showMigrations(running)
  const disks = runningDisksOf(sites)
  showDisks(disks)
  showTables(sites, Date.parse(at))
  const now = new Map([
    ...running.map(({ key, status }) => /** @type {const} */ ([key, `Migration ${status.id}`])),
    ...disks.map(({ key, status }) => /** @type {const} */ ([`${key} disks`, `Disk transfer ${status.id}`])),
  ])
  const news = []
  for (const [key, name] of now) if (!ran.has(key)) news.push(`${name} runs.`)
  for (const [key, name] of ran) if (!now.has(key)) news.push(`${name} has ended.`)
  if (news.length > 0) setText(byId('news'), news.join(' '))
  if ([...ran.keys()].some(key => !now.has(key))) pastMarks = ''
  ran = now

  const sources = sites.flatMap(({ status }) => status?.sources ?? [])
  const sessions = [
    ...sources.map(({ session }) => session),
    ...sites.flatMap(({ status }) => status?.destination?.sessions ?? []),
  ]
  const live = sessions.filter(session => session?.stats.state === 'live').length
  const memoryRate = running.reduce((sum, { out }) => sum + (out?.progress?.wanBytesPerSecond ?? 0), 0)
  const rate = disks.reduce((sum, { out }) => sum + (out?.wanBytesPerSecond ?? 0), memoryRate)
  const leaving = running.filter(({ out }) => out).length
  const { bytes, bytesWan } = savedBy(past)
  showTiles([
    ['Running', String(running.length), `${leaving} leaving, ${running.length - leaving} coming`],
    ['On the WAN', formatRate(rate), 'of migrations and disks that leave'],
    ['Sessions', `${live} of ${sessions.length}`, 'live'],
    [
      'Saved',
      formatSaved(bytes, bytesWan) || '–',
      bytes > 0 ? `${formatSize(bytes - bytesWan)} that did not cross` : 'none has left',
    ],
  ])
  document.title = running.length > 0 ? `(${running.length}) Pageferry` : 'Pageferry'
  setText(byId('fresh'), `As of ${at.slice(11, 19)} UTC`)
}

/** What is another when there are more of them. @param {readonly (string | undefined)[]} marks of proxies that say anything */
function allMarks(marks) {
  const minute = Math.floor(performance.now() / HISTORY_MS)
  return JSON.stringify(marks.map(mark => mark ?? minute))
}

async function lookOnce() {
  try {
    /** @type {Look} */
    const look = await ask('data')
    show(look)
    if (allMarks(look.sites.flatMap(({ status }) => (status ? [status.history] : []))) === pastMarks) return
    /** @type {PastLook} */
    const { histories } = await ask('history')
    // those of the answer: it may be from before what was just looked at
    pastMarks = allMarks(histories.map(({ mark }) => mark))
    past = histories.flatMap(({ migrations }) => migrations).sort((a, b) => (a.ended < b.ended ? 1 : -1))
    showHistory(past, showsAll)
    show(look)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    alarm([
      {
        what: `The command that serves this page does not answer (${why}): nothing here is new.`,
        action: 'is `pageferry dashboard` running? Each start of it has another address.',
      },
    ])
  }
}

async function look() {
  clearTimeout(timer)
  if (isLooking) return
  isLooking = true
  await lookOnce()
  isLooking = false
  if (!paused && !document.hidden) timer = setTimeout(look, ran.size > 0 ? RUNNING_MS : IDLE_MS)
}

document.addEventListener('visibilitychange', () => {
  if (!document.hidden && !paused) void look()
})
byId('pause').addEventListener('click', () => {
  paused = !paused
  byId('pause').setAttribute('aria-pressed', String(paused))
  if (!paused) void look()
  else clearTimeout(timer)
})
byId('more').addEventListener('click', () => {
  showsAll = !showsAll
  showHistory(past, showsAll)
})
void look()
