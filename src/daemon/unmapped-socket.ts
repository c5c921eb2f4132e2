/** A connection of a disk's server that gets holes for zeroes, as its flow sees it. What becomes what, src/nbd/unmapped-zeroes.ts says. */
import { UnmappedZeroes } from '../nbd/unmapped-zeroes.ts'
import { guardedSink } from '../relay/guarded-sink.ts'
import type { QemuSocket, SocketSink, WriteDone } from '../relay/qemu-socket.ts'
import { WrittenPieces } from '../relay/written-pieces.ts'

/** What a flow has of a connection that it dialled. */
export type DialledSocket = Pick<QemuSocket, 'start' | 'resume' | 'write' | 'finish' | 'reset'>

export class UnmappedSocket implements DialledSocket {
  private readonly socket: QemuSocket
  private readonly defect: (error: unknown) => void
  private readonly zeroes: UnmappedZeroes
  /** Of the write that is under way. */
  private writing: WrittenPieces | undefined

  /** @param defect told of what is wrong with us */
  constructor(socket: QemuSocket, defect: (error: unknown) => void) {
    this.defect = defect
    this.socket = socket
    this.zeroes = new UnmappedZeroes(bytes => socket.write(bytes, this.writing?.piece() ?? (() => {})))
  }

  start(sink: SocketSink): void {
    let slot: Uint8Array | undefined
    const listening: SocketSink = {
      nextSlot: () => {
        slot = sink.nextSlot()
        return slot
      },
      onBytes: count => {
        this.zeroes.fromServer(slot!.subarray(0, count))
        sink.onBytes(count)
      },
      onEnd: () => sink.onEnd(),
      onClosed: closed => sink.onClosed(closed),
    }
    this.socket.start(guardedSink(listening, this.defect))
  }

  write(view: Uint8Array, done: WriteDone): void {
    this.writing = new WrittenPieces(done)
    this.zeroes.fromClient(view)
    this.writing.all()
    this.writing = undefined
  }

  finish(): void {
    this.zeroes.clientEnds()
    this.socket.finish()
  }

  resume(): void {
    this.socket.resume()
  }

  reset(): void {
    this.socket.reset()
  }
}
