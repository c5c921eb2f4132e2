/** A process that is out of descriptors when it starts the one that fetches, and has some later; tells what it tells. */
import { closeSync, openSync } from 'node:fs'
import { Events } from '../../src/daemon/events.ts'
import { SetSupply } from '../../src/daemon/set-supply.ts'

process.on('message', () => {}) // keeps it here until it is told, or the test is gone
process.on('disconnect', () => process.exit())
const events = new Events()
const fds: number[] = []
events.subscribe(({ fields }) => {
  const { error } = fields as { error: string }
  process.send!(error, () => {
    if (!error.includes('EMFILE')) process.exit()
    for (const fd of fds.splice(0)) closeSync(fd)
  })
})
const nowhere = '/nonexistent/channel.pub'
const supply = new SetSupply(
  {
    own: nowhere,
    storeKey: undefined,
    remote: ['nowhere:'],
    insecure: false,
    channels: ['stable'],
    trust: nowhere,
    signers: undefined,
    maxBytes: undefined,
  },
  events,
)
try {
  for (;;) fds.push(openSync('/dev/null', 'r'))
} catch {
  supply.start()
}
