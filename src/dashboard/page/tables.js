/** What does not change from second to second: sessions, proxies, and what has ended. */
import { byId, element, keep, setText } from './elements.js'
import { guestOf } from './migrations.js'
import { counted, formatDuration, formatPause, formatRate, formatSaved, formatSize, formatTime } from './text.js'

/** @typedef {import('../dashboard-api.ts').SiteLook} SiteLook */
/** @typedef {import('../../daemon/control-api.ts').PastMigration} PastMigration */
/** @typedef {import('../../daemon/status.ts').LinkStatus} LinkStatus */
/** The first cell names the row; a number is right-aligned. */
/** @typedef {{ key: string, mood?: string, cells: readonly (string | { n: string })[] }} Row */

const DAY_MS = 86_400_000
/** An end that is nearer is marked. */
const EXPIRY_TOLD_DAYS = 30
/** Rows of the history that are there before more are asked for. */
const ROWS = 20

/** @param {string} id @param {readonly Row[]} rows */
function showRows(id, rows) {
  const [body] = /** @type {HTMLTableElement} */ (byId(id)).tBodies
  keep(
    body,
    rows,
    ({ key }) => key,
    ({ cells }) => ({
      node: element(
        'tr',
        {},
        ...cells.map((cell, i) =>
          i === 0 ? element('th', { scope: 'row' }) : element('td', typeof cell === 'string' ? {} : { class: 'n' }),
        ),
      ),
    }),
    ({ node }, { cells, mood = '' }) => {
      for (const [i, cell] of cells.entries()) setText(node.children[i], typeof cell === 'string' ? cell : cell.n)
      if (node.className !== mood) node.className = mood
    },
  )
}

/** @param {number | undefined} value @param {(value: number) => string} format */
const known = (value, format) => ({ n: value === undefined || value === 0 ? '–' : format(value) })

/** @param {readonly SiteLook[]} sites @returns {Row[]} */
function sessionRows(sites) {
  /** @param {LinkStatus | undefined} session @param {number | undefined} cap @param {number} migrations */
  const figures = (session, cap, migrations) => [
    known(session?.stats.rttMs, ms => `${ms.toFixed(1)} ms`),
    known(session?.stats.rate, formatRate),
    known(cap, formatRate),
    { n: String(session?.stats.connections.length ?? 0) },
    { n: String(session?.sets ?? 0) },
    { n: String(session?.coldSets ?? 0) },
    { n: String(migrations) },
  ]
  return sites.flatMap(({ control, status }) => [
    ...(status?.sources ?? []).map(({ peer, address, session, rate, waiting, stopping }) => {
      const waits =
        waiting > 0
          ? `, ${counted(waiting, 'connection', 'connections')} of QEMU ${waiting === 1 ? 'waits' : 'wait'}`
          : ''
      return {
        key: `${control} out ${peer} ${address}`,
        mood: session?.stats.state === 'live' ? '' : 'bad',
        cells: [
          peer === address ? peer : `${peer} (${address})`,
          'out',
          `${session ? session.stats.state : 'no session'}${stopping ? ', stopping' : ''}${waits}`,
          ...figures(session, rate, session?.migrations.length ?? 0),
        ],
      }
    }),
    ...(status?.destination?.sessions ?? []).map(session => ({
      key: `${control} in ${session.link}`,
      mood: session.stats.state === 'live' ? '' : 'bad',
      cells: [session.peer, 'in', session.stats.state, ...figures(session, undefined, session.migrations.length)],
    })),
  ])
}

/** @param {SiteLook} look @param {number} nowMs @returns {Row} */
function proxyRow({ control, status, failure }, nowMs) {
  if (!status)
    return { key: `${control} gone`, mood: 'bad', cells: [control, failure?.what ?? '', { n: '' }, { n: '' }, '', ''] }
  const { version, process, started, sources, destination } = status
  const listening = [...sources, ...(destination ? [destination] : [])].flatMap(one => one.listening)
  const expiries = [...sources, ...(destination ? [destination] : [])].flatMap(one => one.certificates)
  const first = expiries.toSorted((a, b) => Date.parse(a.expires) - Date.parse(b.expires))[0]
  const days = first ? Math.floor((Date.parse(first.expires) - nowMs) / DAY_MS) : Number.POSITIVE_INFINITY
  const expiry = first
    ? `${first.file}: ${days < 0 ? 'has expired' : `in ${counted(days, 'day', 'days')}`} (${first.expires.slice(0, 10)})`
    : 'none'
  const up = formatDuration((nowMs - Date.parse(started)) / 1000)
  return {
    key: control,
    mood: failure || days < EXPIRY_TOLD_DAYS ? 'bad' : '',
    cells: [
      control,
      failure ? `${version}, does not answer` : version,
      { n: String(process) },
      { n: up },
      listening.join(' '),
      expiry,
    ],
  }
}

/** @param {readonly SiteLook[]} sites @param {number} nowMs */
export function showTables(sites, nowMs) {
  showRows('session-table', sessionRows(sites))
  showRows(
    'proxy-table',
    sites.map(look => proxyRow(look, nowMs)),
  )
}

/** @param {PastMigration} past @returns {Row} */
function pastRow(past) {
  const { ended, id, direction, peer, outcome, reason, bytes, bytesWan, seconds, pauseSeconds } = past
  return {
    key: `${ended} ${id} ${direction}`,
    mood: outcome === 'failed' ? 'bad' : '',
    cells: [
      formatTime(ended),
      id,
      direction === 'out' ? `to ${peer}` : `from ${peer}`,
      guestOf(/** @type {any} */ (past)),
      outcome === 'completed' ? outcome : `${outcome}: ${reason}`,
      { n: formatSize(bytes) },
      { n: bytesWan === undefined ? '' : formatSize(bytesWan) },
      { n: bytesWan === undefined ? '' : formatSaved(bytes, bytesWan) },
      { n: formatDuration(seconds) },
      { n: pauseSeconds === undefined ? '' : formatPause(pauseSeconds) },
    ],
  }
}

/** @param {readonly PastMigration[]} migrations the latest first */
export function savedBy(migrations) {
  let [bytes, bytesWan] = [0, 0]
  for (const one of migrations) {
    if (one.bytesWan === undefined) continue
    bytes += one.bytes
    bytesWan += one.bytesWan
  }
  return { bytes, bytesWan }
}

/** @param {readonly PastMigration[]} migrations the latest first @param {boolean} all */
export function showHistory(migrations, all) {
  const { bytes, bytesWan } = savedBy(migrations)
  const completed = migrations.filter(({ outcome }) => outcome === 'completed').length
  const saved = bytes > 0 ? ` Of ${formatSize(bytes)} that left, ${formatSize(bytesWan)} crossed the WAN.` : ''
  setText(
    byId('past'),
    migrations.length === 0
      ? 'No migration has ended.'
      : `${counted(migrations.length, 'migration has', 'migrations have')} ended, ${completed} of them completed.${saved}`,
  )
  showRows('history-table', (all ? migrations : migrations.slice(0, ROWS)).map(pastRow))
  const more = byId('more')
  more.hidden = migrations.length <= ROWS
  more.setAttribute('aria-expanded', String(all))
  setText(more, all ? 'Show the latest' : `Show all ${migrations.length}`)
}
