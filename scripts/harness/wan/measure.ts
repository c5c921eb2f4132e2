/**
 * What a link really delivers, measured by one TCP connection: run as a program at both of its ends.
 *
 *   node measure.ts serve ADDRESS              prints the port that it took
 *   node measure.ts probe ADDRESS PORT MS      prints a Measurement after about MS milliseconds of sending
 */

import { connect, createServer, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { median } from '../median.ts'

/** What one TCP connection got out of a link. */
export interface Measurement {
  /** Payload in the second half of the transfer, when slow start is over. */
  readonly bitsPerSecond: number
  /** The median of ten echoes. */
  readonly roundTripMs: number
}

/** Answers probes at `address`. @returns the port that it took, and how to stop */
export async function serveMeasurements(
  address: string,
): Promise<{ readonly port: number; readonly close: () => void }> {
  const server = createServer({ noDelay: true }, socket => {
    socket.on('error', () => {})
    socket.once('data', first => {
      if (first[0] === 0x65) {
        if (first.length > 1) socket.write(first.subarray(1)) // 'e': echo what follows
        socket.on('data', chunk => socket.write(chunk))
      } else sink(socket)
    })
  })
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(0, address, resolve))
  const { port } = server.address() as { port: number }
  return { port, close: () => server.close() }
}

/** Takes bytes until they end, then tells how fast the later half came. */
function sink(socket: Socket): void {
  const startMs = performance.now()
  const arrivals: [ms: number, bytes: number][] = [[0, 0]]
  let bytes = 0
  socket.on('data', chunk => {
    bytes += chunk.length
    const ms = performance.now() - startMs
    if (ms - arrivals.at(-1)![0] >= 5) arrivals.push([ms, bytes])
  })
  socket.on('end', () => {
    const [endMs, endBytes] = arrivals.at(-1)!
    const [halfMs, halfBytes] = arrivals.find(([ms]) => ms >= endMs / 2)!
    const bitsPerSecond = endMs > halfMs ? ((endBytes - halfBytes) * 8000) / (endMs - halfMs) : 0
    socket.end(JSON.stringify({ bitsPerSecond }))
  })
}

/** Measures the way to a server of serveMeasurements(). */
export async function probe(host: string, port: number, sendMs: number): Promise<Measurement> {
  const echo = await open(host, port)
  echo.write('e')
  const echoesMs: number[] = []
  for (let i = 0; i < 10; i++) {
    const startMs = performance.now()
    echo.write('.')
    await new Promise(resolve => echo.once('data', resolve))
    echoesMs.push(performance.now() - startMs)
  }
  echo.destroy()
  const bulk = await open(host, port)
  const answer = new Promise<string>((resolve, reject) => {
    let text = ''
    bulk.setEncoding('utf8').on('data', (part: string) => {
      text += part
    })
    bulk.once('end', () => resolve(text)).once('error', reject)
  })
  const block = Buffer.alloc(65_536, 's')
  for (const endMs = performance.now() + sendMs; performance.now() < endMs; ) {
    if (!bulk.write(block)) await new Promise(resolve => bulk.once('drain', resolve))
  }
  bulk.end()
  const { bitsPerSecond } = JSON.parse(await answer) as { bitsPerSecond: number }
  return { bitsPerSecond, roundTripMs: median(echoesMs) }
}

function open(host: string, port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, noDelay: true })
    socket.once('connect', () => resolve(socket)).once('error', reject)
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [mode, address = '', port = '', ms = ''] = process.argv.slice(2)
  if (mode === 'serve') console.log((await serveMeasurements(address)).port)
  else console.log(JSON.stringify(await probe(address, Number(port), Number(ms))))
}
