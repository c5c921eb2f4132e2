/** Batches put together as docs/protocol.md §4 says, by nothing of src/. */

export function varint(value: number): number[] {
  const out: number[] = []
  let rest = BigInt(value)
  for (; rest > 127n; rest >>= 7n) out.push(Number(rest & 127n) | 128)
  return [...out, Number(rest)]
}

export interface HandColumn {
  readonly column: number
  readonly method: number
  readonly rawLength: number
  readonly packed: Uint8Array
}

/** A batch of these columns, in the order given. */
export function handBatch(rawLength: number, sum: bigint, columns: readonly HandColumn[]): Buffer {
  const promised = Buffer.alloc(8)
  promised.writeBigUInt64BE(sum)
  const parts = [Buffer.of(1, ...varint(rawLength)), promised, Buffer.of(columns.length)]
  for (const { column, method, rawLength: raw, packed } of columns) {
    parts.push(Buffer.of(column, method, ...varint(raw), ...(method === 0 ? [] : varint(packed.length))))
  }
  return Buffer.concat([...parts, ...columns.map(({ packed }) => packed)])
}
