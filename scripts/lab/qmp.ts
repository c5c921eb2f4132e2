// A QMP client over the stdin and stdout of a QEMU that was started with `-qmp stdio`: no socket is opened anywhere.

import type { Readable, Writable } from 'node:stream'

/** What QEMU says when it greets: `{ major: 7, minor: 2, micro: 22 }` and the package's own version. */
export interface QemuVersion {
  readonly qemu: { readonly major: number; readonly minor: number; readonly micro: number }
  readonly package: string
}

interface Reply {
  QMP?: { version: QemuVersion }
  return?: unknown
  error?: { class: string; desc: string }
  event?: string
}

interface Waiting {
  resolve(value: unknown): void
  reject(error: Error): void
}

export class Qmp {
  readonly version: Promise<QemuVersion>
  private greeted!: (version: QemuVersion) => void
  private refused!: (error: Error) => void
  private readonly waiting: Waiting[] = []
  private readonly to: Writable
  private ended: Error | undefined
  private rest = ''

  constructor(to: Writable, from: Readable) {
    this.to = to
    this.version = new Promise((resolve, reject) => {
      this.greeted = resolve
      this.refused = reject
    })
    this.version.catch(() => {}) // the caller meets it where it awaits it
    from.setEncoding('utf8')
    from.on('data', (text: string) => this.take(text))
    from.on('end', () => this.end(new Error('QEMU closed its control channel')))
    to.on('error', error => this.end(error))
  }

  /** Runs one command. @throws Error with QEMU's own description. */
  execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    if (this.ended) return Promise.reject(this.ended)
    return new Promise((resolve, reject) => {
      this.waiting.push({
        resolve,
        reject: error => reject(new Error(`QMP ${command}: ${error.message}`)),
      })
      this.to.write(`${JSON.stringify({ execute: command, arguments: args })}\n`)
    })
  }

  private take(text: string): void {
    const lines = (this.rest + text).split('\n')
    this.rest = lines.pop()!
    for (const line of lines) if (line.trim() !== '') this.reply(JSON.parse(line) as Reply)
  }

  private reply(reply: Reply): void {
    if (reply.QMP) this.greeted(reply.QMP.version)
    else if (reply.error) this.waiting.shift()?.reject(new Error(reply.error.desc))
    else if (reply.event === undefined) this.waiting.shift()?.resolve(reply.return)
  }

  private end(error: Error): void {
    this.ended ??= error
    this.refused(this.ended)
    for (const waiting of this.waiting.splice(0)) waiting.reject(this.ended)
  }
}
