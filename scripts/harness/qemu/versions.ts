/** Which QEMUs are here: the system's own, and QEMU 10 below .cache by scripts/fetch-qemu10.sh. */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const run = promisify(execFile)
const root = fileURLToPath(new URL('../../..', import.meta.url))

/** A QEMU that can be started. */
export interface QemuVersion {
  /** Absolute path of the program, or its name where PATH finds it. */
  readonly command: string
  /** As `7.2.22`. */
  readonly version: string
  readonly major: number
  readonly minor: number
  /**
   * Does TCG mark every page dirty that a running guest writes? Not before 9.0 (its TLB is not re-armed after a bitmap
   * sync): there, the memory of source and destination may be compared only for a guest that was paused.
   */
  readonly tcgTracksDirtyPages: boolean
}

/** A QEMU, or why there is none. */
export type FoundQemu =
  | { readonly qemu: QemuVersion; readonly skip?: never }
  | { readonly skip: string; readonly qemu?: never }

async function ask(command: string): Promise<FoundQemu> {
  try {
    const { stdout } = await run(command, ['--version'])
    const found = /version ((\d+)\.(\d+)\.\d+)/.exec(stdout)
    if (!found) return { skip: `${command} does not tell its version` }
    const major = Number(found[2])
    const qemu = { command, version: found[1]!, major, minor: Number(found[3]), tcgTracksDirtyPages: major >= 9 }
    return { qemu }
  } catch (error) {
    return { skip: `${command}: ${(error as Error).message.split('\n')[0]}` }
  }
}

const once = new Map<string, Promise<FoundQemu>>()
function cached(name: string, make: () => Promise<FoundQemu>): Promise<FoundQemu> {
  const known = once.get(name) ?? make()
  once.set(name, known)
  return known
}

/** The system's qemu-system-x86_64: 7.2 on Debian 12. */
export function systemQemu(): Promise<FoundQemu> {
  return cached('system', () => ask('qemu-system-x86_64'))
}

/** QEMU 10 in .cache/qemu10, fetched first when it is not there and the network allows: a minute. */
export function qemu10(): Promise<FoundQemu> {
  return cached('10', async () => {
    try {
      await run(`${root}scripts/fetch-qemu10.sh`, [`${root}.cache/qemu10`], { timeout: 600_000 })
    } catch (error) {
      const { stderr, message } = error as Error & { stderr?: string }
      return { skip: `QEMU 10 cannot be had: ${(stderr || message).trim().split('\n').at(-1)}` }
    }
    return ask(`${root}.cache/qemu10/qemu10`)
  })
}

/** Every QEMU that can be had here, oldest first, and why the others cannot. */
export async function qemuVersions(): Promise<{ readonly qemus: QemuVersion[]; readonly skips: string[] }> {
  const found = [await systemQemu(), await qemu10()]
  const qemus = found.flatMap(f => (f.qemu ? [f.qemu] : []))
  qemus.sort((a, b) => a.major - b.major || a.minor - b.minor)
  return { qemus, skips: found.flatMap(f => (f.skip === undefined ? [] : [f.skip])) }
}

/** Makes the test guest's kernel and initramfs by scripts/harness/guest/make-guest.sh; at once when they are there. */
export async function guestFiles(): Promise<{ readonly kernel: string; readonly initramfs: string }> {
  const { stdout } = await run(`${root}scripts/harness/guest/make-guest.sh`, [], { timeout: 600_000 })
  const folder = stdout.trim()
  return { kernel: `${folder}/vmlinuz`, initramfs: `${folder}/initramfs.gz` }
}
