/**
 * A service as small as can be, for the tests under systemd-socket-activate and for a look under a real systemd:
 * listens on `fd:NAME` for each argument, sends back what it gets, says what it does on stdout and to systemd. Ends at
 * SIGTERM when its connections have ended.
 */
import { spawnSync } from 'node:child_process'
import { Notifier, takeListenFds } from '../../src/daemon/systemd.ts'
import { formatAddress, parseAddress } from '../../src/relay/address.ts'
import { listen } from '../../src/relay/listener.ts'

const say = (what: Record<string, unknown>): void => console.log(JSON.stringify(what))

const notifier = new Notifier(why => say({ failed: why }))
const fds = takeListenFds()
// A child must inherit neither the sockets nor the variables.
const child = spawnSync('/bin/sh', ['-c', 'ls /proc/self/fd | tr "\\n" " "; echo "$LISTEN_FDS $NOTIFY_SOCKET"'])
say({ fds: [...fds], child: child.stdout.toString().trim(), uid: process.getuid?.(), node: process.version })

let open = 0
let stopping = false
const listeners = await Promise.all(
  process.argv.slice(2).map(name =>
    listen(
      parseAddress(`fd:${name}`),
      (socket, at) => {
        open++
        say({ accepted: name, port: at.port ?? null })
        const slot = new Uint8Array(65536)
        let writing = false
        socket.start({
          nextSlot: () => (writing ? undefined : slot),
          onBytes(count) {
            writing = true
            socket.write(slot.subarray(0, count), () => {
              writing = false
              socket.resume()
            })
          },
          onEnd: () => socket.finish(),
          onClosed(closed) {
            open--
            say({ closed: closed.how })
            if (stopping && open === 0) void end()
          },
        })
      },
      { fds, beyondLoopback: name === 'wan' },
    ),
  ),
)
say({ listening: listeners.flatMap(l => l.addresses.map(formatAddress)) })
notifier.ready(`serving ${process.argv.slice(2).join(' ')}`)
notifier.startWatchdog()

async function end(): Promise<void> {
  await notifier.close()
  process.exit(0)
}
process.on('SIGHUP', () => {
  notifier.reloading()
  say({ reloaded: true })
  notifier.ready()
})
process.on('SIGTERM', () => {
  stopping = true
  notifier.stopping(`finishing ${open}`)
  for (const listener of listeners) void listener.close()
  if (open === 0) void end()
})
