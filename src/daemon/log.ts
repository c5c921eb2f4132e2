/** What the proxies log to: makeLog in production, anything in tests. One event a line; never one per page or batch. */
export interface Log {
  info(event: string, fields?: object): void
  warn(event: string, fields?: object): void
  error(event: string, fields?: object): void
}
