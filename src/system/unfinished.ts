/** What a command has begun on disks and not finished: it goes even where the process ends in the middle. */
import { rmSync } from 'node:fs'
import { rm } from 'node:fs/promises'

const begun = new Set<string>()

/** A file or folder that belongs to nobody until {@link finished} says so. */
export function unfinished(path: string): void {
  if (begun.size === 0) process.once('exit', discardUnfinished)
  begun.add(path)
}

/** It has its place, or is gone. */
export function finished(path: string): void {
  begun.delete(path)
  if (begun.size === 0) process.off('exit', discardUnfinished)
}

/** Removes a file of them. Where that fails it hides no failure before it: the end of the process tries again. */
export async function discard(path: string): Promise<void> {
  try {
    await rm(path, { force: true })
    finished(path)
  } catch {
    // it stays among them
  }
}

/** Removes all of it at once: the process is about to end. */
export function discardUnfinished(): void {
  for (const path of begun) {
    try {
      rmSync(path, { recursive: true, force: true, maxRetries: 3 })
    } catch {
      // somebody writes to it still: the others go all the same
    }
  }
}
