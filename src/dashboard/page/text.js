/** Figures as people read them: the same as commands print. */

/** @param {number} bytes */
export function formatSize(bytes) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB']
  let unit = 0
  let value = bytes
  while (unit < units.length - 1 && value >= (unit === 0 ? 1000 : 999.95)) {
    value /= 1000
    unit++
  }
  return unit === 0 ? `${Math.round(bytes)} bytes` : `${value.toFixed(1)} ${units[unit]}`
}

/** @param {number} bytesPerSecond */
export function formatRate(bytesPerSecond) {
  const megabits = (bytesPerSecond * 8) / 1e6
  return megabits < 1000 ? `${megabits.toFixed(1)} Mbit/s` : `${(megabits / 1000).toFixed(1)} Gbit/s`
}

/** @param {number} seconds */
export function formatDuration(seconds) {
  if (seconds < 60) return `${Math.max(0, seconds).toFixed(1)} s`
  /** @type {[number, string][]} */
  const units = [
    [86_400, 'd'],
    [3600, 'h'],
    [60, 'min'],
    [1, 's'],
  ]
  const first = units.findIndex(([size]) => seconds >= size)
  const [size, unit] = units[first]
  const [smaller, smallerUnit] = units[first + 1]
  return `${Math.floor(seconds / size)} ${unit} ${Math.floor((seconds % size) / smaller)} ${smallerUnit}`
}

/** '310 ms', '2.4 s' @param {number} seconds */
export function formatPause(seconds) {
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : formatDuration(seconds)
}

/** A number on an axis: '40 s', '3 min'. @param {number} seconds */
export function formatTick(seconds) {
  if (seconds < 120) return `${Number(seconds.toFixed(1))} s`
  if (seconds < 7200) return `${Number((seconds / 60).toFixed(1))} min`
  return `${Number((seconds / 3600).toFixed(1))} h`
}

/** '2026-11-29 14:03:22', UTC. @param {string} iso */
export function formatTime(iso) {
  return iso.slice(0, 19).replace('T', ' ')
}

/** What did not have to cross the WAN. @param {number} bytes @param {number} bytesWan */
export function formatSaved(bytes, bytesWan) {
  return bytes === 0 ? '' : `${Math.round(100 * (1 - bytesWan / bytes))} %`
}

/** @param {number} count @param {string} one @param {string} many */
export function counted(count, one, many) {
  return `${count.toLocaleString('en-US')} ${count === 1 ? one : many}`
}
