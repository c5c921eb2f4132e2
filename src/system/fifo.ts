/** A FIFO whose other end comes late, or never. */
import { closeSync, constants, openSync, readSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { ProxyError } from '../errors.ts'

/** A FIFO that nobody opens at the other end is waited for so long: who does is started at about the same time ... */
const WAIT_MS = 10_000
/** ... and looked at so often meanwhile. */
const POLL_MS = 50
/** Bytes of the read that finds the first ones: what a pipe holds. */
const FIRST_LENGTH = 64 << 10

/**
 * A FIFO as a stream, once somebody has written to it. It is opened without waiting for that, and read by the event loop:
 * a thread that waits could not be ended. One that nobody writes to looks as if it had ended, and no event tells of the
 * first writer, so it is looked at again and again.
 *
 * @param name what messages call it
 * @param signal ends the waiting
 * @throws IO where nobody writes; the signal's reason; the system's errors as they are
 */
export async function openFifo(path: string, name: string, signal: AbortSignal | undefined): Promise<Readable> {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  const first = Buffer.alloc(FIRST_LENGTH)
  try {
    for (let untilMs = performance.now() + WAIT_MS; ; ) {
      const have = readNow(fd, first)
      if (have === WRITER_IDLE) untilMs = performance.now() + WAIT_MS
      if (have > 0) {
        const socket = new Socket({ fd, readable: true, writable: false })
        socket.unshift(first.subarray(0, have))
        return socket
      }
      if (performance.now() > untilMs) {
        const what = `nobody has written to ${name} for ${WAIT_MS / 1000} s`
        throw new ProxyError('IO', what, { stream: name }, 'start what writes to it first')
      }
      await sleep(POLL_MS, undefined, { signal })
    }
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/**
 * A FIFO to write to, once somebody has it open for reading.
 * @throws IO where nobody reads; the system's errors as they are
 */
export async function openFifoToWrite(path: string): Promise<FileHandle> {
  for (const untilMs = performance.now() + WAIT_MS; ; ) {
    try {
      const probe = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK)
      try {
        return await open(path, 'w') // a second time, because writes are to wait for the reader
      } finally {
        closeSync(probe)
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENXIO') throw error
    }
    if (performance.now() > untilMs) {
      const what = `nobody has read from ${path} for ${WAIT_MS / 1000} s`
      throw new ProxyError('IO', what, { stream: path }, 'start what reads from it first')
    }
    await sleep(POLL_MS)
  }
}

/** Somebody has it open for writing, and has not written yet. */
const WRITER_IDLE = -1

/** Bytes that are there at once; WRITER_IDLE, or 0 where nobody has it open for writing. */
function readNow(fd: number, into: Buffer): number {
  try {
    return readSync(fd, into)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return WRITER_IDLE
    throw error
  }
}
