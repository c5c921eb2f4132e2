/** A file that is there whole or not at all: written beside its place, then renamed. */
import { randomBytes } from 'node:crypto'
import { open, realpath, rename, stat } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { discard, finished, unfinished } from '../system/unfinished.ts'

/**
 * Writes `path` by way of a file beside it, for its owner alone.
 *
 * @param write is given the file to write, which exists: what cannot be written is known before the work begins
 * @returns what `write` does, and bytes of the file
 * @throws USAGE where `path` is something else than a file, IO, what `write` throws
 */
export async function writeWhole<T>(
  path: string,
  write: (temporary: string) => Promise<T>,
): Promise<{ written: T; fileBytes: number }> {
  let temporary: string | undefined
  try {
    const whole = await placeOf(path)
    // A name of ours, whatever the length of theirs.
    temporary = join(dirname(whole), `.pageferry-${randomBytes(8).toString('hex')}.part`)
    unfinished(temporary)
    // Ours before DuckDB opens it: what cannot be written is said in the system's words, and only we may read it.
    await (await open(temporary, 'wx', 0o600)).close()
    const written = await write(temporary)
    await sync(temporary)
    await rename(temporary, whole)
    finished(temporary)
    return { written, fileBytes: (await stat(whole)).size }
  } catch (error) {
    if (temporary !== undefined) await discard(temporary)
    throw (error as NodeJS.ErrnoException).code === undefined ? error : ioError(error, 'cannot write', path)
  }
}

async function sync(path: string): Promise<void> {
  const file = await open(path, 'r+')
  try {
    await file.datasync()
  } catch (error) {
    await file.close().catch(() => {})
    throw error
  }
  await file.close() // some file systems tell only now that they have no room
}

/** Where the file goes: a link leads on to its file. A device or pipe is not replaced by a file. */
async function placeOf(path: string): Promise<string> {
  const there = path === '-' ? undefined : await stat(path).catch(() => undefined)
  if (path === '-' || (there !== undefined && !there.isFile())) {
    const what = path === '-' ? 'standard output' : `${path}, which is no regular file,`
    throw new ProxyError('USAGE', `${what} cannot be written whole or not at all`, undefined, 'give -o a file')
  }
  return there === undefined ? resolve(path) : realpath(path)
}
