/**
 * An address of loopback that no other process of the tests takes: ports that must be known beforehand, or must follow each
 * other, are free there. A second run of the same tests beside this one has another.
 */
export function ownHost(): string {
  return `127.83.${(process.pid >> 8) & 255}.${process.pid & 255 || 1}`
}
