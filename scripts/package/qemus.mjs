/**
 * Both ends of a migration without a QEMU: sends half of a stream, makes HALF when it has arrived, waits for GO, sends the
 * rest. node qemus.mjs SOURCE DESTINATION STREAM GO HALF ARRIVED
 */
import { createWriteStream, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

const [from, to, stream, go, half, arrived] = process.argv.slice(2)
const place = text => ({ host: text.replace(/:\d+$/, ''), port: Number(text.replace(/^.*:/, '')) })
const bytes = readFileSync(stream)
const middle = bytes.length >> 1
let got = 0
const server = createServer(socket => {
  const file = createWriteStream(arrived)
  socket.on('data', data => {
    got += data.length
    // the proxy hands on whole batches: what is held back of the half is little
    if (got > middle / 2 && !existsSync(half)) writeFileSync(half, '')
  })
  socket.pipe(file)
  file.on('close', () => server.close())
})
server.listen(place(to), async () => {
  const socket = connect(place(from))
  socket.write(bytes.subarray(0, middle))
  while (!existsSync(go)) await sleep(100)
  socket.end(bytes.subarray(middle))
})
