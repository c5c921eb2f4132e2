/** What a command prints on standard error when it fails, and its exit status. */
import { printable } from '../bytes/printable.ts'
import { ERROR_EXIT, isProxyError, whereText } from '../errors.ts'

/**
 * Prints `error:` and `hint:`, a line each, or with `--json` one object. Texts from outside are escaped here.
 * @returns the exit status
 */
export function fail(error: unknown, json: boolean = process.argv.includes('--json')): number {
  if (isProxyError(error)) {
    const lines = json
      ? [JSON.stringify({ error })]
      : [`error: ${error.what}${whereText(error.where)}`, `hint: ${error.action}`]
    process.stderr.write(lines.map(line => `${printable(line)}\n`).join(''))
    return ERROR_EXIT[error.code]
  }
  if ((error as NodeJS.ErrnoException | undefined)?.code === 'EPIPE') return 0 // the reader of a pipe has enough
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error)
  const trace = text.split('\n').map(printable).join('\n')
  process.stderr.write(`error: ${trace}\nhint: this is a defect of Pageferry; please report it with the command line\n`)
  return ERROR_EXIT.INTERNAL
}
