/** A file that is there whole or not at all: written beside its place, then renamed. */
import { randomBytes } from 'node:crypto'
import { open, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { ioError } from '../io-error.ts'

/** @param write is given the path to write @returns bytes of the file @throws IO, what `write` throws */
export async function writeWhole(path: string, write: (temporary: string) => Promise<void>): Promise<number> {
  const whole = resolve(path)
  const temporary = join(dirname(whole), `.${basename(whole)}.${randomBytes(6).toString('hex')}.tmp`)
  try {
    // Ours before DuckDB opens it: what cannot be written is said in the system's words, and only we may read it.
    await (await open(temporary, 'wx', 0o600)).close()
    await write(temporary)
    const file = await open(temporary, 'r+')
    await file.datasync()
    await file.close()
    await rename(temporary, whole)
    return (await stat(whole)).size
  } catch (error) {
    await rm(temporary, { force: true })
    throw ioError(error, 'cannot write', path)
  }
}
