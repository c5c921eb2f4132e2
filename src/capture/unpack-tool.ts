/**
 * Compression that Node does not know and libvirt writes, bzip2, xz, lzop, and what kernels come in, the first form of lz4. The distribution's own tools take it off, as
 * child processes between two pipes. libvirt itself packs and unpacks with these very programs, so whoever has such an
 * image has them or can install them; the packages that would do it in this process are abandoned or builds of the same C
 * libraries. What a damaged or hostile file does to a decompressor, it does to a process that has nothing else.
 */
import { spawn } from 'node:child_process'
import type { Writable } from 'node:stream'
import { ProxyError } from '../errors.ts'
import type { Chunks } from './input-file.ts'
import { UNPACK_MEMORY_MAX } from './limits.ts'

export type ToolPacking = 'bzip2' | 'xz' | 'lzop' | 'lz4'

/** How each is called; bzip2 takes 4 MB, lz4 24 MB and lzop 64 MB at most, whatever a file says. */
const TOOLS: Readonly<Record<ToolPacking, { readonly args: readonly string[]; readonly package: string }>> = {
  bzip2: { args: ['-dc'], package: 'bzip2' },
  xz: { args: ['-dc', '--threads=1', `--memlimit-decompress=${UNPACK_MEMORY_MAX}`], package: 'xz-utils' },
  lzop: { args: ['-dc', '--ignore-warn'], package: 'lzop' },
  lz4: { args: ['-dc'], package: 'lz4' },
}

/** lzop tells a short read by the system's last error, whatever that was, and the name of its input behind it. */
const ENDS_EARLY = /\bends? unexpectedly|unexpected end|^lzop: .*: <stdin>$/i
const MAGICS: readonly (readonly [ToolPacking, string])[] = [
  ['xz', '\xfd7zXZ\0'],
  ['lzop', '\x89LZO\0\r\n\x1a\n'],
  ['lz4', '\x02\x21\x4c\x18'],
]
/** Behind `BZh` and a digit: the magic of a block, or of the end of nothing. */
const BZIP2_BLOCKS = ['1AY&SY', '\x17rE8P\x90']

/** What the first bytes say; undefined: none of these. */
export function toolPackingOf(head: Uint8Array): ToolPacking | undefined {
  const text = Buffer.from(head.subarray(0, 10)).toString('latin1')
  if (/^BZh[1-9]/.test(text) && BZIP2_BLOCKS.includes(text.slice(4))) return 'bzip2'
  return MAGICS.find(([, magic]) => text.startsWith(magic))?.[0]
}

/**
 * The bytes inside.
 *
 * @param name what errors call the input
 * @param signal ends the program at once: one in another waits for bytes that may never come
 * @throws IO where the tool is not there, CAPTURE_FORMAT for damaged data, QEMU_TRUNCATED where they end early; at the
 * compressed byte up to which the tool had taken them
 */
export async function* unpackWithTool(name: string, packing: ToolPacking, chunks: Chunks, signal: AbortSignal): Chunks {
  signal.throwIfAborted()
  // No settings of the user's (XZ_OPT, LZOP, BZIP): they would change what the tools do.
  const env = { PATH: process.env.PATH, LC_ALL: 'C' }
  const child = spawn(packing, TOOLS[packing].args, { stdio: 'pipe', env })
  let told = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    told = (told + text).slice(0, 500)
  })
  const ended = new Promise<{ error?: Error; status: number | null }>(done => {
    child.once('error', error => done({ error, status: null })).once('close', status => done({ status }))
  })
  const end = (): void => {
    child.kill('SIGKILL')
    // Whatever it started in its turn may hold the pipes open.
    for (const pipe of child.stdio) pipe?.destroy()
  }
  signal.addEventListener('abort', end)
  const fed = { bytes: 0 }
  let fault: { readonly cause: unknown } | undefined
  const feeding = feed(chunks, child.stdin, fed).catch((cause: unknown) => {
    fault = { cause }
    child.kill('SIGKILL')
  })
  try {
    for await (const chunk of child.stdout) yield chunk as Buffer
    const { error, status } = await ended
    if (fault !== undefined) throw fault.cause
    if (error !== undefined || status !== 0) throw failed(name, packing, fed.bytes, error, told)
    await feeding
  } finally {
    signal.removeEventListener('abort', end)
    end()
  }
}

/** A chunk is valid until the next one is asked for, so each has to be taken. A tool that ended takes no more: it says why. */
async function feed(chunks: Chunks, to: Writable, fed: { bytes: number }): Promise<void> {
  let gone = false
  to.on('error', () => {
    gone = true
  })
  for await (const chunk of chunks) {
    await new Promise<void>(taken => to.write(chunk, () => taken()))
    if (gone) return
    fed.bytes += chunk.length
  }
  to.end()
}

function failed(
  name: string,
  packing: ToolPacking,
  offset: number,
  error: Error | undefined,
  told: string,
): ProxyError {
  const where = { stream: name, offset }
  const options = { cause: error }
  if ((error as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') {
    const action = `install ${TOOLS[packing].package}, or unpack it elsewhere`
    return new ProxyError('IO', `packed with ${packing}, which is not installed here`, where, action, options)
  }
  const said = (error?.message ?? told.split('\n').find(line => line.trim() !== '') ?? `${packing} was ended`).trim()
  if (ENDS_EARLY.test(said)) {
    return new ProxyError('QEMU_TRUNCATED', `the ${packing} data end early`, where, 'copy it again, whole', options)
  }
  if (/memory usage limit/i.test(said)) {
    const what = `xz data that take more than ${UNPACK_MEMORY_MAX / 2 ** 20} MiB to unpack`
    return new ProxyError('CAPTURE_FORMAT', what, where, 'unpack it first: xz -dk FILE', options)
  }
  return new ProxyError('CAPTURE_FORMAT', `the ${packing} data are damaged: ${said}`, where, 'copy it again', options)
}
