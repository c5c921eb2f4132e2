/** Something that is looked at again and again while work goes on. */

/** Waits for `work`, and calls `look` every so many milliseconds until it is done. */
export async function meanwhile<T>(work: Promise<T>, everyMs: number, look: () => void): Promise<T> {
  const timer = setInterval(look, everyMs)
  try {
    return await work
  } finally {
    clearInterval(timer)
  }
}
