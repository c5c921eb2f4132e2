/** Locks of processes that are killed, stopped for long, or late. */
import { existsSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { FileLock } from '../../src/remote/file-lock.ts'
import { failure, scratch } from '../template/makers.ts'

t.setTimeout(590_000)

const IDLE_MS = 3_600_000

function old(path: string): void {
  const past = new Date(Date.now() - IDLE_MS - 1000)
  utimesSync(path, past, past)
}

t.test('whoever was stopped knows that it was taken over, whatever its file is called within the disk', async t => {
  const { folder } = scratch(t.teardown)
  const path = join(folder, 'x.lock')
  const first = await FileLock.take(path, undefined, IDLE_MS)
  const text = readFileSync(path)
  const { ino } = statSync(path)
  t.equal(await first.isHeld(), true)
  // another's lock in the same inode: file systems give an inode that became free to the next file
  writeFileSync(path, 'another')
  t.equal(statSync(path).ino, ino)
  t.equal(await first.isHeld(), false)
  await first.release()
  t.equal(existsSync(path), true, "another's stays")
  // ours in another inode
  rmSync(path)
  const second = await FileLock.take(path, undefined, IDLE_MS)
  t.not(readFileSync(path).toString(), text.toString(), 'each has a token of its own')
  await second.release()
  t.same(readdirSync(folder), [])
})

t.test('an old one is taken over, by one of many', async t => {
  const { folder } = scratch(t.teardown)
  const path = join(folder, 'x.lock')
  const dead = await FileLock.take(path, undefined, IDLE_MS)
  old(path)
  let holders = 0
  let most = 0
  const one = async (): Promise<void> => {
    const lock = await FileLock.take(path, undefined, IDLE_MS)
    most = Math.max(most, ++holders)
    t.equal(await dead.isHeld(), false)
    holders--
    await lock.release()
  }
  await Promise.all(Array.from({ length: 8 }, one))
  t.equal(most, 1)
  await dead.release()
  t.same(readdirSync(folder), [])
})

t.test('what stands in its place and is none', async t => {
  const { folder } = scratch(t.teardown)
  t.equal(await failure(() => FileLock.take(join(folder, 'nowhere/x.lock'))), 'IO')
})
