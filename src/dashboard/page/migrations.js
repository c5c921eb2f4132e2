/** A card for each migration that runs: how far, how fast, how long still, and what became of its pages. */
import { byId, element, factList, keep, setText } from './elements.js'
import { MemoryPicture } from './memory.js'
import { Plot } from './plot.js'
import { CLASSES, PAGE_BYTES, Series } from './series.js'
import { counted, formatDuration, formatRate, formatSaved, formatSize, formatTime } from './text.js'

/** @typedef {import('../../migration/summary.ts').DepartureStatus} DepartureStatus */
/** @typedef {import('../../migration/summary.ts').MigrationStatus} MigrationStatus */
/** A proxy of before has no counts of pages, and no map. */
/** @typedef {{ key: string, peer: string, out: DepartureStatus | undefined, status: MigrationStatus }} Running */

/** @type {Map<string, Series>} */
const seen = new Map()

/** Names that guests and QEMU choose go their own way: whatever script they are in. @param {string} text */
function outside(text) {
  return element('bdi', {}, text)
}

/** @param {MigrationStatus} status */
export function guestOf({ uuid, machine, target }) {
  return uuid ?? (machine === undefined ? target : `${target}, ${machine}`)
}

/** @param {Running} running */
function makeCard({ key, peer, out, status }) {
  const id = `card-${key.replaceAll(/[^\w-]/g, '-')}`
  const title = element(
    'h3',
    { id },
    'Guest ',
    outside(guestOf(status)),
    out ? ' leaves for ' : ' comes from ',
    outside(peer),
  )
  const about = element('p', { class: 'about' })
  const bar = element('progress', { max: '100' })
  const pass = element('span', { class: 'pass' })
  const share = element('strong')
  const label = element('label', { class: 'bar' }, pass, bar, share)
  const warning = element(
    'p',
    { class: 'warning', hidden: '' },
    'The guest writes as fast as this: it does not converge.',
  )
  const facts = factList(
    out
      ? [
          ['seconds', 'Still to go'],
          ['passSeconds', 'To the end of the pass'],
          ['rate', 'From QEMU'],
          ['rateWan', 'On the WAN'],
          ['bytes', 'From QEMU so far'],
          ['bytesWan', 'On the WAN so far'],
          ['saved', 'Saved'],
          ['effort', 'Effort'],
        ]
      : [
          ['rate', 'To QEMU'],
          ['bytes', 'To QEMU so far'],
        ],
  )
  const rates = new Plot({
    title: out ? 'Rate of QEMU and of the WAN' : 'Rate to QEMU',
    lines: out
      ? [
          { name: 'qemu', text: 'from QEMU' },
          { name: 'wan', text: 'on the WAN' },
        ]
      : [{ name: 'qemu', text: 'to QEMU' }],
    format: formatRate,
  })
  const classes =
    out?.pages &&
    new Plot({
      title: 'Guest memory by class, and bytes on the WAN',
      lines: CLASSES,
      stacked: true,
      over: { name: 'wan', text: 'on the WAN' },
      format: formatSize,
    })
  const plots = element('div', { class: 'plots' }, rates.node, ...(classes ? [classes.node] : []))
  const memory = new MemoryPicture()
  const parts = [title, about, label, warning, facts.node, memory.node, plots]
  const node = element('article', { class: 'card', 'aria-labelledby': id }, ...parts)
  return { node, about, label, bar, pass, share, warning, facts, memory, rates, classes }
}

/** @param {ReturnType<typeof makeCard>} card @param {Running} running */
function updateCard(card, { key, out, status }) {
  const { id, seconds, channels, postcopy, bytes } = status
  const progress = out?.progress
  const about = [`migration ${id}`, `for ${formatDuration(seconds)}`, counted(channels, 'channel', 'channels')]
  if (postcopy) about.push('in postcopy')
  setText(card.about, about.join(' · '))
  card.label.hidden = progress === undefined
  if (progress) {
    const percent = Math.floor(100 * progress.share)
    card.bar.value = percent
    setText(card.pass, `Pass ${progress.pass} `)
    setText(card.share, `${percent} %`)
  }
  card.warning.hidden = progress?.converges !== false

  const series = seen.get(key) ?? new Series()
  if (!seen.has(key)) {
    seen.set(key, series)
    series.add({ seconds: 0, bytes: 0, bytesWan: 0, classes: CLASSES.map(() => 0) })
  }
  const pages = out?.pages
  series.add({
    seconds,
    bytes,
    bytesWan: out?.bytesWan ?? 0,
    rate: progress?.bytesPerSecond,
    rateWan: progress?.wanBytesPerSecond,
    classes: CLASSES.map(({ of }) => (pages ? of(pages) * PAGE_BYTES : 0)),
  })
  const { points } = series
  const last = points.at(-1)
  const { tell } = card.facts
  tell('rate', formatRate(last?.rate ?? 0))
  tell('rateWan', formatRate(last?.rateWan ?? 0))
  tell('bytes', formatSize(bytes))
  if (out) {
    tell('bytesWan', formatSize(out.bytesWan))
    tell('saved', formatSaved(bytes, out.bytesWan) || '–')
    tell('effort', out.effort < 0 ? 'raw' : `${out.effort} of 5`)
    tell('passSeconds', progress?.passSeconds === undefined ? '–' : formatDuration(progress.passSeconds))
    tell('seconds', restText(out))
  }
  card.memory.show(out?.map)
  card.rates.show(points.map(({ seconds, rate, rateWan }) => ({ seconds, values: out ? [rate, rateWan] : [rate] })))
  card.classes?.show(points.map(({ seconds, classes, bytesWan }) => ({ seconds, values: classes, over: bytesWan })))
}

/** @param {DepartureStatus} status */
function restText({ progress, postcopy }) {
  if (postcopy) return 'unknown in postcopy'
  if (progress?.converges === false) return 'does not converge'
  const { seconds, secondsBetween, pass } = progress ?? {}
  if (seconds === undefined && secondsBetween) return secondsBetween.map(formatDuration).join(' to ')
  if (seconds === undefined) return pass === 1 ? 'known from half of it on' : '–'
  const end = formatTime(new Date(Date.now() + seconds * 1000).toISOString()).slice(11)
  return `${formatDuration(seconds)}, until ${end} UTC`
}

/** @param {readonly import('../dashboard-api.ts').SiteLook[]} sites @returns {Running[]} */
export function runningOf(sites) {
  return sites.flatMap(({ control, status }) => [
    ...(status?.sources ?? []).flatMap(({ peer, session }) =>
      (session?.migrations ?? []).map(one => ({ key: `${control} out ${one.id}`, peer, out: one, status: one })),
    ),
    ...(status?.destination?.sessions ?? []).flatMap(({ peer, migrations }) =>
      migrations.map(one => ({ key: `${control} in ${one.id}`, peer, out: undefined, status: one })),
    ),
  ])
}

/** @param {readonly Running[]} running */
export function showMigrations(running) {
  byId('none').hidden = running.length > 0
  keep(byId('cards'), running, ({ key }) => key, makeCard, updateCard)
  const keys = new Set(running.map(({ key }) => key))
  for (const key of seen.keys()) if (!keys.has(key)) seen.delete(key)
}
