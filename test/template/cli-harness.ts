/** The commands on files as the main program runs them, and nothing else. */
import { readFileSync } from 'node:fs'
import yargs from 'yargs'
import { decodeCommand, encodeCommand, estimateCommand } from '../../src/cli/codec-command.ts'
import { giveDashes, keepDashes } from '../../src/cli/dash.ts'
import { storeCommand } from '../../src/cli/store-command.ts'
import { templateCommand } from '../../src/cli/template-command.ts'
import { ERROR_EXIT, isProxyError, ProxyError, whereText } from '../../src/errors.ts'
import { TemplateStore } from '../../src/store/template-store.ts'
import { page, sha256 } from './makers.ts'

/** Runs a command. @returns its exit status */
export async function runCommand(args: readonly string[]): Promise<number> {
  try {
    await yargs(keepDashes(args))
      .middleware(giveDashes, true)
      .scriptName('pageferry')
      .command(templateCommand)
      .command(storeCommand)
      .command(encodeCommand)
      .command(decodeCommand)
      .command(estimateCommand)
      .strict()
      .exitProcess(false)
      .fail((message, error) => {
        throw error ?? new ProxyError('USAGE', message, undefined, '--help')
      })
      .parseAsync()
    return 0
  } catch (error) {
    if (!isProxyError(error)) throw error
    process.stderr.write(`error: ${error.what}${whereText(error.where)}\nhint: ${error.action}\n`)
    return ERROR_EXIT[error.code]
  }
}

/** Runs a command in this process. */
export async function pageferry(...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const streams = { out: process.stdout, err: process.stderr }
  const texts = { out: '', err: '' }
  const { out, err } = { out: streams.out.write, err: streams.err.write }
  for (const name of ['out', 'err'] as const) {
    streams[name].write = ((text: string) => {
      texts[name] += text
      return true
    }) as never
  }
  const log = console.log
  console.log = text => {
    texts.out += text // help, by yargs
  }
  try {
    return { status: await runCommand(args), ...texts }
  } finally {
    streams.out.write = out
    streams.err.write = err
    console.log = log
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
    if (status !== 0) process.exitCode ??= status // a command that was interrupted has set it
  }
  // Not resourceUsage(): its maximum is handed down from the process that started this one.
  if (process.env.HARNESS_PEAK) process.stderr.write(readFileSync('/proc/self/status', 'latin1'))
}
