/** Which version this is. */
import { readFileSync } from 'node:fs'

export const { version: VERSION } = JSON.parse(
  readFileSync(new URL('../../package.json', import.meta.url), 'utf8'),
) as { readonly version: string }

/** Name and version, as the other side's log has them (protocol.md §2, `agent`). */
export const AGENT = `pageferry ${VERSION}`
