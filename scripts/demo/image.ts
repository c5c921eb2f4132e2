/** The disk image that the demonstration's guests would boot from: the files of their initramfs and their kernel, as ext4. */
import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { guestFiles } from '../harness/qemu/versions.ts'

const IMAGE_BYTES = 64 << 20

/** @param folder where it is made. @returns its path */
export async function guestImage(folder: string): Promise<string> {
  const { kernel, initramfs } = await guestFiles()
  const [tree, image] = [join(folder, 'tree'), join(folder, 'guest.img')]
  mkdirSync(join(tree, 'boot'), { recursive: true })
  execFileSync('cpio', ['-id', '--quiet'], { cwd: tree, input: gunzipSync(readFileSync(initramfs)) })
  copyFileSync(kernel, join(tree, 'boot/vmlinuz'))
  writeFileSync(image, '')
  truncateSync(image, IMAGE_BYTES)
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` }
  execFileSync('mkfs.ext4', ['-q', '-b', '4096', '-d', tree, image], { env })
  return image
}
