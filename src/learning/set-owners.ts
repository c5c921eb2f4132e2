/**
 * Who brought which learned set in: a list beside the sets, so that shares outlive the process. It only decides what is
 * removed first; a list that is missing or damaged means that nobody is known.
 */
import { createHash, randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { open, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'

const NAME = '.learned-by'
const LINE = /^([0-9a-f]{64}) ([0-9a-f]{16})$/
/** More than any store has sets. */
const LENGTH_MAX = 1 << 20

/** An identity as the list has it: what it is called is nobody's business who reads the folder. */
export function ownerOf(identity: string): string {
  return createHash('sha256').update(identity).digest('hex').slice(0, 16)
}

/** Owners by digest. */
export async function readOwners(folder: string): Promise<Map<string, string>> {
  const owners = new Map<string, string>()
  try {
    // whatever lies there under this name is not waited for
    const file = await open(join(folder, NAME), constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
    try {
      const found = await file.stat()
      if (!found.isFile() || found.size > LENGTH_MAX) return owners
      for (const line of (await file.readFile('latin1')).split('\n')) {
        const [, digest, owner] = LINE.exec(line) ?? []
        if (digest !== undefined && owner !== undefined) owners.set(digest, owner)
      }
    } finally {
      await file.close()
    }
  } catch {
    // nobody is known
  }
  return owners
}

/** Replaces the list. @throws what the file system says */
export async function writeOwners(folder: string, owners: ReadonlyMap<string, string>): Promise<void> {
  // a name that the store's sweep knows
  const temporary = join(folder, `.put-${process.pid}-${randomBytes(8).toString('hex')}.tmp`)
  const file = await open(temporary, 'wx', 0o600)
  try {
    await file.writeFile([...owners].map(([digest, owner]) => `${digest} ${owner}\n`).join(''))
  } finally {
    await file.close()
  }
  try {
    await rename(temporary, join(folder, NAME))
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
}
