/**
 * What the kernel holds between the source QEMU and the source proxy, which no queue target sees: a writer that fills its
 * socket as QEMU does, first bytes that pack to nothing (the kernel's buffers grow), then bytes that do not pack, at a
 * capped rate. Beside it the same with a receive buffer as systemd's ReceiveBuffer= sets it, and over a Unix socket.
 *
 *   node test/daemon/parked-bench.ts [RATE_MBIT]
 */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { median } from '../../scripts/harness/median.ts'

const rate = Number(process.argv[2] ?? 100)
const pageferry = fileURLToPath(new URL('../../bin/pageferry', import.meta.url))
const noise = Buffer.from(randomBytes(1 << 24))
const folder = mkdtempSync(`${tmpdir()}/parked-`)
const MAIN = Buffer.from('5145564d00000003ff', 'hex')
/** Starts the proxy as systemd does, with a listening socket whose receive buffer is set: Node cannot set it. */
const ACTIVATE = `
import os, socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if int(sys.argv[1]): s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, int(sys.argv[1]))
s.bind(('127.0.0.1', 0)); s.listen(16); print('port', s.getsockname()[1], flush=True)
os.dup2(s.fileno(), 3); os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='qemu')
os.execv(sys.argv[2], sys.argv[2:])`

const children: ChildProcess[] = []
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
  rmSync(folder, { recursive: true })
})

/** Starts a program; resolves with the last word of the line that has `text`. */
async function start(text: string, command: string, args: string[]): Promise<(text: string) => Promise<string>> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  children.push(child)
  const lines: string[] = []
  createInterface({ input: child.stdout }).on('line', line => lines.push(line))
  const said = async (wanted: string): Promise<string> => {
    for (;;) {
      const line = lines.find(one => one.includes(wanted))
      if (line) return /(\d+)\D*$/.exec(line)?.[1] ?? ''
      await sleep(20)
    }
  }
  await said(text)
  return said
}

/** Bytes in the kernel's queues of a socket's connections: received, and sent. */
function kernel(local: string): [number, number] {
  const port = /\d+$/.exec(local)?.[0]
  const filter = port ? ['-tnH', `( sport = :${port} or dport = :${port} )`] : ['-xnH']
  const rows = execFileSync('ss', filter, { encoding: 'utf8' }).split('\n')
  const own = rows.filter(row => row !== '' && (port || row.includes(local))).map(row => row.trim().split(/\s+/))
  const sum = (column: number): number => own.reduce((total, row) => total + Number(row[column]), 0)
  return port ? [sum(1), sum(2)] : [sum(2), sum(3)]
}

async function measure(receiveBuffer: number | 'unix'): Promise<void> {
  let received = 0
  const target = net.createServer(socket => socket.on('data', chunk => (received += chunk.length)))
  target.listen(0, '127.0.0.1')
  await once(target, 'listening')
  const to = `tcp:127.0.0.1:${(target.address() as net.AddressInfo).port}`
  const far = await start('listening for', pageferry, [
    'destination',
    '--plaintext',
    ...['--listen', 'tcp:127.0.0.1:0', '--target', to],
  ])
  const wan = await far('listening for')
  const options = ['--plaintext', '--peer', `127.0.0.1:${wan}`, '--rate', `${rate}Mbit`, '--effort', '1']
  const path = `${folder}/in.sock`
  let local = path
  let qemu: net.Socket
  if (receiveBuffer === 'unix') {
    await start('session open', pageferry, ['source', '--listen', `unix:${path}`, ...options])
    qemu = net.connect(path)
  } else {
    const args = ['-c', ACTIVATE, String(receiveBuffer), pageferry, 'source', '--listen', 'fd:qemu', ...options]
    local = await (await start('session open', 'python3', args))('port')
    qemu = net.connect(Number(local), '127.0.0.1')
  }
  await once(qemu, 'connect')
  const nothing = Buffer.alloc(1 << 18)
  let noisy = false
  let at = 0
  const next = (): Buffer => {
    if (!noisy) return nothing
    at = (at + (1 << 17)) % noise.length
    return noise.subarray(at, at + (1 << 17))
  }
  qemu.write(MAIN)
  const feed = (): void => {
    while (qemu.write(next()));
    qemu.once('drain', feed)
  }
  feed()
  await sleep(4000)
  const fast = received / 4e6
  noisy = true
  await sleep(4000)
  const queues: number[][] = []
  const from = received
  const fromMs = performance.now()
  for (let i = 0; i < 20; i++) {
    const near = kernel(local)
    const far = kernel(to)
    const inNode = qemu.writableLength // is no part of it: QEMU would not have written it yet
    queues.push([...near, far[0]! + far[1]!, qemu.bytesWritten - inNode - received])
    await sleep(200)
  }
  const slow = ((received - from) * 8) / 1e3 / (performance.now() - fromMs)
  const middle = (column: number): number => median(queues.map(row => row[column]!))
  const [receive, send, beyond, all] = [middle(0), middle(1), middle(2), middle(3)]
  const ms = (bytes: number): string => `${((bytes * 8) / 1e3 / rate).toFixed(0)} ms`
  process.stdout.write(
    `${receiveBuffer === 'unix' ? 'Unix socket' : `TCP, receive buffer ${receiveBuffer || 'as the kernel tunes it'}`}: ` +
      `${fast.toFixed(0)} MB/s that pack to nothing, then ${slow.toFixed(0)} of ${rate} Mbit/s: ` +
      `kernel beside the source ${receive} received + ${send} sent = ${ms(receive! + send!)}, beside the destination ${beyond}; ` +
      `all from QEMU's write to QEMU's read ${all} bytes = ${ms(all!)}\n`,
  )
  qemu.destroy()
  for (const child of children.splice(0)) child.kill('SIGKILL')
  target.close()
}

for (const receiveBuffer of [0, 1 << 20, 1 << 18, 1 << 16, 'unix'] as const) await measure(receiveBuffer)
process.exit()
