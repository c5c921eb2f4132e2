/** How it is said that a capture lacks bytes, and what to do about it. */
import type { Missing } from './mended-channel.ts'

/** docs/operations.md says more. */
export const CAPTURE_COMMAND = 'tcpdump -i INTERFACE -s 0 -B 524288 -w FILE tcp port PORT'
export const CAPTURE_WHOLE = `capture again, to a fast disk: ${CAPTURE_COMMAND}`

/** tcpdump's -C and -G leave a row of files. */
export const JOIN_ROTATED = 'if the capture is in several files (tcpdump -C, -G), join them: mergecap -w ALL FILE...'

/** `1,448 bytes are missing at byte 29,000: the capture lacks packets`, and what that cost. */
export function missingText({ gaps, lengthBytes, firstAt, reason, unreadBytes }: Missing): string {
  const count = (value: number): string => value.toLocaleString('en-US')
  const where =
    gaps === 1 ? `at byte ${count(firstAt)}` : `in ${count(gaps)} places, the first at byte ${count(firstAt)}`
  const unread = unreadBytes === 0 ? '' : `; ${count(unreadBytes)} more could not be read, up to the next record`
  return `${count(lengthBytes)} bytes are missing ${where}: ${reason}${unread}`
}
