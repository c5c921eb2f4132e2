/** `--threads`, for proxies, `encode`, `estimate` and `decode` alike. */
export const THREADS_OPTION = {
  describe: 'Threads that match, pack and unpack, this one counted; auto: one less than there are cores, 4 at most',
  type: 'string',
  requiresArg: true,
  default: 'auto',
} as const
