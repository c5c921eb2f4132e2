/** `--threads` of proxies. */
export const THREADS_OPTION = {
  describe: 'Threads that match, pack and unpack, this one counted; auto: one less than there are cores, 4 at most',
  type: 'string',
  requiresArg: true,
  default: 'auto',
} as const

/** The same of `encode`, `estimate` and `decode`. */
export const COMMAND_THREADS_OPTION = {
  ...THREADS_OPTION,
  describe: 'Threads that match, pack and unpack, this one counted; auto: as many as there are cores, 4 at most',
} as const
