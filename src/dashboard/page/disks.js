/** A card for each disk transfer that runs: how fast, and how far each of its disks is, where that is known. */
import { byId, element, factList, keep, setText } from './elements.js'
import { counted, formatDuration, formatRate, formatSaved, formatSize } from './text.js'

/** @typedef {import('../../migration/disk-progress.ts').ExportStatus} ExportStatus */
/** @typedef {import('../../migration/summary.ts').DiskDepartureStatus} DiskDepartureStatus */
/** @typedef {import('../../migration/summary.ts').DiskStatus} DiskStatus */
/** @typedef {{ key: string, peer: string, out: DiskDepartureStatus | undefined, status: DiskStatus }} RunningDisks */

/** @param {ExportStatus} one */
function makeExport({ name }) {
  const [about, pass, share] = [element('span', { class: 'about' }), element('span'), element('strong')]
  const bar = element('progress', { max: '100' })
  // what its client asked for goes its own way, in whatever script it is
  const called = name === '' ? 'Disk without a name' : element('bdi', {}, name)
  const label = element('label', { class: 'bar' }, pass, bar, share)
  const node = element('li', {}, element('b', {}, called), ' ', about, label)
  return { node, about, label, bar, pass, share }
}

/** @param {ReturnType<typeof makeExport>} parts @param {ExportStatus} one */
function updateExport(parts, { bytes, bytesWritten, pass, share, passSeconds }) {
  const rest = passSeconds === undefined ? '' : ` · ${formatDuration(passSeconds)} to the end of the pass`
  setText(parts.about, `${formatSize(bytes)} · ${formatSize(bytesWritten)} written${rest}`)
  parts.label.hidden = share === undefined
  if (share === undefined) return
  const percent = Math.floor(100 * share)
  parts.bar.value = percent
  setText(parts.pass, `Pass ${pass} `)
  setText(parts.share, `${percent} %`)
}

/** @param {RunningDisks} running */
function makeDiskCard({ key, peer, out, status }) {
  const id = `disks-${key.replaceAll(/[^\w-]/g, '-')}`
  const way = out ? ' leave for ' : ' come from '
  const title = element('h3', { id }, 'Disks ', element('bdi', {}, status.target), way, element('bdi', {}, peer))
  const about = element('p', { class: 'about' })
  const exports = element('ul', { class: 'exports' })
  const facts = factList(
    out
      ? [
          ['rate', 'From clients'],
          ['rateWan', 'On the WAN'],
          ['bytes', 'From clients so far'],
          ['bytesWan', 'On the WAN so far'],
          ['saved', 'Saved'],
          ['requests', 'Requests not answered'],
          ['back', 'From the server so far'],
          ['backWan', 'Of that on the WAN'],
        ]
      : [
          ['bytes', 'To the server so far'],
          ['back', 'Back so far'],
          ['backWan', 'Of that on the WAN'],
        ],
  )
  const node = element('article', { class: 'card', 'aria-labelledby': id }, title, about, exports, facts.node)
  return { node, about, exports, facts }
}

/** @param {ReturnType<typeof makeDiskCard>} card @param {RunningDisks} running */
function updateDiskCard({ about, exports, facts }, { out, status }) {
  const { id, seconds, connections, bytes, bytesBack, bytesBackWan } = status
  const parts = [`disk transfer ${id}`, `for ${formatDuration(seconds)}`]
  parts.push(counted(connections, 'connection', 'connections'))
  const owed = out?.owed
  if (owed && owed.writes > 0)
    parts.push(`${counted(owed.writes, 'write', 'writes')} answered early (${formatSize(owed.bytes)})`)
  setText(about, parts.join(' · '))
  exports.hidden = !out?.exports.length
  keep(exports, out?.exports ?? [], ({ name }) => name, makeExport, updateExport)
  const { tell } = facts
  tell('bytes', formatSize(bytes))
  tell('back', formatSize(bytesBack))
  tell('backWan', formatSize(bytesBackWan))
  if (!out) return
  tell('rate', formatRate(out.bytesPerSecond))
  tell('rateWan', formatRate(out.wanBytesPerSecond))
  tell('bytesWan', formatSize(out.bytesWan))
  tell('saved', formatSaved(bytes, out.bytesWan) || '–')
  tell('requests', String(out.requests))
}

/** Those of sessions that were left to them, too. @param {readonly import('../dashboard-api.ts').SiteLook[]} sites @returns {RunningDisks[]} */
export function runningDisksOf(sites) {
  return sites.flatMap(({ control, status }) => [
    ...(status?.sources ?? []).flatMap(({ peer, session, left }) =>
      [...(session ? [session] : []), ...(left ?? [])].flatMap(one =>
        (one.disks ?? []).map(disks => ({ key: `${control} out ${disks.id}`, peer, out: disks, status: disks })),
      ),
    ),
    ...(status?.destination?.sessions ?? []).flatMap(({ peer, disks }) =>
      (disks ?? []).map(one => ({ key: `${control} in ${one.id}`, peer, out: undefined, status: one })),
    ),
  ])
}

/** @param {readonly RunningDisks[]} running */
export function showDisks(running) {
  byId('no-disks').hidden = running.length > 0
  keep(byId('disk-cards'), running, ({ key }) => key, makeDiskCard, updateDiskCard)
}
