/** The few parts of WebAssembly that we use: TypeScript declares them only together with the whole DOM. */
declare namespace WebAssembly {
  /** A compiled module; can be posted to workers. */
  class Module {
    constructor(bytes: ArrayBufferView | ArrayBuffer)
    private readonly compiled: true
  }
  /** Linear memory; a shared one can be posted to workers. */
  class Memory {
    constructor(descriptor: { initial: number; maximum: number; shared: true })
    readonly buffer: SharedArrayBuffer
    /** Adds pages of 64 KiB. Views of a shared buffer stay as they are. @returns pages before */
    grow(delta: number): number
  }
  class Instance {
    constructor(module: Module, imports: Record<string, Record<string, unknown>>)
    readonly exports: Record<string, unknown>
  }
  function validate(bytes: ArrayBufferView | ArrayBuffer): boolean
}
