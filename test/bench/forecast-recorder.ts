/** Loaded before a source proxy (NODE_OPTIONS=--import): writes what its forecaster sees into the file FORECAST_CURVE, a line a point. */
import { appendFileSync } from 'node:fs'
import { PAGE_SIZE } from '../../src/codec/wire.ts'
import { Forecaster } from '../../src/migration/forecast.ts'

/** Points that a guest's memory is worth; more than the forecaster looks at. */
const POINTS = 64
const file = process.env.FORECAST_CURVE

const recorded = new WeakMap<Forecaster, number>()
const { update } = Forecaster.prototype
if (file !== undefined)
  Forecaster.prototype.update = function (blocks, counted, ms, effort) {
    if (blocks.complete) {
      let pages = 0
      for (let block = 0; block < blocks.size; block++) pages += blocks.lengthBytes(block) / PAGE_SIZE
      const share = counted.pages / pages
      const point = Math.floor(share * POINTS)
      if (point > (recorded.get(this) ?? 0)) {
        recorded.set(this, point)
        const { rawBytes, packedBytes } = counted
        appendFileSync(file, `[${share.toFixed(4)},${(ms / 1000).toFixed(2)},${rawBytes},${packedBytes}]\n`)
      }
    }
    return update.call(this, blocks, counted, ms, effort)
  }
