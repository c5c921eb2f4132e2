/** What the lines at a migration's end have in common at both sides. */
import type { Verdict } from '../migration/outcome.ts'

/** 'completed (the destination QEMU has taken over)'. */
export function outcomeText({ outcome, reason }: Pick<Verdict, 'outcome' | 'reason'>): string {
  return `${outcome} (${reason})`
}

interface Named {
  readonly id: string
  readonly target: string
  readonly machine?: string
  readonly uuid?: string
}

/** By what one finds the same migration at the other site, and the guest. */
export function nameOf({ id, target, machine, uuid }: Named): Named {
  return { id, target, ...(machine === undefined ? {} : { machine }), ...(uuid === undefined ? {} : { uuid }) }
}
