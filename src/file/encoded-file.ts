/** What reader and writer of encoded files agree on (docs/protocol.md, section 8). */

/** The one flow of a file. */
export const FILE_FLOW = 1
/** The one migration of a file. */
export const FILE_MIGRATION = 1
