/** Runs the course of a migration: its questions over QMP, its time by the clock. */
import type { QemuSide } from './advice.ts'
import type { Answer, Course, Outcome, Reply, Step, Told } from './migration-course.ts'
import type { QemuEvent } from './mirror-ends.ts'
import { type QmpClient, QmpError } from './qmp-client.ts'

/**
 * A QEMU that hands its guest over answers when it is done with that: as long as its socket takes nothing its main loop
 * may stand. Longer than proxies wait for a WAN by themselves (`--patience`: 120 s).
 */
const ANSWER_LONG_MS = 300_000
/** After so long it is said that it is waited for. */
const SLOW_MS = 5000
/** Events wake a wait, but not sooner: a QEMU that says them without end is not asked without end. */
const WAIT_MS_MIN = 20
const EVENTS_MAX = 1000

/** What asks the course to end. */
export interface Interrupts {
  readonly count: number
  onSignal: () => void
}

export interface CourseClients {
  readonly source: QmpClient
  readonly destination?: QmpClient | undefined
}

/**
 * Runs it to its end. The connections stay open.
 * @param told is called with what happens
 */
export async function runCourse(
  course: Course,
  clients: CourseClients,
  interrupts: Interrupts,
  told: (told: Told) => void,
): Promise<Outcome> {
  let wake = (): void => {}
  /** What the course has not heard yet; the last of them, of a QEMU that says more than anybody asks for. */
  let events: QemuEvent[] = []
  const hear = (event: QemuEvent): void => {
    events.push(event)
    if (events.length > EVENTS_MAX) events.shift()
  }
  clients.source.on('event', hear)
  let second = (): void => {}
  const twice = new Promise<Answer>(done => {
    second = () => done({ kind: 'lost', why: 'interrupted' })
  })
  /** The question of now is not answered in time. */
  let isSlow = false
  interrupts.onSignal = () => {
    wake()
    if (isSlow && interrupts.count === 1)
      told({ event: 'note', text: 'as soon as it answers this is to end; once more ends this command alone' })
    if (interrupts.count > 1) second()
  }
  const wait = (ms: number): Promise<void> =>
    new Promise(done => {
      const soon = performance.now() + WAIT_MS_MIN
      const ends = [setTimeout(finish, ms)]
      function finish(): void {
        for (const timer of ends) clearTimeout(timer)
        clients.source.off('event', onEvent)
        wake = () => {}
        done()
      }
      function onEvent(): void {
        if (ends.length < 2) ends.push(setTimeout(finish, Math.max(0, soon - performance.now())))
      }
      clients.source.on('event', onEvent)
      wake = finish
    })
  const reply = (answer?: Answer): Reply => {
    const { count } = interrupts
    const heard = events
    events = []
    return { nowMs: performance.now(), interrupts: count, events: heard, ...(answer && { answer }) }
  }
  let next = course.next(reply())
  while (!next.done) {
    const step: Step = next.value
    if (step.kind === 'tell') {
      told(step.told)
      next = course.next(reply())
    } else if (step.kind === 'wait') {
      await wait(step.ms)
      next = course.next(reply())
    } else {
      const slow = setTimeout(() => {
        isSlow = true
        const text = `the ${step.side} QEMU does not answer for now: it hands its guest over, or waits for the WAN`
        told({ event: 'note', text })
      }, SLOW_MS)
      const answer = await Promise.race([ask(clients, step), twice])
      clearTimeout(slow)
      isSlow = false
      next = course.next(reply(answer))
    }
  }
  clients.source.off('event', hear)
  return next.value
}

async function ask(clients: CourseClients, step: Step & { kind: 'ask' }): Promise<Answer> {
  const client = clientOf(clients, step.side)
  try {
    const answerMs = step.patience === 'long' ? [ANSWER_LONG_MS] : []
    return { kind: 'value', value: await client.execute(step.command, step.args, ...answerMs) }
  } catch (error) {
    return { kind: error instanceof QmpError ? 'refused' : 'lost', why: (error as Error).message }
  }
}

function clientOf({ source, destination }: CourseClients, side: QemuSide): QmpClient {
  return side === 'source' ? source : destination!
}
