/** How far a command is that reads its inputs whole, for those who watch. */
import { formatSize } from '../quantity.ts'
import type { BuildProgress } from '../store/build.ts'
import { tell } from './output.ts'

/** The bar moves so often a second at most. */
const BAR_FPS = 10

export interface Display {
  show(progress: BuildProgress): void
  end(): void
}

/** A bar on a terminal, a line a pass elsewhere, nothing where only JSON is wanted. */
export async function newDisplay(json: boolean): Promise<Display> {
  let pass = 0
  const title = ({ step, pass }: BuildProgress): string => (step === 'copy' ? 'storing' : `counting, pass ${pass}`)
  if (!process.stderr.isTTY) {
    const show = (progress: BuildProgress): void => {
      if (json || progress.pass === pass) return
      pass = progress.pass
      tell(`${title(progress)}: ${formatSize(progress.totalBytes)}`)
    }
    return { show, end: () => {} }
  }
  const { SingleBar } = await import('cli-progress')
  const format = '{title} [{bar}] {percentage} % of {total} {input}'
  const formatValue = (value: number, _: unknown, type: string): string =>
    type === 'total' ? formatSize(value) : String(value)
  const options = { format, formatValue, fps: BAR_FPS, barsize: 30, stream: process.stderr, hideCursor: true }
  const bar = new SingleBar({ ...options, clearOnComplete: true, barCompleteChar: '#', barIncompleteChar: '-' })
  let active = false
  return {
    show(progress) {
      const payload = { title: title(progress), input: progress.input }
      if (pass !== progress.pass) bar.start(progress.totalBytes, progress.doneBytes, payload)
      else bar.update(progress.doneBytes, payload)
      pass = progress.pass
      active = true
    },
    end() {
      if (active) bar.stop()
      active = false
    },
  }
}
