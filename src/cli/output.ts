/** What commands print: outside text in it (names of files, what QEMU says) is escaped here, whatever it is part of. */
import { printable } from '../bytes/printable.ts'

/** One line on standard output; a line feed in it is outside text. */
export function print(line: string): void {
  process.stdout.write(`${printable(line)}\n`)
}

/** Lines that we laid out ourselves, a table or JSON, on standard output. */
export function printLines(text: string): void {
  process.stdout.write(`${text.split('\n').map(printable).join('\n')}\n`)
}

/**
 * From now on output that cannot be written is dropped, for work that is worth more than what is said of it.
 * @returns ends that
 */
export function goOnUnheard(): () => void {
  const { stdout } = process
  const before = stdout.listeners('error') as ((error: Error) => void)[]
  const drop = (): void => {}
  stdout.removeAllListeners('error').on('error', drop)
  return () => {
    stdout.off('error', drop)
    for (const listener of before) stdout.on('error', listener)
  }
}

/** One line about how it goes, on standard error. */
export function tell(line: string): void {
  process.stderr.write(`${printable(line)}\n`)
}
