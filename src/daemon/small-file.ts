/** Files that people write by hand: settings, a cap. A few lines, so that anything else under that name is a mistake. */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { ProxyError } from '../errors.ts'

/** A hundred times what a large site says. */
const BYTES_MAX = 1 << 20

/**
 * The text of a file.
 * @param what the option or setting that named it, for the message
 * @param bytesMax 1 MiB, unless it is one that we wrote
 * @throws ProxyError IO where it cannot be read, is no file (a FIFO would never end), or is larger than that
 */
export function readSmallFile(path: string, what: string, bytesMax = BYTES_MAX): string {
  const bad = (why: string, hint: string, cause?: unknown): ProxyError =>
    new ProxyError('IO', `${what}: ${why}`, undefined, hint, { cause })
  let fd = -1
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK) // a FIFO without a writer would keep us here
    if (!fstatSync(fd).isFile()) throw bad(`${path} is no file`, 'give the path of a text file')
    const bytes = Buffer.alloc(bytesMax + 1)
    let length = 0
    for (let read = -1; read !== 0 && length < bytes.length; length += read)
      read = readSync(fd, bytes, length, bytesMax + 1 - length, null)
    if (length > bytesMax) throw bad(`${path} is larger than ${bytesMax >> 20} MiB`, 'give the path of a text file')
    return bytes.toString('utf8', 0, length)
  } catch (error) {
    if (error instanceof ProxyError) throw error
    throw bad(`cannot read ${path}: ${(error as Error).message}`, 'check the path and who may read it', error)
  } finally {
    if (fd >= 0) closeSync(fd)
  }
}
