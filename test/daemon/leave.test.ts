/** A proxy's process ends when it has stopped, also where threads are in reads that nobody answers. */
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import t from 'tap'
import { scratch } from '../template/makers.ts'

t.setTimeout(590_000) // the machine may be busy

/** Reads of a FIFO that somebody holds open and nobody writes to, in a thread and in libuv's pool. */
const HANGS = {
  nowhere: '',
  'in a thread': `new Worker('require("node:fs").readSync(' + fd + ', Buffer.alloc(1))', { eval: true, execArgv: [] })`,
  'in the pool': 'read(fd, Buffer.alloc(1), 0, 1, null, () => {})',
}

for (const [where, hang] of Object.entries(HANGS)) {
  t.test(`a read that hangs: ${where}`, async t => {
    const fifo = join(scratch(t.teardown).folder, 'fifo')
    execFileSync('mkfifo', [fifo])
    const program = `
      import { constants, openSync, read } from 'node:fs'
      import { Worker } from 'node:worker_threads'
      import { leave } from ${JSON.stringify(new URL('../../src/daemon/leave.ts', import.meta.url).href)}
      const fd = openSync(${JSON.stringify(fifo)}, constants.O_RDWR)
      ${hang}
      process.exitCode = 130
      leave()`
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['ignore', 'pipe', 'pipe'] })
    t.teardown(() => child.kill('SIGKILL'))
    let told = ''
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', text => (told += text))
    t.same(await once(child, 'close'), [130, null], 'with its status')
    t.equal(told, '', 'and without a word')
  })
}
