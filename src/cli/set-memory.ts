/** `--set-memory`, for proxies, `encode` and `estimate` alike. */
import { DEFAULTS } from '../daemon/settings.ts'

export const SET_MEMORY_OPTION = {
  describe: 'Memory for template sets, the newest first; the others are read from the disk',
  type: 'string',
  requiresArg: true,
  default: DEFAULTS.setMemory,
} as const
