/**
 * A worker that opens connections and says nothing: workerData is { port, from, perSecond, tellAt }. Says 'opened' when
 * it has opened `tellAt`; any message ends it, and is answered with how many there were.
 */
import net from 'node:net'
import { parentPort, workerData } from 'node:worker_threads'

const { port, from, perSecond, tellAt } = workerData as Record<'port' | 'perSecond' | 'tellAt', number> & {
  from: string
}
const sockets = new Set<net.Socket>()
let opened = 0
const beganMs = performance.now()

const timer = setInterval(() => {
  const due = ((performance.now() - beganMs) / 1000) * perSecond
  // what a busy machine did not let us open is made up for, but not all at once
  for (let i = 0; opened < due && i < perSecond / 20; i++) {
    if (++opened === tellAt) parentPort!.postMessage('opened')
    const socket = net.connect({ port, host: '127.0.0.1', localAddress: from })
    sockets.add(socket)
    socket.on('error', () => {}).on('close', () => sockets.delete(socket))
  }
}, 5)

parentPort!.once('message', () => {
  clearInterval(timer)
  for (const socket of sockets) socket.destroy()
  parentPort!.postMessage(opened)
})
