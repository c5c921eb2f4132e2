/** Sinks of sessions and links that hear nothing: a test says what it wants to hear. */
import type { ProxyError } from '../../src/errors.ts'
import type { LinkSink } from '../../src/link/api.ts'
import type { FlowInfo, TransportSink } from '../../src/session/api.ts'

export class SilentSink implements LinkSink, TransportSink {
  onOpen(_flow: number, _info: FlowInfo): void {}
  onData(_flow: number, _payload: Uint8Array): void {}
  onBatch(_flow: number, _parts: readonly Uint8Array[], _rawLength: number): void {}
  onFin(_flow: number): void {}
  onReset(_flow: number, _code: number, _text: string): void {}
  onTaken(_flow: number): void {}
  onRefused(_flow: number, _text: string): void {}
  onEnd(_flow: number): void {}
  onCredit(_flow: number): void {}
  onWant(_numbers: readonly number[]): void {}
  onPage(_number: number, _page: Uint8Array | undefined): void {}
  onStalled(_sinceMs: number): void {}
  onDrain(): void {}
  onBye(_code: number, _text: string): void {}
  onDead(_error: ProxyError): void {}
  onLost(_connection: number, _error: ProxyError): void {}
  onWork(): void {}
  onConnection(_connection: number, _up: boolean, _standing: number, _error?: Error): void {}
}

/** One that hears only this. */
export function sinkOf(hears: Partial<SilentSink>): SilentSink {
  return Object.assign(new SilentSink(), hears)
}
