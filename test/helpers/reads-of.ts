/**
 * Has a list that `owner` keeps in `field` count how often one of its entries is read: what a lookup costs, told without a
 * clock.
 * @returns how often since it was asked the last time
 */
export function readsOf(owner: object, field: string): () => number {
  const list: unknown = Reflect.get(owner, field)
  if (!Array.isArray(list)) throw new Error(`there is no list ${field}`)
  let reads = 0
  const counting = new Proxy(list, {
    get: (target, key) => {
      if (typeof key === 'string' && /^\d+$/.test(key)) reads++
      return Reflect.get(target, key)
    },
  })
  Reflect.set(owner, field, counting)
  return () => {
    const since = reads
    reads = 0
    return since
  }
}
