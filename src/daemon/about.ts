/** What this installation is made of: what a report of a fault, or a look over a fleet, wants to know. */
import { createZstdCompress } from 'node:zlib'
import { loadLz4 } from '../compression/lz4.ts'
import { ImmediateWriter } from '../compression/zlib-now.ts'
import { kernelBuild } from '../kernel/kernel.ts'
import { FEATURES, VERSION_MAJOR, VERSION_MINOR } from '../wan/wire.ts'
import { CONTROL_API } from './control-api.ts'
import { VERSION } from './version.ts'

/** `pageferry --version --json`: fields are added, and never change their meaning. */
export interface About {
  readonly version: string
  /** Between proxies, and what of it is optional. */
  readonly protocol: { readonly version: string; readonly features: readonly string[] }
  readonly controlApi: number
  /** `modules` is the ABI that addons are built for. */
  readonly node: { readonly version: string; readonly modules: string; readonly path: string }
  readonly platform: string
  readonly codecs: {
    /** `isFast`: small pieces are packed on the spot, without a trip to another thread (zlib-now.ts). */
    readonly zstd: { readonly implementation: 'node'; readonly version: string; readonly isFast: boolean }
    /** `isFast`: the codec that is built for this Node, not the slower one that stands in for it. */
    readonly lz4: { readonly implementation: 'lz4' | 'lz4-napi'; readonly isFast: boolean }
  }
  /** `twin`: plain TypeScript, which is slower. */
  readonly kernel: {
    readonly implementation: 'simd' | 'twin'
    /** The first digits of the SHA-256 of the WebAssembly module. */
    readonly build?: string
    /** What it asks of WebAssembly beyond its first version. */
    readonly features: readonly string[]
  }
}

/** @throws INTERNAL where no LZ4 implementation can be loaded */
export function about(): About {
  const { implementation } = loadLz4()
  return {
    version: VERSION,
    protocol: { version: `${VERSION_MAJOR}.${VERSION_MINOR}`, features: FEATURES },
    controlApi: CONTROL_API,
    node: { version: process.versions.node, modules: process.versions.modules, path: process.execPath },
    platform: `${process.platform}-${process.arch}`,
    codecs: {
      zstd: { implementation: 'node', version: process.versions.zstd ?? 'unknown', isFast: packsOnTheSpot() },
      lz4: { implementation, isFast: implementation === 'lz4' },
    },
    kernel: kernelBuild(),
  }
}

function packsOnTheSpot(): boolean {
  const stream = createZstdCompress()
  const isThere = ImmediateWriter.of(stream) !== undefined
  stream.destroy()
  return isThere
}
