/** A sink whose defects end what its connection is for, and not the process, as what is thrown in the event loop would. */
import type { SocketSink } from './qemu-socket.ts'

/** @param defect told of what the sink throws; it is asked for nothing more once its connection is reset over that */
export function guardedSink(sink: SocketSink, defect: (error: unknown) => void): SocketSink {
  const guard = <T>(run: () => T): T | undefined => {
    try {
      return run()
    } catch (error) {
      defect(error)
      return undefined
    }
  }
  return {
    nextSlot: () => guard(() => sink.nextSlot()),
    onBytes: count => guard(() => sink.onBytes(count)),
    onEnd: () => guard(() => sink.onEnd()),
    onClosed: closed => guard(() => sink.onClosed(closed)),
  }
}
