/**
 * Sorts the first `count` indices in place by `compare`, which has to tell any two apart. Heap sort: it needs no memory
 * besides, where TypedArray's own sort with a comparator copies everything twice.
 */
export function sortIndices(indices: Uint32Array, count: number, compare: (a: number, b: number) => number): void {
  const sink = (at: number, end: number): void => {
    const moving = indices[at]!
    for (;;) {
      let child = 2 * at + 1
      if (child >= end) break
      if (child + 1 < end && compare(indices[child]!, indices[child + 1]!) < 0) child++
      if (compare(moving, indices[child]!) >= 0) break
      indices[at] = indices[child]!
      at = child
    }
    indices[at] = moving
  }
  for (let at = Math.floor(count / 2) - 1; at >= 0; at--) sink(at, count)
  for (let end = count - 1; end > 0; end--) {
    const last = indices[end]!
    indices[end] = indices[0]!
    indices[0] = last
    sink(0, end)
  }
}
