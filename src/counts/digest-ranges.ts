/** Rows of counts are grouped range by range of their digests, where all at once would not fit into the memory. */

/** Ranges are told apart by so many bytes of a digest. */
const RANGE_BYTES = 2

/** Conditions that take all digests, each once: so many ranges of about one size, or as many as RANGE_BYTES tell apart. */
export function rangesOf(count: number): string[] {
  const ranges = Math.max(1, Math.min(count, 256 ** RANGE_BYTES))
  const bound = (i: number): string => {
    const hex = Math.floor((i * 256 ** RANGE_BYTES) / ranges).toString(16)
    return `unhex('${hex.padStart(2 * RANGE_BYTES, '0')}')`
  }
  return Array.from({ length: ranges }, (_, i) => {
    if (ranges === 1) return 'true'
    if (i === 0) return `(digest IS NULL OR digest < ${bound(1)})` // what no count has is looked at, too
    return i === ranges - 1 ? `digest >= ${bound(i)}` : `digest >= ${bound(i)} AND digest < ${bound(i + 1)}`
  })
}
