/** Disk space of a process for blocks of disks (kept-blocks.ts): each session that carries disks gets a part of it. */
import { statfsSync } from 'node:fs'
import { KEPT_BLOCKS_MAX, KEPT_WAITING_PAGES_MAX } from '../../limits.ts'
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
  private taken = 0
  private waiting = 0

  /** @param freeBytes of the file system: default, what that says */
  constructor(folder: string, bytes: number, freeBytes = freeBytesOf) {
    this.folder = folder
    this.blocks = Math.floor(bytes / PAGE_SIZE)
    this.freeBytes = freeBytes
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
    const blocks = Math.max(0, Math.min(wanted, Math.floor(left / 2), Math.floor(free / 2), KEPT_BLOCKS_MAX))
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

/** 0 where it cannot be told: then nothing is kept. */
function freeBytesOf(folder: string): number {
  try {
    const { bavail, bsize } = statfsSync(folder)
    return bavail * bsize
  } catch {
    return 0
  }
}
