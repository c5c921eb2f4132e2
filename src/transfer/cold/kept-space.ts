/** Disk space of a process for blocks of disks (kept-blocks.ts): each session that carries disks gets a part of it. */
import { statfsSync } from 'node:fs'
import { KEPT_BLOCKS_MAX, KEPT_BLOCKS_MIN, KEPT_WAITING_PAGES_MAX } from '../../limits.ts'
import { PAGE_SIZE } from '../../template/wire.ts'

/** What a session may use until it ends. */
export interface KeptGrant {
  readonly blocks: number
  release(): void
}

export class KeptSpace {
  readonly folder: string
  private readonly blocks: number
  private readonly freeBytes: (folder: string) => number
  private readonly least: number
  private taken = 0
  private waiting = 0

  /**
   * @param freeBytes of the file system: default, what that says
   * @param least fewer blocks than these are none
   */
  constructor(folder: string, bytes: number, freeBytes = freeBytesOf, least = KEPT_BLOCKS_MIN) {
    this.folder = folder
    this.blocks = Math.floor(bytes / PAGE_SIZE)
    this.freeBytes = freeBytes
    this.least = least
  }

  /** Blocks of all sessions that wait for the disk lie in memory. @returns false where there is no room for so many more */
  takeRoom(blocks: number): boolean {
    if (this.waiting + blocks > KEPT_WAITING_PAGES_MAX) return false
    this.waiting += blocks
    return true
  }

  giveRoom(blocks: number): void {
    this.waiting -= blocks
  }

  /** Half of what is left: a session may be followed by another while it goes on. Never what the host itself needs. */
  take(wanted: number): KeptGrant {
    const left = this.blocks - this.taken
    const free = Math.floor(this.freeBytes(this.folder) / PAGE_SIZE)
    const most = Math.min(wanted, Math.floor(left / 2), Math.floor(free / 2), KEPT_BLOCKS_MAX)
    const blocks = most < this.least ? 0 : most
    this.taken += blocks
    let isHeld = true
    return {
      blocks,
      release: () => {
        if (isHeld) this.taken -= blocks
        isHeld = false
      },
    }
  }
}

/** File systems that lie in memory, by what statfs calls their type: tmpfs, ramfs. */
const IN_MEMORY: ReadonlySet<number> = new Set([0x0102_1994, 0x8584_58f6])

/** 0 where it cannot be told, or is no disk: then nothing is kept. */
function freeBytesOf(folder: string): number {
  try {
    const { type, bavail, bsize } = statfsSync(folder)
    return IN_MEMORY.has(type) ? 0 : bavail * bsize
  } catch {
    return 0
  }
}
