/** Whether this host's clock follows others: two sites' logs are read side by side, and certificates have their time. */
import { execFile } from 'node:child_process'

/** timedatectl asks a service that may have to be started. */
const ANSWER_MS = 5000

/** @returns undefined where nobody here can say */
export function isClockSynchronized(): Promise<boolean | undefined> {
  return new Promise(done => {
    const args = ['show', '--property=NTPSynchronized', '--value']
    execFile('timedatectl', args, { timeout: ANSWER_MS, maxBuffer: 4096 }, (error, stdout) => {
      const said = error ? '' : stdout.trim()
      done(said === 'yes' ? true : said === 'no' ? false : undefined)
    })
  })
}
