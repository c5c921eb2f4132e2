/** CPU time of processes, as Linux counts it: /proc/PID/stat, proc(5). */
import { readdirSync, readFileSync } from 'node:fs'

/** USER_HZ: 100 on every Linux that Node runs on. */
const TICKS_PER_SECOND = 100

/** The fields after the name of a process, from its state on: [0] state, [1] parent, [11] to [14] times. */
function statFields(path: string): string[] | undefined {
  try {
    const text = readFileSync(path, 'latin1')
    return text.slice(text.lastIndexOf(')') + 2).split(' ')
  } catch {
    return undefined // it has ended
  }
}

/** User and system seconds of a process, without its children; 0 when it has ended. */
export function ownSeconds(pid: number): number {
  const fields = statFields(`/proc/${pid}/stat`)
  return fields ? (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND : 0
}

/** The same of one thread. */
export function threadSeconds(pid: number, thread: number): number {
  const fields = statFields(`/proc/${pid}/task/${thread}/stat`)
  return fields ? (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND : 0
}

/** The same of everything that a process started: what runs, and what has ended. */
export function descendantSeconds(pid: number): number {
  const children = new Map<number, number[]>()
  for (const name of readdirSync('/proc')) {
    const parent = /^\d+$/.test(name) ? Number(statFields(`/proc/${name}/stat`)?.[1]) : Number.NaN
    if (parent > 0) children.set(parent, [...(children.get(parent) ?? []), Number(name)])
  }
  const endedSeconds = (of: number): number => {
    const fields = statFields(`/proc/${of}/stat`)
    return fields ? (Number(fields[13]) + Number(fields[14])) / TICKS_PER_SECOND : 0
  }
  const sum = (of: number): number =>
    (children.get(of) ?? []).reduce((total, child) => total + ownSeconds(child) + sum(child), endedSeconds(of))
  return sum(pid)
}
