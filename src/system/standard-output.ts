/** Standard output, written so that its errors come to the writer alone. */
import { write } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

/** All of `bytes`; not through process.stdout, whose errors come twice: to the writer and to whoever listens. @throws EPIPE */
export async function writeStandardOutput(bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    try {
      at += await writeTo(1, bytes, at)
    } catch (error) {
      // a pipe that whoever made it does not want to wait for
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
      await sleep(1)
    }
  }
}

function writeTo(descriptor: number, bytes: Uint8Array, at: number): Promise<number> {
  return new Promise((done, failed) => {
    write(descriptor, bytes, at, bytes.length - at, null, (error, written) => (error ? failed(error) : done(written)))
  })
}
