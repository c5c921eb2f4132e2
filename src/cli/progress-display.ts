/** How far a command is that works for long, for those who watch. */
import { printable } from '../bytes/printable.ts'
import type { ChooseProgress } from '../counts/choose.ts'
import { formatCount, formatSize } from '../quantity.ts'
import type { BuildProgress } from '../store/build.ts'
import { tell } from './output.ts'

/** The bar moves so often a second at most. */
const BAR_FPS = 10

/** A step of the work: another title is another step. */
interface Step {
  readonly title: string
  /** How much it is about, for people. */
  readonly size: string
  /** What it is at. */
  readonly at: string
  /** 0 to 1. */
  readonly share: number
}

export interface Display {
  show(step: Step): void
  end(): void
}

/** A bar on a terminal, a line a step elsewhere, nothing where only JSON is wanted. */
export async function newDisplay(json: boolean): Promise<Display> {
  let shown = ''
  if (!process.stderr.isTTY) {
    const show = ({ title, size }: Step): void => {
      if (json || title === shown) return
      shown = title
      tell(`${title}: ${size}`)
    }
    return { show, end: () => {} }
  }
  const { SingleBar } = await import('cli-progress')
  const format = '{title} [{bar}] {percentage} % of {size} {at}'
  const options = { format, fps: BAR_FPS, barsize: 30, stream: process.stderr, hideCursor: true }
  const bar = new SingleBar({ ...options, clearOnComplete: true, barCompleteChar: '#', barIncompleteChar: '-' })
  return {
    show({ title, size, at, share }) {
      const payload = { title, size, at: printable(at) }
      if (title === shown) bar.update(share, payload)
      else bar.start(1, share, payload)
      shown = title
    },
    end() {
      if (shown !== '') bar.stop()
      shown = ''
    },
  }
}

/** A pass over inputs. */
export function passStep({ step, pass, input, doneBytes, totalBytes }: BuildProgress): Step {
  const title = step === 'copy' ? 'storing' : `counting, pass ${pass}`
  return { title, size: formatSize(totalBytes), at: input, share: doneBytes / Math.max(1, totalBytes) }
}

/** A step over counts. */
export function chooseStep({ step, part, parts, rows, share }: ChooseProgress): Step {
  const of = parts === 1 ? '' : `, part ${part} of ${parts}`
  const title = { vms: 'reading names', group: `grouping${of}`, rank: 'ranking' }[step]
  return { title, size: `${formatCount(rows)} ${step === 'rank' ? 'pages' : 'rows'}`, at: '', share }
}

/** Sorting what was counted. */
export function sortStep(pages: number, share: number): Step {
  return { title: 'sorting', size: `${formatCount(pages)} pages`, at: '', share }
}

/** A set on its way to or from a remote store. */
export function transferStep(
  doing: 'sending' | 'fetching',
  digest: string,
  doneBytes: number,
  totalBytes: number,
): Step {
  const title = `${doing} set ${digest.slice(0, 16)}`
  return { title, size: formatSize(totalBytes), at: '', share: doneBytes / Math.max(1, totalBytes) }
}
