/**
 * What a qcow2 image stands on: the files that it names, and those that they name. They are looked through before qemu-nbd
 * opens them, so that it can be said which files are read, and a chain that comes back to itself is none. Source: QEMU
 * docs/interop/qcow2.txt.
 */
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { dirname, isAbsolute, join } from 'node:path'
import { ProxyError } from '../errors.ts'
import { ioError } from '../io-error.ts'
import { STAT_BLOCK } from './input-file.ts'
import { BACKING_CHAIN_MAX } from './limits.ts'

const MAGIC = 'QFI\xfb'
/** u64 place of the backing file's name, u32 its length; from version 3 on u64 features that a reader has to know. */
const HEADER = { VERSION: 4, BACKING_AT: 8, BACKING_LENGTH: 16, FEATURES: 72, LENGTH: 80 } as const
const BACKING_LENGTH_MAX = 1023
const EXTERNAL_DATA = 4n

export interface BackingChain {
  /** Below the image, the nearest first. */
  readonly backing: readonly string[]
  /** Bytes on disk of all of them; undefined where one is a block device. */
  readonly storedBytes: number | undefined
}

/**
 * Follows the names, in files of this machine only.
 *
 * @throws IO; CAPTURE_FORMAT for names that are no files (`nbd:`, `json:`), data in another file, a chain without end
 */
export async function chainOf(path: string): Promise<BackingChain> {
  const backing: string[] = []
  let storedBytes: number | undefined = 0
  for (let at = path; ; at = backing.at(-1)!) {
    if (backing.length > BACKING_CHAIN_MAX) {
      throw bad(at, `a chain of more than ${BACKING_CHAIN_MAX} images`, HEADER.BACKING_AT, 'qemu-img rebase FILE')
    }
    try {
      const file = await open(at, constants.O_RDONLY | constants.O_NONBLOCK) // a FIFO would be waited for
      try {
        const found = await file.stat()
        if (found.isBlockDevice()) storedBytes = undefined
        else if (!found.isFile()) throw bad(at, 'it is no file, but an image stands on it', 0, 'qemu-img rebase FILE')
        if (storedBytes !== undefined) storedBytes += found.blocks * STAT_BLOCK
        const head = Buffer.alloc(HEADER.LENGTH)
        const { bytesRead } = await file.read(head, 0, HEADER.LENGTH, 0)
        if (bytesRead < HEADER.FEATURES || head.toString('latin1', 0, 4) !== MAGIC) break
        if (head.readUInt32BE(HEADER.VERSION) > 2 && (head.readBigUInt64BE(HEADER.FEATURES) & EXTERNAL_DATA) !== 0n) {
          throw bad(at, 'its data are in another file', HEADER.FEATURES, 'qemu-img convert -O qcow2 FILE ALL')
        }
        const nameAt = Number(head.readBigUInt64BE(HEADER.BACKING_AT))
        if (nameAt === 0) break
        const length = head.readUInt32BE(HEADER.BACKING_LENGTH)
        if (length > BACKING_LENGTH_MAX)
          throw bad(at, 'an impossible name', HEADER.BACKING_LENGTH, 'qemu-img check FILE')
        const name = Buffer.alloc(length)
        await file.read(name, 0, length, nameAt)
        backing.push(fileOf(at, name.toString('utf8'), nameAt))
      } finally {
        await file.close()
      }
    } catch (cause) {
      throw ioError(cause, 'cannot read', at)
    }
  }
  return { backing, storedBytes }
}

/** As QEMU takes it: beside the image that names it. */
function fileOf(image: string, name: string, offset: number): string {
  const file = name.startsWith('file:') ? name.slice('file:'.length) : name
  if (/^[^/]*:/.test(file)) {
    throw bad(image, `it stands on ${name}, which is no file`, offset, 'qemu-img convert -O qcow2 FILE ALL')
  }
  return isAbsolute(file) ? file : join(dirname(image), file)
}

function bad(image: string, what: string, offset: number, action: string): ProxyError {
  return new ProxyError('CAPTURE_FORMAT', what, { stream: image, offset }, action)
}
