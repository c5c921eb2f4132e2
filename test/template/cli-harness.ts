/** The template and store commands as the main program runs them, and nothing else. */
import { readFileSync } from 'node:fs'
import yargs from 'yargs'
import { storeCommand } from '../../src/cli/store-command.ts'
import { templateCommand } from '../../src/cli/template-command.ts'
import { ERROR_EXIT, isProxyError, ProxyError } from '../../src/errors.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { page, sha256 } from './makers.ts'

/** Runs a command. @returns its exit status */
export async function runCommand(args: readonly string[]): Promise<number> {
  try {
    await yargs([...args])
      .scriptName('pageferry')
      .command(templateCommand)
      .command(storeCommand)
      .strict()
      .exitProcess(false)
      .fail((message, error) => {
        throw error ?? new ProxyError('USAGE', message, undefined, '--help')
      })
      .parseAsync()
    return 0
  } catch (error) {
    if (!isProxyError(error)) throw error
    const where = error.where ? ` (${error.where.stream}, byte ${error.where.offset})` : ''
    process.stderr.write(`error: ${error.what}${where}\nhint: ${error.action}\n`)
    return ERROR_EXIT[error.code]
  }
}

/** Puts a set that is not complete for a minute. */
async function slowPut(folder: string): Promise<void> {
  process.once('SIGTERM', () => process.exit(143))
  const records = {
    count: 10_000,
    vms: () => 1,
    occurrences: () => 1,
    copyDigest: (place: number, into: Uint8Array, at: number) =>
      into.set(Buffer.from(sha256(page(place + 1)), 'hex'), at),
  }
  await new TemplateStore(folder).put({ minVms: 1, vms: 1 }, records, async function* () {
    for (let place = 0; ; place++) {
      yield page(place + 1)
      if (place === 5000) await new Promise(resolve => setTimeout(resolve, 60_000))
    }
  })
}

if (import.meta.main) {
  const args = process.argv.slice(2)
  if (args[0] === 'slow-put') await slowPut(args[1]!)
  else {
    const status = await runCommand(args)
    if (status !== 0) process.exitCode = status
  }
  // Not resourceUsage(): its maximum is handed down from the process that started this one.
  if (process.env.HARNESS_PEAK) process.stderr.write(readFileSync('/proc/self/status', 'latin1'))
}
