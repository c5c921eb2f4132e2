/** Ends a connection at once, in every state that it can be in. */
import type { Socket } from 'node:net'

/** RST, and what was not delivered is lost. A Unix socket, which knows no RST, and one that has not connected yet are closed. */
export function resetSocket(socket: Socket): void {
  // In the instant between FIN asked and FIN sent libuv refuses to reset: the descriptor would leak, and a process that
  // has one spins for ever when it ends. It lasts one turn of the loop.
  if (socket.writableEnded && !socket.writableFinished && socket.writableLength === 0 && !socket.destroyed) {
    socket.once('finish', () => resetNow(socket))
  } else resetNow(socket)
}

function resetNow(socket: Socket): void {
  if (socket.destroyed) return
  if (socket.connecting) {
    socket.destroy() // resetAndDestroy would wait for the connection first
    return
  }
  try {
    socket.resetAndDestroy()
  } catch {
    socket.destroy() // a Unix socket
  }
}
