/** A source proxy that is killed and started again, as processes: what it left at the other side does not wait for the patience. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { claimPorts } from '../../scripts/harness/claimed-port.ts'
import { thisHost } from '../../src/daemon/instance.ts'
import { until } from '../helpers/until.ts'
import { MAIN, Target } from './daemons.ts'

t.setTimeout(590_000) // the machine may be busy

const PAGEFERRY = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))

class Running implements AsyncDisposable {
  readonly lines: Record<string, unknown>[] = []
  readonly child: ChildProcess
  readonly exit: Promise<unknown>

  constructor(...args: string[]) {
    this.child = spawn(PAGEFERRY, [...args, '--json', '--plaintext'], { stdio: ['ignore', 'pipe', 'inherit'] })
    this.exit = once(this.child, 'exit')
    createInterface({ input: this.child.stdout! }).on('line', line => this.lines.push(JSON.parse(line)))
  }

  of(event: string): Record<string, unknown>[] {
    return this.lines.filter(({ msg }) => msg === event)
  }

  async said(event: string): Promise<Record<string, unknown>> {
    await until(event, () => this.of(event).length > 0)
    return this.of(event)[0]!
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL')
    await this.exit
  }
}

t.test(
  'killed in the middle of a migration, and started again',
  { skip: thisHost()[0] === '' && 'no /etc/machine-id' },
  async t => {
    const folder = mkdtempSync(join(tmpdir(), 'pageferry-')) // a socket's path is short
    t.teardown(() => rmSync(folder, { recursive: true }))
    const [local, at] = [join(folder, 'source.sock'), join(folder, 'target.sock')]
    await using target = new Target()
    target.server.listen(at)
    await once(target.server, 'listening')
    await using destination = new Running('destination', '--listen', 'tcp:127.0.0.1:0', '--target', `unix:${at}`)
    const [, port] = /:(\d+)$/.exec(String((await destination.said('listening for source proxies')).at))!
    // a port that another has at the first start, and nobody at the second
    const taken = await claimPorts(2)
    const other = net.createServer().listen(taken, '127.0.0.1')
    await once(other, 'listening')
    const source = (): Running =>
      new Running(
        ...['source', '--peer', `127.0.0.1:${port}`, '--listen', `unix:${local}`],
        ...['--listen', `ports=tcp:127.0.0.1:${taken}-${taken + 1}`],
      )
    {
      await using first = source()
      await first.said('session open')
      await first.said('ports are taken: tried again')
      const qemu = net.connect(local)
      qemu.on('error', () => {})
      qemu.write(MAIN)
      await until('the first bytes', () => target.received[0]?.equals(MAIN))
    }
    await destination.said('link.down')
    t.notOk(target.sockets[0]!.destroyed, 'the destination waits for it')
    other.close()
    await once(other, 'close')
    await using second = source()
    await second.said('session open')
    await until(
      'the end of what the dead one left',
      () => target.sockets[0]!.destroyed || target.sockets[0]!.readableEnded,
    )
    t.match(destination.of('link.dead'), [{ reason: /started anew/ }])
    t.equal(second.of('link.dead').length, 0)
  },
)
