/** How fast bytes pass just now: of QEMU, and of what they became on the WAN. Pure: times come in. */

/** Rates are those of so long ... */
const WINDOW_MS = 10_000
/** ... of points that are so far apart at least. */
const POINT_MS = 500

/** What has passed. */
export interface RatedBytes {
  readonly rawBytes: number
  readonly packedBytes: number
}

export interface ByteRates {
  /** What QEMU gets rid of, and what goes onto the WAN of it, over the last ten seconds. */
  readonly bytesPerSecond: number
  readonly wanBytesPerSecond: number
}

interface Point extends RatedBytes {
  readonly ms: number
}

export class Rates {
  private readonly points: Point[]

  constructor(startMs: number) {
    this.points = [{ ms: startMs, rawBytes: 0, packedBytes: 0 }]
  }

  /** So much has passed by now. */
  passed({ rawBytes, packedBytes }: RatedBytes, nowMs: number): void {
    const { points } = this
    if (nowMs - points.at(-1)!.ms < POINT_MS) return
    points.push({ ms: nowMs, rawBytes, packedBytes })
    while (points.length > 2 && points[1]!.ms <= nowMs - WINDOW_MS) points.shift()
  }

  /** @param counted what has passed by now */
  status(counted: RatedBytes, nowMs: number): ByteRates {
    const { points } = this
    // where nothing passed for a while, no point was made that would move the first one up
    const since = points.findLast(({ ms }) => ms <= nowMs - WINDOW_MS) ?? points[0]!
    const seconds = Math.max(nowMs - since.ms, 1) / 1000
    const rate = (bytes: number, before: number): number => Math.round(Math.max(0, bytes - before) / seconds)
    return {
      bytesPerSecond: rate(counted.rawBytes, since.rawBytes),
      wanBytesPerSecond: rate(counted.packedBytes, since.packedBytes),
    }
  }
}
